"""Submodules that torch.export refuses: each becomes one opaque float call, by path and reason."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from intact.errors import CaptureError
from intact.graph.converter import Converter, Value, handler
from intact.graph.ir import Dim

__all__ = ["CAPTURE_FAILURES", "isolated"]

#: what torch.export raises when a model cannot be captured (its own errors derive from these)
CAPTURE_FAILURES = (
    RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError,
    IndexError, CaptureError,
)

Export = Callable[[nn.Module, tuple[Any, ...], Mapping[str, Any]], Any]

# output shapes and dtypes of the modules that are opaque during one capture, for the fake kernel
_SHAPES: dict[str, list[tuple[tuple[Dim, ...], torch.dtype]]] = {}


@torch.library.custom_op("intact::opaque", mutates_args=())
def _opaque(xs: list[Tensor], key: str) -> list[Tensor]:
    raise CaptureError("an opaque module was called outside its graph", where=key)


@_opaque.register_fake
def _opaque_fake(xs: list[Tensor], key: str) -> list[Tensor]:
    batch = xs[0].shape[0]
    return [
        torch.empty([batch if d == "batch" else int(d) for d in shape], dtype=dtype)
        for shape, dtype in _SHAPES[key]
    ]


class _Stub(nn.Module):
    """Stands in for a module while the rest is captured."""

    def __init__(self, key: str, single: bool) -> None:
        super().__init__()
        self.key, self.single = key, single

    def forward(self, *xs: Tensor) -> Any:
        ys = _opaque(list(xs), self.key)
        return ys[0] if self.single else tuple(ys)


@handler("intact.opaque.default")
def _convert(c: Converter, xs: list[Value], key: str) -> Value:
    outputs = []
    for i, (shape, dtype) in enumerate(_SHAPES[key]):
        c.path, c.leaf = key, True
        outputs.append(
            c.emit("opaque", xs, dtype=str(dtype).removeprefix("torch."), module=key, shape=list(shape),
                   index=None if len(_SHAPES[key]) == 1 else i)
        )
    return outputs


@contextmanager
def isolated(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], export: Export, failure: BaseException
) -> Iterator[dict[str, tuple[nn.Module, str]]]:
    """Inside, the smallest modules that ``export`` refuses are replaced by stubs.

    Yields:
        path to (module, reason).

    Raises:
        CaptureError: if the model's own forward is what cannot be captured.
    """
    calls = _record(model, args, kwargs)
    found: dict[str, tuple[nn.Module, str]] = {}
    _search(model, "", failure, calls, export, found)
    if "" in found or not found:
        raise CaptureError("the model's own forward cannot be captured", where=type(model).__name__,
                           got=_reason(failure),
                           fix="move the part that torch.export refuses into a submodule") from failure
    saved = []
    try:
        for path, (module, _) in found.items():
            parent = model.get_submodule(path.rpartition(".")[0])
            name = path.rpartition(".")[2]
            inputs, outputs = calls[path]
            single = isinstance(outputs, Tensor)
            _SHAPES[path] = _output_shapes(path, inputs, [outputs] if single else outputs)
            saved.append((parent, name, module))
            setattr(parent, name, _Stub(path, single))
        yield found
    finally:
        for parent, name, module in saved:
            setattr(parent, name, module)


def _reason(failure: BaseException) -> str:
    text = str(failure).strip() or type(failure).__name__
    return text.splitlines()[0][:200]


def _record(model: nn.Module, args: Any, kwargs: Any) -> dict[str, tuple[tuple[Any, ...], Any]]:
    """Inputs and outputs of the first call of every submodule that takes positional tensors."""
    calls: dict[str, tuple[tuple[Any, ...], Any]] = {}
    hooks = []
    for path, module in model.named_modules():
        def hook(m: nn.Module, xs: tuple[Any, ...], y: Any, *, _path: str = path) -> None:
            calls.setdefault(_path, (xs, y))

        hooks.append(module.register_forward_hook(hook))
    try:
        model(*args, **kwargs)
    except CAPTURE_FAILURES as error:
        raise CaptureError("the model fails on the example inputs", got=_reason(error),
                           fix="check the example inputs by calling the model with them") from error
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def _search(module: nn.Module, path: str, failure: BaseException, calls: Mapping[str, Any], export: Export,
            found: dict[str, tuple[nn.Module, str]]) -> None:
    """Add the smallest modules at or under ``path`` that cannot be captured on their own."""
    before = len(found)
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        if inner not in calls:
            if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
                _search_container(child, inner, failure, calls, export, found)
            continue
        try:
            export(child, calls[inner][0], {})
        except CAPTURE_FAILURES as error:
            _search(child, inner, error, calls, export, found)
    if len(found) == before:
        found[path] = (module, _reason(failure))


def _search_container(module: nn.Module, path: str, failure: BaseException, calls: Mapping[str, Any],
                      export: Export, found: dict[str, tuple[nn.Module, str]]) -> None:
    for name, child in module.named_children():
        inner = f"{path}.{name}"
        if inner not in calls:
            _search_container(child, inner, failure, calls, export, found)
            continue
        try:
            export(child, calls[inner][0], {})
        except CAPTURE_FAILURES as error:
            _search(child, inner, error, calls, export, found)


def _output_shapes(path: str, inputs: Any, outputs: Any) -> list[tuple[tuple[Dim, ...], torch.dtype]]:
    if not all(isinstance(t, Tensor) for t in (*inputs, *outputs)):
        raise CaptureError("a module that cannot be captured takes or returns more than tensors", where=path,
                           fix="give it positional tensors and let it return tensors")
    batch = inputs[0].shape[0]
    return [
        (tuple("batch" if i == 0 and d == batch else int(d) for i, d in enumerate(t.shape)), t.dtype)
        for t in outputs
    ]
