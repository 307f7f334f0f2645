"""Attention: float mode equals torch for every flag; inside transformer layers; masks."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

import intact
from tests.leaves.test_recurrent import close, float_mode

FLAGS = list(itertools.product((True, False), (True, False), (True, False), (True, False), (True, False)))


@pytest.mark.parametrize(("batch_first", "bias", "bias_kv", "zero", "other_dims"), FLAGS)
def test_float_mode_equals_torch(batch_first: bool, bias: bool, bias_kv: bool, zero: bool, other_dims: bool) -> None:
    dims = {"kdim": 6, "vdim": 7} if other_dims else {}
    net = nn.MultiheadAttention(8, 2, bias=bias, add_bias_kv=bias_kv, add_zero_attn=zero, batch_first=batch_first,
                                **dims).eval()
    for p in net.parameters():
        nn.init.normal_(p)
    ours = float_mode(net)
    q, k, v = torch.randn(3, 4, 8), torch.randn(3, 5, dims.get("kdim", 8)), torch.randn(3, 5, dims.get("vdim", 8))
    padding = torch.tensor([[False] * 5, [False, False, False, True, True], [False] * 4 + [True]])
    masks = [None, torch.ones(4, 5).triu(2).bool(), torch.randn(4, 5), torch.randn(6, 4, 5)]
    if not batch_first:
        q, k, v = (t.transpose(0, 1) for t in (q, k, v))
    with torch.no_grad():
        for mask, pad, weights, mean in itertools.product(masks, (None, padding), (True, False), (True, False)):
            if mask is not None and mask.is_floating_point() and pad is not None:
                pad = torch.zeros(pad.shape).masked_fill(pad, -1e9)
            options = {"attn_mask": mask, "key_padding_mask": pad, "need_weights": weights,
                       "average_attn_weights": mean}
            assert close(ours(q, k, v, **options), net(q, k, v, **options), 2e-5)
        one = [t[0] if batch_first else t[:, 0] for t in (q, k, v)]
        assert close(ours(*one, key_padding_mask=padding[1]), net(*one, key_padding_mask=padding[1]), 2e-5)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("spec", [None, {nn.Linear}, {nn.MultiheadAttention}, {"layers.0.linear1"}])
@pytest.mark.parametrize("padded", [False, True])
def test_transformer_layers_run_on_codes_in_every_mode(spec: object, padded: bool) -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    q, x = intact.quantize_dynamic(net, spec), torch.randn(2, 6, 32)
    mask = torch.tensor([[False] * 6, [False] * 4 + [True] * 2]) if padded else None
    with torch.no_grad():
        y, plain = q(x, src_key_padding_mask=mask), net(x, src_key_padding_mask=mask)
    keep = slice(None) if mask is None else ~mask
    slow = q(x, src_key_padding_mask=mask).detach()  # with gradients on torch takes no fused path
    assert float((y[keep] - slow[keep]).abs().max()) < (1e-6 if spec is None else 0.05)
    error = (y[keep] - plain[keep]).std() / plain[keep].std()
    assert 1e-4 < float(error) < 0.02
    assert type(net.layers[0].linear1) is nn.Linear and net.layers[0].activation_relu_or_gelu == 1
