"""Which source code a stage's work uses, found without importing it, and a digest of the used part of each file.

The search begins at the stage's function. From there every name that a definition uses is followed to its own
definition in any module of ``hbi_models`` and ``pipelines``, through imports at the top of a file and inside functions.
So a function that is not used in this way has no part in the digest, even if its file has.

Left out are settings, because their values are in the fingerprint, and modules that store data, allot machines, plan
the work or report about it, because they compute no result. Comments, docstrings and formatting do not count either.
"""

from __future__ import annotations

import ast
import gc
import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

from pipelines.workspace.errors import examples

ROOT = Path(__file__).parents[2]
PACKAGES = ("hbi_models", "pipelines")
LEFT_OUT = (
    "hbi_models.clip.configs",
    "hbi_models.config_fields",
    "hbi_models.configs",
    "hbi_models.optimizer_config",
    "hbi_models.zero_shot_config",
    "pipelines.progress",
    "pipelines.recipe",
    "pipelines.resources",
    "pipelines.stages.execution",
    "pipelines.stages.plan",
    "pipelines.stages.settings",
    "pipelines.stages.sources",
    "pipelines.stages.stage",
    "pipelines.tracker",
    "pipelines.tracking",
    "pipelines.workspace",
)

_SHOWN = 3
"""Number of files that a message names."""

_WHOLE = "*"
"""Stands for all definitions of a module."""

_EFFECTS = ""
"""Stands for the statements at the top level of a module that define nothing."""

Definition = tuple[str, str]
"""A module, and a name at its top level."""


@dataclass(frozen=True)
class Sources:
    """The modules of ``packages`` below ``root``."""

    root: Path = ROOT
    packages: tuple[str, ...] = PACKAGES
    left_out: tuple[str, ...] = LEFT_OUT

    def digests(self, work: Callable[..., Any]) -> dict[str, str]:
        """Digest of the part that every source file has in ``work``, by its path below the root."""
        return dict(_digests(self, frozenset(self._beginnings(work))))

    def follow(self, beginnings: Iterable[Definition]) -> dict[str, str]:
        """As :meth:`digests`, for all definitions that are reached from ``beginnings``."""
        parts: dict[str, set[str]] = {}
        todo = list(beginnings)
        seen: set[Definition] = set()
        while todo:
            definition = todo.pop()
            if definition in seen:
                continue
            seen.add(definition)
            module = _read(self, definition[0]) if self._is_ours(definition[0]) else None
            if module is None:
                continue
            # Code that runs on import affects all who use a part of the module.
            for name in module.definitions if definition[1] == _WHOLE else [definition[1], _EFFECTS]:
                if name in module.definitions:
                    parts.setdefault(module.file, set()).add(_text(module, name))
                todo += _uses(module, name)
        return {
            file: hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:16]
            for file, texts in sorted(parts.items())
        }

    def _beginnings(self, work: Any) -> Iterator[Definition]:
        """The definitions of ``work``, and of the functions and objects that it holds."""
        todo, seen = [work], set()
        while todo:
            found = todo.pop()
            if id(found) in seen:
                continue
            seen.add(id(found))
            if isinstance(found, partial):
                todo += [found.func, *found.args, *found.keywords.values()]
            elif inspect.ismethod(found):
                todo += [found.__func__, found.__self__]
            elif inspect.isfunction(found) or inspect.isclass(found):
                if self._is_ours(found.__module__):
                    # An inner function, such as the ``run`` of a stage, is a part of the outer one's definition.
                    yield found.__module__, found.__qualname__.partition(".")[0]
                    for cell in getattr(found, "__closure__", None) or ():
                        todo.append(_held(cell))
            elif is_dataclass(found) and self._is_ours(type(found).__module__):
                todo += [type(found), *(getattr(found, item.name) for item in fields(found))]

    def _is_ours(self, module: str) -> bool:
        return module.partition(".")[0] in self.packages and not any(
            module == name or module.startswith(f"{name}.") for name in self.left_out
        )


@cache
def _digests(sources: Sources, beginnings: frozenset[Definition]) -> dict[str, str]:
    # Among syntax trees there is no garbage, and looking for it takes a third of the time.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return sources.follow(beginnings)
    finally:
        if collecting:
            gc.enable()


