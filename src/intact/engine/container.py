"""The file of an artefact: a safetensors container whose metadata is one JSON document. No pickle.

``__metadata__`` of the container has one key, ``intact``: a document with the fields ``format``, ``format_version``
and ``sha256``. The digest is taken over the whole file with 64 zeros in its own place, so that no byte of the file
can change unnoticed. The file is checked before memory is taken for it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors.torch import save as to_safetensors
from torch import Tensor

from intact.engine.codec import FORMAT
from intact.engine.readers import brief, number, record
from intact.errors import ArtifactError

__all__ = ["DTYPES", "LEAVES_FORMAT", "read_container", "writable", "write_container"]

#: of the files of :mod:`intact.leaves`
LEAVES_FORMAT = "intact-leaves"
_KEY = "intact"
_NO_DIGEST = "0" * 64
_MAX_HEADER = 1 << 25  # bytes; a graph of ten thousand nodes has about four million
_MAX_VALUES = 1_000_000  # JSON values; bounds the memory of the parsed document
_MAX_DEPTH = 64
#: that a tensor of a file can have, by their names there
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "C64": torch.complex64, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16,
}


def write_container(target: Path, document: Mapping[str, Any], tensors: dict[str, Tensor]) -> None:
    """Write the file, whole or not at all; equal contents give equal bytes.

    Args:
        target: from :func:`writable`.
        document: with ``format`` and ``format_version``.
        tensors: contiguous, none sharing memory.

    Raises:
        ArtifactError: if it cannot be written.
    """
    text = json.dumps({**document, "sha256": _NO_DIGEST}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    try:
        data = memoryview(to_safetensors(tensors, {_KEY: text}))
    except ValueError as error:  # a name that is no Unicode text
        raise ArtifactError("a name cannot be stored", got=str(error), fix="rename the parameter") from None
    _write(target, data)


def read_container(
    path: str | os.PathLike[str], wanted: str, version: int
) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The document and the tensors of a file, all checks but those of the document's contents done.

    Args:
        path: of the file.
        wanted: its format.
        version: the newest one that can be read.

    Raises:
        ArtifactError: for a file that is missing, damaged, malicious or of another format.
    """
    with _opened(path) as file:
        return _read(file, wanted, version)


# -- writing ------------------------------------------------------------------------------------


def writable(path: str | os.PathLike[str]) -> Path:
    """Where the file will be, links followed.

    Raises:
        ArtifactError: if it cannot be written there.
    """
    try:
        target = Path(os.path.realpath(path))
        problem = None
        if target.exists() and not target.is_file():
            problem = "it is a folder or a device"
        elif not target.parent.is_dir():
            problem = "its folder does not exist"
        elif not os.access(target.parent, os.W_OK | os.X_OK):
            problem = "its folder is not writable"
    except (OSError, TypeError, ValueError) as error:
        raise ArtifactError("this path cannot be written", where=repr(path), got=str(error),
                            fix="give the path of a file") from None
    if problem:
        raise ArtifactError("this path cannot be written", where=str(path), got=problem,
                            fix="give the path of a file in an existing folder that you may write to")
    return target


def _write(target: Path, data: memoryview) -> None:
    """The bytes with their digest in place, whole or not at all."""
    at = _digest_at(bytes(data[: 8 + int.from_bytes(data[:8], "little")]), _NO_DIGEST)
    digest = hashlib.sha256(data).hexdigest().encode()
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as file:
            for part in (data[:at], digest, data[at + len(digest):]):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        raise ArtifactError("the file could not be written", where=str(target), got=error.strerror or str(error),
                            fix="check free space and permissions") from None
    finally:
        temporary.unlink(missing_ok=True)


def _digest_at(header: bytes, digest: str) -> int:
    """Where the digest's 64 letters stand."""
    mark = rb'\"sha256\":\"'  # as JSON text inside a JSON string
    if header.count(mark + digest.encode()) != 1:
        raise ArtifactError("the file has no digest, or several", where="sha256")
    return header.index(mark + digest.encode()) + len(mark)


# -- reading ------------------------------------------------------------------------------------


def _opened(path: str | os.PathLike[str]) -> BinaryIO:
    """The file, if it is one: a pipe would hang, a device has no end."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        handle = os.open(path, flags)
    except (TypeError, ValueError) as error:
        raise ArtifactError("this is no path of a file", got=str(error), fix="give the path of a file") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ArtifactError("this is a folder or a device, not a file", fix="give the path of a file")
    return os.fdopen(handle, "rb")


def _read(file: BinaryIO, wanted: str, newest: int) -> tuple[Mapping[str, Any], dict[str, Tensor]]:
    """The document and the tensors: views of one buffer. The header is checked before the buffer is made."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(8)
    length = int.from_bytes(head, "little")
    most = min(size - 8, _MAX_HEADER)
    if len(head) < 8 or not 2 <= length <= most:
        raise ArtifactError("this is not an Intact file, or it is cut off", where="header length",
                            got=f"{length} in a file of {size} bytes", allowed=f"2 to {most}")
    header = file.read(length)
    table = record(_json(header, "header"), "header")
    metadata = record(table.pop("__metadata__", None), "__metadata__", _KEY)
    document = dict(record(_json(metadata[_KEY], "document"), "document"))
    _check_version(document, wanted, newest)
    places = _places(table, size - 8 - length)
    data = bytearray(size - 8 - length)
    view = memoryview(data)
    done = 0
    while done < len(data):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise ArtifactError("the file is cut off", got=f"{done} bytes of data", allowed=len(data))
        done += count
    _check_digest(head, header, view, document.pop("sha256", None))
    return document, {name: _tensor(name, data, *place) for name, place in places.items()}


