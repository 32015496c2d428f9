"""Checks of ``streamproc doctor``: versions, project, data folder."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata
from pathlib import Path

from streamproc._version import __version__
from streamproc.cli.findings import Finding, fault, note, ok
from streamproc.dev.facts import ProjectFacts, read_facts
from streamproc.errors import ConfigurationError
from streamproc.project import Project

_PACKAGES = ("faust-streaming", "aiokafka", "redis", "msgspec")
_LEAST_SPACE = 1 << 30


def check_versions() -> Finding:
    """Tell what runs here."""
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in _PACKAGES)
    return ok(
        "versions", f"streamproc {__version__}, Python {platform.python_version()}, {packages}"
    )


def check_project(project: Project) -> tuple[Finding, ProjectFacts | None]:
    """Import the project as a worker would, in a process of its own."""
    try:
        facts = read_facts(project.folder, "streamproc", {})
    except ConfigurationError as exc:
        lines = str(exc).strip().splitlines()
        advice = "Correct it; `faust -A streamproc agents` shows the whole traceback."
        return fault("project", f"{project.folder} does not load: {lines[-1]}", advice), None
    if not facts.sources:
        advice = "Write one in agents/, as in `streamproc init`'s projects."
        return note("project", f"no agent in {project.folder} reads a topic", advice), facts
    return ok("project", f"agents read {', '.join(facts.sources)}"), facts


def check_data_folder(folder: Path) -> Finding:
    """Check that tables can be kept in ``folder``."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        advice = "Set data_dir to a folder that this user may write to."
        return fault("data folder", f"{folder} can't be written", advice)
    free = shutil.disk_usage(there).free
    text = f"{folder}, {free / (1 << 30):,.1f} GiB free"
    if free < _LEAST_SPACE:
        return note("data folder", text, "Make room: tables and dev servers write there.")
    return ok("data folder", text)
