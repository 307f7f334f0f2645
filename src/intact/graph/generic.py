"""Runs an aten operation by its public name, for float operations that have no canonical form.

What may be run is decided here, for graphs that were captured and for those that come from a file.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.operator_schemas import get_signature_for_torch_op

from intact.errors import CaptureError
from intact.types.dims import Dim, Sizes, is_dim, resolve_dim

__all__ = ["DTYPES", "declared", "problem", "run_aten"]

DTYPES = frozenset({"float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"})
_RESULTS = 65536  # of one operation, at most
_ATEN = re.compile(r"aten\.([a-zA-Z]\w*|_to_copy)\.(?!prim|_)(\w+)", re.ASCII)  # prim: of TorchScript
#: pure functions without torch's tags "core" and "pointwise"; others read files, write memory, or crash on odd sizes
_PURE = frozenset(re.findall(r"\w+", """
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d addbmm addmv
    addr adjoint affine_grid_generator all aminmax argsort atleast_1d atleast_2d atleast_3d baddbmm batch_norm
    bilinear block_diag broadcast_tensors broadcast_to bucketize cdist channel_shuffle column_stack concat
    cosine_similarity count_nonzero cross cummax cummin cumprod det diag diag_embed diff dist dot dsplit einsum
    expand_as fill flatten fliplr flipud floor_divide glu grid_sampler group_norm gru gru_cell hardswish hsplit hstack
    im2col index_add index_copy index_fill inner instance_norm isclose isin kron kthvalue layer_norm linalg_cross
    linalg_norm linalg_vecdot linalg_vector_norm linear log_sigmoid log_softmax logcumsumexp logsumexp lstm lstm_cell
    matmul max max_pool1d max_pool2d max_pool3d median meshgrid min moveaxis movedim msort mv nanmean nansum narrow
    new_full new_ones new_zeros norm one_hot ones_like outer pairwise_distance pixel_shuffle pixel_unshuffle prelu
    quantile ravel renorm repeat_interleave rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell roll rot90 rsub
    searchsorted softmax sort stack std std_mean swapaxes swapdims take take_along_dim tensor_split tensordot tile to
    trace transpose tril triu type_as unflatten unfold unsafe_chunk unsafe_split unsafe_split_with_sizes
    upsample_bicubic2d upsample_linear1d upsample_nearest1d upsample_nearest3d upsample_trilinear3d var var_mean
    view_as vsplit vstack zero zeros_like
