"""One file for an integer model: the document of :mod:`intact.engine.codec` in :mod:`intact.engine.container`."""

from __future__ import annotations

import os
from pathlib import Path

from intact.engine.codec import FORMAT, FORMAT_VERSION, decode, encode
from intact.engine.container import read_container, writable, write_container
from intact.engine.qmodel import QModel
from intact.engine.validate import check
from intact.errors import ArtifactError

__all__ = ["load", "save"]

_DAMAGED = "the file is damaged or was not written by intact.save; get it again, or save the model again"


def save(q: QModel, path: str | os.PathLike[str]) -> Path:
    """Write an integer model to one file that :func:`load` reads without the classes of the user's model.

    The same model gives the same bytes, whatever the process. The file appears whole or not at all; an existing
    file is replaced. Its format is safetensors, with the graph as JSON in the metadata.

    Args:
        q: an integer model; ``q.example`` is not saved.
        path: the file, by custom ``*.intact``; its folder must exist.

    Returns:
        The path.

    Raises:
        ArtifactError: if the path cannot be written (before any work), if the model has modules that could not be
            captured (they are Python code), or if it breaks a rule that :func:`load` checks.

    >>> import tempfile, torch, intact.api as intact
    >>> q = intact.quantize(torch.nn.Linear(4, 2), [torch.randn(16, 4)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(q, f"{folder}/net.intact").name
    'net.intact'
    """
    if not isinstance(q, QModel):
        raise ArtifactError("only an integer model can be saved", got=type(q).__name__, allowed="QModel",
                            fix="call intact.convert, intact.quantize, intact.quantize_dynamic or "
                                "intact.quantize_weights first")
    target = writable(path)
    if q.opaque:
        raise ArtifactError("a model with modules that could not be captured cannot be saved: they are Python code",
                            got=", ".join(sorted(q.opaque)),
                            fix="rewrite these modules so that torch.export captures them")
    check(q)
    document, tensors = encode(q)
    write_container(target, document, tensors)
    return Path(path)


def load(path: str | os.PathLike[str]) -> QModel:
    """Read a model that :func:`save` wrote. Nothing in the file is executed, and the user's classes are not needed.

    The file is checked before memory is taken for it: header, dtypes, shapes, byte ranges. Then its digest, the
    graph, and every number in it are checked. The memory taken is about the size of the file.

    Args:
        path: the file.

    Returns:
        A model that gives the codes and outputs of the saved one, bit for bit.

    Raises:
        ArtifactError: for a file that is missing, damaged, malicious, of a newer format, or made for a target
            that this version does not know; and no other error.

    >>> import tempfile, torch, intact.api as intact
    >>> q, x = intact.quantize(torch.nn.Linear(4, 2), [torch.randn(16, 4)]), torch.randn(3, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = load(save(q, f"{folder}/net.intact"))
    >>> torch.equal(again(x), q(x))
    True
    """
    try:
        q = decode(*read_container(path, FORMAT, FORMAT_VERSION))
        check(q, foreign=True)
        return q
    except ArtifactError as e:
        where = f"{path}: {e.where}" if e.where else str(path)
        raise ArtifactError(e.what, where=where, got=e.got, allowed=e.allowed, fix=e.fix or _DAMAGED) from None
    except (OSError, RecursionError, MemoryError) as e:
        raise ArtifactError("the file cannot be read", where=str(path), got=str(e) or type(e).__name__,
                            fix="check that the file exists and that you may read it") from None
