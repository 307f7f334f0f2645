"""Models with quantized layers in ONNX: ONNX Runtime's integers are the layers' own.

Integers are compared with equality, by the certificate. Tolerances stand only at float outputs: ONNX Runtime adds
float32 products in another order than torch, and where a float operation stands before a dynamic layer that last bit
may move a code, which is a step of that layer's output.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import intact
from intact.errors import ExportError, IntactError
from intact.exporters.leaves import forms
from intact.exporters.onnx import ops
from intact.exporters.runtime import optimised_nodes
from intact.leaves import Dynamic, Float16, LeafHow, WeightOnly
from intact.types import PerChannel, PerGroup, PerTensor, PerToken
from tests.leaves.test_operations import First
from tests.zoo.bert import Encoder, MaskKind, tokens

INTEGER = [Dynamic(w, a) for w in (PerTensor(), PerChannel(0), PerGroup(1, 16)) for a in (PerToken(), PerTensor())]
REAL: list[LeafHow] = [Float16(), *(WeightOnly(bits, grain, symmetric) for bits in (4, 8) for symmetric in (True, False)
                                    for grain in (PerChannel(0), PerGroup(1, 16), PerGroup(1, 48), PerGroup(1, 4)))]


def export(q: nn.Module, x: Any, folder: Path) -> tuple[intact.Certificate, onnxruntime.InferenceSession]:
    certificate = intact.export(q, folder / "net.onnx", example_inputs=x)
    assert certificate.ok and certificate.not_fused == ()
    return certificate, onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])


def run(session: onnxruntime.InferenceSession, *xs: Tensor) -> list[Tensor]:
    feeds = {i.name: x.numpy() for i, x in zip(session.get_inputs(), xs, strict=True)}
    return [torch.from_numpy(np.asarray(y)) for y in session.run(None, feeds)]


@pytest.mark.parametrize("how", INTEGER, ids=str)
@pytest.mark.parametrize("rank", [2, 3])
def test_integer_products_are_equal_bit_for_bit(how: Dynamic, rank: int, tmp_path: Path) -> None:
    q = intact.quantize_dynamic(nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 20, bias=False)),
                                {nn.Linear: how})
    certificate, session = export(q, torch.randn(4, *[3] * (rank - 2), 48), tmp_path)
    assert certificate.codes_compared and certificate.clean and not certificate.results_differ
    assert certificate.integer_mac_share == 1.0
    for batch in (1, 5, 40):
        x = torch.randn(batch, *[3] * (rank - 2), 48) * 7.0
        assert torch.equal(run(session, x)[0], q(x))


@pytest.mark.parametrize("how", REAL, ids=str)
def test_products_with_real_weights_have_those_weights(how: LeafHow, tmp_path: Path) -> None:
    q = intact.quantize_dynamic(nn.Linear(144, 32), {"": how})
    certificate, session = export(q, torch.randn(4, 144), tmp_path)
    assert certificate.codes_compared == 144 * 32  # every weight, by one-hot inputs
    x = torch.randn(7, 144)
    assert torch.allclose(run(session, x)[0], q(x), atol=1e-5)
    assert ("MatMulNBits" in certificate.kernels_actual) == (
        isinstance(how, WeightOnly) and how.weight != PerGroup(1, 4))


@pytest.mark.parametrize("how", [*INTEGER, *REAL], ids=str)
def test_rows_of_embeddings_are_equal_bit_for_bit(how: LeafHow, tmp_path: Path) -> None:
    q = intact.quantize_dynamic(nn.Embedding(20, 144), {"": how})
    _, session = export(q, torch.randint(0, 20, (4, 3)), tmp_path)
    index = torch.randint(0, 20, (2, 3))
    assert torch.equal(run(session, index)[0], q(index))


@pytest.mark.parametrize("how", [INTEGER[2], INTEGER[3], REAL[0], REAL[1], REAL[-4]], ids=str)
@pytest.mark.parametrize("axes", [1, 2])
def test_convolutions(how: LeafHow, axes: int, tmp_path: Path) -> None:
    kind, size = (nn.Conv1d, (9,)) if axes == 1 else (nn.Conv2d, (9, 8))
    q = intact.quantize_dynamic(kind(16, 8, 3, stride=2, padding=1, dilation=1, groups=2), {"": how})
    certificate, session = export(q, torch.randn(4, 16, *size), tmp_path)
    x = torch.randn(3, 16, *size)
    if isinstance(how, Dynamic):
        assert certificate.clean and torch.equal(run(session, x)[0], q(x))
    assert torch.allclose(run(session, x)[0], q(x), atol=1e-5)


RECURRENT = {
    "lstm": lambda: nn.LSTM(16, 8, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(16, 32, proj_size=16, batch_first=True),
    "gru": lambda: nn.GRU(16, 8, bidirectional=True, batch_first=True),
    "tanh": lambda: nn.RNN(16, 8, bias=False, batch_first=True),
    "relu": lambda: nn.RNN(16, 8, nonlinearity="relu", bidirectional=True, num_layers=2, batch_first=True),
}


@pytest.mark.parametrize("how", [Dynamic(), Dynamic(PerChannel(0), PerTensor()), Dynamic(PerGroup(1, 8)), Float16(),
                                 WeightOnly(4, PerGroup(1, 8))], ids=str)
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_have_equal_integers_at_every_step(name: str, how: LeafHow, tmp_path: Path) -> None:
    layer = RECURRENT[name]()
    q = intact.quantize_dynamic(First(layer), {type(layer): how})
    x = torch.randn(4, 6, 16)
    if name == "lstm":  # its batch is the second axis
        q, x = nn.Sequential(Turned(), q), x
    certificate, session = export(q, x, tmp_path)
    assert bool(certificate.codes_compared) == isinstance(how, Dynamic)
    x = torch.randn(3, 6, 16)
    for mine, theirs in zip(run(session, x), q(x), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-5 if not isinstance(how, Dynamic) else 1e-2)


class Turned(nn.Module):
    """Steps first."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(0, 1)


