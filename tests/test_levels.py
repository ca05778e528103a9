"""The layers hold: a module imports only lower levels, and only the Dagster side imports Dagster."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "tif1_pipeline"
LEVELS = {
    "exceptions": 0,
    "setting_types": 0,
    "config": 1,
    "keys": 1,
    "progress": 1,
    "datasets": 1,
    "cdn": 2,
    "decode": 2,
    "alerts": 2,
    "analysis": 2,
    "plots": 2,
    "cache": 2,
    "calendar": 3,
    "monitoring": 3,
    "fetch": 4,
    "reading": 5,
    "completion": 6,
    "session": 6,
    "warming": 6,
    "api": 7,
    "events": 8,
    "defs": 8,
    "doctor": 8,
    "simulator": 8,
    "definitions": 9,
    "cli": 10,
    "__init__": 11,
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def place_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """Every module that the file names in an import, also inside functions, but not for type checkers alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    modules = set()
    for node in ast.walk(tree):
        if id(node) in for_types_only:
            continue
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative imports hide the level"
            modules |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_lower_levels(path):
    place = place_of(path)
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] != "tif1_pipeline" or len(parts) < 2 or parts[1] == place or parts[1] == "__version__":
            continue
        if parts[1] in LEVELS:
            assert LEVELS[parts[1]] < LEVELS[place], f"{path.name} (level {LEVELS[place]}) imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_dagster_side_imports_dagster(path):
    if place_of(path) in {"defs", "definitions", "cli"}:
        return
    assert not {module for module in imported_modules(path) if module.split(".")[0] == "dagster"}


def test_every_place_has_a_level():
    assert {place_of(path) for path in MODULES} == set(LEVELS)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_annotations_stay_objects_where_dagster_reads_them(path):
    if place_of(path) in {"defs", "definitions"}:
        assert "from __future__ import annotations" not in path.read_text(encoding="utf-8")
