"""Runs a .tflite file in the LiteRT interpreter, with each of its three sets of kernels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from intact.errors import ExportError

__all__ = ["LiteRTKernels", "LiteRTModel"]

Array = npt.NDArray[Any]


class LiteRTKernels(Enum):
    """Which kernels the interpreter uses; they do not give the same codes.

    REFERENCE are the portable ones (``BuiltinRefOpResolver``). OPTIMIZED are the built-in optimised ones without any
    delegate. DELEGATED is what a plain ``Interpreter(path)`` does: the operators that the XNNPACK delegate takes run
    there, the others in the optimised kernels.
    """

    REFERENCE = "BUILTIN_REF"
    OPTIMIZED = "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
    DELEGATED = "BUILTIN"


class LiteRTModel:
    """A loaded file.

    Args:
        content: the file's bytes.
        kernels: which set.
        threads: of the interpreter.
        keep_all: keep every intermediate tensor, so that ``tensor`` can read it after ``run``.

    Raises:
        ExportError: where the package is not installed, or the interpreter refuses the file.
    """

    def __init__(
        self, content: bytes, kernels: LiteRTKernels = LiteRTKernels.REFERENCE, *, threads: int = 1,
        keep_all: bool = False,
    ) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter, OpResolverType
        except ImportError as error:
            raise ExportError("running LiteRT files needs the package ai-edge-litert", got=str(error),
                              fix="pip install 'intact[litert]'") from error
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")  # it is asked for
                self._interpreter = Interpreter(
                    model_content=content, num_threads=threads, experimental_preserve_all_tensors=keep_all,
                    experimental_op_resolver_type=OpResolverType[kernels.value])
            self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError("LiteRT refuses the model", got=str(error)[:300]) from error
        self._inputs = {d["name"]: d["index"] for d in self._interpreter.get_input_details()}
        self._outputs = {d["name"]: d["index"] for d in self._interpreter.get_output_details()}
        self._tensors: dict[str, int] = {}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs for one set of inputs, by tensor name; the shapes are those of the file."""
        for name, value in inputs.items():
            self._interpreter.set_tensor(self._inputs[name], value)
        try:
            self._interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise ExportError("LiteRT failed while it ran the model", got=str(error)[:300]) from error
        return {name: np.array(self._interpreter.get_tensor(i)) for name, i in self._outputs.items()}

    def tensor(self, name: str) -> Array:
        """Any tensor after ``run``; needs ``keep_all``."""
        if not self._tensors:
            self._tensors = {d["name"]: d["index"] for d in self._interpreter.get_tensor_details()}
        return np.array(self._interpreter.get_tensor(self._tensors[name]))
