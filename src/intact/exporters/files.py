"""Files of exporters: they appear whole, or not at all."""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx

from intact.errors import ExportError
from intact.exporters.certificate import Certificate

__all__ = ["check_path", "is_large", "placed", "with_options", "write"]

_EXTERNAL_ABOVE = 1_800_000_000  # protobuf refuses 2 GiB


def check_path(path: Path) -> None:
    """Refuse a path that cannot be written to.

    Raises:
        ExportError: saying why.
    """
    try:
        path.exists()
    except OSError as error:  # a name too long, for one
        raise ExportError("the output path cannot be used", where=f"{str(path)[:120]}...", got=error.strerror,
                          fix="choose a shorter name") from None
    if path.is_dir():
        raise ExportError("the output path is a directory", where=str(path), fix="give a file name")
    folder = path.parent
    if not folder.is_dir():
        raise ExportError("the output folder does not exist", where=str(path), got=str(folder),
                          fix="create the folder, or choose another")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ExportError("the output folder cannot be written to", where=str(path), fix="choose another")


def with_options(export: Callable[..., Certificate], model: Any, path: str | Path, options: Mapping[str, Any]
                 ) -> Certificate:
    """What an exporter gives, once its options are known to be its own.

    Raises:
        ExportError: naming an option that it does not have, and those that it has.
    """
    allowed = [n for n, p in inspect.signature(export).parameters.items() if p.kind is p.KEYWORD_ONLY]
    if unknown := sorted(options.keys() - set(allowed)):
        raise ExportError("this export has no such option", where=str(path), got=", ".join(unknown),
                          allowed=", ".join(allowed), fix="leave it out, or correct its name")
    return export(model, path, **options)


@contextmanager
def placed(target: Path) -> Iterator[Path]:
    """A path to write to in a folder beside the target; what stands in that folder is moved when all went well."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".intact-") as folder:
        yield Path(folder) / target.name
        for file in sorted(Path(folder).iterdir()):
            os.replace(file, target.parent / file.name)


def is_large(model: onnx.ModelProto) -> bool:
    """Whether the weights need a file of their own."""
    return sum(len(t.raw_data) for t in model.graph.initializer) > _EXTERNAL_ABOVE


def write(model: onnx.ModelProto, path: Path, external: bool) -> None:
    """Write a model, the same bytes for the same model."""
    if external:
        onnx.save_model(model, str(path), save_as_external_data=True, all_tensors_to_one_file=True,
                        location=f"{path.name}.data", size_threshold=1024)
    else:
        path.write_bytes(model.SerializeToString(deterministic=True))
