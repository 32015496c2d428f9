"""Gathering settings: the first place that has a value wins, and all problems are told at once.

Places, first to last: arguments, environment, ``.env``, ``config.yaml``, ``settings.py``,
defaults.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from streamproc.errors import ConfigurationError
from streamproc.records.secrets import MASK, register_url
from streamproc.settings.catalog import CATALOG, Setting
from streamproc.settings.layers import (
    Layer,
    Value,
    arguments_layer,
    dotenv_layer,
    environment_layer,
    module_layer,
    yaml_layer,
)
from streamproc.settings.model import NAME_PATTERN, Function, Secret, Settings, show, split

_VARIABLE = re.compile(r"\$(\$?)\{(\w+)(?::-([^}]*))?\}")
_REDIS_SCHEMES = ("redis", "rediss", "unix", "redis+cluster", "rediss+cluster")
DEFAULT = "default"


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each value came from."""

    settings: Settings
    #: By path of a setting: ``config.yaml:3``, ``environment STREAMPROC_TOPIC``, ``default``.
    origins: dict[str, str]
    #: What is allowed but should be mended.
    warnings: list[str] = field(default_factory=list)
    #: Variables of ``.env`` that are no settings.
    variables: dict[str, str] = field(default_factory=dict)


def load_settings(
    folder: Path | str = ".", *, environ: Mapping[str, str] | None = None, **arguments: Any
) -> Settings:
    """Return the settings of the project in ``folder``; see :func:`load`."""
    return load(folder, environ=environ, **arguments).settings


def load(
    folder: Path | str = ".", *, environ: Mapping[str, str] | None = None, **arguments: Any
) -> Loaded:
    """Gather the settings of the project in ``folder``.

    Args:
        folder: Where ``.env``, ``config.yaml`` and ``settings.py`` are; none need be there.
        environ: Environment variables; those of the process when left out. Then variables
            of ``.env`` that are no settings go into the process' environment too, so that
            ``settings.py`` and agents find them.
        **arguments: Settings that win over all other places.

    Raises:
        ConfigurationError: Unknown settings, wrong values, unreadable files: all of them,
            each with its file and line.
    """
    folder = Path(folder).absolute()
    env_file, variables = dotenv_layer(folder / ".env")
    if environ is None:
        for name, text in variables.items():
            os.environ.setdefault(name, text)
        environ = os.environ
    layers = [
        arguments_layer(arguments),
        environment_layer(environ),
        env_file,
        yaml_layer(folder / "config.yaml"),
        module_layer(folder / "settings.py"),
    ]
    return _Resolution(folder, layers, {**variables, **environ}, variables).loaded()


class _Resolution:
    """Layers becoming one settings object."""

    def __init__(
        self,
        folder: Path,
        layers: list[Layer],
        environ: Mapping[str, str],
        variables: dict[str, str],
    ) -> None:
        self._folder = folder
        self._layers = layers
        self._environ = environ
        self._variables = variables
        self._problems = [problem for layer in layers for problem in layer.problems]
        self._warnings: list[str] = []
        self._origins: dict[str, str] = {}

    def loaded(self) -> Loaded:
        """Check every value and build the settings.

        Raises:
            ConfigurationError: With all problems.
        """
        chosen: dict[str, Any] = {}
        for path, setting in CATALOG.items():
            self._origins[path] = DEFAULT
            for rank, value in enumerate(self._candidates(path)):
                # Values that others win over are checked too, except for missing variables.
                converted, problem = self._convert(setting, value, used=rank == 0)
                if problem:
                    self._problems.append(f"{value.place}: {problem}")
                elif rank == 0:
                    chosen[path] = converted
                    self._origins[path] = value.place
        if self._problems:
            raise ConfigurationError(_listed(self._folder, self._problems))
        settings = msgspec.convert(_nest(chosen), Settings, dec_hook=_special)
        return Loaded(settings, self._origins, self._warnings, self._variables)

    def _candidates(self, path: str) -> Iterator[Value]:
        for layer in self._layers:
            if path in layer.values:
                yield layer.values[path]

    def _convert(self, setting: Setting, value: Value, *, used: bool) -> tuple[Any, str | None]:
        """Return the value in the setting's type, or what is wrong with it."""
        raw, is_text = value.raw, value.is_text
        if value.expands:
            missing: list[str] = []
            raw = _expand(raw, self._environ, missing)
            if missing:
                names = ", ".join(missing)
                problem = f"{setting.path}: the environment has no {names}"
                return None, problem if used else None
            is_text = raw != value.raw
        if used:
            self._warn_of_secrets(setting, value, is_text)
        if is_text and raw == "" and setting.can_be_none:
            return None, None
        if setting.path == "redis" and isinstance(raw, Mapping):
            raw = _redis_url(raw)
        try:
            converted = msgspec.convert(raw, setting.type, strict=not is_text, dec_hook=_special)
        except msgspec.ValidationError as exc:
            shown = MASK if setting.is_secret else show(raw)
            return None, f"{setting.path} = {shown}: {_reason(exc, setting, is_text)}"
        if setting.path.endswith("_file") and used and isinstance(converted, str):
            converted = str(self._folder / converted)
        if setting.path == "redis" and isinstance(converted, str):
            register_url(converted)
        check = _CHECKS.get(setting.path)
        wrong = check(converted) if check else None
        return converted, f"{setting.path} = {show(raw)}: {wrong}" if wrong else None

    def _warn_of_secrets(self, setting: Setting, value: Value, expanded: bool) -> None:
        """Warn of a password that is written into a file under version control."""
        if expanded or not value.place.startswith(("config.yaml", "settings.py")):
            return
        raw = value.raw
        written = (
            setting.is_secret
            or (isinstance(raw, Mapping) and raw.get("password"))
            or (isinstance(raw, str) and setting.path == "redis" and urlsplit(raw).password)
        )
        if written and value.place.startswith("config.yaml"):
            variable = CATALOG["redis_password" if setting.path == "redis" else setting.path].env
            self._warnings.append(
                f"{value.place}: a password is written into this file; "
                f"set {variable} in the environment or in .env instead"
            )


