"""Plain data of a foreign file, read with the type that it must have."""

from __future__ import annotations

from typing import Any

from intact.errors import ArtifactError

__all__ = ["array", "brief", "number", "record", "text"]


def brief(value: object) -> str:
    """A foreign value for a message: short, and without control characters."""
    return ascii(value)[:120]


def record(value: Any, where: str, *names: str) -> dict[str, Any]:
    """A JSON object; with ``names``, one that has exactly these fields."""
    if not isinstance(value, dict) or (names and set(value) != set(names)):
        raise ArtifactError("fields are missing or unknown", where=where,
                            got=brief(sorted(value) if isinstance(value, dict) else value), allowed=", ".join(names))
    return value


def number(value: Any, where: str, *, low: int, high: int = 2**63 - 1) -> int:
    """An integer within bounds."""
    if type(value) is not int or not low <= value <= high:
        raise ArtifactError("a number is wrong", where=where, got=brief(value), allowed=f"{low} to {high}")
    return value


def text(value: Any, where: str) -> str:
    """A string."""
    if not isinstance(value, str):
        raise ArtifactError("text is missing", where=where, got=brief(value))
    return value


def array(value: Any, where: str) -> list[Any]:
    """A list."""
    if not isinstance(value, list):
        raise ArtifactError("a list is missing", where=where, got=brief(value))
    return value