def test_a_cell_and_a_bag(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag, self.cell = nn.EmbeddingBag(20, 16, padding_idx=0), nn.GRUCell(16, 8)

        def forward(self, x: Tensor) -> Tensor:
            h: Tensor = self.cell(self.bag(x))
            return h

    q, x = intact.quantize_dynamic(Net()), torch.randint(0, 20, (4, 3))
    _, session = export(q, x, tmp_path)
    assert torch.allclose(run(session, x[:2])[0], q(x[:2]), atol=1e-5)


@pytest.mark.parametrize("kind", [MaskKind.ADDED_WHERE, MaskKind.FILLED, MaskKind.MULTIHEAD])
def test_an_encoder_shares_the_codes_of_q_k_and_v(kind: MaskKind, tmp_path: Path) -> None:
    net = Encoder(kind).eval()
    q, x = intact.quantize_dynamic(net), tokens(4)
    certificate, session = export(q, x, tmp_path)
    found = Counter(n.op_type for n in optimised_nodes(tmp_path / "net.onnx"))
    assert found["MatMulIntegerToFloat"] == 13 and found["QuantizeLinear"] == 9  # 2 layers of 4, and the pooler
    y = run(session, *tokens(3, seed=1).values())[0]
    assert torch.allclose(y, q(**tokens(3, seed=1))["last_hidden_state"], atol=0.05)
    assert certificate.codes_compared > 10_000 and certificate.results_largest_difference < 1e-5


def test_per_tensor_activations_become_the_runtimes_fused_kernel(tmp_path: Path) -> None:
    q = intact.quantize_dynamic(Encoder().eval(), {nn.Linear: Dynamic(PerChannel(0), PerTensor())})
    certificate, _ = export(q, tokens(4), tmp_path)
    # q, k and v share the codes of their operand; the rest is one kernel each
    assert certificate.kernels_actual == {"DynamicQuantizeMatMul": 7, "MatMulIntegerToFloat": 6}


def test_files_are_small_and_tied_weights_stand_once(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.head = nn.Embedding(512, 256), nn.Linear(256, 512, bias=False)
            self.head.weight = self.words.weight

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.head(self.words(x))
            return y

    x, size = torch.randint(0, 512, (4, 3)), 4 * 512 * 256
    for q, share in ((intact.quantize_dynamic(Tied()), 0.28), (intact.quantize_weights(Tied(), group=64), 0.16),
                     (intact.quantize_dynamic(Tied(), dtype="float16"), 0.52)):
        _, session = export(q, x, tmp_path)
        assert (tmp_path / "net.onnx").stat().st_size < share * size
        assert torch.allclose(run(session, x)[0], q(x), atol=1e-4)


@settings(max_examples=25)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 20), st.sampled_from(["token", "tensor"]),
       st.sampled_from([1e-12, 1e-3, 1.0, 1e20]), st.integers(0, 999))
