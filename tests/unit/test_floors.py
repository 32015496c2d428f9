"""A module imports only from floors below its own (or from its own package)."""

import ast
from pathlib import Path

import pytest

import streamproc

ROOT = Path(streamproc.__file__).parent

FLOORS = {
    "_version": 0,
    "errors": -1,
    "records": 0,
    "windows": 1,
    "kafka": 1,
    "aggregates": 1,
    "tables": 2,
    "checkpoint": 3,
    "claims": 2,
    "gate": 1,
    "streams": 3,
    "sources": 4,
    "sinks": 4,
    "health": 4,
    "settings": 5,
    "application": 6,
    "project": 7,
    "web": 8,
    "dev": 8,
    "testing": 8,
    "cli": 9,
    "__main__": 10,
}


def part_of(module: str) -> str:
    """Return the part of streamproc that ``streamproc.x.y`` belongs to."""
    return module.split(".")[1]


def imports_of(path: Path) -> set[str]:
    """Return the streamproc modules that a file imports, wherever in it."""
    tree = ast.parse(path.read_text())
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return {name for name in found if name.startswith("streamproc.")}


MODULES = [
    path
    for path in sorted(ROOT.rglob("*.py"))
    if path != ROOT / "__init__.py" and "template" not in path.parts
]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    own = path.relative_to(ROOT).with_suffix("").parts[0]
    assert own in FLOORS, f"{own} has no floor; see the design"
    for module in imports_of(path):
        part = part_of(module)
        assert part == own or FLOORS[part] < FLOORS[own], f"{own} imports {module}"


def test_only_kafka_knows_aiokafka():
    for path in MODULES:
        if "kafka" in path.relative_to(ROOT).parts[:1]:
            continue
        names = {
            name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text()))
            for name in (
                [alias.name for alias in node.names]
                if isinstance(node, ast.Import)
                else [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else []
            )
        }
        assert "aiokafka" not in names, f"{path} imports aiokafka"
