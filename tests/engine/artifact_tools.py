"""Takes an artefact apart and puts it together again with a right digest, as an attacker would."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

MARK = b'\\"sha256\\":\\"'


@dataclass(frozen=True)
class Parts:
    table: dict[str, Any]  # the container's header without the metadata
    document: dict[str, Any]
    data: bytes

    def tensor(self, name: str) -> bytes:
        begin, end = self.table[name]["data_offsets"]
        return self.data[begin:end]

    def with_tensor(self, name: str, raw: bytes) -> "Parts":
        begin, end = self.table[name]["data_offsets"]
        assert len(raw) == end - begin
        return replace(self, data=self.data[:begin] + raw + self.data[end:])


def split(raw: bytes) -> Parts:
    length = int.from_bytes(raw[:8], "little")
    table = json.loads(raw[8 : 8 + length])
    document = json.loads(table.pop("__metadata__")["intact"])
    return Parts(table, document, raw[8 + length :])


def join(parts: Parts, edit_text: Callable[[str], str] = lambda t: t) -> bytes:
    """The file of these parts; ``edit_text`` changes the document's text."""
    document = {**parts.document, "sha256": "0" * 64} if isinstance(parts.document, dict) else parts.document
    text = edit_text(json.dumps(document, sort_keys=True, separators=(",", ":")))
    return frame(json.dumps({"__metadata__": {"intact": text}, **parts.table}).encode(), parts.data)


def frame(header: bytes, data: bytes) -> bytes:
    """Length, header and data, with the digest filled in where its zeros stand."""
    raw = len(header).to_bytes(8, "little") + header + data
    if raw.count(MARK + b"0" * 64) != 1:
        return raw
    return raw.replace(MARK + b"0" * 64, MARK + hashlib.sha256(raw).hexdigest().encode())
