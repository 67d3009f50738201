"""A class whose types a .pxd tells has no other fields: one that is missing there fails when it is first set.

That may be long after, in the one branch that sets it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "eventproc"
TYPED = sorted(path for path in PACKAGE.rglob("*.pxd") if path.with_suffix(".py").exists())


def told(types: Path) -> dict[str, set[str]]:
    """Fields of each class, as the .pxd has them."""
    fields: dict[str, set[str]] = {}
    for line in types.read_text().splitlines():
        if match := re.match(r"cdef class (\w+):", line):
            fields[match[1]] = set()
        elif match := re.match(r"    cdef (?!.*\().* (\w+)$", line):
            fields[list(fields)[-1]].add(match[1])
    return fields


def assigned(source: Path) -> dict[str, set[str]]:
    """Fields that each class sets of itself, or declares as those of a dataclass."""
    found: dict[str, set[str]] = {}
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.ClassDef):
            declared = {it.target.id for it in node.body if _is_field(it)}  # type: ignore[attr-defined]
            found[node.name] = declared | set(_set_of_self(node))
    return found


def _is_field(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)


def _set_of_self(node: ast.ClassDef) -> Iterator[str]:
    for it in ast.walk(node):
        if isinstance(it, ast.Attribute) and isinstance(it.ctx, ast.Store) and _is_self(it.value):
            yield it.attr


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@pytest.mark.parametrize("types", TYPED, ids=lambda path: path.stem)
def test_each_field_is_told(types: Path) -> None:
    fields = told(types)
    assert fields
    sets = assigned(types.with_suffix(".py"))
    for name, known in fields.items():
        assert known == sets[name], f"{name} in {types.name}"