def _check_version(document: Mapping[str, Any], wanted: str, newest: int) -> None:
    found = document.get("format")
    if found != wanted:
        if found not in (LEAVES_FORMAT, FORMAT):
            raise ArtifactError("this is not an Intact file", where="format", got=brief(found), allowed=wanted)
        fix = "intact.load(path, model=net)" if found == LEAVES_FORMAT else "intact.load(path)"
        raise ArtifactError("the file holds the other kind of model", where="format", got=found, allowed=wanted,
                            fix=f"call {fix}")
    version = number(document.get("format_version"), "format_version", low=1)
    if version > newest:
        raise ArtifactError("the file was written by a newer version of Intact", where="format_version", got=version,
                            allowed=f"up to {newest}", fix="upgrade Intact")


def _check_digest(head: bytes, header: bytes, data: memoryview, digest: object) -> None:
    if not isinstance(digest, str) or len(digest) != len(_NO_DIGEST) or not digest.isascii():
        raise ArtifactError("the file has no digest", where="sha256", got=brief(digest), allowed="64 hex digits")
    at = _digest_at(header, digest)
    found = hashlib.sha256(head)
    for part in (header[:at], _NO_DIGEST.encode(), header[at + len(digest):], data):
        found.update(part)
    if found.hexdigest() != digest:
        raise ArtifactError("the file has changed since it was written", where="sha256", got=found.hexdigest(),
                            allowed=digest)


def _json(text: bytes | str, where: str) -> Any:
    """Strict JSON of bounded size and depth: no duplicate keys, no NaN, no infinity."""
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ArtifactError("a key stands twice in one JSON object", where=where,
                                got=brief([k for k, _ in pairs][:8]))
        return found

    def refuse(constant: str) -> Any:
        raise ArtifactError("this is not a JSON number", where=where, got=constant)

    if not isinstance(text, (bytes, str)):
        raise ArtifactError("JSON text is missing", where=where, got=type(text).__name__)
    try:
        plain = text if isinstance(text, str) else text.decode()
    except UnicodeDecodeError as error:
        raise ArtifactError("this is not JSON", where=where, got=str(error)[:80]) from None
    values = sum(map(plain.count, ",[{"))
    if values > _MAX_VALUES:
        raise ArtifactError("the JSON has too many values", where=where, got=values, allowed=_MAX_VALUES)
    try:
        value = json.loads(plain, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        raise ArtifactError("the JSON is nested too deeply", where=where, allowed=f"{_MAX_DEPTH} levels") from None
    except ValueError as error:
        raise ArtifactError("this is not JSON", where=where, got=str(error)[:80]) from None
    _check_depth(value, where)
    return value


def _check_depth(value: Any, where: str) -> None:
    level = [value]
    for _ in range(_MAX_DEPTH):
        containers = [v for v in level if isinstance(v, (list, dict))]
        level = [item for c in containers for item in (c.values() if isinstance(c, dict) else c)]
        if not level:
            return
    raise ArtifactError("the JSON is nested too deeply", where=where, allowed=f"{_MAX_DEPTH} levels")


Place = tuple[torch.dtype, tuple[int, ...], int]


def _places(table: Mapping[str, Any], size: int) -> dict[str, Place]:
    """Dtype, shape and offset of every tensor; together they fill the data exactly, without holes or overlaps."""
    found: list[tuple[int, int, str, Place]] = []
    for name, entry in table.items():
        where = f"tensor {brief(name)}"
        fields = record(entry, where, "dtype", "shape", "data_offsets")
        if not isinstance(fields["dtype"], str) or fields["dtype"] not in DTYPES:
            raise ArtifactError("unknown dtype", where=where, got=brief(fields["dtype"]), allowed=", ".join(DTYPES))
        dtype, shape, ends = DTYPES[fields["dtype"]], fields["shape"], fields["data_offsets"]
        if not isinstance(shape, list) or len(shape) > 16 or not isinstance(ends, list) or len(ends) != 2:
            raise ArtifactError("malformed entry", where=where, allowed="a shape of at most 16 axes, two offsets")
        begin, end = (number(v, where, low=0, high=size) for v in ends)
        count = dtype.itemsize * math.prod(number(n, where, low=0, high=size) for n in shape)
        if begin + count != end or begin % dtype.itemsize:
            raise ArtifactError("shape and byte range do not agree", where=where, got=brief((shape, ends)),
                                allowed=f"{count} bytes, aligned to {dtype.itemsize}")
        found.append((begin, end, name, (dtype, tuple(shape), begin)))
    reached = 0
    for begin, end, name, _ in sorted(found, key=lambda f: f[:2]):
        if begin != reached:
            raise ArtifactError("tensors overlap, or there is a hole between them", where=f"tensor {brief(name)}",
                                got=begin, allowed=reached)
        reached = end
    if reached != size:
        raise ArtifactError("the tensors do not fill the file", got=f"{reached} bytes", allowed=size)
    return {name: place for _, _, name, place in found}


def _tensor(name: str, data: bytearray, dtype: torch.dtype, shape: tuple[int, ...], begin: int) -> Tensor:
    count = math.prod(shape)
    if count == 0:
        if math.prod(n for n in shape if n) > len(data):
            raise ArtifactError("malformed empty tensor", where=f"tensor {brief(name)}", got=brief(shape))
        return torch.empty(shape, dtype=dtype)
    if dtype is torch.bool and torch.frombuffer(data, dtype=torch.uint8, count=count, offset=begin).max() > 1:
        raise ArtifactError("a boolean is neither 0 nor 1", where=f"tensor {brief(name)}")
    return torch.frombuffer(data, dtype=dtype, count=count, offset=begin).reshape(shape)
