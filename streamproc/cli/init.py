"""``streamproc init``: a new project folder that runs."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import click

from streamproc.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.abc import Traversable

_SUFFIX = ".tmpl"


@click.command()
@click.argument("name", type=click.Path(file_okay=False))
def init(name: str) -> None:
    """Make a new project in the folder NAME."""
    folder = Path(name)
    create_project(folder)
    click.echo(f"{name} is a project now. Run it on sample data:\n\n  cd {name}\n  streamproc dev")


def create_project(folder: Path) -> None:
    """Fill a new (or empty) folder with the template.

    Raises:
        ConfigurationError: There is something in it, or its name has no letter or digit.
    """
    app_id = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.absolute().name).strip("-.")
    if not app_id:
        raise ConfigurationError(f"{folder} gives no application id: use letters and digits.")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists and isn't empty; nothing was written.")
    _copy(resources.files("streamproc.cli") / "template", folder, app_id)


def _copy(source: Traversable, target: Path, app_id: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for item in source.iterdir():
        # Hidden files are kept under plain names, so that packaging doesn't lose them.
        name = item.name.removesuffix(_SUFFIX).replace("dot_", ".")
        if item.is_dir():
            _copy(item, target / name, app_id)
        else:
            text = item.read_text(encoding="utf-8").replace("@name@", app_id)
            (target / name).write_text(text, encoding="utf-8")
