"""A target as plain data: the TOML that users write, the same fields as JSON in saved models, and back."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, replace
from enum import Enum
from pathlib import Path
from typing import Any

from intact.arithmetic import (
    Arithmetic,
    BinaryRule,
    MatMulRule,
    MeanRule,
    PoolRule,
    Requantize,
    ResizeRule,
    SoftmaxRule,
)
from intact.errors import PlanError
from intact.targets.catalog import BUILT_IN
from intact.targets.catalog.fixed_point import INTEGER_RULES
from intact.targets.schema import OpRule, Output, Target
from intact.types import QParams

__all__ = ["describe", "load_target", "parse_target", "rules_of", "target_to_toml"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
#: number rules with a default; about the others nothing is guessed
_OPTIONAL = frozenset({"zero_inside_pool", "pair_bits", "mean", "resize", "softmax", "matmul", "functions",
                       "wide_accumulator_bits"})
_FIELDS = {f.name: f for f in fields(Arithmetic) if f.name != "name"}


# -- files --------------------------------------------------------------------------------------


def load_target(path: str | os.PathLike[str]) -> Target:
    """A target of your own, from a TOML file; nothing in it is executed.

    ``print(target_to_toml(get_target("fixed_point")))``, or ``intact targets fixed_point``, is a file to start from.

    Args:
        path: the file.

    Raises:
        PlanError: if it cannot be read, or if fields are missing, unknown, of the wrong kind or contradict each other;
            names the file, the field, what stood there and what is allowed.

    >>> import tempfile
    >>> from intact.targets import get_target
    >>> text = target_to_toml(get_target("fixed_point")).replace('"fixed_point"', '"npu"', 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = Path(folder) / "npu.toml"
    ...     _ = file.write_text(text)
    ...     load_target(file).name
    'npu'
    """
    try:
        found = tomllib.loads(Path(path).read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise PlanError("this is not TOML", where=str(path), got=str(error)) from None
    except UnicodeDecodeError as error:
        raise PlanError("this is not text in UTF-8", where=str(path), got=str(error)) from None
    except (OSError, ValueError) as error:
        raise PlanError("the target's file cannot be read", where=str(path),
                        got=getattr(error, "strerror", None) or str(error),
                        fix="give the path of a TOML file, or the name of a target") from None
    return parse_target(found, str(path))


def target_to_toml(target: Target) -> str:
    """The text that :func:`load_target` reads; of a target that comes with Intact give it another name first.

    Raises:
        PlanError: if the target has rules in Python that no file can say.
    """
    lines: list[str] = []

    def write(table: Mapping[str, Any], path: str) -> None:
        plain = {k: v for k, v in table.items() if not isinstance(v, Mapping)}
        if path and (plain or not table):
            lines.extend(["", f"[{path}]"])
        lines.extend(f"{k} = {_value(v)}" for k, v in plain.items())
        for k, v in table.items():
            if isinstance(v, Mapping):
                write(v, f"{path}.{k}" if path else k)

    write(describe(target), "")
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    """Text, numbers and lists are written in TOML as in JSON, within our names; long lists over several lines."""
    if isinstance(value, list) and value and isinstance(value[0], str):
        rows = [", ".join(map(json.dumps, value[i : i + 8])) for i in range(0, len(value), 8)]
        return "[\n    " + ",\n    ".join(rows) + ",\n]"
    return repr(value) if isinstance(value, float) else json.dumps(value)


# -- from a target ------------------------------------------------------------------------------


def describe(target: Target) -> dict[str, Any]:
    """The target as nested dicts of text, numbers and lists, as :func:`parse_target` takes them.

    Raises:
        PlanError: if the target has rules in Python that no file can say.

    >>> from intact.targets import get_target
    >>> describe(get_target("fixed_point"))["activations"]["signed"]
    True
    """
    known = rules_of(target.arithmetic)
    for op, rule in target.rules.items():
        if replace(rule, fixed={}) != (replace(known[op], fixed={}) if op in known else None):
            raise PlanError("a target with rules in Python cannot be described", where=f"{target.name}, {op}",
                            fix="register_target makes it known by name")
    if target.exported is not None:
        raise PlanError("a target with an exporter of its own cannot be described", where=target.name)
    numbers = {name: getattr(target.arithmetic, name) for name in _FIELDS}
    fixed = {op: {str(bits): {"scale": float(p.scale), "zero_point": int(p.zero_point)}
                  for bits, p in sorted(rule.fixed.items())}
             for op, rule in target.rules.items() if not _same_fixed(rule.fixed, INTEGER_RULES[op].fixed)}
    return {
        "name": target.name,
        "version": target.version,
        "float_operations": target.float_operations,
        "arithmetic": {k: v.value if isinstance(v, Enum) else v for k, v in numbers.items()},
        "activations": {"bits": list(target.activation_bits), "signed": target.signed_activations,
                        "symmetric": target.symmetric_activations, "symmetric_from": target.symmetric_from,
                        "signed_from": target.signed_from},
        "weights": {"bits": list(target.weight_bits), "per_channel": target.per_channel,
                    "asymmetric": target.asymmetric_weights},
        "operations": {"run": list(target.rules), **({"outputs": fixed} if fixed else {})},
    }


def _same_fixed(a: Mapping[int, QParams], b: Mapping[int, QParams]) -> bool:
    return a.keys() == b.keys() and all(a[bits].same_as(b[bits]) for bits in a)


# -- to a target --------------------------------------------------------------------------------


def parse_target(description: object, file: str = "target") -> Target:
    """The target that nested dicts describe, every field checked.

    Args:
        description: what :func:`describe` gives, or a TOML file holds.
        file: for messages.

    Raises:
        PlanError: if fields are missing, unknown, of the wrong kind or contradict each other.
    """
    top = _table(description, file, "", ("name", "version", "float_operations", "arithmetic", "activations",
                                         "weights"), ("operations",))
    name = top["name"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise _wrong(file, "name", name, "letters, digits, '_', '-' and '.', at most 64")
    if name in BUILT_IN:
        raise PlanError("a target of this name comes with Intact", where=f"{file}: name", got=name,
                        fix="give yours another name")
    arithmetic = _arithmetic(top["arithmetic"], name, file)
    acts = _table(top["activations"], file, "activations", ("bits", "signed", "symmetric"),
                  ("symmetric_from", "signed_from"))
    weights = _table(top["weights"], file, "weights", ("bits", "per_channel", "asymmetric"))
    target = Target(
        name=name,
        version=_whole(top["version"], file, "version", 1, 2**31),
        arithmetic=arithmetic,
        rules={},
        weight_bits=_widths(weights["bits"], file, "weights.bits"),
        activation_bits=_widths(acts["bits"], file, "activations.bits"),
        signed_activations=_flag(acts["signed"], file, "activations.signed"),
        symmetric_activations=_flag(acts["symmetric"], file, "activations.symmetric"),
        symmetric_from=_whole(acts.get("symmetric_from", 32), file, "activations.symmetric_from", 2, 32),
        signed_from=_whole(acts.get("signed_from", 32), file, "activations.signed_from", 2, 32),
        float_operations=_flag(top["float_operations"], file, "float_operations"),
        per_channel=_flag(weights["per_channel"], file, "weights.per_channel"),
        asymmetric_weights=_flag(weights["asymmetric"], file, "weights.asymmetric"),
    )
    return replace(target, rules=_rules(top.get("operations", {}), target, file))


def _arithmetic(value: object, name: str, file: str) -> Arithmetic:
    found = _table(value, file, "arithmetic", [f for f in _FIELDS if f not in _OPTIONAL], _OPTIONAL)
    given: dict[str, Any] = {}
    for key, item in found.items():
        where, default = f"arithmetic.{key}", _FIELDS[key].default
        assert default is not MISSING
        if isinstance(default, Enum):
            given[key] = _choice(type(default), item, file, where)
        elif isinstance(default, bool):
            given[key] = _flag(item, file, where)
        else:
            given[key] = _whole(item, file, where, 8, 53)
    arithmetic = Arithmetic(name, **given)
    if arithmetic.pair_bits not in (16, 32):
        raise _wrong(file, "arithmetic.pair_bits", arithmetic.pair_bits, "16, or 32 (products are not added in pairs)")
    if arithmetic.integer_only:
        _check_integer_only(arithmetic, file)
    return arithmetic


def _check_integer_only(arithmetic: Arithmetic, file: str) -> None:
    """What a requantization without floats rules out."""
    how = f"requantize = {arithmetic.requantize.value!r}"
    whole: dict[str, tuple[Enum, ...]] = {
        "add": (BinaryRule.INTEGER, BinaryRule.TFLITE), "mul": (BinaryRule.INTEGER, BinaryRule.TFLITE),
        "average_pool": (PoolRule.SUM, PoolRule.CODES), "mean": (MeanRule.SUM, MeanRule.TFLITE),
        "softmax": (SoftmaxRule.TABLES, SoftmaxRule.TFLITE), "matmul": (MatMulRule.ACCUMULATOR, MatMulRule.TFLITE),
    }
    for field, allowed in whole.items():
        got = getattr(arithmetic, field)
        if got not in allowed:
            raise PlanError(f"{how} means that there are no floats", where=f"{file}: arithmetic.{field}",
                            got=repr(got.value), allowed=", ".join(repr(a.value) for a in allowed))
    most = 48 if arithmetic.requantize is Requantize.FIXED_POINT_16 else 32  # times M0 it must fit in 64
    for field in ("accumulator_bits", "wide_accumulator_bits"):
        if getattr(arithmetic, field) > most:
            raise PlanError(f"{how} takes accumulators of at most {most} bits", where=f"{file}: arithmetic.{field}",
                            got=getattr(arithmetic, field), allowed=f"8 to {most}")
    if arithmetic.zero_inside and arithmetic.requantize in (Requantize.FIXED_POINT_TWICE, Requantize.FIXED_POINT_16):
        raise PlanError(f"{how} rounds before the zero point is added", where=f"{file}: arithmetic.zero_inside",
                        got="true", allowed="false")


def _rules(value: object, target: Target, file: str) -> dict[str, OpRule]:
    found = _table(value, file, "operations", (), ("run", "outputs"))
    run = found.get("run", list(INTEGER_RULES))
    if not isinstance(run, list) or not run or not all(isinstance(op, str) for op in run):
        raise _wrong(file, "operations.run", run, "a list of operations")
    unknown = [op for op in run if op not in INTEGER_RULES]
    if unknown:
        raise PlanError("unknown operation", where=f"{file}: operations.run", got=unknown[0],
                        allowed=", ".join(sorted(INTEGER_RULES)), fix=_meant(unknown[0], INTEGER_RULES))
    twice = [op for op in run if run.count(op) > 1]
    if twice:
        raise PlanError("an operation is named twice", where=f"{file}: operations.run", got=twice[0])
    known = rules_of(target.arithmetic)
    free = [op for op in run if known[op].output is not Output.SHARED]
    outputs = _table(found.get("outputs", {}), file, "operations.outputs", (), free)
    rules = {op: known[op] for op in run}
    return rules | {op: replace(rules[op], fixed=_fixed(value, op, target, file)) for op, value in outputs.items()}


def rules_of(arithmetic: Arithmetic) -> dict[str, OpRule]:
    """What runs on nothing but integers, by operation; averages and mixtures of codes keep the codes' encoding."""
    kept = {"avg_pool"} if arithmetic.average_pool is PoolRule.CODES else set()
    kept |= {"interpolate"} if arithmetic.resize is not ResizeRule.PRODUCTS else set()
    return {op: replace(r, output=Output.SHARED) if op in kept else r for op, r in INTEGER_RULES.items()}


def _fixed(value: object, op: str, target: Target, file: str) -> dict[int, QParams]:
    """Prescribed parameters of an output, by its bits."""
    path = f"operations.outputs.{op}"
    widths = _table(value, file, path, (), [str(b) for b in target.activation_bits])
    result = {}
    for bits, item in widths.items():
        where = f"{path}.{bits}"
        pair = _table(item, file, where, ("scale", "zero_point"))
        scale, qtype = pair["scale"], target.activation_type(int(bits))
        if not isinstance(scale, int | float) or isinstance(scale, bool) or not 2.0**-100 <= scale <= 2.0**100:
            raise _wrong(file, f"{where}.scale", scale, "a positive number")
        if target.arithmetic.requantize is Requantize.SHIFT and math.frexp(scale)[0] != 0.5:
            raise PlanError("requantize = 'shift' means that scales are powers of two", where=f"{file}: {where}.scale",
                            got=scale, allowed=f"{2.0 ** math.ceil(math.log2(scale)):g}")
        zero = _whole(pair["zero_point"], file, f"{where}.zero_point", qtype.qmin, qtype.qmax)
        if zero and qtype.signed and (target.symmetric_activations or int(bits) >= target.symmetric_from):
            raise PlanError("activations are symmetric", where=f"{file}: {where}.zero_point", got=zero, allowed=0)
        result[int(bits)] = QParams.per_tensor(float(scale), zero, qtype)
    return result


# -- fields -------------------------------------------------------------------------------------


def _wrong(file: str, field: str, got: object, allowed: object) -> PlanError:
    return PlanError("a field of the target is wrong", where=f"{file}: {field}", got=repr(got)[:80], allowed=allowed)


def _meant(word: object, words: Iterable[str]) -> str | None:
    near = difflib.get_close_matches(str(word), list(words), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else None


def _table(
    value: object, file: str, path: str, required: Iterable[str], optional: Iterable[str] = ()
) -> dict[str, Any]:
    """A table that has all required fields and no unknown one."""
    required, known = list(required), [*required, *optional]
    if not isinstance(value, Mapping):
        raise _wrong(file, path or "the whole", value, f"a table with {', '.join(known) or 'nothing'}")
    dot = f"{path}." if path else ""
    for field in value:
        if field not in known:
            raise PlanError("unknown field", where=f"{file}: {dot}{field}"[:200], allowed=", ".join(known) or "nothing",
                            got=str(field)[:80], fix=_meant(field, known))
    missing = [field for field in required if field not in value]
    if missing:
        raise PlanError("fields are missing", where=file, got=f"no {', '.join(dot + f for f in missing)}",
                        allowed=", ".join(dot + f for f in known))
    return dict(value)


def _flag(value: object, file: str, field: str) -> bool:
    if not isinstance(value, bool):
        raise _wrong(file, field, value, "true or false")
    return value


def _whole(value: object, file: str, field: str, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise _wrong(file, field, value, f"{low} to {high}")
    return value


def _choice(kind: type[Enum], value: object, file: str, field: str) -> Enum:
    names = [member.value for member in kind]
    if value not in names:
        raise PlanError("a field of the target is wrong", where=f"{file}: {field}", got=repr(value)[:80],
                        allowed=", ".join(map(repr, names)), fix=_meant(value, names))
    return kind(value)


def _widths(value: object, file: str, field: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not value:
        raise _wrong(file, field, value, "a list of widths from 2 to 16, such as [8]")
    widths = [_whole(bits, file, field, 2, 16) for bits in value]
    if len(set(widths)) < len(widths):
        raise _wrong(file, field, value, "each width once")
    return tuple(sorted(widths))
