"""Submodules that torch.export refuses: each call of theirs becomes one opaque float call, by path and reason."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from intact.errors import CaptureError
from intact.graph.batch_axes import batch_of, with_samples
from intact.graph.converter import Converter, Value, handler
from intact.graph.dynamic import stretched, symbols_in
from intact.graph.opaque import OpaqueCall, Recorded, describe
from intact.graph.tree import leaves, map_leaves
from intact.types.dims import BATCH, Sizes, renamed, resolve_shape, symbols_of

__all__ = ["CAPTURE_FAILURES", "capture_around", "failing_module"]

#: what torch.export raises when a model cannot be captured (its own errors derive from these)
CAPTURE_FAILURES = (
    RuntimeError, ValueError, TypeError, KeyError, AttributeError, AssertionError, NotImplementedError,
    IndexError, CaptureError,
)

#: samples to watch all submodules with, whose inputs are kept
_FEW = 5
_OWN = "the model's own forward cannot be captured"

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
#: captures a module, with these opaque calls in it
Attempt = Callable[[nn.Module, Args, Kwargs, Mapping[str, OpaqueCall]], Any]

# the opaque calls of the capture that is going on, for the operation that stands for them
_CALLS: dict[str, OpaqueCall] = {}


@torch.library.custom_op("intact::opaque", mutates_args=())
def _opaque(xs: list[Tensor], key: str) -> list[Tensor]:
    if key not in _CALLS:
        raise CaptureError("an opaque module was called outside its graph", where=key)
    call = _CALLS[key]
    return [y.clone() for y in call.run(xs, call.sizes_of(xs))]  # an operation must not return its operands


@_opaque.register_fake
def _opaque_fake(xs: list[Tensor], key: str) -> list[Tensor]:
    call = _CALLS[key]
    sizes = call.sizes_of(xs)
    return [torch.empty(resolve_shape(shape, sizes), dtype=dtype) for shape, dtype in call.outputs]


@handler("intact.opaque.default")
def _convert(c: Converter, xs: list[Value], key: str) -> Value:
    call = _CALLS[key]
    outputs = []
    for i, (shape, dtype) in enumerate(call.outputs):
        c.path, c.leaf = call.path, True
        outputs.append(
            c.emit("opaque", xs, dtype=str(dtype).removeprefix("torch."), module=key, index=i,
                   shape=[d if isinstance(d, int) else renamed(d, {**{s: s for s in symbols_of(d)}, **c.aliases})
                          for d in shape])
        )
    return outputs


class _Turns:
    """The call sites of one module, in the order in which the model comes to them."""

    def __init__(self, calls: list[OpaqueCall]) -> None:
        self.calls, self.count = calls, 0

    def next(self) -> OpaqueCall:
        """The call whose turn it is; after the last one the model is run anew."""
        self.count += 1
        return self.calls[(self.count - 1) % len(self.calls)]


class _Stub(nn.Module):
    """Stands in for a module, under one of its names, while the rest is captured."""

    def __init__(self, turns: _Turns, path: str) -> None:
        super().__init__()
        self.turns, self.path = turns, path

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        call = self.turns.next()
        call.path = self.path
        xs = [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]
        if [x.ndim for x in xs] != [len(shape) for shape in call.inputs]:
            raise CaptureError("a module is called in another order than with the example inputs", where=self.path)
        ys = _opaque(xs, call.key)
        made = len(ys) - len(call.changed)
        for i, y in zip(call.changed, ys[made:], strict=True):
            xs[i].copy_(y)
        return call.answer(ys[:made], call.sizes_of(xs))


def capture_around(model: nn.Module, args: Args, kwargs: Kwargs, attempt: Attempt, failure: BaseException, axes: Any
                   ) -> Any:
    """What ``attempt`` gives with stubs in place of the smallest modules that it refuses.

    Stubs may bring up another refusal (of a module that looks into the one that was replaced, say): then that one is
    replaced too, until all is captured or the model's own forward is what is refused.

    Args:
        model: in evaluation mode; unchanged after.
        args: example inputs.
        kwargs: likewise, by name.
        attempt: captures a module, or raises.
        failure: what it raised for the whole model.
        axes: the free axes of every tensor among the inputs.

    Raises:
        CaptureError: if the model's own forward cannot be captured.
    """
    if isinstance(failure, CaptureError) and failure.where is None:
        raise failure  # it is not in a module
    given = (args, dict(kwargs))
    few, few_kwargs = with_samples(given, axes, min(batch_of(given, axes), _FEW))
    try:
        return _around(model, args, kwargs, attempt, failure, few, few_kwargs, axes)
    except CaptureError as error:
        if error.what != _OWN:
            raise
        raise _packed(model, few, few_kwargs) or error from None
    except CAPTURE_FAILURES:  # of the model: it takes no other number of samples on the axis that counts them
        raise _packed(model, args, kwargs) or _own_forward(model, failure) from failure


def _around(model: nn.Module, args: Args, kwargs: Kwargs, attempt: Attempt, failure: BaseException, few: Args,
            few_kwargs: Kwargs, axes: Any) -> Any:
    watched = _Watched(model, few, few_kwargs, axes)
    refused: dict[nn.Module, str] = {}
    while True:
        found = watched.describe_all(refused, failure)
        with _stubs(model, found) as opaque:
            if opaque:
                try:
                    return attempt(model, args, kwargs, opaque)
                except CAPTURE_FAILURES as error:
                    failure = error
            new = _newly_refused(model, few, few_kwargs, attempt, failure)
        if model in new:
            raise _own_forward(model, failure)
        refused.update(new)


def _newly_refused(model: nn.Module, args: Args, kwargs: Kwargs, attempt: Attempt, failure: BaseException
                   ) -> dict[nn.Module, str]:
    """The smallest modules that are refused with the stubs that are in place."""
    running: list[nn.Module] = []
    try:
        calls = _record(model, args, kwargs, running)
    except CAPTURE_FAILURES as error:  # it looks into a module that was replaced
        return {running[-1]: _reason(error)}
    new: dict[nn.Module, str] = {}
    _search(model, failure, calls, attempt, new)
    return new


def _own_forward(model: nn.Module, failure: BaseException, inner: str = "") -> CaptureError:
    return CaptureError(_OWN, where=type(model).__name__,
                        got=inner or _reason(failure), fix="move the part that torch.export refuses into a submodule")


def _packed(model: nn.Module, args: Args, kwargs: Kwargs) -> CaptureError | None:
    """What to do about a packed sequence, whose sizes are values of the lengths, if a module is called with one."""
    found: list[str] = []
    hooks = [m.register_forward_pre_hook(lambda _, given, name=name: found.append(name) if any(
        isinstance(x, PackedSequence) for x in given) else None) for name, m in model.named_modules()]
    try:
        model(*args, **kwargs)
    except CAPTURE_FAILURES:
        return None
    finally:
        for hook in hooks:
            hook.remove()
    return CaptureError("packed sequences cannot be captured: their sizes are values of the lengths", where=found[0],
                        fix="give the module padded sequences (no pack_padded_sequence), and take the steps at the "
                            "ends by index; a bidirectional one sees padding, so run it sequence by sequence"
                        ) if found else None


def _reason(failure: BaseException) -> str:
    text = str(failure).strip() or type(failure).__name__
    return text.splitlines()[0][:200]


# -- watching -----------------------------------------------------------------------------------


def _record(model: nn.Module, args: Args, kwargs: Kwargs, running: list[nn.Module]
            ) -> dict[nn.Module, list[Recorded]]:
    """Every call of every submodule, in order; if one fails, ``running`` tells which."""
    calls: dict[nn.Module, list[Recorded]] = {}
    given: list[tuple[Args, dict[str, Any]]] = []

    def enter(module: nn.Module, args: Any, kwargs: Any) -> None:
        running.append(module)
        # copies, for the module may change them
        given.append(map_leaves((args, kwargs), lambda x: x.clone() if isinstance(x, Tensor) else x))

    def leave(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        running.pop()
        calls.setdefault(module, []).append(Recorded(*given.pop(), result=result, inside=tuple(running)))

    hooks = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in model.modules()]
    hooks += [module.register_forward_hook(leave, with_kwargs=True) for module in model.modules()]
    try:
        model(*args, **kwargs)
    finally:
        for handle in hooks:
            handle.remove()
    return calls


def failing_module(model: nn.Module, args: Args, kwargs: Kwargs) -> str | None:
    """Path of the module in which a call fails; None if it does not, or in none."""
    running: list[nn.Module] = []
    try:
        _record(model, args, kwargs, running)
    except CAPTURE_FAILURES:
        return next((path for path, m in model.named_modules() if running and m is running[-1]), None)
    return None


class _Watched:
    """The calls of all submodules with inputs of several sizes: what differs between them grows with the inputs."""

    def __init__(self, model: nn.Module, args: Args, kwargs: Kwargs, axes: Any) -> None:
        size = batch_of((args, dict(kwargs)), axes) or 2
        self.model, other = model, 2 if size > 2 else 2 * size
        free = {name: n for name, n in symbols_in((args, kwargs), axes).items() if name != BATCH}
        self.points: list[Sizes] = []
        self.runs: list[dict[nn.Module, list[Recorded]]] = []
        for batch, step in ((size, 0), (other, 1), *([(size, 3)] if free else [])):
            more = {name: step * (i + 1) for i, name in enumerate(free)}
            cut, cut_kwargs = stretched(with_samples((args, dict(kwargs)), axes, batch), axes, more)
            self.points.append({BATCH: batch, **{name: free[name] + more[name] for name in free}})
            try:
                self.runs.append(_record(model, cut, cut_kwargs, []))
            except CAPTURE_FAILURES as error:
                if not free or not step:
                    raise
                raise CaptureError("the model fails with other sizes of an axis that shall be free", where=", ".join(
                    free), got=_reason(error), fix="leave the axis out of dynamic") from error
        self.names: dict[nn.Module, list[str]] = {}
        for path, module in model.named_modules(remove_duplicate=False):
            self.names.setdefault(module, []).append(path)

    def describe_all(self, refused: dict[nn.Module, str], failure: BaseException) -> dict[nn.Module, list[OpaqueCall]]:
        """Call sites of the refused modules; a module that cannot be described is refused with its parent.

        Raises:
            CaptureError: if that would be the whole model.
        """
        found: dict[nn.Module, list[OpaqueCall]] = {}
        todo = list(refused)
        while todo:
            module = todo.pop()
            try:
                found[module] = self._describe(module, refused)
            except CAPTURE_FAILURES as error:
                inner = f"{self.names[module][0]}: {error.what if isinstance(error, CaptureError) else error}"
                del refused[module]
                for parent in self._parents(module):
                    if parent is self.model:
                        raise _own_forward(self.model, failure, f"{refused.get(module, _reason(failure))} ({inner})") \
                            from failure
                    refused.setdefault(parent, f"{_reason(failure)} ({inner})")
                found, todo = {}, list(refused)
        return {m: calls for m, calls in found.items() if calls}

    def _describe(self, module: nn.Module, refused: Mapping[nn.Module, str]) -> list[OpaqueCall]:
        runs = [[c for c in run.get(module, []) if not any(m in refused for m in c.inside)] for run in self.runs]
        if len({len(run) for run in runs}) > 1:
            raise CaptureError("how often it is called depends on the batch size")
        path, own = self.names[module][0], copy.deepcopy(module)
        return [
            describe(own, path if not i else f"{path}@{i + 1}", path, refused[module], calls, self.points)
            for i, calls in enumerate(zip(*runs, strict=True))
        ]

    def _parents(self, module: nn.Module) -> list[nn.Module]:
        """The nearest modules around it, under each of its names, that are called."""
        found = []
        for path in self.names[module]:
            while path:
                path = path.rpartition(".")[0]
                parent = self.model.get_submodule(path)
                if parent in self.runs[0]:
                    break
            found.append(self.model.get_submodule(path))
        return list(dict.fromkeys(found))


# -- replacing ----------------------------------------------------------------------------------


@contextmanager
def _stubs(model: nn.Module, found: Mapping[nn.Module, list[OpaqueCall]]) -> Iterator[dict[str, OpaqueCall]]:
    """Inside, these modules are replaced under all their names; yields their calls by key."""
    turns = {module: _Turns(calls) for module, calls in found.items()}
    places = [(path, module) for path, module in model.named_modules(remove_duplicate=False) if module in found]
    saved = []
    _CALLS.update({call.key: call for calls in found.values() for call in calls})
    try:
        for path, module in places:
            parent, _, name = path.rpartition(".")
            if any(path.startswith(f"{other}.") for other, _ in places):
                continue  # inside another one, which stays whole
            owner = model.get_submodule(parent)
            saved.append((owner, name, module))
            setattr(owner, name, _Stub(turns[module], path))
        yield dict(_CALLS)
    finally:
        for owner, name, module in saved:
            setattr(owner, name, module)
        _CALLS.clear()


# -- searching ----------------------------------------------------------------------------------


def _search(module: nn.Module, failure: BaseException, calls: Mapping[nn.Module, list[Recorded]], attempt: Attempt,
            found: dict[nn.Module, str]) -> None:
    """Add the smallest modules in ``module``, or itself, that cannot be captured on their own."""
    if not _search_children(module, calls, attempt, found):
        found[module] = _reason(failure)


def _search_children(module: nn.Module, calls: Mapping[nn.Module, list[Recorded]], attempt: Attempt,
                     found: dict[nn.Module, str]) -> bool:
    """Whether any was found."""
    any_found = False
    for child in module.children():
        if child in found:
            any_found = True
        elif child not in calls:  # a list of modules, or one that is looked into and not called
            any_found |= _search_children(child, calls, attempt, found)
        elif not isinstance(child, _Stub):
            for call in _kinds(calls[child]):
                try:
                    attempt(child, call.args, call.kwargs, _CALLS)
                except CAPTURE_FAILURES as error:
                    _search(child, error, calls, attempt, found)
                    any_found = True
                    break
    return any_found


def _kinds(calls: list[Recorded]) -> list[Recorded]:
    """Calls that differ in more than the values of their tensors."""
    found: dict[str, Recorded] = {}
    for call in calls:
        # by their names, not rebuilt: a packed sequence takes nothing but tensors
        kind = [tuple(x.shape) if isinstance(x, Tensor) else x for x in leaves((call.args, call.kwargs))]
        found.setdefault(repr((kind, sorted(call.kwargs))), call)
    return list(found.values())
