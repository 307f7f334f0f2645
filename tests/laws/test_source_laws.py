"""The laws that every source file keeps; each one proves on a bad snippet that it can fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from tests.laws.checkers import (
    FILES,
    FUNCTION_LINES,
    Finding,
    Source,
    code_from_data,
    distributed,
    documented,
    exampled,
    file_size,
    function_size,
    machine_path,
    prints,
    private_torch,
    read,
    rounding,
    star_import,
    swallowed,
    torch_ao,
)


@dataclass(frozen=True)
class Law:
    """A checker with snippets that break it and snippets that keep it, as ``path | code``."""

    check: Callable[[Source], Iterator[Finding]]
    bad: tuple[str, ...]
    good: tuple[str, ...]


IMPORT_TORCH = "kernels/x.py | import torch\n"
LONG_FUNCTION = "kernels/x.py | def f():\n" + "    x = 1\n" * FUNCTION_LINES
LAWS = (
    Law(
        rounding,
        (
            IMPORT_TORCH + "y = torch.round(x)",
            "kernels/x.py | y = x.round_()",
            "kernels/x.py | y = x.to(d).round()",
            "kernels/x.py | import numpy as np\ny = np.rint(x)",
            "kernels/x.py | from torch import round as r",
            "kernels/x.py | y = round(x)",
            "analysis/x.py | y = x.round()",
            IMPORT_TORCH + "y = torch.floor(x / s + 0.5)",
            "kernels/x.py | y = (0.5 + x).floor_()",
            "kernels/x.py | y = int(x + 0.5)",
            IMPORT_TORCH + "y = torch.fake_quantize_per_tensor_affine(x, s, 0, 0, 255)",
        ),
        (
            "arithmetic/x.py | y = x.round()",
            "analysis/x.py | y = round(x, 3)",
            "kernels/x.py | y = round_to_int(x.floor(), arithmetic.rounding)",
        ),
    ),
    Law(
        code_from_data,
        (
            "engine/x.py | import pickle",
            "engine/x.py | from joblib import load",
            "engine/x.py | import torch as t\nt.load(f)",
            "engine/x.py | from torch import load",
            "engine/x.py | import yaml\nyaml.load(f)",
            "engine/x.py | eval(text)",
            "engine/x.py | np.load(f, allow_pickle=True)",
        ),
        (
            "engine/x.py | model.eval()",
            "engine/x.py | np.load(f, allow_pickle=False)",
            "engine/x.py | json.load(f)",
        ),
    ),
    Law(
        torch_ao,
        (
            "graph/x.py | import torch.ao.quantization",
            "private.py | from torch import ao",
            IMPORT_TORCH + "torch.ao.quantization.get_default_qconfig()",
            "graph/x.py | from torch.quantization import QuantStub",
        ),
        (IMPORT_TORCH + "torch.aot = 1",),
    ),
    Law(
        private_torch,
        (
            "graph/x.py | import torch._dynamo",
            "graph/x.py | from torch.fx._symbolic_trace import Tracer",
            IMPORT_TORCH + "torch._C._jit_pass()",
            "graph/x.py | import torch.nn.functional as F\nF._verify(x)",
            IMPORT_TORCH + "torch.ops.onednn.qlinear_pointwise(x)",
            IMPORT_TORCH + "getattr(torch, '_dynamo')",
        ),
        (
            "private.py | import torch._dynamo",
            IMPORT_TORCH + "torch.__version__",
            "graph/x.py | self._graph = graph",
        ),
    ),
    Law(
        distributed,
        ("observers/x.py | import torch.distributed as td", IMPORT_TORCH + "torch.distributed.x()"),
        ("dist.py | import torch.distributed as td",),
    ),
    Law(star_import, ("api.py | from intact.types import *",), ("api.py | from a import b",)),
    Law(
        swallowed,
        (
            "api.py | try:\n    f()\nexcept:\n    pass",
            "api.py | try:\n    f()\nexcept Exception as e:\n    pass",
            "api.py | try:\n    f()\nexcept (ValueError, BaseException):\n    pass",
            "api.py | import contextlib\nwith contextlib.suppress(Exception):\n    f()",
        ),
        ("api.py | try:\n    f()\nexcept (ValueError, KeyError):\n    pass",),
    ),
    Law(
        prints,
        ("api.py | print(x)", "api.py | from rich import print\nprint(x)"),
        ("cli.py | print(x)", "api.py | x = '>>> print(1)'"),
    ),
    Law(file_size, ("api.py | " + "x = 1\n" * 401,), ("api.py | " + "x = 1\n" * 400,)),
    Law(
        function_size,
        (LONG_FUNCTION,),
        (LONG_FUNCTION.replace("    x = 1\n", '    """One.\n\n    Two."""\n', 1),),
    ),
    Law(machine_path, ("api.py | x = '/tmp/cache'",), ("api.py | x = a/tmp\ny = 'data/home/x'",)),
    Law(
        documented,
        (
            "types/x.py | __all__ = ['f']\ndef f(): pass",
            "types/x.py | __all__ = ['A']\nclass A: pass",
            "types/x.py | __all__ = ['gone']",
        ),
        ("types/x.py | __all__ = ['f', 'C']\nC = 1\ndef f():\n    'Doc.'",),
    ),
    Law(
        exampled,
        ("__init__.py | __all__ = ['f']\ndef f():\n    'Doc.'",),
        ("__init__.py | __all__ = ['f']\ndef f():\n    '>>> f()'",),
    ),
)


def snippets(kind: str) -> list[pytest.ParameterSet]:
    return [
        pytest.param(law, snippet, id=f"{law.check.__name__}-{number}")
        for law in LAWS
        for number, snippet in enumerate(getattr(law, kind))
    ]


def findings(law: Law, snippet: str) -> list[Finding]:
    path, _, text = snippet.partition(" | ")
    return list(law.check(Source(path, text)))


@pytest.mark.parametrize(("law", "snippet"), snippets("bad"))
def test_law_can_fail(law: Law, snippet: str) -> None:
    assert findings(law, snippet)


@pytest.mark.parametrize(("law", "snippet"), snippets("good"))
def test_law_lets_pass(law: Law, snippet: str) -> None:
    assert findings(law, snippet) == []


def test_there_are_files_to_check() -> None:
    assert "__init__.py" in FILES


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.check.__name__)
def test_source_keeps_the_law(law: Law, path: str) -> None:
    source = read(path)
    broken = [f"src/intact/{path}:{line}: {why}" for line, why in sorted(set(law.check(source)))]
    assert not broken, "\n" + "\n".join(broken)
