"""A captured model has each leaf as one operation, which is the leaf."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import intact
from intact import IntactError
from intact.graph.capture import capture
from intact.leaves.how import Dynamic, Float16, LeafHow, WeightOnly
from intact.leaves.recording import as_operations, recording
from intact.types import PerChannel, PerGroup, PerTensor

HOWS: list[LeafHow] = [Dynamic(), Dynamic(PerTensor(), PerTensor()), Dynamic(PerGroup(1, 8)), Float16(),
                       WeightOnly(4, PerGroup(1, 8)), WeightOnly(8, PerChannel(0), symmetric=True)]


class First(nn.Module):
    """Outputs of a recurrent layer, and its last states."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y, state = self.layer(x)
        return (y, *state) if isinstance(state, tuple) else (y, state)


class Cells(nn.Module):
    """A cell that is called step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        state = self.cell(x[:, 0])
        h: Tensor = self.cell(x[:, 1], state)[0]
        return h


LAYERS = {
    "linear": (lambda: nn.Linear(16, 8), torch.randn(4, 5, 16), ["leaf_product"]),
    "conv": (lambda: nn.Conv1d(16, 8, 3, padding=1), torch.randn(4, 16, 9), ["leaf_conv"]),
    "embedding": (lambda: nn.Embedding(30, 16), torch.randint(0, 30, (4, 5)), ["leaf_rows"]),
    "lstm": (lambda: First(nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True)), torch.randn(4, 5, 16),
             ["leaf_recurrent"] * 3),
    "gru": (lambda: First(nn.GRU(16, 8, batch_first=True)), torch.randn(4, 5, 16), ["leaf_recurrent"] * 2),
    "cell": (Cells, torch.randn(4, 5, 16), ["leaf_product"] * 4),
}
TYPES = {nn.Linear, nn.Conv1d, nn.Embedding, nn.LSTM, nn.GRU, nn.LSTMCell}


@pytest.mark.parametrize("how", HOWS, ids=str)
@pytest.mark.parametrize("name", LAYERS)
def test_the_operation_is_the_leaf(name: str, how: LeafHow) -> None:
    make, x, wanted = LAYERS[name]
    net = make()
    if name == "conv" and isinstance(how, Dynamic) and isinstance(how.weight, PerGroup):
        pytest.skip("a convolution has no such form")
    q = intact.quantize_dynamic(net, {t: how for t in TYPES if any(isinstance(m, t) for m in net.modules())})
    with as_operations():
        fm = capture(q, x, coded=True)
    assert [n.op for n in fm.graph if n.op.startswith("leaf_")] == wanted
    for batch in (x, x[:1]):
        with torch.no_grad():
            mine, theirs = fm(batch), q(batch)
        for a, b in zip(*((v if isinstance(v, tuple) else (v,)) for v in (mine, theirs)), strict=True):
            assert torch.equal(a, b)


def test_codes_are_parameters_under_the_names_of_the_model_and_tied_ones_stand_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(30, 16), nn.Linear(16, 30, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.words(x))
            return y

    q = intact.quantize_dynamic(Tied())
    with as_operations():
        fm = capture(q, torch.randint(0, 30, (4, 5)), coded=True)
    assert set(fm.params) <= {f"{m}.qweight.{k}" for m in ("words", "head") for k in ("codes", "scale")}
    assert sum(t.numel() for t in fm.params.values() if t.dtype == torch.int8) == 30 * 16


def test_leaves_compute_by_themselves_outside() -> None:
    with as_operations():
        assert recording()
        with as_operations(False):
            assert not recording()
        assert recording()
    assert not recording()


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
def test_bags_that_are_rows_of_a_matrix(mode: str, padding: int | None) -> None:
    q = intact.quantize_dynamic(nn.EmbeddingBag(30, 8, mode=mode, padding_idx=padding))
    x = torch.randint(0, 8, (6, 5))
    x[2] = 3
    with as_operations():
        fm = capture(q, x, coded=True)
    assert torch.allclose(fm(x), q(x), atol=1e-6)


def test_attention_keeps_a_free_batch() -> None:
    q = intact.quantize_dynamic(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval())
    x = torch.randn(4, 5, 16)
    with as_operations():
        fm = capture(q, x, coded=True)
    assert sum(n.op == "leaf_product" for n in fm.graph) == 6
    assert torch.allclose(fm(x[:3]), q(x[:3]), atol=1e-5)


@pytest.mark.parametrize("how", HOWS, ids=str)
def test_torch_export_gives_the_same_program_to_the_last_bit(how: LeafHow) -> None:
    net = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), First(nn.LSTM(16, 8, batch_first=True)))
    q, x = intact.quantize_dynamic(net, {nn.Linear: how, nn.LSTM: how}).eval(), torch.randn(3, 5, 16)
    free = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(q, (x,), dynamic_shapes=free).module()
    for given in (x, torch.randn(7, 5, 16)):
        with torch.no_grad():
            assert all(map(torch.equal, program(given), q(given)))
    assert not recording()


@pytest.mark.filterwarnings("ignore")
def test_jit_trace_takes_products_and_names_what_it_does_not_take() -> None:
    q, x = intact.quantize_dynamic(nn.Sequential(nn.Linear(16, 16), nn.ReLU())), torch.randn(3, 16)
    traced = torch.jit.trace(q, x)
    for given in (x, torch.randn(30, 16)):
        assert torch.equal(traced(given), q(given))
    with pytest.raises(IntactError, match=r"torch\.export"):
        torch.jit.trace(intact.quantize_dynamic(First(nn.GRU(16, 8))), x[None])
