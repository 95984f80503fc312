"""Which lines of code a function consists of, as a hash: what has not changed need not be trained or measured again."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

WITH = "explorer.papers"
"""Modules of this package are read too when a function's own file imports names from them."""


def source_of(function: Callable) -> str:
    """Sixteen hex digits of the code behind a claim's check or a recipe's method.

    They cover the statement that defines it, every top-level statement of its file and of the papers that this names, and what
    those name in turn, plus what is bound to it (functions by their own code). Comments, docstrings, layout and the lower floors
    of this package do not enter.
    """
    return _source(function, frozenset())


def _source(function: Callable, within: frozenset[int]) -> str:
    """`within`: functions that are being read already; one may be bound to itself."""
    parts, within = [], within | {id(function)}

    def plain(value: object) -> str:
        if inspect.isfunction(value) and id(value) in within:
            return ""
        if inspect.isfunction(value) and _counts(value.__module__):
            return _source(value, within)
        return re.sub(r" at 0x[0-9a-f]+", "", repr(value))

    while isinstance(function, functools.partial):
        parts += map(plain, function.args)
        parts += [f"{name}={plain(value)}" for name, value in sorted(function.keywords.items())]
        function = function.func
    function = inspect.unwrap(function)
    parts += [plain(cell.cell_contents) for cell in getattr(function, "__closure__", None) or ()]
    file = inspect.getsourcefile(function)
    if file is not None and Path(file).is_file():
        line = inspect.getsourcelines(function)[1]
        start = next((s for s in _tree(file).body if s.lineno - _above(s) <= line <= (s.end_lineno or s.lineno)), None)
        parts += [ast.dump(s) for s in _reached(file, start)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _counts(module: str) -> bool:
    return module.startswith(WITH) or module.partition(".")[0] != WITH.partition(".")[0]


def _reached(file: str, start: ast.stmt | None) -> Iterator[ast.stmt]:
    """A top-level statement and all it depends on, in the order in which they are met."""
    queue, seen = [(file, start)], set()
    while queue:
        file, statement = queue.pop(0)
        if statement is None or (key := (file, statement.lineno)) in seen:
            continue
        seen.add(key)
        yield statement
        defined = _definitions(file)
        named = sorted({node.id for node in ast.walk(statement) if isinstance(node, ast.Name)})
        queue += [defined[name] for name in named if name in defined]


@functools.cache
def _definitions(file: str) -> dict[str, tuple[str, ast.stmt | None]]:
    """Top-level names of a file, with the file and statement that define them; imports from papers are followed."""
    out: dict[str, tuple[str, ast.stmt | None]] = {}
    for statement in _tree(file).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            out[statement.name] = file, statement
        elif isinstance(statement, ast.ImportFrom) and (statement.module or "").startswith(WITH):
            spec = importlib.util.find_spec(statement.module)
            if spec is not None and spec.origin:
                theirs = _definitions(spec.origin)
                out |= {a.asname or a.name: theirs[a.name] for a in statement.names if a.name in theirs}
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            out |= {n.id: (file, statement) for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    return out


@functools.cache
def _tree(file: str) -> ast.Module:
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                del node.body[0]
    return tree


def _above(statement: ast.stmt) -> int:
    """Lines of decorators above a definition, which count as its first."""
    return statement.lineno - min(
        (d.lineno for d in getattr(statement, "decorator_list", ())), default=statement.lineno
    )
