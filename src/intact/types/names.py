"""Encodings under the names that users of three-stage toolkits know."""

from __future__ import annotations

import difflib

from intact.errors import PlanError
from intact.types.qtype import INT8, INT8_NARROW, INT32, UINT8, QType

__all__ = ["DTYPES", "qint4", "qint8", "qint8_narrow", "qint32", "qtype", "quint4", "quint8"]

quint8 = UINT8
qint8 = INT8
#: [-127, 127], so that no code has a negative without a positive
qint8_narrow = INT8_NARROW
quint4 = QType(4, signed=False)
qint4 = QType(4, signed=True)
#: biases: their scale is that of the input times that of the weight
qint32 = INT32

DTYPES: dict[str, QType] = {
    "quint8": quint8, "qint8": qint8, "qint8_narrow": qint8_narrow, "quint4": quint4, "qint4": qint4, "qint32": qint32,
}


def qtype(name: str | QType) -> QType:
    """The encoding of that name, or the encoding itself.

    Raises:
        PlanError: for an unknown name, and for ``"qint1"``.

    >>> str(qtype("qint8_narrow")), qtype("quint4").qmax
    ('int8_narrow', 15)
    """
    if isinstance(name, QType):
        return name
    if name in ("qint1", "quint1"):
        raise PlanError("binary networks are not affine codes yet", where=name, got="1 bit", allowed=", ".join(DTYPES),
                        fix="take 2 bits or more, or leave the layer in float")
    if name not in DTYPES:
        near = difflib.get_close_matches(str(name), DTYPES, n=1, cutoff=0.4)
        raise PlanError("no such dtype", got=name, allowed=", ".join(DTYPES),
                        fix=f"did you mean {near[0]!r}?" if near else None)
    return DTYPES[name]
