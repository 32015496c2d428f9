"""The places that settings come from, each read into values that know their place."""

from __future__ import annotations

import ast
import re
import runpy
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import yaml
from dotenv import dotenv_values
from dotenv.parser import parse_stream

from streamproc.settings.catalog import CATALOG, ENV_PREFIX, GROUPS, nearest

#: Variables with our prefix that are no settings: the project folder, what tests and the
#: development servers read, and what Kubernetes sets for a service called "streamproc".
_NOT_SETTINGS = re.compile(r"STREAMPROC_(PROJECT$|CACHE$|TEST_|SERVICE_|PORT(_|$))")
_REDIS_KEYS = ("host", "port", "db", "username", "password")


@dataclass(frozen=True)
class Value:
    """A value as it was written, and where."""

    raw: Any
    #: ``config.yaml:3``, ``environment STREAMPROC_TOPIC``.
    place: str
    #: Text that stands for numbers and booleans too, as environment variables do.
    is_text: bool = False
    #: ``${NAME}`` in it means an environment variable.
    expands: bool = False


@dataclass
class Layer:
    """All values of one place, by setting path, and what is wrong there."""

    name: str
    values: dict[str, Value] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def put(self, path: str, value: Value) -> None:
        """Add a value; that of a group (``error_handling``) is a mapping."""
        if path in CATALOG:
            self.values[path] = value
        elif path not in GROUPS:
            self.unknown(path, value.place, CATALOG.keys() | GROUPS)
        elif isinstance(value.raw, Mapping):
            for key, raw in value.raw.items():
                self.put_nested(path, str(key), Value(raw, value.place, expands=value.expands))
        else:
            self.problems.append(f"{value.place}: {path} must be a mapping, not {value.raw!r}")

    def put_nested(self, group: str, key: str, value: Value) -> None:
        """Add a value of a group."""
        if (path := f"{group}.{key}") in CATALOG:
            self.values[path] = value
        else:
            known = {p.partition(".")[2] for p in CATALOG if p.startswith(f"{group}.")}
            self.unknown(key, value.place, known, f" in {group}")

    def unknown(self, key: str, place: str, known: Any, where: str = "") -> None:
        """Note that there is no such setting, and which one was probably meant."""
        guess = nearest(key, sorted(known))
        hint = f"; did you mean {guess}?" if guess else ""
        self.problems.append(f"{place}: there is no setting {key}{where}{hint}")


def arguments_layer(arguments: Mapping[str, Any]) -> Layer:
    """Read keyword arguments."""
    layer = Layer("argument")
    for name, raw in arguments.items():
        layer.put(name, Value(raw, f"argument {name}"))
    return layer


def environment_layer(environ: Mapping[str, str]) -> Layer:
    """Read ``STREAMPROC_...`` variables."""
    layer = Layer("environment")
    for name, text in sorted(environ.items()):
        _put_variable(layer, name, text, f"environment {name}")
    return layer


def dotenv_layer(path: Path) -> tuple[Layer, dict[str, str]]:
    """Read ``.env``: its settings, and its other variables for ``${NAME}``."""
    layer = Layer(".env")
    if not path.is_file():
        return layer, {}
    lines: dict[str, int] = {}
    with path.open(encoding="utf-8") as file:
        for binding in parse_stream(file):
            if binding.error:
                layer.problems.append(f"{path.name}:{binding.original.line}: not NAME=value")
            elif binding.key:
                skipped = len(binding.original.string) - len(binding.original.string.lstrip("\n"))
                lines[binding.key] = binding.original.line + skipped
    variables = {k: v for k, v in dotenv_values(path).items() if v is not None}
    for name, text in variables.items():
        _put_variable(layer, name, text, f"{path.name}:{lines.get(name, 1)}")
    return layer, {k: v for k, v in variables.items() if not k.startswith(ENV_PREFIX)}


def _put_variable(layer: Layer, name: str, text: str, place: str) -> None:
    if not name.startswith(ENV_PREFIX) or _NOT_SETTINGS.match(name):
        return
    known = {setting.env: setting.path for setting in CATALOG.values()}
    if name in known:
        layer.values[known[name]] = Value(text, place, is_text=True)
        return
    guess = nearest(name[len(ENV_PREFIX) :].lower().replace("__", "."), CATALOG)
    hint = f"; did you mean {CATALOG[guess].env}?" if guess else ""
    layer.problems.append(f"{place}: {name} is no setting{hint}")