def _expand(raw: Any, environ: Mapping[str, str], missing: list[str]) -> Any:
    if isinstance(raw, Mapping):
        return {key: _expand(item, environ, missing) for key, item in raw.items()}
    if isinstance(raw, list):
        return [_expand(item, environ, missing) for item in raw]
    if not isinstance(raw, str):
        return raw

    def replace(match: re.Match[str]) -> str:
        escaped, name, default = match.groups()
        if escaped:
            return match.group()[1:]
        if name in environ:
            return environ[name]
        if default is None:
            missing.append(name)
        return default or ""

    return _VARIABLE.sub(replace, raw)


def _special(kind: Any, value: Any) -> Any:
    """Turn text into a secret, or a function or the name of one into that, for msgspec."""
    if kind is Function:
        return value if isinstance(value, Function) else Function(value)
    if kind is not Secret:
        raise NotImplementedError(f"no conversion to {kind}")
    if isinstance(value, Secret):
        return value
    if not isinstance(value, str):
        raise msgspec.ValidationError("Expected `str`")
    return Secret(value)


def _redis_url(parts: Mapping[str, Any]) -> str:
    login = quote(str(parts.get("username") or ""), safe="")
    if parts.get("password"):
        login += f":{quote(str(parts['password']), safe='')}"
    place = f"{parts.get('host', '127.0.0.1')}:{parts.get('port', 6379)}/{parts.get('db', 0)}"
    return f"redis://{login}@{place}" if login else f"redis://{place}"


def _check_brokers(value: str | list[str]) -> str | None:
    brokers = split(value)
    if not brokers:
        return "Expected at least one broker as host:port"
    for broker in brokers:
        try:
            parts = urlsplit(broker if "://" in broker else f"kafka://{broker}")
            wrong = not parts.hostname and parts.scheme != "memory"
            _ = parts.port
        except ValueError:
            wrong = True
        if wrong or "@" in broker:
            return f"Expected host:port or kafka://host:port, got {show(broker)}" + (
                "; user and password have settings of their own" if "@" in broker else ""
            )
    return None


def _check_redis(value: str | None) -> str | None:
    if value is None:
        return None
    try:
        parts = urlsplit(value)
        wrong = parts.scheme not in _REDIS_SCHEMES or not (parts.hostname or parts.path)
        _ = parts.port
    except ValueError:
        wrong = True
    return "Expected a URL like redis://host:6379/0" if wrong else None


def _check_codec(value: str) -> str | None:
    from streamproc.records.codecs import get_codec

    try:
        get_codec(value)
    except ConfigurationError as exc:
        return str(exc)
    return None


_CHECKS: dict[str, Any] = {
    "broker_list": _check_brokers,
    "redis": _check_redis,
    "serialization": _check_codec,
}


def _reason(exc: Exception, setting: Setting, is_text: bool) -> str:
    if setting.choices:
        return f"Expected {' or '.join(setting.choices)}"
    reason = str(exc).replace("`", "")
    if is_text:
        reason = reason.removesuffix(", got str")
    return reason.replace(f"matching regex {NAME_PATTERN!r}", "of letters, digits and . _ -")


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in flat.items():
        group, _, name = path.rpartition(".")
        if group:
            nested.setdefault(group, {})[name] = value
        else:
            nested[path] = value
    return nested


def _listed(folder: Path, problems: list[str]) -> str:
    if len(problems) == 1:
        return f"Settings in {folder}: {problems[0]}"
    return f"{len(problems)} problems with the settings in {folder}:\n" + "\n".join(
        f"  {problem}" for problem in problems
    )
