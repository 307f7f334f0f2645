"""What the command line is given: models and data, from Python or from files.

MODEL is ``package.module:factory``, imported with the current directory on the path, or a ``.pt2`` program. Both
are code of the user's: ``torch.export.load`` may unpickle what it finds. DATA is a ``.npy`` or ``.npz`` file, whose
first axis counts samples and of which nothing is unpickled, or ``package.module:factory``.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from intact.errors import CalibrationError, CaptureError, IntactError
from intact.graph.program_inputs import fixed_batch_of, program_signature
from intact.graph.signature import Parameters

__all__ = ["Source", "inputs_of", "open_data", "open_example", "open_model", "python_object"]

Array = npt.NDArray[Any]
Source = nn.Module | ExportedProgram

_DTYPES = tuple(np.dtype(t) for t in ("float32", "int64", "int32", "bool"))  # of which the integers are token ids
_INPUT_KEYS = ("images", "x", "inputs")
_LABEL_KEYS = ("labels", "y")
_UNREADABLE = (OSError, ValueError, KeyError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile,
               zlib.error)


# -- models -------------------------------------------------------------------------------------


def open_model(text: str) -> Source:
    """The module of ``package.module:factory``, or the program of a ``.pt2`` file.

    Raises:
        CaptureError: if there is none; says what was found instead.
    """
    if Path(text).suffix == ".pt2":
        return _program(Path(text))
    _refuse_file(text, CaptureError, ".pt2 (torch.export.save), or package.module:factory")
    model = python_object(text, CaptureError, nn.Module)
    if not isinstance(model, nn.Module):
        raise CaptureError("the factory gives no module", where=text, got=type(model).__name__,
                           allowed="torch.nn.Module", fix="let the factory return the float module")
    return model


def _program(file: Path) -> ExportedProgram:
    _refuse_missing(file, CaptureError)
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no archive")
        return torch.export.load(file)
    except (*_UNREADABLE, RuntimeError, AttributeError, TypeError) as error:
        raise CaptureError("the file cannot be read as an exported program", where=str(file), got=_brief(error),
                           fix="write it with torch.export.save(torch.export.export(model, ...), file)") from None


def inputs_of(model: Source, batches: Iterable[Any]) -> Any:
    """Inputs to capture a module with: those of the first batch. A program has its own."""
    if isinstance(model, ExportedProgram):
        return None
    item = next(iter(batches), None)
    if item is None:
        raise CalibrationError("there is no data", got="0 batches", fix="give at least one batch")
    args, kwargs = Parameters.of(model).split(item)
    return args or kwargs


def _inputs(model: Source) -> tuple[list[str], list[str]]:
    """Names of all inputs, and of those without a default."""
    if isinstance(model, ExportedProgram):
        names = list(program_signature(model).names)
        return names, names
    found = Parameters.of(model)
    return list(found.names), list(found.required)


# -- Python objects -----------------------------------------------------------------------------


def python_object(text: str, kind: type[IntactError], *ready: type) -> Any:
    """What ``package.module:name`` stands for: called if it is callable and not of a type in ``ready``.

    Raises:
        IntactError: of that kind, if the module, the name or the call is wrong. What the user's own code raises
            while it runs is let through.
    """
    value = _attribute(text, kind)
    if isinstance(value, ready) or not callable(value):
        return value
    try:
        inspect.signature(value).bind()
    except TypeError as error:
        raise kind("the factory needs arguments", where=text, got=str(error),
                   fix="name a function that can be called without arguments") from None
    except ValueError:  # a builtin without a signature
        pass
    return value()


def _attribute(text: str, kind: type[IntactError]) -> Any:
    module, _, name = text.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), *name.split("."))):
        raise kind("this is no package.module:factory", where=text, fix="write, for instance, models.resnet:make")
    folder = os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        value: Any = importlib.import_module(module)
    except (ImportError, SyntaxError) as error:
        raise kind("the module cannot be imported", where=module, got=f"{type(error).__name__}: {error}",
                   fix=f"it is looked for in {folder} and on the Python path") from None
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in dir(value) if not n.startswith("_")]
            near = difflib.get_close_matches(part, names, n=3, cutoff=0.4)
            raise kind("the module has no such name", where=text, got=part,
                       allowed=f"nearest: {', '.join(near)}" if near else None, fix="correct the name")
        value = getattr(value, part)
    return value


# -- data ---------------------------------------------------------------------------------------


def open_data(text: str, model: Source, batch_size: int, *, labelled: bool = False, key: str | None = None
              ) -> Iterable[Any]:
    """Batches of a file or of ``package.module:factory``.

    Args:
        text: as the user gave it.
        model: whose inputs' names choose arrays of an ``.npz``.
        batch_size: of files; a program that was exported with a fixed batch wants its own.
        labelled: yield (inputs, labels) where there are labels.
        key: name of the labels.

    Raises:
        CalibrationError: if the data cannot be read, or is not what a model takes.
    """
    suffix = Path(text).suffix
    if suffix in (".npy", ".npz"):
        _refuse_missing(Path(text), CalibrationError)
        choose = _npy if suffix == ".npy" else _npz
        inputs, labels = choose(Path(text), model, key, labelled)
        _check_arrays(inputs, labels, text)
        size = _fixed_batch(model, len(next(iter(inputs.values()))), text) or batch_size
        return _Arrays(inputs, labels, size)
    _refuse_file(text, CalibrationError, ".npy, .npz, or package.module:factory")
    data = python_object(text, CalibrationError, Iterable)
    if isinstance(data, (Tensor, Mapping, str)) or not isinstance(data, Iterable):
        raise CalibrationError("the factory gives no iterable of batches", where=text, got=type(data).__name__,
                               fix="let it return a list of batches, or a DataLoader")
    return data if key is None else _keyed(data, key)


def open_example(text: str | None, model: Source, batch_size: int) -> Iterable[Any]:
    """Batches to capture with: data, or random ones of a shape such as ``1x3x224x224``.

    Raises:
        CalibrationError, CaptureError: if there are none.
    """
    if text is None and isinstance(model, ExportedProgram):
        return ()
    if text is None:
        raise CaptureError("a module is captured with example inputs", fix="give DATA, or a shape such as 1x3x224x224")
    if not re.fullmatch(r"\d+([x,]\d+)*", text):
        return open_data(text, model, batch_size)
    if isinstance(model, ExportedProgram):
        raise CalibrationError("a program has the shapes that it was exported with", got=text,
                               fix="leave the shape out")
    names = _only_input(model, f"shape {text}")
    sizes = [int(size) for size in re.split("[x,]", text)]
    if 0 in sizes:
        raise CalibrationError("a shape has a size of zero", where=names, got=text, fix="give sizes of 1 and more")
    return [torch.randn(sizes, generator=torch.Generator().manual_seed(0))]


def _keyed(data: Iterable[Any], key: str) -> Iterator[Any]:
    for item in data:
        if not isinstance(item, Mapping) or key not in item:
            got = ", ".join(map(str, item)) if isinstance(item, Mapping) else type(item).__name__
            raise CalibrationError("a batch has no such labels", where=f"--labels {key}", got=got,
                                   fix="yield dicts with that key; or (inputs, labels), without --labels")
        yield item, item[key]


@dataclass(frozen=True, eq=False)
class _Arrays:
    """Arrays cut into batches; inputs by name, or one array under ""."""

    inputs: Mapping[str, Array]
    labels: Array | None
    size: int

    def __len__(self) -> int:
        return -(-len(next(iter(self.inputs.values()))) // self.size)

    def __iter__(self) -> Iterator[Any]:
        for start in range(0, len(self) * self.size, self.size):
            rows = slice(start, start + self.size)
            part = {name: torch.from_numpy(np.array(a[rows], order="C")) for name, a in self.inputs.items()}
            item = part.get("", part)
            yield item if self.labels is None else (item, torch.from_numpy(self.labels[rows].astype(np.int64)))


def _check_arrays(inputs: Mapping[str, Array], labels: Array | None, text: str) -> None:
    for name, array in inputs.items():
        where = f"{text}[{name!r}]" if name else text
        if not array.ndim or not len(array):
            raise CalibrationError("the array has no samples", where=where, got=f"shape {array.shape}",
                                   fix="the first axis counts samples")
        if array.dtype not in _DTYPES:
            fix = "convert and scale it as in training, for instance array.astype('float32') / 255" \
                if array.dtype.kind in "iu" else "convert it: array.astype('float32')"
            raise CalibrationError("the array has a dtype that models do not take", where=where, got=array.dtype,
                                   allowed="float32; int64, int32 or bool for indices and masks", fix=fix)
    lengths = {len(a) for a in inputs.values()}
    if labels is not None:
        lengths.add(len(labels))
        if labels.dtype.kind not in "iu" or labels.ndim != 1:
            raise CalibrationError("labels are not class numbers", where=text, allowed="integers of shape (N,)",
                                   got=f"{labels.dtype} of shape {labels.shape}", fix="give one integer per sample")
    if len(lengths) > 1:
        raise CalibrationError("arrays have different numbers of samples", where=text, got=sorted(lengths),
                               fix="the first axis counts samples")


def _fixed_batch(model: Source, samples: int, text: str) -> int | None:
    """The batch that a program was exported with, if it is fixed."""
    size = fixed_batch_of(model) if isinstance(model, ExportedProgram) else None
    if size and samples % size:
        raise CalibrationError("the program's batch is fixed, and does not divide the number of samples", where=text,
                               got=samples, allowed=f"a multiple of {size}",
                               fix="export it with dynamic_shapes={...: {0: torch.export.Dim('batch')}}")
    return size


def _npy(file: Path, model: Source, key: str | None, labelled: bool) -> tuple[dict[str, Array], None]:
    if key is not None:
        raise CalibrationError("a .npy file has no labels", where=f"--labels {key}",
                               fix="save inputs and labels with numpy.savez(file, x=..., labels=...)")
    array = _loaded(file, "r")
    if not isinstance(array, np.ndarray):
        array.close()
        raise CalibrationError("the file holds no single array", where=str(file), fix="name it .npz if it is one")
    _only_input(model, str(file))
    return {"": array}, None


def _npz(file: Path, model: Source, key: str | None, labelled: bool) -> tuple[dict[str, Array], Array | None]:
    archive = _loaded(file, None)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise CalibrationError("the file holds no archive of arrays", where=str(file), fix="name it .npy if it is one")
    with archive:
        chosen = _chosen(archive.files, model, key, str(file))
        if key is not None and key not in archive.files:
            raise CalibrationError("the file has no such labels", where=f"--labels {key}", got=", ".join(archive.files),
                                   fix="give the name of an array in the file")
        found = key or next((k for k in _LABEL_KEYS if k in archive.files and k not in chosen.values()), None)
        inputs = {name: _member(archive, array, file) for name, array in chosen.items()}
        return inputs, _member(archive, found, file) if labelled and found else None


def _chosen(files: list[str], model: Source, key: str | None, where: str) -> dict[str, str]:
    """Name of an input ("" for the first one) to the name of its array."""
    names, required = _inputs(model)
    matched = {n: n for n in names if n in files and n != key}
    if matched and all(n in matched for n in required):
        return matched
    others = [f for f in files if f != key and f not in _LABEL_KEYS]
    usual = [f for f in _INPUT_KEYS if f in others] if len(others) > 1 else others
    if len(required or names[:1]) != 1 or len(usual) != 1:
        raise CalibrationError("the arrays cannot be told to be inputs", where=where, got=", ".join(files),
                               allowed=f"arrays named {', '.join(required or names[:1])}",
                               fix="name the arrays like the arguments of the model's forward")
    return {"": usual[0]}


def _loaded(file: Path, mode: Any) -> Any:
    try:
        return np.load(file, mmap_mode=mode, allow_pickle=False)
    except _UNREADABLE as error:
        raise _unreadable(file, error) from None


def _member(archive: Any, name: str, file: Path) -> Array:
    try:
        array = archive[name]
    except _UNREADABLE as error:
        raise _unreadable(file, error, name) from None
    if not isinstance(array, np.ndarray):
        raise _unreadable(file, ValueError("it is no array"), name)
    return array


def _unreadable(file: Path, error: BaseException, name: str = "") -> CalibrationError:
    where = f"{file}[{name!r}]" if name else str(file)
    return CalibrationError("the file cannot be read", where=where, got=_brief(error), allowed="arrays of numbers",
                            fix="write them with numpy.save or numpy.savez; objects would be pickles, and are refused")


def _only_input(model: Source, where: str) -> str:
    names, required = _inputs(model)
    if len(required or names[:1]) != 1:
        raise CalibrationError("the model takes more than one input", where=where, got="one array",
                               allowed=", ".join(required), fix="give an .npz with an array for each input")
    return (required or names)[0]


def _refuse_missing(file: Path, kind: type[IntactError]) -> None:
    if not file.is_file():
        raise kind("there is no such file", where=str(file), got="a folder" if file.is_dir() else None,
                   fix=f"it is looked for from {os.getcwd()}")


def _refuse_file(text: str, kind: type[IntactError], allowed: str) -> None:
    if ":" not in text:
        raise kind("this is neither a file of a known kind nor a name in Python", where=text,
                   got=Path(text).suffix or "no suffix", allowed=allowed,
                   fix="pickles such as .pt are not loaded: name the function that makes the object")


def _brief(error: BaseException) -> str:
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
