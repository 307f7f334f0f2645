"""Checkers of one source file on its syntax tree: each yields line and reason of every breach."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path, PurePosixPath

SRC = Path(__file__).parents[2] / "src" / "intact"
FILES = sorted(path.relative_to(SRC).as_posix() for path in SRC.rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 60
Finding = tuple[int, str]


@dataclass(frozen=True)
class Source:
    """One source file: its path below ``src/intact`` and its text."""

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def nodes(self) -> list[ast.AST]:
        return list(ast.walk(self.tree))

    @property
    def room(self) -> str:
        return PurePosixPath(self.path).parts[0].removesuffix(".py")

    def imports(self) -> Iterator[tuple[int, str, str]]:
        """Line, bound name and full dotted name of every import."""
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for a in node.names:
                    yield node.lineno, a.asname or a.name.split(".")[0], a.name
            elif isinstance(node, ast.ImportFrom):
                for a in node.names:
                    yield node.lineno, a.asname or a.name, f"{self.module(node)}.{a.name}"

    def module(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module or ""
        package = ["intact", *PurePosixPath(self.path).parent.parts]
        return ".".join([*package[: len(package) - node.level + 1], *filter(None, [node.module])])

    @cached_property
    def bound(self) -> dict[str, str]:
        """What each imported name stands for; ``import a.b`` binds only ``a``."""
        plain = {name for _, name, full in self.imports() if full.split(".")[0] == name}
        return {n: n if n in plain else full for _, n, full in self.imports()}

    def dotted(self, node: ast.AST) -> str | None:
        """``F.relu`` -> ``torch.nn.functional.relu``; None for what is not a chain of names."""
        if isinstance(node, ast.Name):
            return self.bound.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (root := self.dotted(node.value)):
            return f"{root}.{node.attr}"
        return None

    @cached_property
    def names(self) -> list[tuple[int, str]]:
        """Every dotted name that the file imports or uses, ``getattr(module, "name")`` included."""
        inner = {id(n.value) for n in self.nodes if isinstance(n, ast.Attribute)}
        found = [(line, full) for line, _, full in self.imports()]
        for node in self.nodes:
            name = None
            if isinstance(node, ast.Attribute | ast.Name) and id(node) not in inner:
                name = self.dotted(node)
            elif isinstance(node, ast.Call) and self.dotted(node.func) == "getattr":
                root, *rest = [self.dotted(node.args[0]), *node.args[1:]]
                if root and rest and isinstance(rest[0], ast.Constant):
                    name = f"{root}.{rest[0].value}"
            if name:
                found.append((node.lineno, name))
        return found


def below(name: str, *roots: str) -> bool:
    return any(name == root or name.startswith(f"{root}.") for root in roots)


def adds_half(node: ast.AST) -> bool:
    return isinstance(node, ast.BinOp) and any(
        isinstance(side, ast.Constant) and side.value == 0.5 for side in (node.left, node.right)
    )


def rounding(source: Source) -> Iterator[Finding]:
    if source.room in {"arithmetic", "reference"}:  # reference is the specification that arithmetic is tested against
        return
    advice = "rounding happens in intact.arithmetic only"
    display = source.room in {"reporting", "analysis", "cli"}
    for line, name in source.names:
        if below(name, "torch") and re.search(r"\.(fake_)?quantize_per_", name):
            yield line, f"{name}: {advice}"
        elif name == "round" and not display:
            yield line, f"round(): {advice}"
    for line, _, full in source.imports():
        if full.rpartition(".")[2] in {"round", "rint", "around"}:
            yield line, f"import of {full}: {advice}"
    for node in source.nodes:
        if isinstance(node, ast.Attribute) and node.attr in {"round", "round_", "rint", "around"}:
            yield node.lineno, f".{node.attr}: {advice}"
        elif isinstance(node, ast.Call):
            method = node.func.attr if isinstance(node.func, ast.Attribute) else None
            name = method or (node.func.id if isinstance(node.func, ast.Name) else None)
            owner = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            if name in {"floor", "floor_", "trunc", "ceil", "int"} and any(
                map(adds_half, [*owner, *node.args])
            ):
                yield node.lineno, f"{name}(x + 0.5): {advice}"


def code_from_data(source: Source) -> Iterator[Finding]:
    pickles = ("pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve")
    loads = ("torch.load", "torch.save", "yaml.load", "yaml.full_load", "yaml.unsafe_load")
    evals = ("eval", "exec", "builtins.eval", "builtins.exec")
    for line, name in source.names:
        if below(name, *pickles, *loads, *evals):
            yield line, f"{name}: data is safetensors and JSON, and is never executed"
    for node in source.nodes:
        if (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ):
            yield node.value.lineno, "allow_pickle may only be False"


def torch_ao(source: Source) -> Iterator[Finding]:
    for line, name in source.names:
        if below(name, "torch.ao", "torch.quantization", "torch.nn.quantized"):
            yield line, f"{name}: Intact has its own stack; torch.ao is being removed"


def private_torch(source: Source) -> Iterator[Finding]:
    if source.path == "private.py":
        return
    for line, name in source.names:
        private = any(p.startswith("_") and not p.endswith("__") for p in name.split("."))
        if below(name, "torch.ops.onednn") or (below(name, "torch") and private):
            yield line, f"{name}: private names of torch belong in intact/private.py"


def distributed(source: Source) -> Iterator[Finding]:
    for line, name in source.names:
        if below(name, "torch.distributed") and source.path != "dist.py":
            yield line, f"{name}: only intact/dist.py names torch.distributed"


def star_import(source: Source) -> Iterator[Finding]:
    for line, name, full in source.imports():
        if name == "*":
            yield line, f"import * from {full.removesuffix('.*')}: import names by name"


def swallowed(source: Source) -> Iterator[Finding]:
    for node in source.nodes:
        caught: list[ast.expr | None] = []
        if isinstance(node, ast.ExceptHandler):
            caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        elif isinstance(node, ast.Call) and source.dotted(node.func) == "contextlib.suppress":
            caught = list(node.args)
        for kind in caught:
            name = "everything" if kind is None else source.dotted(kind)
            if name in {"everything", "Exception", "BaseException"}:
                yield node.lineno, f"catches {name}: name the exceptions that are expected"


def prints(source: Source) -> Iterator[Finding]:
    for line, name in source.names:
        if name in {"print", "rich.print"} and source.room not in {"cli", "__main__"}:
            yield line, "print: only the command line prints; return a value"


def file_size(source: Source) -> Iterator[Finding]:
    lines = source.text.count("\n")
    if lines > FILE_LINES:
        yield lines, f"{lines} lines, at most {FILE_LINES}: split the file"


def function_size(source: Source) -> Iterator[Finding]:
    for node in source.nodes:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node, clean=False)
            lines = node.end_lineno - node.lineno + 1 - (doc.count("\n") + 1 if doc else 0)
            if lines > FUNCTION_LINES:
                yield node.lineno, f"{node.name} has {lines} lines, at most {FUNCTION_LINES}"


def machine_path(source: Source) -> Iterator[Finding]:
    path = re.compile(r"(?<![\w.~/])/(?:work|tmp|home|root|Users|mnt|opt)\b")
    for number, line in enumerate(source.text.splitlines(), 1):
        if path.search(line):
            yield number, "names a path of one machine"


@cache
def read(path: str) -> Source:
    return Source(path, (SRC / path).read_text())


def module_source(module: str) -> Source | None:
    """The source of ``intact`` or ``intact.x.y``; None for what is no file of ours."""
    head, *parts = module.split(".")
    for path in ("/".join([*parts, "__init__.py"]), "/".join(parts) + ".py"):
        if head == "intact" and path in FILES:
            return read(path)
    return None


def definition(source: Source, name: str) -> ast.AST | None:
    """What defines ``name``, followed through our own imports; None when nothing does."""
    for node in top_level(source.tree):
        match node:
            case ast.FunctionDef(decorator_list=[ast.Name(id="overload")]):
                continue  # what it overloads follows, and has the docstring
            case ast.FunctionDef() | ast.ClassDef() if node.name == name:
                return node
            case ast.Name(ctx=ast.Store()) if node.id == name:
                return node
            case ast.ImportFrom():
                for a in node.names:
                    if name == (a.asname or a.name):
                        return imported(source, node, a.name)
    return None


def imported(source: Source, node: ast.ImportFrom, name: str) -> ast.AST | None:
    module = source.module(node)
    home, child = module_source(module), module_source(f"{module}.{name}")
    if home is None:
        return node  # another package's name
    here = definition(home, name) if home.path != source.path else None
    return here or (child.tree if child else None)


def top_level(node: ast.AST) -> Iterator[ast.AST]:
    """Everything below ``node`` except what stands inside a function or a class."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from top_level(child)


def exported(source: Source) -> Iterator[tuple[int, str]]:
    for node in source.tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            for name in getattr(node.value, "elts", [ast.Constant("<computed>")]):
                yield node.lineno, name.value


def documented(source: Source) -> Iterator[Finding]:
    documentable = ast.FunctionDef | ast.ClassDef | ast.Module
    for line, name in exported(source):
        node = definition(source, name)
        if node is None:
            yield line, f"__all__ has {name!r}, which nothing defines"
        elif isinstance(node, documentable) and not ast.get_docstring(node):
            yield line, f"{name} is public and has no docstring"


def exampled(source: Source) -> Iterator[Finding]:
    if source.path != "__init__.py":
        return
    for line, name in exported(source):
        node = definition(source, name)
        if isinstance(node, ast.FunctionDef) and ">>>" not in (ast.get_docstring(node) or ""):
            yield line, f"intact.{name} has no example (>>>) in its docstring"