def _held(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # of a name that is not set yet
        return None


@cache
def _read(sources: Sources, name: str) -> _Module | None:
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    place = sources.root.joinpath(*name.split("."))
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return _Module(sources, name, path, ast.parse(path.read_text(encoding="utf-8")))
    return None


@dataclass(frozen=True, eq=False)
class _Module:
    """A parsed source file."""

    sources: Sources
    name: str
    path: Path
    tree: ast.Module

    @property
    def file(self) -> str:
        return self.path.relative_to(self.sources.root).as_posix()

    @cached_property
    def definitions(self) -> dict[str, list[ast.stmt]]:
        """The statements that define each name at the top level, except imports."""
        found: dict[str, list[ast.stmt]] = {}
        for statement in _top_level(self.tree.body):
            for name in _defined(statement):
                found.setdefault(name, []).append(statement)
        return found

    @cached_property
    def imports(self) -> dict[str, Definition]:
        """What each imported name at the top level stands for."""
        return dict(_imported(_top_level(self.tree.body)))

    def uses(self, name: str) -> list[Definition]:
        """The definitions that ``name`` leads to."""
        found = [self.imports[name]] if name in self.imports else []
        if name in self.definitions:
            return found + [used for part in self.definitions[name] for used in self._used(part)]
        # Otherwise it can only be a module of this package.
        return found or [(f"{self.name}.{name}", _WHOLE)]

    def _used(self, part: ast.stmt) -> Iterator[Definition]:
        nodes = list(_walk(part))
        for _, imported in _imported(nodes):
            yield imported
        for node in nodes:
            if isinstance(node, ast.Name):
                if node.id in self.definitions:
                    yield self.name, node.id
                elif node.id in self.imports:
                    yield self.imports[node.id]
            elif isinstance(node, ast.Constant) and str(node.value).partition(".")[0] in self.sources.packages:
                # The name of a module that is started as a process: python -m pipelines.video.decode_child.
                yield str(node.value), _WHOLE


@cache
def _text(module: _Module, name: str) -> str:
    """The definition of ``name`` in ``module`` without comments, docstrings and formatting."""
    # The docstrings leave the shared tree for good, so that ``uses`` cannot take one for the name of a module.
    return "\n".join(ast.unparse(_bare(part)) for part in module.definitions[name])


@cache
def _uses(module: _Module, name: str) -> list[Definition]:
    return module.uses(name)


def _top_level(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module, including those under conditions, except those for type checkers only."""
    for statement in body:
        if isinstance(statement, ast.If):
            if not (isinstance(statement.test, ast.Name) and statement.test.id == "TYPE_CHECKING"):
                yield from _top_level(statement.body)
            yield from _top_level(statement.orelse)
        elif isinstance(statement, ast.Try):
            for block in (statement.body, statement.orelse, statement.finalbody, *(h.body for h in statement.handlers)):
                yield from _top_level(block)
        else:
            yield statement


def _defined(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [statement.name]
    if isinstance(statement, ast.Import | ast.ImportFrom) or _is_text(statement):
        return []
    names = [node.id for node in ast.walk(statement) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)]
    return names or [_EFFECTS]


def _imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[str, Definition]]:
    """The names that imports among ``nodes`` bind, and what they stand for."""
    for statement in nodes:
        if isinstance(statement, ast.Import):
            for item in statement.names:
                yield (item.asname or item.name).partition(".")[0], (item.name, _WHOLE)
        # Relative imports do not occur in this project.
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            for item in statement.names:
                yield item.asname or item.name, (statement.module, item.name)


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below ``node`` except annotations, which change no result."""
    todo = [node]
    while todo:
        node = todo.pop()
        yield node
        for name in node._fields:
            value = getattr(node, name, None)
            if name in ("annotation", "returns"):
                continue
            if isinstance(value, ast.AST):
                todo.append(value)
            elif isinstance(value, list):
                todo += [child for child in value if isinstance(child, ast.AST)]


def _bare(statement: Any) -> ast.stmt:
    """Removes docstrings inside of a statement, including those of attributes."""
    for name in ("body", "orelse", "finalbody"):
        if block := getattr(statement, name, None):
            setattr(statement, name, [_bare(part) for part in block if not _is_text(part)])
    for part in (*getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        _bare(part)
    found: ast.stmt = statement
    return found


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def changed_files(before: Any, now: Mapping[str, str]) -> str | None:
    """The files whose part in the work has changed since ``before``, in words; None = none.

    None, too, if ``before`` was not recorded, as in artifacts of earlier versions.
    """
    if not isinstance(before, Mapping):
        return None
    files = sorted(file for file in {*before, *now} if before.get(file) != now.get(file))
    return examples(files, limit=_SHOWN) if files else None
