"""Random one-operator LiteRT files with what the NumPy specification says of them; used by a test and a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from intact.exporters.litert.file import LiteRTOp, LiteRTTensor, litert_bytes, schema
from intact.exporters.litert.run import LiteRTKernels, LiteRTModel
from intact.reference.litert import elementwise, linear, move, pool, softmax, tables
from intact.reference.litert.quant import Activation, Kernels, Quant

Array = npt.NDArray[Any]
Case = Callable[[np.random.Generator, int, Kernels], tuple[Array, Array]]
SETS: dict[Kernels, LiteRTKernels] = {
    "reference": LiteRTKernels.REFERENCE, "optimized": LiteRTKernels.OPTIMIZED, "delegated": LiteRTKernels.DELEGATED,
}
ACTIVATIONS: tuple[Activation, ...] = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6")


def tensor(
    name: str, values: Array, q: Quant | None, scales: Sequence[float] = (), axis: int = 0, *, const: bool = False
) -> LiteRTTensor:
    """The row of the file for an array."""
    quant = tuple(float(s) for s in scales) or ((q.scale,) if q else ())
    zeros = ((q.zero_point,) if q else ()) if not len(scales) else ()
    return LiteRTTensor(name, str(values.dtype), values.shape, quant, zeros, axis, values if const else None)


def activation_code(activation: Activation) -> int:
    return int(getattr(schema().ActivationFunctionType, activation))


def run(
    code: str, kernels: Kernels, inputs: Mapping[str, Array], rows: Sequence[LiteRTTensor], out: LiteRTTensor,
    options: Mapping[str, object] | None = None, version: int = 0,
) -> Array:
    """The output of one operator on inputs; rows holds its inputs in order, constants among them."""
    op = LiteRTOp(code, tuple(r.name for r in rows), (out.name,), options or {}, version)
    content = litert_bytes([*rows, out], [op], list(inputs), [out.name])
    return LiteRTModel(content, SETS[kernels]).run(inputs)[out.name]


def codes(rng: np.random.Generator, shape: Sequence[int], q: Quant) -> Array:
    """Uniform codes; every eighth an extreme one."""
    values = rng.integers(q.qmin, q.qmax + 1, shape)
    extreme = rng.choice([q.qmin, q.qmax, q.zero_point], shape)
    return np.where(rng.random(shape) < 0.125, extreme, values).astype(f"int{q.bits}")


def quant(rng: np.random.Generator, bits: int = 8, low: float = -6, high: float = 0) -> Quant:
    """A random encoding; every fourth has a power of two as its scale, so that ties are many."""
    exponent = rng.uniform(low, high)
    scale = float(np.float32(2.0 ** (np.floor(exponent) if rng.random() < 0.25 else exponent)))
    zero_point = int(rng.choice([-128, 127, 0, *rng.integers(-128, 128, 3)])) if bits == 8 else 0
    return Quant(scale, zero_point, bits)


def fitting(rng: np.random.Generator, spread: float, bits: int, ties: bool) -> Quant:
    """An output encoding for real values of that standard deviation."""
    scale = spread / 2 ** (bits - 1) * rng.uniform(2, 4)
    q = quant(rng, bits)
    return Quant(float(np.float32(2.0 ** np.floor(np.log2(scale)) if ties else scale)), q.zero_point, bits)


def _weights(rng: np.random.Generator, shape: tuple[int, ...], channels: int, per_channel: bool, ties: bool
             ) -> tuple[Array, Array]:
    scales = 2.0 ** (-rng.integers(3, 9, channels) if ties else rng.uniform(-9, -3, channels))
    values = rng.integers(-127, 128, shape).astype(np.int8)
    return values, scales.astype(np.float32)[: None if per_channel else 1]


def _bias(rng: np.random.Generator, n: int, spread: float, dtype: str, scale: float = 1.0) -> Array:
    """Biases of the size of the sums; some large, up to the extremes of int32 (int64: 2**40)."""
    values = rng.standard_normal(n) * spread
    top = 2.0**31 if dtype == "int32" else 2.0**40
    values = np.where(rng.random(n) < 0.1, rng.choice([-1, 1], n) * 2.0 ** rng.uniform(16, np.log2(top), n), values)
    return np.clip(values, -top, top - 1).astype(dtype)


def linear_case(code: str, bits: int, per_channel: bool, bias: linear.BiasType) -> Case:
    """FULLY_CONNECTED, CONV_2D or DEPTHWISE_CONV_2D of random geometry."""
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        ties, n = bool(rng.random() < 0.5), int(rng.choice([3, 8, 17, 32]))
        qx, activation = quant(rng, bits), ACTIVATIONS[rng.integers(4)]
        qx = Quant(float(np.float32(2.0 ** np.floor(np.log2(qx.scale)))) if ties else qx.scale, qx.zero_point, bits)
        c = int(rng.integers(1, 20))
        stride, dilation = (int(rng.integers(1, 3)),) * 2, (1, 1)
        kernel = (1, 1) if code == "FULLY_CONNECTED" else (int(rng.integers(1, 4)), int(rng.integers(1, 4)))
        if code == "FULLY_CONNECTED":
            shape, wshape, channels = (max(size // n, 1), c), (n, c), n
        else:
            side = int(np.ceil(np.sqrt(size / n))) * stride[0] + 2
            times = int(rng.integers(1, 4))
            shape = (1, side, side, n if "DEPTH" in code else c)
            channels = n * times if "DEPTH" in code else n
            wshape = (1, *kernel, channels) if "DEPTH" in code else (n, *kernel, c)
        x = codes(rng, shape, qx)
        w, scales = _weights(rng, wshape, channels, per_channel, ties)
        depth = np.prod(kernel) * (1 if "DEPTH" in code else c)
        spread = 70 * np.sqrt(depth) * 2 ** (bits - 1) / 2
        b = _bias(rng, channels, spread, bias)
        qy = fitting(rng, float(spread * qx.scale * np.median(scales)), bits, ties)
        same, none = bool(rng.random() < 0.5) and len(shape) == 4, ((0, 0), (0, 0))
        padding = linear.same_padding(shape[1:3], kernel, stride, dilation) if same else none
        options: dict[str, object] = {"fusedActivationFunction": activation_code(activation)}
        keys = {"kernels": kernels, "bias_type": bias, "activation": activation}
        if bits == 16 and bias == "int32" and code != "DEPTHWISE_CONV_2D":
            options["quantizedBiasType"] = schema().TensorType.INT32
        if code == "FULLY_CONNECTED":
            want = linear.fully_connected(x, w, b, qx, scales, qy, **keys)
        else:
            options |= {"strideH": stride[0], "strideW": stride[1], "padding": 0 if same else 1}
            options |= {"depthMultiplier": channels // n} if "DEPTH" in code else {}
            fn = linear.depthwise_conv_2d if "DEPTH" in code else linear.conv_2d
            want = fn(x, w, b, qx, scales, qy, stride=stride, padding=padding, **keys)
        rows = [tensor("x", x, qx), tensor("w", w, None, scales, 3 if "DEPTH" in code else 0, const=True),
                tensor("b", b, None, [qx.f32 * s for s in scales], const=True)]
        out = tensor("y", want.astype(f"int{bits}"), qy)
        return run(code, kernels, {"x": x}, rows, out, options), want
    return case


def matmul_case(bits: int, most: int = 20) -> Case:
    """Of any rank, with axes that broadcast, a constant operand, sums up to most."""
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qa, qb, k = quant(rng, bits), quant(rng, bits), int(rng.integers(most // 20, most))
        qb = Quant(qb.scale, 0, bits) if rng.random() < 0.5 else qb  # what XNNPACK takes
        m = max(int(np.ceil(np.sqrt(size / 6 * 20 / most))), 1)
        lead = [((), ()), ((2,), (2,)), ((2, 3), ()), ((), (3, 2)), ((2, 1), (1, 3)), ((1, 2, 3), (1, 2, 3))]
        la, lb = lead[rng.integers(len(lead))]
        a, b = codes(rng, (*la, m, k), qa), codes(rng, (*lb, k, m), qb)
        if most > 20:  # sums as large as they can be
            a, b = np.abs(a.astype(np.int64)), np.abs(b.astype(np.int64))
            a, b = (np.minimum(v, q.qmax).astype(f"int{bits}") for v, q in ((a, qa), (b, qb)))
        qy = fitting(rng, float(2 ** (2 * bits - 4) * np.sqrt(k) * qa.scale * qb.scale), bits, bool(rng.random() < 0.5))
        want = linear.batch_matmul(a, b, qa, qb, qy, kernels=kernels)
        const = [None, "a", "b"][rng.integers(3)]
        rows = [tensor("a", a, qa, const=const == "a"), tensor("b", b, qb, const=const == "b")]
        inputs = {n: v for n, v in (("a", a), ("b", b)) if n != const}
        return run("BATCH_MATMUL", kernels, inputs, rows, tensor("y", want.astype(a.dtype), qy)), want
    return case


def binary_case(code: str, bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qa, qb, activation = quant(rng, bits), quant(rng, bits), ACTIVATIONS[rng.integers(4)]
        larger = max(qa.scale, qb.scale) * 2 ** (bits - 1)
        spread = qa.scale * qb.scale * 2 ** (2 * bits - 4) if code == "MUL" else larger
        qy = fitting(rng, spread, bits, bool(rng.random() < 0.25))
        broadcast = rng.random() < 0.2
        a = codes(rng, (max(size // 64, 1), 64), qa)
        b = codes(rng, (64,) if broadcast else a.shape, qb)
        if bits == 16 and code != "MUL":
            a, b = _close_to_ties(rng, a, b, (qa, qb, qy))
        keys: dict[str, Any] = {"kernels": kernels, "activation": activation}
        if code == "MUL":
            want = elementwise.mul(a, b, qa, qb, qy, **keys)
        else:
            want = elementwise.add(a, b, qa, qb, qy, subtract=code == "SUB", **keys)
        options: dict[str, object] = {"fusedActivationFunction": activation_code(activation)}
        options |= {} if code == "MUL" else {"potScaleInt16": False}
        rows = [tensor("a", a, qa), tensor("b", b, qb)]
        return run(code, kernels, {"a": a, "b": b}, rows, tensor("y", want.astype(a.dtype), qy), options), want
    return case


def _close_to_ties(rng: np.random.Generator, a: Array, b: Array, q: tuple[Quant, Quant, Quant]) -> tuple[Array, Array]:
    """Half of the codes so replaced that the sum is next to a tie, where roundings of the inputs are seen."""
    (qa, qb, qy), flat = q, np.broadcast_to(b, a.shape)
    many = rng.integers(qa.qmin, qa.qmax + 1, (64, *a.shape))
    real = (many * qa.scale + flat * qb.scale) / qy.scale
    best = np.abs(real - np.floor(real) - 0.5).argmin(0)
    chosen = np.take_along_axis(many, best[None], 0)[0].astype(a.dtype)
    return np.where(rng.random(a.shape) < 0.5, chosen, a), b


def relu_case(code: Activation, bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qx = quant(rng, bits)
        qy = Quant(float(np.float32(qx.scale * 2.0 ** rng.uniform(-1, 1))), quant(rng, bits).zero_point, bits)
        x = codes(rng, (size,), qx)
        want = elementwise.relu(x, qx, qy, code)
        return run(code, kernels, {"x": x}, [tensor("x", x, qx)], tensor("y", want.astype(x.dtype), qy)), want
    return case


def requantize_case(bits_in: int, bits_out: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qx = quant(rng, bits_in)
        ratio = 2.0 ** (bits_in - bits_out + rng.uniform(-2, 2))
        qy = Quant(float(np.float32(qx.scale * ratio)), quant(rng, bits_out).zero_point, bits_out)
        x = codes(rng, (size,), qx)
        want = elementwise.requantize(x, qx, qy, kernels=kernels)
        out = tensor("y", want.astype(f"int{bits_out}"), qy)
        return run("QUANTIZE", kernels, {"x": x}, [tensor("x", x, qx)], out), want
    return case


def quantize_case(bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        q = quant(rng, bits)
        x = (rng.standard_normal(size) * q.scale * 2 ** (bits - 2)).astype(np.float32)
        ties = ((rng.integers(q.qmin, q.qmax, size) + 0.5) * np.float64(q.f32)).astype(np.float32)
        x = np.where(rng.random(size) < 0.3, ties, x)
        x[:4] = [1e9, -1e9, 3e38, -3e38]
        want = elementwise.quantize(x, q, kernels=kernels)
        out = tensor("y", want.astype(f"int{bits}"), q)
        return run("QUANTIZE", kernels, {"x": x}, [tensor("x", x, None)], out), want
    return case


def dequantize_case(bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        q = quant(rng, bits)
        x = codes(rng, (size,), q)
        want = elementwise.dequantize(x, q, kernels=kernels)
        return run("DEQUANTIZE", kernels, {"x": x}, [tensor("x", x, q)], tensor("y", want, None)), want
    return case


def pool_case(code: str, bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        q, activation, c = quant(rng, bits), ACTIVATIONS[rng.integers(4)], int(rng.integers(1, 40))
        kernel = tuple(int(v) for v in rng.integers(1, 8, 2))
        stride = tuple(int(v) for v in rng.integers(1, 3, 2))
        side = int(np.sqrt(size / c)) + 8
        x = codes(rng, (2, side, side, c), q)
        same, none = bool(rng.random() < 0.5), ((0, 0), (0, 0))
        padding = linear.same_padding(x.shape[1:3], kernel, stride, (1, 1)) if same else none
        fn = pool.average_pool_2d if code == "AVERAGE_POOL_2D" else pool.max_pool_2d
        want = fn(x, q, kernel, stride=stride, padding=padding, kernels=kernels, activation=activation)
        options = {"filterHeight": kernel[0], "filterWidth": kernel[1], "strideH": stride[0], "strideW": stride[1],
                   "padding": 0 if same else 1, "fusedActivationFunction": activation_code(activation)}
        return run(code, kernels, {"x": x}, [tensor("x", x, q)], tensor("y", want.astype(x.dtype), q), options), want
    return case


def mean_case(bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qx = quant(rng, bits)
        h, w, c = (int(v) for v in rng.integers(1, 12, 3))
        axes = [(1, 2), (1,), (3,), (2, 3), (1, 2, 3)][rng.integers(5)]
        x = codes(rng, (max(size // (h * w), 1), h, w, c), qx)
        qy = fitting(rng, qx.scale * 2 ** (bits - 1) / np.sqrt(h * w), bits, bool(rng.random() < 0.25))
        keep = bool(rng.random() < 0.5)
        want = pool.mean(x, axes, qx, qy, keep=keep, kernels=kernels)
        rows = [tensor("x", x, qx), tensor("axes", np.array(axes, np.int32), None, const=True)]
        return run("MEAN", kernels, {"x": x}, rows, tensor("y", want.astype(x.dtype), qy), {"keepDims": keep}), want
    return case


def unary_case(code: str, bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qx = quant(rng, bits, *((-8, -3) if bits == 8 else (-14, -8)))
        x = codes(rng, (size,), qx)
        if code == "HARD_SWISH":
            qy = quant(rng, 8, -7, -2)
            want = tables.hard_swish(x, qx, qy)
        elif bits == 16:
            qy = Quant(2.0**-15, 0, 16)
            if rng.random() < 0.3:
                qx = Quant(float(rng.choice([2.0**-11, 2.0**-12])), 0, 16)
            want = (tables.logistic_int16 if code == "LOGISTIC" else tables.tanh_int16)(x, qx, kernels=kernels)
        elif code == "LOGISTIC":
            qy = Quant(1 / 256, -128)
            want = tables.logistic(x, qx, qy, kernels=kernels)
        else:
            qy = Quant(1 / 128, 0)
            want = tables.tanh(x, qx, qy, kernels=kernels)
        return run(code, kernels, {"x": x}, [tensor("x", x, qx)], tensor("y", want.astype(x.dtype), qy)), want
    return case


def softmax_case(bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qx, n = quant(rng, bits, *((-7, 0) if bits == 8 else (-14, -9))), int(rng.integers(1, 200))
        x = codes(rng, (size // n + 1, n), qx)
        x = np.where(rng.random(x.shape) < rng.random(), x, (x // 16)).astype(x.dtype)
        beta = float(rng.choice([1.0, 1.0, 0.5, 1.7]))
        qy = Quant(1 / 256, -128) if bits == 8 else Quant(2.0**-15, 0, 16)
        if bits == 8:
            want = softmax.softmax(x, qx, beta=beta, kernels=kernels)
        else:
            want = softmax.softmax_int16(x, qx, beta=beta)
        out = tensor("y", want.astype(x.dtype), qy)
        return run("SOFTMAX", kernels, {"x": x}, [tensor("x", x, qx)], out, {"beta": beta}), want
    return case


def resize_case(code: str, grid: move.Grid, bits: int) -> Case:
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        q, (h, w, c) = quant(rng, bits), (int(v) for v in rng.integers(2, 12, 3))
        new_h, new_w = (int(v) for v in rng.integers(1, 25, 2))
        x = codes(rng, (max(size // (new_h * new_w * c), 1), h, w, c), q)
        if code == "RESIZE_BILINEAR":
            want = move.resize_bilinear(x, new_h, new_w, grid, kernels=kernels)
        else:
            want = move.resize_nearest(x, new_h, new_w, grid)
        rows = [tensor("x", x, q), tensor("size", np.array([new_h, new_w], np.int32), None, const=True)]
        options = {"halfPixelCenters": grid == "half_pixel", "alignCorners": grid == "align_corners"}
        return run(code, kernels, {"x": x}, rows, tensor("y", want.astype(x.dtype), q), options), want
    return case


def bound_case(code: str, bits: int) -> Case:
    """MAXIMUM and MINIMUM with a constant of the same encoding."""
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        q = quant(rng, bits)
        x, bound = codes(rng, (size // 7, 7), q), codes(rng, (1,), q)
        want = (np.maximum if code == "MAXIMUM" else np.minimum)(x, bound)
        rows = [tensor("x", x, q), tensor("bound", bound, q, const=True)]
        return run(code, kernels, {"x": x}, rows, tensor("y", want, q)), want
    return case


def table_case(bits: int) -> Case:
    """CAST, ADD and GATHER, which read a table of all codes."""
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        qx, qy, s = quant(rng, bits), quant(rng, bits), schema()
        x, entries = codes(rng, (size // 7, 7), qx), codes(rng, (2**bits,), qy)
        want = entries[x.astype(np.int64) - qx.qmin]
        rows = [tensor("x", x, qx), LiteRTTensor("lowest", "int32", (1,), data=np.array([-qx.qmin], np.int32)),
                tensor("table", entries, qy, const=True), LiteRTTensor("wide", "int32", x.shape),
                LiteRTTensor("index", "int32", x.shape), tensor("y", want, qy)]
        types = {"inDataType": getattr(s.TensorType, f"INT{bits}"), "outDataType": s.TensorType.INT32}
        ops = [LiteRTOp("CAST", ("x",), ("wide",), types), LiteRTOp("ADD", ("wide", "lowest"), ("index",)),
               LiteRTOp("GATHER", ("table", "index"), ("y",), {"axis": 0})]
        return LiteRTModel(litert_bytes(rows, ops, ["x"], ["y"]), SETS[kernels]).run({"x": x})["y"], want
    return case


def move_case(code: str, bits: int) -> Case:
    """Pure moves of codes."""
    def case(rng: np.random.Generator, size: int, kernels: Kernels) -> tuple[Array, Array]:
        q, (h, w, c) = quant(rng, bits), (int(v) for v in rng.integers(1, 8, 3))
        x = codes(rng, (max(size // (h * w * c), 1), h, w, c), q)
        rows, inputs, options = [tensor("x", x, q)], {"x": x}, {}
        if code == "CONCATENATION":
            inputs["z"] = codes(rng, x.shape, q)
            rows.append(tensor("z", inputs["z"], q))
            want, options = np.concatenate([x, inputs["z"]], 3), {"axis": 3}
        elif code == "PAD":
            pads = np.array([[0, 0], *rng.integers(0, 3, (3, 2))], np.int32)
            rows.append(tensor("pads", pads, None, const=True))
            want = np.pad(x, pads, constant_values=q.zero_point)
        elif code == "TRANSPOSE":
            order = rng.permutation(4).astype(np.int32)
            rows.append(tensor("order", order, None, const=True))
            want = x.transpose(order)
        else:
            want = x.reshape(x.shape[0], -1)
            rows.append(tensor("shape", np.array(want.shape, np.int32), None, const=True))
        want = np.ascontiguousarray(want)
        return run(code, kernels, inputs, rows, tensor("y", want, q), options), want
    return case


def _cases() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    for code in ("FULLY_CONNECTED", "CONV_2D", "DEPTHWISE_CONV_2D"):
        for per_channel in (False, True):
            grain = "per channel" if per_channel else "per tensor"
            cases[f"{code} int8 {grain}"] = linear_case(code, 8, per_channel, "int32")
            cases[f"{code} int16 {grain}"] = linear_case(code, 16, per_channel, "int64")
            if code != "DEPTHWISE_CONV_2D":
                cases[f"{code} int16 int32 bias {grain}"] = linear_case(code, 16, per_channel, "int32")
    for bits in (8, 16):
        cases[f"BATCH_MATMUL int{bits}"] = matmul_case(bits)
        cases[f"BATCH_MATMUL int{bits}, long sums"] = matmul_case(bits, 3000)
        cases[f"CAST, ADD, GATHER int{bits}"] = table_case(bits)
        for code in ("MAXIMUM", "MINIMUM"):
            cases[f"{code} int{bits}"] = bound_case(code, bits)
        for code in ("ADD", "SUB", "MUL"):
            cases[f"{code} int{bits}"] = binary_case(code, bits)
        cases[f"QUANTIZE float32 int{bits}"] = quantize_case(bits)
        cases[f"DEQUANTIZE int{bits}"] = dequantize_case(bits)
        for other in (8, 16):
            cases[f"QUANTIZE int{bits} int{other}"] = requantize_case(bits, other)
        cases[f"RELU int{bits}"] = relu_case("RELU", bits)
        cases[f"MEAN int{bits}"], cases[f"SOFTMAX int{bits}"] = mean_case(bits), softmax_case(bits)
        for code in ("AVERAGE_POOL_2D", "MAX_POOL_2D"):
            cases[f"{code} int{bits}"] = pool_case(code, bits)
        for code in ("LOGISTIC", "TANH"):
            cases[f"{code} int{bits}"] = unary_case(code, bits)
        for code in ("CONCATENATION", "PAD", "RESHAPE", "TRANSPOSE"):
            cases[f"{code} int{bits}"] = move_case(code, bits)
        for grid in get_args(move.Grid):
            cases[f"RESIZE_BILINEAR {grid} int{bits}"] = resize_case("RESIZE_BILINEAR", grid, bits)
            cases[f"RESIZE_NEAREST_NEIGHBOR {grid} int{bits}"] = resize_case("RESIZE_NEAREST_NEIGHBOR", grid, bits)
    cases["HARD_SWISH int8"] = unary_case("HARD_SWISH", 8)
    cases["RELU6 int8"], cases["RELU_N1_TO_1 int8"] = relu_case("RELU6", 8), relu_case("RELU_N1_TO_1", 8)
    return cases


CASES = _cases()