def yaml_layer(path: Path) -> Layer:
    """Read ``config.yaml``; ``${NAME}`` in its values is expanded later, when one is used."""
    layer = Layer(path.name)
    if not path.is_file():
        return layer
    loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
    try:
        root = loader.get_single_node()
        if root is not None and not isinstance(root, yaml.MappingNode):
            layer.problems.append(f"{path.name}:1: expected settings as `name: value` lines")
        elif root is not None:
            for key, place, node in _entries(root, path, layer):
                _put_node(layer, loader, key, place, node, path)
    except yaml.MarkedYAMLError as exc:
        line = exc.problem_mark.line + 1 if exc.problem_mark else 1
        layer.problems.append(f"{path.name}:{line}: not YAML: {exc.problem}")
    finally:
        loader.dispose()
    return layer


def _entries(
    node: yaml.MappingNode, path: Path, layer: Layer
) -> Iterator[tuple[str, str, yaml.Node]]:
    seen: set[str] = set()
    for key_node, value_node in node.value:
        key = str(key_node.value)
        place = f"{path.name}:{key_node.start_mark.line + 1}"
        if key in seen:
            layer.problems.append(f"{place}: {key} is set twice")
        seen.add(key)
        yield key, place, value_node


def _put_node(
    layer: Layer, loader: yaml.SafeLoader, key: str, place: str, node: yaml.Node, path: Path
) -> None:
    if key in GROUPS and isinstance(node, yaml.MappingNode):
        for name, inner, child in _entries(node, path, layer):
            raw = loader.construct_object(child, deep=True)
            layer.put_nested(key, name, Value(raw, inner, expands=True))
        return
    if key == "redis" and isinstance(node, yaml.MappingNode):
        for name, inner, _ in _entries(node, path, layer):
            if name not in _REDIS_KEYS:
                layer.unknown(name, inner, _REDIS_KEYS, " in redis")
    raw = loader.construct_object(node, deep=True)
    layer.put(key, Value(raw, place, expands=True))


def module_layer(path: Path) -> Layer:
    """Run ``settings.py`` and read the names it assigns, in lower or upper case."""
    layer = Layer(path.name)
    if not path.is_file():
        return layer
    try:
        assigned = dict(_assigned(ast.parse(path.read_text(encoding="utf-8")).body))
        found = runpy.run_path(str(path), run_name="settings")
    except SyntaxError as exc:
        layer.problems.append(f"{path.name}:{exc.lineno}: {exc.msg}")
        return layer
    except Exception as exc:  # noqa: BLE001 - it runs the project's code; told with its line
        frames = traceback.extract_tb(exc.__traceback__)
        lines = [f.lineno for f in frames if f.filename == str(path)]
        at = lines[-1] if lines else 1
        layer.problems.append(f"{path.name}:{at}: {type(exc).__name__}: {exc}")
        return layer
    for name, line in sorted(assigned.items(), key=lambda item: item[1]):
        if not name.startswith("_") and name in found:
            raw = found[name]
            if isinstance(raw, msgspec.Struct):
                raw = msgspec.structs.asdict(raw)
            key = name.lower() if name.isupper() else name
            layer.put(key, Value(raw, f"{path.name}:{line}"))
    return layer


def _assigned(body: list[ast.stmt]) -> Iterator[tuple[str, int]]:
    """Give names that statements of a module assign, and lines, not looking into functions."""
    for node in body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign | ast.AugAssign):
            targets = [node.target]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name in CATALOG:
            yield node.name, node.lineno  # def broker_token(): ...
        for target in targets:
            yield from ((n.id, n.lineno) for n in ast.walk(target) if isinstance(n, ast.Name))
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            for part in ("body", "orelse", "finalbody"):
                yield from _assigned(getattr(node, part, []))
            for handler in getattr(node, "handlers", []):
                yield from _assigned(handler.body)