"""))
_FILLS = frozenset({"zeros", "ones", "full"})  # as an LSTM makes its first state
_IMPURE = re.compile(r"_$|backward|empty|rand|dropout|bernoulli|normal|as_strided|file")
_TENSORS = frozenset({"Tensor", "List[Tensor]"})
_OVERLOAD = type(torch.ops.aten.relu.default)


@lru_cache(maxsize=4096)
def declared(target: str) -> Any:
    """What torch declares about an operation; None if it is none that may be run by name.

    It must be a pure function: it makes tensors, and changes or reads nothing else.

    >>> declared("aten.relu.default").arguments[0].name
    'self'
    >>> declared("aten.from_file.default") is None
    True
    """
    match = _ATEN.fullmatch(target)
    op = getattr(getattr(torch.ops.aten, match[1], None), match[2], None) if match else None
    if not isinstance(op, _OVERLOAD):
        return None
    name = op.name().removeprefix("aten::").partition(".")[0]
    tagged = torch.Tag.core in op.tags or torch.Tag.pointwise in op.tags
    if not (tagged or name in _PURE or name in _FILLS) or _IMPURE.search(name):
        return None
    try:
        _, schemas = get_signature_for_torch_op(op, return_schemas=True)
    except (NameError, ValueError):  # types of TorchScript only
        return None
    schema = schemas[0] if schemas else None
    returns = {str(r.type) for r in schema.returns} if schema else set()
    return schema if schema and not schema.is_mutable and returns and returns <= _TENSORS else None


def problem(attrs: Mapping[str, Any], inputs: int, roles: Collection[str], shape: Sequence[Dim] | None = None
            ) -> tuple[str, Any, str] | None:
    """What is wrong with a call that is stored in a node, as (what, got, allowed); None if it may be run.

    Args:
        attrs: the node's ``target``, ``args``, ``kwargs`` and ``index``.
        inputs: how many operands it has.
        roles: names of its parameters.
        shape: of its result, where it is known: a tensor that is made from nothing has that size.
    """
    target, args, kwargs, index = (attrs[k] for k in ("target", "args", "kwargs", "index"))
    schema = declared(target) if isinstance(target, str) else None
    if schema is None:
        return ("not an operation that may be run by name", target,
                "public aten functions that make tensors and change nothing")
    kinds = {a.name: str(a.real_type) for a in schema.arguments}
    if not isinstance(args, list | tuple) or not isinstance(kwargs, Mapping) or len(args) > len(kinds) \
            or not set(kwargs) <= set(kinds):
        return "arguments are wrong", kwargs, ", ".join(kinds)
    given = {**dict(zip(kinds, args, strict=False)), **kwargs}
    needed = {a.name for a in schema.arguments if not a.has_default_value()}
    bounded = any(map(_refers, given.values()))
    if not bounded and target.split(".")[1] in _FILLS:
        size = None if shape is None else [d if isinstance(d, int) else {"dim": d} for d in shape]
        bounded = size is None or given.get("size") == size
    if not needed <= set(given) or not bounded or not all(
            _suits(v, kinds[k], inputs, roles) for k, v in given.items()):
        return "an argument is wrong", (args, kwargs), str(schema)[:200]
    one = [str(r.type) for r in schema.returns] == ["Tensor"]
    if (index is None) != one or not (index is None or (type(index) is int and 0 <= index <= _RESULTS)):
        return "the index of a result is wrong", index, "an integer" if not one else "none"
    return None


def _refers(value: Any) -> bool:
    """Whether a tensor is in an argument; without one, torch would make a tensor of any size."""
    if isinstance(value, list | tuple):
        return any(map(_refers, value))
    return isinstance(value, Mapping) and bool(value.keys() & {"input", "param"})


def _integer(v: Any) -> bool:
    return type(v) is int and -(2**63) <= v < 2**63


def _suits(value: Any, kind: str, inputs: int, roles: Collection[str]) -> bool:
    """Whether an argument has the type that torch declares.

    An enum (a device, a layout, a memory format) must be left out: torch takes any integer for one, and crashes on it.
    """
    if kind.startswith("Optional["):
        return value is None or _suits(value, kind[9:-1], inputs, roles)
    if kind.startswith("List["):
        return isinstance(value, list | tuple) and all(_suits(v, kind[5:-1], inputs, roles) for v in value)
    ((key, item),) = value.items() if isinstance(value, Mapping) and len(value) == 1 else ((None, value),)
    if key is not None:
        return {
            "input": kind == "Tensor" and type(item) is int and 0 <= item < inputs,
            "param": kind == "Tensor" and isinstance(item, str) and item in roles,
            "dim": kind in ("int", "number") and is_dim(item),
            "dtype": kind == "ScalarType" and isinstance(item, str) and item in DTYPES,
        }.get(key, False)
    if kind in ("Tensor", "number", "float"):
        return type(value) in (bool, float) or _integer(value)
    return {"int": _integer(value), "bool": type(value) is bool, "str": isinstance(value, str)}.get(kind, False)


def run_aten(
    xs: Sequence[Tensor], params: Mapping[str, Tensor], attrs: Mapping[str, Any], sizes: Sizes
) -> Tensor:
    """Call ``torch.ops.aten.<op>.<overload>`` with the stored argument template.

    Raises:
        CaptureError: if it is not a pure aten function, or an argument is not what torch declares.
    """
    target = attrs["target"]
    wrong = problem(attrs, len(xs), params)
    if wrong is not None:
        raise CaptureError(wrong[0], where=str(target), got=wrong[1], allowed=wrong[2],
                           fix="write this part of the model with other operations, or move it into a submodule")
    _, name, overload = target.split(".")
    op = getattr(getattr(torch.ops.aten, name), overload)

    def fill(value: Any) -> Any:
        if isinstance(value, Mapping):
            if "input" in value:
                return xs[value["input"]]
            if "param" in value:
                return params[value["param"]]
            if "dim" in value:
                return resolve_dim(value["dim"], sizes)
            return getattr(torch, value["dtype"])
        if isinstance(value, list | tuple):
            return [fill(v) for v in value]
        return value

    result = op(*[fill(a) for a in attrs["args"]], **{k: fill(v) for k, v in attrs["kwargs"].items()})
    index = attrs.get("index")
    return result if index is None else result[index]  # type: ignore[no-any-return]
