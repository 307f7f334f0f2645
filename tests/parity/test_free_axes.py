"""Networks with free lengths and sizes: one integer model, with the codes of QFloat and the runtime at every size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import intact
from intact.exporters.runtime import open_session
from intact.graph.dynamic import differing_axes


class Pixels(nn.Module):
    """Fully convolutional, with a residual and a resize to the input's size."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode, self.norm = mode, nn.BatchNorm2d(8)
        self.first, self.second = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.last, self.mix = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.first(x)))
        y = self.last(F.relu(y + self.second(y)))
        return self.mix(F.interpolate(y, size=x.shape[-2:], mode=self.mode))


class Pooled(nn.Module):
    """Classifies images of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 1).flatten(1))


class Speech(nn.Module):
    """Strided and dilated convolutions over time, attention, an output for each frame and one for all."""

    def __init__(self) -> None:
        super().__init__()
        self.frames = nn.Sequential(nn.Conv1d(6, 16, 5, stride=2, padding=2), nn.ReLU(),
                                    nn.Conv1d(16, 16, 3, dilation=2, groups=4), nn.GELU(), nn.AvgPool1d(2))
        self.mix, self.norm = nn.MultiheadAttention(16, 2, batch_first=True), nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.frames(x).transpose(1, 2)
        y = self.norm(y + self.mix(y, y, y, need_weights=False)[0])
        return self.head(y), self.head(y.mean(1))


class Letters(nn.Module):
    """A small causal language model with tied embeddings; says what comes after the last letter."""

    def __init__(self) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(50, 16), nn.Embedding(64, 16)
        self.qkv, self.norm, self.head = nn.Linear(16, 48), nn.LayerNorm(16), nn.Linear(16, 50, bias=False)
        self.head.weight = self.letters.weight

    def forward(self, ids: Tensor) -> Tensor:
        b, n = ids.shape
        x = self.letters(ids) + self.places(torch.arange(n, device=ids.device))
        q, k, v = self.qkv(x).view(b, n, 3, 2, 8).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(self.norm(y.transpose(1, 2).reshape(b, n, 16)))[:, -1]


def images(*size: int) -> Tensor:
    return torch.randn(size[0], 3, *size[1:])


Sizes = list[tuple[int, ...]]
#: the network, its inputs of a size, sizes to calibrate with, and others
CASES: dict[str, tuple[Callable[[], nn.Module], Callable[..., Tensor], Sizes, Sizes]] = {
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 5, stride=2), nn.ReLU(), nn.Conv1d(4, 4, 3, stride=2, padding=1)),
               lambda b, n: torch.randn(b, 3, n), [(8, 40), (8, 33)], [(2, 5), (1, 6), (3, 99)]),
    "pixels": (lambda: Pixels("bilinear"), images, [(8, 16, 24), (4, 21, 20)], [(2, 1, 1), (3, 9, 41)]),
    "pixels, nearest": (lambda: Pixels("nearest"), images, [(8, 16, 24), (4, 21, 20)], [(2, 1, 1), (3, 9, 41)]),
    "pooled": (Pooled, images, [(8, 16, 24), (4, 21, 20)], [(2, 1, 1), (3, 9, 41)]),
    "speech": (Speech, lambda b, n: torch.randn(b, 6, n), [(8, 40), (8, 33)], [(2, 15), (1, 17), (3, 99)]),
    "encoder": (lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2),
                lambda b, n: torch.randn(b, n, 16), [(8, 10), (8, 13)], [(2, 1), (1, 2), (3, 40)]),
    "letters": (Letters, lambda b, n: torch.randint(0, 50, (b, n)), [(8, 10), (8, 13)], [(2, 1), (1, 2), (3, 40)]),
}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(codes, b[name]) for name, codes in a.items())


@pytest.mark.parametrize("case", CASES)
def test_one_model_for_all_sizes(case: str, tmp_path: Path) -> None:
    make, draw, seen, unseen = CASES[case]
    torch.manual_seed(0)
    net = make().eval()
    data = [draw(*size) for size in seen]
    fm = intact.capture(net, data[0], dynamic=differing_axes((data[0],), [(x,) for x in data]))
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), data)
    q = intact.convert(qfloat)
    again = intact.load(intact.save(q, tmp_path / "net.intact"))
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert certificate.codes_differ == 0 and certificate.not_fused == () and certificate.sizes
    session = open_session(tmp_path / "net.onnx")
    for size in unseen:
        x = draw(*size)
        assert equal(qfloat.codes(x), q.codes(x))
        assert equal(q.codes(x), again.codes(x))
        wanted = net(x)
        shapes = [tuple(y.shape) for y in (wanted if isinstance(wanted, tuple) else (wanted,))]
        assert [y.shape for y in session.run(None, {session.get_inputs()[0].name: x.numpy()})] == shapes


def test_the_lengths_of_a_report_differ() -> None:
    net, data = Letters().eval(), [torch.randint(0, 50, (8, n)) for n in (9, 5)]
    report = intact.compare(net, intact.quantize(net, data), data, latency=False)
    assert report.samples == 16
    table = intact.statistics(net, data)
    assert table.samples == 16


def test_the_file_has_names_for_its_free_axes(tmp_path: Path) -> None:
    q = intact.quantize(nn.Conv1d(3, 4, 3), [torch.randn(8, 3, 9), torch.randn(8, 3, 12)])
    intact.export(q, tmp_path / "net.onnx")
    session = open_session(tmp_path / "net.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, "length"]
    assert session.get_outputs()[0].shape == ["batch", 4, "length - 2"]


def test_training_takes_all_lengths() -> None:
    net, data = Letters(), [torch.randint(0, 50, (8, n)) for n in (9, 5)]
    fm = intact.capture(net, data[0], dynamic={1: "length"})
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), data).train()
    before = qfloat.state_dict()["letters.weight"].clone()
    optimizer = torch.optim.SGD(qfloat.parameters(), lr=0.1)
    for x in data:
        optimizer.zero_grad()
        qfloat(x).square().mean().backward()
        optimizer.step()
    assert not torch.equal(before, qfloat.state_dict()["letters.weight"])
    qfloat.eval()
    q, x = intact.convert(qfloat), torch.randint(0, 50, (2, 30))
    assert equal(qfloat.codes(x), q.codes(x)) and torch.equal(qfloat(x), q(x))
