"""Fake quantization: the forward is the value of the code, the gradients are those of the papers."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from intact.arithmetic import dequantize, quantize
from intact.simulation.ste import fake_quantize, learned_fake_quantize, power_of_two, relative
from intact.types import QParams, QType

SCALES = st.floats(2.0**-12, 2.0**6).map(lambda v: float(torch.tensor(v)))


@settings(max_examples=60, deadline=None)
@given(bits=st.integers(2, 16), scale=SCALES, seed=st.integers(0, 2**16), share=st.floats(0, 1))
def test_the_forward_is_the_value_of_the_code(bits, scale, seed, share):
    qtype = QType(bits, signed=False)
    zero = round(share * qtype.qmax)
    q = QParams.per_tensor(scale, zero, qtype)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, generator=generator) * scale * 2**bits
    x[:40] = (torch.randint(-qtype.qmax, qtype.qmax, (40,), generator=generator) + 0.5) * q.scale  # ties
    exact = dequantize(quantize(x, q), q)
    low, high = float(qtype.qmin - zero), float(qtype.qmax - zero)
    assert torch.equal(fake_quantize(x, q.scale, low, high), exact)
    assert torch.equal(learned_fake_quantize(x, q.scale, low, high), exact)
    assert torch.equal(learned_fake_quantize(x, q.scale, torch.tensor(low), torch.tensor(high)), exact)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**16), channels=st.booleans(), floats=st.booleans())
def test_gradients_are_those_of_learned_step_size_quantization(seed, channels, floats):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(4, 30, generator=generator) * 3).requires_grad_()
    s = (torch.rand(4, 1, generator=generator) + 0.3 if channels else torch.tensor(0.7)).requires_grad_()
    low, high = (-4.0, 3.0) if floats else (torch.tensor(-4.0), torch.tensor(3.0))
    g = torch.randn(4, 30, generator=generator)
    learned_fake_quantize(x, s, low, high, 0.5).backward(g)
    with torch.no_grad():
        v = x / s
        inside = (v > -4) & (v < 3)
        term = torch.where(inside, v.round() - v, v.clamp(-4, 3))
        expected = (g * term).sum(1, keepdim=True) if channels else (g * term).sum()
    assert torch.equal(x.grad, torch.where(inside, g, 0.0))
    assert torch.allclose(s.grad, 0.5 * expected, rtol=1e-3, atol=1e-4)


def test_only_clipped_values_move_a_clipping_value():
    x = torch.tensor([0.1, 0.6, 9.0, -9.0])
    s = torch.tensor(0.5, requires_grad=True)
    learned_fake_quantize(x, s, 0.0, 3.0, ends_only=True).sum().backward()
    assert float(s.grad) == 3.0


def test_the_zero_point_moves_with_what_is_clipped():
    x = torch.tensor([0.1, 9.0, -9.0])
    z = torch.tensor(1.2, requires_grad=True)
    s = torch.tensor(0.5, requires_grad=True)
    learned_fake_quantize(x, s, torch.tensor(-1.0), torch.tensor(2.0), offset=z).sum().backward()
    assert float(z.grad) == -1.0


def test_powers_of_two_and_gains():
    exponent = torch.tensor([-3.2, 0.0, 4.5], requires_grad=True)
    power_of_two(exponent).sum().backward()
    assert power_of_two(exponent).tolist() == [0.125, 1.0, 32.0]
    assert torch.allclose(exponent.grad, torch.tensor([0.125, 1.0, 32.0]) * torch.log(torch.tensor(2.0)))
    gain = torch.tensor(0.0, requires_grad=True)
    relative(gain, torch.tensor(0.25)).backward()
    assert float(gain.grad) == 4.0
