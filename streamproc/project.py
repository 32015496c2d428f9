"""The project folder: its settings, its App and its agents.

``streamproc.app`` is the App of the current project: the folder that the process was
started in, or the one that ``STREAMPROC_PROJECT`` names.
"""

from __future__ import annotations

import importlib
import logging
import os
import pkgutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from click import ClickException

from streamproc.errors import ConfigurationError
from streamproc.settings import Settings, load

if TYPE_CHECKING:
    from streamproc.application import App

__all__ = ["Project", "ProjectError", "current_app", "current_project"]

logger = logging.getLogger(__name__)

#: Folders (or modules) of a project that are imported, in this order.
PARTS = ("models", "agents")
#: Any of these makes a folder a project.
MARKS = ("settings.py", "config.yaml", "agents", "agents.py")


def project_folder() -> Path:
    """Return the folder that ``STREAMPROC_PROJECT`` names, else the current one."""
    return Path(os.environ.get("STREAMPROC_PROJECT") or ".").absolute()


class ProjectError(ConfigurationError, ClickException):
    """A project can't be used as it is.

    Command lines built on click, Faust's among them, print it without a traceback.
    """


class Project:
    """A folder with ``settings.py``, ``config.yaml``, ``.env``, ``models/`` and ``agents/``."""

    def __init__(self, folder: Path | str | None = None, **arguments: Any) -> None:
        """Take a folder as a project; ``arguments`` are settings that win over its files.

        Raises:
            ProjectError: Nothing in it looks like a project, or the settings are wrong.
        """
        self.folder = Path(folder).absolute() if folder else project_folder()
        if not any((self.folder / mark).exists() for mark in MARKS):
            raise ProjectError(
                f"{self.folder} is no project folder: it has no settings.py, config.yaml or "
                "agents/. Start in the project's folder, set STREAMPROC_PROJECT to it, or make "
                "one with `streamproc init NAME`."
            )
        self._app: App | None = None
        self._make_importable()
        try:
            self.loaded = load(self.folder, **arguments)
        except ConfigurationError as exc:
            raise ProjectError(str(exc)) from exc
        for warning in self.loaded.warnings:
            logger.warning(warning)

    @property
    def settings(self) -> Settings:
        """The project's settings."""
        return self.loaded.settings

    @property
    def app(self) -> App:
        """The project's App; made, with the project's agents, when first asked for.

        Agents that are imported on the way and ask for it get the same App.

        Raises:
            ProjectError: A setting can't be honoured.
            ConfigurationError: An agent asks for something that isn't there.
        """
        if self._app is None:
            from streamproc.application import App

            try:
                self._app = App(**self.app_options())
            except ConfigurationError as exc:
                raise ProjectError(str(exc)) from exc
            self._app.settings = self.settings
            self._app.on_worker_init.connect(_obey_datadir_option, weak=False)
            logging.getLogger("streamproc").setLevel(self.settings.log_level.upper())
            self._import_parts()
        return self._app

    def app_options(self) -> dict[str, Any]:
        """Return the settings as arguments of ``App``."""
        settings = self.settings
        return {
            "id": settings.name,
            "broker": ";".join(settings.broker_urls),
            "redis": settings.redis_url,
            "batch_size": settings.batch_size,
            "buffer_bytes": settings.buffer_bytes,
            "max_retries": settings.error_handling.retries,
            "dead_letters": settings.error_handling.dead_letters,
            "dead_letter_topic": settings.error_handling.dead_letter_topic,
            "value_serializer": settings.serialization,
            "broker_commit_interval": settings.commit_interval,
            "checkpoint_records": settings.checkpoint_records,
            "checkpoint_bytes": settings.checkpoint_bytes,
            "processing_guarantee": settings.processing_guarantee,
            "transaction_timeout": settings.transaction_timeout,
            "stall_timeout": settings.stall_timeout,
            "drain_timeout": settings.drain_timeout,
            "ready_max_lag": settings.ready_max_lag,
            "broker_session_timeout": settings.session_timeout,
            "group_instance_id": settings.group_instance_id,
            "broker_heartbeat_interval": min(1.0, settings.session_timeout / 3),
            "consumer_auto_offset_reset": "earliest",
            "topic_partitions": settings.partitions,
            "topic_replication_factor": settings.replication,
            "web_host": settings.web_host,
            "web_bind": settings.web_host,
            "web_port": settings.web_port,
            "datadir": self._data_dir(),
            "broker_credentials": settings.broker_security,
        }

    def _data_dir(self) -> str:
        return str(self.folder / (self.settings.data_dir or f"{self.settings.name}-data"))

    def _make_importable(self) -> None:
        """Put the folder first on ``sys.path``, so that its ``models`` and ``agents`` win."""
        folder = str(self.folder)
        if folder in sys.path:
            sys.path.remove(folder)
        sys.path.insert(0, folder)

    def _import_parts(self) -> None:
        for name in PARTS:
            if (self.folder / name).is_dir() or (self.folder / f"{name}.py").is_file():
                self._import_all(name)

    def _import_all(self, name: str) -> None:
        """Import a module, and the modules in it when it is a package."""
        try:
            module = importlib.import_module(name)
            self._check_origin(name, module)
            for info in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
                if not info.name.rpartition(".")[2].startswith(("_", "test_")):
                    importlib.import_module(info.name)
        except AttributeError as exc:
            # `from streamproc import app` would turn it into a misleading ImportError.
            raise ConfigurationError(f"{self.folder / name} can't be imported: {exc}") from exc

    def _check_origin(self, name: str, module: Any) -> None:
        places = [*getattr(module, "__path__", ()), getattr(module, "__file__", None) or ""]
        if not any(Path(place).resolve().is_relative_to(self.folder.resolve()) for place in places):
            raise ProjectError(
                f"{name} was imported from {places[0]}, not from {self.folder}: another module of "
                "that name was imported before."
            )


def _obey_datadir_option(app: App, **_: Any) -> None:
    """Let ``faust --datadir`` win; it comes in a variable, after the agents were imported."""
    if asked := os.environ.get("F_DATADIR"):
        app.conf.datadir = Path(asked)


_project: Project | None = None
_loading = False


def current_project() -> Project:
    """Return the project of this process, read when first asked for.

    Raises:
        ProjectError: The folder is no project, or its settings are wrong.
    """
    global _project, _loading
    if _project is None:
        if _loading:
            raise ProjectError(
                "settings.py can't use streamproc.app, which is made from the settings."
            )
        _loading = True
        try:
            _project = Project()
        finally:
            _loading = False
    return _project


def current_app() -> App:
    """Return the App of this process' project: what ``streamproc.app`` is.

    Raises:
        ProjectError: The folder is no project, or its settings are wrong.
    """
    return current_project().app
