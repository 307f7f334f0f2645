"""Files of models with leaves: fresh processes, ties, refusals, and plain state dicts."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import intact
from intact import ArtifactError


class Net(nn.Module):
    """Everything that can be a leaf, two weights tied."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32)
        self.lstm = nn.LSTM(32, 16, bidirectional=True, batch_first=True)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.conv = nn.Conv1d(32, 32, 3, padding=1)
        self.cell = nn.GRUCell(32, 32)
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, index: torch.Tensor) -> torch.Tensor:
        x, _ = self.lstm(self.table(index))
        x = self.norm(x + self.attention(x, x, x)[0])
        x = self.conv(x.transpose(1, 2)).transpose(1, 2)
        return self.head(self.cell(x[:, -1]))


INDEX = torch.arange(24).reshape(2, 12)
WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "dynamic": lambda n: intact.quantize_dynamic(n, {nn.Module}),
    "float16": lambda n: intact.quantize_dynamic(n, {nn.Module}, dtype=torch.float16),
    "int4": lambda n: intact.quantize_weights(n, group=16),
    "int4 symmetric": lambda n: intact.quantize_weights(n, group=8, symmetric=True, refine=False),
    "int8": lambda n: intact.quantize_weights(n, bits=8, group=None),
    "mixed": lambda n: intact.quantize_dynamic(intact.quantize_weights(n, {"table", "head"}, group=32)),
}


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(3)
    return Net().eval()


@pytest.mark.parametrize("way", WAYS)
def test_a_file_gives_the_same_bits_and_ties(way: str, net: nn.Module, tmp_path: Path) -> None:
    q = WAYS[way](net)
    path = intact.save(q, tmp_path / "net.safetensors")
    again = intact.load(path, model=Net)
    with torch.no_grad():
        assert torch.equal(again.eval()(INDEX), q(INDEX))
    assert again.head.qweight is again.table.qweight and q.head.qweight is q.table.qweight
    assert intact.save(again, tmp_path / "2").read_bytes() == path.read_bytes()
    with safe_open(path, "pt") as file:
        assert ("table.qweight.codes" in file.keys()) != ("head.qweight.codes" in file.keys())  # noqa: SIM118


def test_a_fresh_process(net: nn.Module, tmp_path: Path) -> None:
    q = WAYS["dynamic"](net)
    intact.save(q, tmp_path / "net.safetensors")
    save_file({"y": q(INDEX).detach()}, tmp_path / "y")
    code = ("import sys, torch, intact; from safetensors.torch import load_file; "
            "from tests.leaves.test_artifact import Net, INDEX; torch.set_num_threads(1); "
            "q = intact.load(sys.argv[1] + '/net.safetensors', model=Net).eval(); "
            "sys.exit(not torch.equal(q(INDEX), load_file(sys.argv[1] + '/y')['y']))")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == 0


def test_a_model_that_was_just_made_is_loaded_without_its_dropout(tmp_path: Path) -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.LSTM(8, 8, 2, dropout=0.5))

    fresh, x = make(), torch.randn(5, 2, 8)
    q = intact.quantize_dynamic(make().eval())
    path = intact.save(q, tmp_path / "net.safetensors")
    again = intact.load(path, model=fresh)
    assert torch.equal(again(x)[0], q(x)[0])
    assert fresh.training and not any(m.training for m in again.modules())


def test_state_dicts_are_plain_tensors_and_strict_as_in_torch(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    q, other, x = intact.quantize_dynamic(net), intact.quantize_dynamic(nn.Sequential(
        nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))), torch.randn(5, 8)
    save_file(q.state_dict(), tmp_path / "state")
    assert not torch.equal(other(x), q(x))  # derived numbers are there, and must be made again
    assert str(other.load_state_dict(load_file(tmp_path / "state"))) == "<All keys matched successfully>"
    assert torch.equal(other(x), q(x))
    state = q.state_dict()
    del state["0.qweight.codes"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.qweight\.codes"):
        other.load_state_dict(state)
    assert other.load_state_dict({**state, "more": x}, strict=False) == (["0.qweight.codes"], ["more"])


@pytest.mark.parametrize(("model", "words"), [
    (lambda: nn.Sequential(nn.Linear(8, 8)), "no layer to take a leaf"),
    (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(9, 4)), "does not fit the model"),
    (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4, bias=False)), "not in the model"),
    (lambda: nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4), nn.LayerNorm(4)), "missing from the file"),
    (lambda: 3, "float model is needed"),
])
def test_models_that_do_not_fit(model: Callable[[], nn.Module], words: str, tmp_path: Path) -> None:
    path = intact.save(intact.quantize_dynamic(nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))), tmp_path / "net")
    with pytest.raises(ArtifactError, match=words):
        intact.load(path, model=model)


def test_the_two_kinds_of_files_know_each_other(tmp_path: Path) -> None:
    leaves = intact.save(intact.quantize_dynamic(nn.Linear(4, 2)), tmp_path / "leaves")
    whole = intact.save(intact.quantize(nn.Linear(4, 2), [torch.randn(8, 4)]), tmp_path / "whole")
    with pytest.raises(ArtifactError, match="model=net"):
        intact.load(leaves)
    with pytest.raises(ArtifactError, match=r"intact\.load\(path\)"):
        intact.load(whole, model=nn.Linear(4, 2))
    with pytest.raises(ArtifactError, match="integer model"):
        intact.save(nn.Linear(4, 2), tmp_path / "float")  # type: ignore[arg-type]
    damaged = bytearray(leaves.read_bytes())
    damaged[-1] ^= 1
    leaves.write_bytes(damaged)
    with pytest.raises(ArtifactError, match="changed"):
        intact.load(leaves, model=nn.Linear(4, 2))
