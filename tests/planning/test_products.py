"""Products of two 16-bit activations: proven to fit before data is read, and exact where they only just do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import intact
from intact.arithmetic import PRODUCT_LIMIT
from intact.errors import PlanError
from intact.kernels import KERNELS, Binding
from intact.planning import Quant, Recipe
from intact.reference import integer as mirror
from intact.targets import get_target, target_to_toml
from intact.types import INT16, QParams
from tests.exporters.c_tools import differences, needs_gcc

WIDE = Recipe(default=Quant(activation_bits=16, activation_observer="minmax"))


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x * y


def asymmetric(folder: Path) -> str:
    """``fixed_point``, but for activations of 16 bits with any zero point."""
    text = target_to_toml(get_target("fixed_point")).replace('"fixed_point"', '"npu"', 1)
    assert "symmetric_from = 9" in text
    file = folder / "npu.toml"
    file.write_text(text.replace("symmetric_from = 9", "symmetric_from = 17"))
    return str(file)


def test_the_layer_and_its_bound_are_named(tmp_path: Path) -> None:
    fm = intact.capture(Product(), (torch.randn(4, 3, 5), torch.randn(4, 3, 5)))
    with pytest.raises(PlanError, match=r"can pass 32 bits.*mul.*4,294,836,225.*below 2,147,483,648"):
        intact.plan(fm, asymmetric(tmp_path), WIDE)
    intact.plan(fm, "fixed_point", WIDE)


@needs_gcc
@pytest.mark.parametrize("how", [Quant(activation_bits=16, activation_observer="minmax", activation_symmetric=True),
                                 Quant(activation_bits=15, activation_observer="minmax")], ids=["symmetric", "15 bits"])
def test_what_the_error_proposes_works(how: Quant, tmp_path: Path) -> None:
    """... and the codes are those of C under the sanitizers, with zero points at the ends of the range."""
    x = torch.rand(8, 3, 5) - 1e-3
    fm = intact.capture(Product(), (x, x))
    q = intact.quantize(fm, [(x, -x)], target=asymmetric(tmp_path), recipe=Recipe(default=how))
    assert differences(q, tmp_path, (x, -x)) == []


def product(za: int, zb: int) -> Binding:
    qs = tuple(QParams.per_tensor(2.0**-15, z, INT16) for z in (za, zb))
    return Binding("mul", {}, qs, QParams.per_tensor(2.0**-14, 0, INT16), get_target("fixed_point").arithmetic)


def test_the_largest_product_that_fits_is_exact() -> None:
    """65,535 * 32,768 = 2**31 - 32,768."""
    binding = product(-32768, 0)
    ends = torch.tensor([-32768, -32767, -1, 0, 1, 32766, 32767], dtype=torch.int16)
    a, b = (t.reshape(-1) for t in torch.meshgrid(ends, ends, indexing="ij"))
    assert PRODUCT_LIMIT > 65535 * 32768
    found = KERNELS["mul"](binding)([a, b], {})
    codes = [mirror.Codes(float(q.scale), int(q.zero_point), -32768, 32767) for q in (*binding.inputs, binding.output)]
    want = mirror.multiply(a.numpy(), b.numpy(), codes[0], codes[1], codes[2], "half_up")
    assert torch.equal(found, torch.from_numpy(want).to(torch.int16))
    wide = KERNELS["mul"](binding)([a.float(), b.float()], {})
    assert torch.equal(wide.to(torch.int16), found)


def test_a_binding_that_no_plan_has_seen_is_refused() -> None:
    with pytest.raises(PlanError, match=r"can pass 32 bits"):
        KERNELS["mul"](product(-32768, 32767))
