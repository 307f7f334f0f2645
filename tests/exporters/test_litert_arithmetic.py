"""LiteRT's kernels give, code for code, what the NumPy specification says: every operator, every set of kernels."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert: pip install 'intact[litert]'")

from intact.exporters.litert.run import LiteRTModel
from intact.reference.litert import linear
from intact.reference.litert.quant import Kernels, Quant
from tests.exporters.litert_cases import CASES, SETS, codes, run, tensor

FILES, SIZE = 6, 3011  # odd: vectorised kernels have a tail


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("name", CASES)
def test_the_runtime_gives_the_codes_of_the_specification(name: str, kernels: Kernels) -> None:
    for seed in range(FILES):
        got, want = CASES[name](np.random.default_rng([zlib.crc32(name.encode()), seed]), SIZE, kernels)
        assert np.array_equal(got, want), f"{np.count_nonzero(got != want)} of {got.size} differ, file {seed}"


def test_the_sets_of_kernels_differ() -> None:
    """So that a comparison with the wrong one could not pass: the three roundings of one convolution."""
    qx, qy = Quant(0.5), Quant(1.0)
    x = np.arange(-128, 128, dtype=np.int8).reshape(1, 16, 16, 1)
    w = np.ones((16, 1, 1, 1), np.int8)
    rows = [tensor("x", x, qx), tensor("w", w, None, [0.25] * 16, const=True),
            tensor("b", np.zeros(16, np.int32), None, [0.125] * 16, const=True)]
    out = tensor("y", np.zeros((1, 16, 16, 16), np.int8), qy)
    y = {k: run("CONV_2D", k, {"x": x}, rows, out, {"strideH": 1, "strideW": 1}) for k in SETS}
    at = np.argwhere(x[0, :, :, 0] == -12)[0]  # -12 / 8 = -1.5
    found = {k: int(v[0, at[0], at[1], 0]) for k, v in y.items()}
    assert found == {"reference": -2, "optimized": -1, "delegated": -2}
    at = np.argwhere(x[0, :, :, 0] == 4)[0]  # 0.5
    assert [int(y[k][0, at[0], at[1], 0]) for k in SETS] == [1, 1, 0]


def test_intermediate_tensors_can_be_read() -> None:
    from intact.exporters.litert.file import LiteRTOp, litert_bytes

    q = Quant(0.5)
    x = codes(np.random.default_rng(0), (1, 4, 4, 3), q)
    rows = [tensor(n, x, q) for n in "xyz"]
    content = litert_bytes(rows, [LiteRTOp("RELU", ("x",), ("y",)), LiteRTOp("RELU6", ("y",), ("z",))], ["x"], ["z"])
    for kernels in SETS.values():
        model = LiteRTModel(content, kernels, keep_all=True)
        z = model.run({"x": x})["z"]
        assert np.array_equal(model.tensor("y"), np.maximum(x, 0))
        assert np.array_equal(z, np.clip(x, 0, 12))


@pytest.mark.parametrize("kernels", SETS)
@pytest.mark.parametrize("multiplier", [2.0, 3.3, 64.0])
def test_sums_of_all_sizes_at_multipliers_above_one(kernels: Kernels, multiplier: float) -> None:
    """The left shift wraps in 32 bits, it does not saturate; XNNPACK has no left shift."""
    qx, scale = Quant(0.5), float(np.float32(multiplier))
    b = np.linspace(-(2**31), 2**31 - 1, 64).astype(np.int64).astype(np.int32)
    x, w = np.zeros((1, 1, 1, 1), np.int8), np.zeros((64, 1, 1, 1), np.int8)
    want = linear.conv_2d(x, w, b, qx, [scale] * 64, qx, kernels=kernels)
    rows = [tensor("x", x, qx), tensor("w", w, None, [scale] * 64, const=True),
            tensor("b", b, None, [0.5 * scale] * 64, const=True)]
    options = {"strideH": 1, "strideW": 1}
    assert np.array_equal(run("CONV_2D", kernels, {"x": x}, rows, tensor("y", want.astype(np.int8), qx), options), want)
    monotone = bool((np.diff(want.ravel()) >= 0).all())
    assert monotone == (kernels == "delegated")
