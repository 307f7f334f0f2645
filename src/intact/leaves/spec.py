"""Which leaves the user means, and how: sets and dicts of types, names and globs, with configurations."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from torch import nn

from intact.errors import PlanError
from intact.leaves.base import Leaf
from intact.leaves.how import LeafHow

__all__ = ["choose"]

#: keys of a configuration that stands for all layers, if no module is called like one
_ONE = ("activation", "weight", "qscheme", "dynamic", "balance")

#: makes the encoding of a configuration of the user's
Parse = Callable[[Any, str], LeafHow | None]


@dataclass(frozen=True)
class _Entry:
    """One key of the specification."""

    key: type | str
    how: LeafHow | None

    def __str__(self) -> str:
        return repr(self.key) if isinstance(self.key, str) else self.key.__name__

    def depth(self, path: Sequence[tuple[str, nn.Module]]) -> tuple[int, int] | None:
        """How narrowly the key names the last of the modules on a path, itself or around it; None if it does not."""
        best: tuple[int, int] | None = None
        for level, (name, module) in enumerate(path):
            if isinstance(self.key, type):
                hit = (0, level) if isinstance(module, self.key) else None
            elif name == self.key:
                hit = (2, level)
            else:
                hit = (1, level) if name and fnmatch.fnmatchcase(name, self.key) else None
            best = hit if hit is not None and (best is None or hit > best) else best
        return best


def choose(
    model: nn.Module, spec: Any, default: LeafHow, parse: Parse, usual: Set[type[nn.Module]],
    can: Callable[[nn.Module], bool],
) -> dict[str, LeafHow]:
    """How each leaf is to be encoded, by its first module path.

    A key names a module or every leaf inside it. An exact name beats a glob, and that a type; of two of a kind the
    one that names the module nearer to the leaf wins, then the later one.

    Args:
        model: whose leaves are chosen.
        spec: None, a type or a name, a collection of them, or a mapping of them to configurations.
        default: for what has no configuration of its own.
        parse: of a configuration.
        usual: types that ``None`` stands for.
        can: whether a module can be a leaf.

    Raises:
        PlanError: for a key that matches nothing, or nothing that can be quantized.
    """
    modules = dict(model.named_modules())
    leaves = _leaf_paths(modules, can)
    entries = _entries(spec, default, parse, usual, modules)
    used: set[int] = set()
    chosen: dict[str, LeafHow] = {}
    decided: dict[str, tuple[list[int], int]] = {}
    for name in leaves:
        path = [(p, modules[p]) for p in _ancestors(name)]
        hits = [(depth, i) for i, e in enumerate(entries) if (depth := e.depth(path)) is not None]
        used.update(i for _, i in hits)
        if hits:
            decided[name] = [i for _, i in hits], max(hits)[1]
            how = entries[max(hits)[1]].how
            if how is not None:
                chosen[name] = how
    if {e.key for e in entries} != usual:  # of the usual layers a model need not have all
        for i, entry in enumerate(entries):
            if i not in used:
                raise _unmatched(entry, modules, leaves, usual, can)
        _refuse_beaten(entries, decided)
        if not chosen:
            raise PlanError("the specification leaves every layer in float", got=", ".join(map(str, entries)),
                            fix="say what is quantized too: '*' stands for every layer, and what comes later wins")
    elif not chosen:
        raise _nothing(modules, usual, can)
    return chosen


def _refuse_beaten(entries: Sequence[_Entry], decided: Mapping[str, tuple[list[int], int]]) -> None:
    """Refuse a key that is always beaten by others, which say otherwise."""
    winners = {winner for _, winner in decided.values()}
    for name, (hits, winner) in decided.items():
        for i in hits:
            if i not in winners and entries[i].how != entries[winner].how:
                raise PlanError("a key has no effect: narrower or later ones win everywhere", where=str(entries[i]),
                                got=f"{entries[winner]} decides on {name!r}",
                                fix="a name wins over a glob, that over a type, and of two alike the later one: "
                                    "remove the key, or write it more narrowly or later")


def _ancestors(name: str) -> list[str]:
    """The paths of a module and of all around it, the outermost first."""
    parts = name.split(".") if name else []
    return ["", *(".".join(parts[: i + 1]) for i in range(len(parts)))]


def _leaf_paths(modules: Mapping[str, nn.Module], can: Callable[[nn.Module], bool]) -> list[str]:
    """Modules that can be leaves and are not inside one."""
    found: list[str] = []
    for name, module in modules.items():
        inside = any(can(modules[p]) or isinstance(modules[p], Leaf) for p in _ancestors(name)[:-1] if name)
        if can(module) and not inside:
            found.append(name)
    return found


def _entries(
    spec: Any, default: LeafHow, parse: Parse, usual: Set[type[nn.Module]], modules: Mapping[str, nn.Module]
) -> list[_Entry]:
    if spec is None:
        return [_Entry(kind, default) for kind in usual]
    if isinstance(spec, str | type):
        spec = {spec}
    if isinstance(spec, Mapping):
        if spec and all(k in _ONE and k not in modules for k in spec):
            how = parse(spec, "the specification")  # one configuration for all
            return [_Entry(kind, how) for kind in usual]
        pairs = [(k, parse(v, _name(k))) for k, v in spec.items()]
    elif isinstance(spec, Set | Sequence):
        pairs = [(k, default) for k in spec]
    else:
        raise PlanError("no such specification", got=type(spec).__name__,
                        allowed="None, a set of types and names, or a dict of them to configurations")
    if not pairs:
        raise PlanError("the specification names nothing", fix="leave it out for the usual layers")
    for key, _ in pairs:
        if not isinstance(key, str | type) or (isinstance(key, type) and not issubclass(key, nn.Module)):
            raise PlanError("a key is neither a type of module nor a name", got=repr(key)[:80])
    return [_Entry(k, how) for k, how in pairs]


def _name(key: object) -> str:
    return key.__name__ if isinstance(key, type) else str(key)


def _own_forward(modules: Iterable[nn.Module], usual: Set[type[nn.Module]], can: Callable[[nn.Module], bool]
                 ) -> str | None:
    """What to do where subclasses of layers are not taken for the layers."""
    kinds = sorted({type(m).__name__ for m in modules if not can(m) and isinstance(m, tuple(usual))})
    return f"{', '.join(kinds[:4])}: a forward of its own need not be that of the layer; let it call a layer inside " \
        "(self.inner = nn.Linear(...)) instead of being one" if kinds else None


def _nothing(modules: Mapping[str, nn.Module], usual: Set[type[nn.Module]], can: Callable[[nn.Module], bool]
             ) -> PlanError:
    if any(isinstance(m, Leaf) for m in modules.values()):
        return PlanError("the model is quantized already", fix="quantize the float model")
    there = sorted({type(m).__name__ for m in modules.values()})
    return PlanError("the model has no layer to quantize", got=", ".join(there[:8]),
                     fix=_own_forward(modules.values(), usual, can))


def _unmatched(
    entry: _Entry, modules: Mapping[str, nn.Module], leaves: Sequence[str], usual: Set[type[nn.Module]],
    can: Callable[[nn.Module], bool],
) -> PlanError:
    """What the user may have meant."""
    named = [n for n in modules if entry.depth([(n, modules[n])]) is not None]
    below = [modules[n] for n in modules if any(p in named for p in _ancestors(n))]
    if any(isinstance(m, Leaf) for m in below):
        return PlanError("a key names what is quantized already", where=str(entry), fix="quantize the float model")
    if named and any(can(modules[p]) for n in named for p in _ancestors(n)[:-1]):
        return PlanError("a key names a part of a layer", where=str(entry), fix="name the whole layer")
    if named:
        kinds = sorted({type(modules[n]).__name__ for n in named})
        return PlanError("a key names nothing that can be quantized", where=str(entry), got=", ".join(kinds[:8]),
                         fix=_own_forward([modules[n] for n in named], usual, can))
    if isinstance(entry.key, type):
        there = sorted({type(modules[n]).__name__ for n in leaves})
        near = difflib.get_close_matches(entry.key.__name__, there, n=3, cutoff=0.4)
    else:
        there = [n for n in modules if n]
        near = difflib.get_close_matches(entry.key, there, n=3, cutoff=0.5)
    listing = f"the model has {', '.join(there[:8])}{', ...' if len(there) > 8 else ''}"
    if entry.key in {type(m).__name__ for m in modules.values()}:
        return PlanError("a key is the name of a type, not of a module", where=str(entry),
                         fix=f"pass the class {entry.key} itself")
    return PlanError("a key matches nothing", where=str(entry),
                     allowed=f"nearest: {', '.join(near)}" if near else listing,
                     fix=f"did you mean {near[0]!r}?" if near else "correct the key, or remove it")
