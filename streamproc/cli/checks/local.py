"""Checks of this machine: versions, the data folder."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from streamproc._version import __version__
from streamproc.cli.checks.check import Check, fault, ok, warning

#: Packages whose internals are relied on, and the versions that this was checked with.
_PINNED = {"faust-streaming": "0.15", "aiokafka": "0.14"}
_OTHERS = ("msgspec", "redis", "uvloop")
_MEGABYTE = 1024 * 1024


def check_versions() -> Iterator[Check]:
    """Check Python and the packages that matter."""
    yield ok("streamproc", __version__)
    if (3, 10) <= sys.version_info < (3, 14):
        yield ok("python", platform.python_version())
    else:
        yield fault("python", platform.python_version(), "Use Python 3.10 to 3.13.")
    for name in (*_PINNED, *_OTHERS):
        found = _version(name)
        wanted = _PINNED.get(name)
        if wanted is None:
            yield ok(name, found or "not installed (optional)")
        elif found and found.startswith(f"{wanted}."):
            yield ok(name, found)
        else:
            command = f"Run: pip install '{name}=={wanted}.*'"
            yield fault(name, found or "not installed", f"{command}; others were not tried.")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def check_data_folder(folder: Path) -> Iterator[Check]:
    """Check that tables can be written, and that there is room."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    advice = "Set STREAMPROC_DATA_DIR (or data_dir) to a folder that this user can write to."
    if not existing.is_dir():
        yield fault("data folder", f"{existing} is a file, not a folder", advice)
        return
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as exc:
        yield fault("data folder", f"{existing} can't be written to: {exc.strerror}", advice)
        return
    free = shutil.disk_usage(existing).free // _MEGABYTE
    finding = f"{folder}, {free:,} MB free" + ("" if folder.exists() else ", made when needed")
    more = "Make room, or set STREAMPROC_DATA_DIR to a larger disk."
    if free < 100:
        yield fault("data folder", finding, more)
    elif free < 1024:
        yield warning("data folder", finding, more)
    else:
        yield ok("data folder", finding)


def data_folder(project: Path, data_dir: str | None, name: str) -> Path:
    """Return the folder that a worker of the project keeps its tables in."""
    return project / os.path.expanduser(data_dir or f"{name}-data")
