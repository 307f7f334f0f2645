"""Frozen values: encodings, granularities, parameters, codes."""

from intact.types.granularity import Granularity, PerChannel, PerGroup, PerTensor, PerToken
from intact.types.names import qint4, qint8, qint8_narrow, qint32, qtype, quint4, quint8
from intact.types.qparams import QParams
from intact.types.qspec import Accumulator, Fixed, Free, Joined, QSpec, Shared
from intact.types.qtensor import QTensor
from intact.types.qtype import INT8, INT8_NARROW, INT16, INT32, UINT8, UINT16, QType

__all__ = [
    "INT8",
    "INT8_NARROW",
    "INT16",
    "INT32",
    "UINT8",
    "UINT16",
    "Accumulator",
    "Fixed",
    "Free",
    "Granularity",
    "Joined",
    "PerChannel",
    "PerGroup",
    "PerTensor",
    "PerToken",
    "QParams",
    "QSpec",
    "QTensor",
    "QType",
    "Shared",
    "qint4",
    "qint8",
    "qint8_narrow",
    "qint32",
    "qtype",
    "quint4",
    "quint8",
]