def test_hard_operands(m: int, k: int, n: int, per: str, size: float, seed: int) -> None:
    """Sizes of every remainder; constant rows, ties, zeros."""
    from intact.exporters.onnx.build import build_float
    from intact.exporters.runtime import open_session
    from intact.graph.capture import capture
    from intact.leaves.recording import as_operations

    g = torch.Generator().manual_seed(seed)
    layer = nn.Linear(k, n)
    how = Dynamic(PerChannel(0), PerToken() if per == "token" else PerTensor())
    q = intact.quantize_dynamic(layer, {"": how})
    x = size * torch.randn(m + 2, k, generator=g)
    x[0] = x[0, 0]
    x[1] = torch.randint(0, 9, (k,), generator=g) * size
    with as_operations():
        session = open_session(build_float(capture(q, x, coded=True)))
    assert torch.equal(run(session, x)[0], q(x))


# -- what is refused ----------------------------------------------------------------------------


def refused(folder: Path) -> None:
    assert list(folder.iterdir()) == []


def test_a_model_without_quantized_layers(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing in the model is quantized"):
        intact.export(nn.Linear(8, 4), tmp_path / "net.onnx", example_inputs=torch.randn(3, 8))
    refused(tmp_path)


def test_no_inputs(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="pass example_inputs="):
        intact.export(intact.quantize_dynamic(nn.Linear(8, 4)), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="unknown export format"):
        intact.export(intact.quantize_dynamic(nn.Linear(8, 4)), tmp_path / "net.xyz", example_inputs=torch.randn(3, 8))
    with pytest.raises(IntactError, match="does not fit the layer"):
        intact.export(intact.quantize_dynamic(nn.Linear(8, 4)), tmp_path / "net.onnx", example_inputs=torch.randn(3, 9))
    refused(tmp_path)


def test_an_operation_without_onnx_form_is_named(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.bag = nn.Linear(8, 4), nn.EmbeddingBag(20, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.inner(x)
            return y.kthvalue(2, dim=1).values

    with pytest.raises(ExportError, match=r"aten\.kthvalue"):
        q = intact.quantize_dynamic(Net(), {"inner"})
        intact.export(q, tmp_path / "net.onnx", example_inputs=torch.randn(3, 8))
    refused(tmp_path)


def test_a_module_that_cannot_be_captured_is_named_with_the_reason(tmp_path: Path) -> None:
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * float(x.sum()) if float(x.sum()) > 0 else x

    q = intact.quantize_dynamic(nn.Sequential(nn.Linear(8, 4), Odd()))
    with pytest.raises(ExportError, match=r"1: could not be captured"):
        intact.export(q, tmp_path / "net.onnx", example_inputs=torch.randn(3, 8))
    refused(tmp_path)


def test_another_arithmetic_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "ROW_EPSILON", 1e-6)
    q = intact.quantize_dynamic(nn.Linear(8, 4))
    with pytest.raises(ExportError, match="other integers"):
        intact.export(q, tmp_path / "net.onnx", example_inputs=torch.randn(3, 8))
    refused(tmp_path)


def test_another_function_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setitem(ops.UNARY, "sigmoid", ops.UNARY["tanh"])
    q = intact.quantize_dynamic(nn.Sequential(nn.Linear(8, 4), nn.Sigmoid()))
    with pytest.raises(ExportError, match="computes something else"):
        intact.export(q, tmp_path / "net.onnx", example_inputs=torch.randn(3, 8))
    refused(tmp_path)


def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    q, x = intact.quantize_dynamic(nn.Linear(8, 4)), torch.randn(3, 8)
    first = intact.export(q, tmp_path / "a.onnx", example_inputs=x)
    intact.export(q, tmp_path / "b.onnx", example_inputs=x, data=torch.randn(9, 8))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert json.loads((tmp_path / "a.onnx.certificate.json").read_text())["codes_differ"] == 0
    assert "0 of" in str(first) and "float results" in str(first)
    model = onnx.load(tmp_path / "a.onnx")
    assert {f.name for f in model.functions} == {"MatMulIntegerToFloat"}  # with its definition in standard ONNX
    wide = intact.quantize_dynamic(nn.Linear(64, 64))
    intact.export(wide, tmp_path / "c.onnx", example_inputs=torch.randn(3, 64), external_data=True)
    assert (tmp_path / "c.onnx.data").exists()


class Packed(nn.Module):
    """A recurrent layer over packed sequences, as taggers run them."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(10, 16), nn.LSTM(16, 8, batch_first=True)

    def forward(self, ids: Tensor, lengths: Tensor | None = None) -> Tensor:
        x = self.table(ids)
        if lengths is None:
            return self.lstm(x)[0]
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return nn.utils.rnn.pad_packed_sequence(self.lstm(packed)[0], batch_first=True)[0]


def test_several_batches_to_compare_on(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    q, batches = intact.quantize_dynamic(Named().eval()), [{"x": torch.randn(2, n, 4)} for n in (5, 9, 7)]
    given: dict[str, Any] = {"example_inputs": batches[0], "dynamic": {"x": {1: "length"}}}
    one = intact.export(q, tmp_path / "one.onnx", **given)
    several = intact.export(q, tmp_path / "several.onnx", data=batches, **given)
    assert several.outputs_compared == one.outputs_compared * (5 + 9 + 7) // 5 and several.codes_differ == 0
    with pytest.raises(ExportError, match="nothing to compare"):
        intact.export(q, tmp_path / "none.onnx", data=[], **given)
    found = intact.export(q, tmp_path / "found.onnx", example_inputs=batches[0], data=batches)
    assert found.outputs_compared == several.outputs_compared
    with pytest.raises(IntactError, match="wrong shape"):
        intact.export(q, tmp_path / "one.onnx", example_inputs=batches[0], data=batches[1], dynamic={})


def test_packed_sequences_are_refused_by_name(tmp_path: Path) -> None:
    q = intact.quantize_dynamic(Packed()).eval()
    given = torch.randint(10, (3, 6)), torch.tensor([6, 2, 4])
    assert q(*given).shape == (3, 6, 8)
    with pytest.raises(IntactError, match="packed sequences") as error:
        intact.export(q, tmp_path / "net.onnx", example_inputs=given)
    assert error.value.where == "lstm" and "no pack_padded_sequence" in str(error.value.fix)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_refused_with_the_way_out(dtype: torch.dtype, tmp_path: Path) -> None:
    q, ids = intact.quantize_dynamic(Packed().to(dtype)).eval(), torch.randint(10, (3, 6))
    with pytest.raises(ExportError, match=r"table.*\.float\(\)"):
        intact.export(q, tmp_path / "net.onnx", example_inputs=ids)
    assert intact.export(q.float(), tmp_path / "net.onnx", example_inputs=ids).codes_differ == 0


def test_rows_that_are_looked_up_count_as_codes(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Embedding(10, 32), nn.Tanh())
    ids = torch.randint(10, (3, 6))
    for q in (intact.quantize_weights(net, group=16), intact.quantize_dynamic(net),
              intact.quantize_dynamic(net, dtype=torch.float16)):
        certificate = intact.export(q, tmp_path / "net.onnx", example_inputs=ids)
        assert certificate.codes_differ == 0 and certificate.codes_compared == (3 + 1) * 6 * 32


def test_a_last_bit_that_becomes_a_code_in_the_next_step_is_no_other_function(tmp_path: Path) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        lstm = nn.LSTM(40, 64, 3, batch_first=True, bidirectional=True, proj_size=24)
        certificate, _ = export(intact.quantize_dynamic(lstm), torch.randn(8, 30, 40), tmp_path)
        assert certificate.codes_compared and not certificate.codes_differ


class Stepwise(nn.Module):
    """A language model that goes on from a state; a flag and an input that is not given stand before it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm, self.head = nn.Embedding(20, 16), nn.LSTM(16, 16, 2, batch_first=True), nn.Linear(16, 20)

    def forward(self, x: Tensor, mask: Tensor | None = None, scaled: bool = False,
                state: tuple[Tensor, Tensor] | None = None) -> Any:
        y, state = self.lstm(self.table(x), state)
        return self.head(y) * (2.0 if scaled else 1.0), state


@pytest.mark.parametrize("batch", [1, 2, 3])  # as many as layers, too
def test_states_with_their_samples_on_the_second_axis(batch: int, tmp_path: Path) -> None:
    q = intact.quantize_dynamic(Stepwise())
    given = (torch.randint(0, 20, (batch, 7)), None, True, (torch.randn(2, batch, 16), torch.randn(2, batch, 16)))
    _, session = export(q, given, tmp_path)
    assert [i.shape for i in session.get_inputs()] == [["batch", 7], [2, "batch", 16], [2, "batch", 16]]
    x, h, c = torch.randint(0, 20, (5, 7)), torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    with torch.no_grad():
        y, state = q(x, None, True, (h, c))
    for mine, theirs in zip(run(session, x, h, c), (y, *state), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-2)
