"""Attention as torch and users write it: every form is captured whole, and its codes are those of ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import intact

CAUSAL = torch.full((6, 6), -math.inf).triu(1)
BOOLEAN = torch.ones(6, 6).triu(1).bool()
LOWEST = torch.full((6, 6), torch.finfo(torch.float32).min).triu(1)


class Call(nn.Module):
    """A module called in one way."""

    def __init__(self, module: nn.Module, call: Callable[..., Any]) -> None:
        super().__init__()
        self.module, self.call = module, call

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Any:
        return self.call(self.module, x) if padding is None else self.call(self.module, x, padding)


class Grouped(nn.Module):
    """Four heads of queries, two of keys and values; positions turned, or learned by distance."""

    def __init__(self, turned: bool, learned: bool, causal: bool) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(16, 16), nn.Linear(16, 8), nn.Linear(16, 8), nn.Linear(16, 16)
        self.turned, self.causal = turned, causal
        self.distance = nn.Embedding(15, 4) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, -1, 4).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.turned:
            angle = (torch.arange(n)[:, None] * torch.tensor([1.0, 0.1])).repeat(1, 2)
            q, k = (t * angle.cos() + torch.cat([-t[..., 2:], t[..., :2]], -1) * angle.sin() for t in (q, k))
        bias = None
        if self.distance is not None:
            steps = (torch.arange(n)[:, None] - torch.arange(n)).clamp(-7, 7) + 7
            bias = self.distance(steps).permute(2, 0, 1)[None]
        y = F.scaled_dot_product_attention(q, k, v, bias, is_causal=self.causal, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(b, n, 16))


class WithoutGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = encoder()

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    return nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)


def decoder() -> nn.Module:
    return nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4, 32, batch_first=True), 1)


def attention(**options: Any) -> nn.Module:
    return nn.MultiheadAttention(16, 4, batch_first=True, **options)


FORMS: dict[str, Callable[[], nn.Module]] = {
    "encoder, causal": lambda: Call(encoder(), lambda m, x: m(x, mask=CAUSAL)),
    "encoder, boolean": lambda: Call(encoder(), lambda m, x: m(x, mask=BOOLEAN)),
    "encoder, lowest": lambda: Call(encoder(), lambda m, x: m(x, mask=LOWEST)),
    "encoder, hint": lambda: Call(encoder(), lambda m, x: m(x, mask=CAUSAL, is_causal=True)),
    "encoder, padding": lambda: Call(encoder(), lambda m, x, p: m(x, mask=BOOLEAN, src_key_padding_mask=p)),
    "decoder, all masks": lambda: Call(decoder(), lambda m, x, p: m(x, x.flip(1), tgt_mask=BOOLEAN,
                                                                    memory_key_padding_mask=p)),
    "attention, weights": lambda: Call(attention(), lambda m, x: m(x, x, x)),
    "attention, lowest": lambda: Call(attention(), lambda m, x: m(x, x, x, attn_mask=LOWEST)[0]),
    "attention, padding": lambda: Call(attention(), lambda m, x, p: m(x, x, x, key_padding_mask=p)[0]),
    "attention, other dims": lambda: Call(attention(kdim=8, vdim=8), lambda m, x: m(x, x[..., :8], x[..., 8:])[0]),
    "attention, more keys": lambda: Call(attention(add_bias_kv=True, add_zero_attn=True), lambda m, x: m(x, x, x)[0]),
    "grouped": lambda: Grouped(False, False, False),
    "grouped, causal": lambda: Grouped(False, False, True),
    "grouped, turned, by distance": lambda: Grouped(True, True, False),
    "no gradient": WithoutGradient,
}


@pytest.mark.parametrize("name", FORMS)
def test_all_products_run_in_integers_and_give_the_codes_of_the_runtime(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = FORMS[name]().eval()
    for p in net.parameters():
        nn.init.normal_(p, std=0.25)
    padding = torch.zeros(3, 6, dtype=torch.bool)
    padding[1, 4:] = True
    masks = {"padding": padding} if "padding" in name or "all" in name else {}
    data: list[dict[str, Tensor]] = [{"x": torch.randn(3, 6, 16), **masks} for _ in range(3)]
    q = intact.quantize(net, data)
    assert not q.opaque and q.info["coverage"]["integer_macs"] == q.info["coverage"]["macs"] > 0
    certificate = intact.export(q, tmp_path / "net.onnx")
    assert (certificate.codes_differ, certificate.first_difference, certificate.not_fused) == (0, None, ())
    with torch.no_grad():
        wanted, got = net(**data[0]), q(**data[0])
    wanted, got = (v if isinstance(v, Tensor) else v[0] for v in (wanted, got))
    assert float((got - wanted).std() / wanted.std()) < 0.06
    fm = intact.capture(net, data[0])
    qfloat = intact.calibrate(intact.prepare(fm, intact.plan(fm)), data)
    codes = intact.convert(qfloat).codes(**data[0])
    assert all(torch.equal(c, codes[edge]) for edge, c in qfloat.codes(**data[0]).items())


def test_what_capture_replaces_is_put_back() -> None:
    module: Any = torch.nn.modules.transformer
    before = module._detect_is_causal_mask
    intact.capture(FORMS["encoder, causal"](), torch.randn(3, 6, 16))
    assert module._detect_is_causal_mask is before
