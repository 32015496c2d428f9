"""``streamproc config``: the settings in effect and where each came from."""

from __future__ import annotations

import json
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from streamproc.cli.tables import print_table
from streamproc.project import Project
from streamproc.records.secrets import MASK, mask
from streamproc.settings import Loaded, Secret
from streamproc.settings.catalog import CATALOG, markdown_table
from streamproc.settings.model import Function, flatten


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--markdown", is_flag=True, help="Print all settings there are, as Markdown.")
def config(as_json: bool, markdown: bool) -> None:
    """Show the settings in effect, where each came from, secrets masked."""
    if markdown:
        click.echo(markdown_table())
        return
    project = Project()
    if as_json:
        click.echo(json.dumps(_document(project), indent=2))
    else:
        _print_table(project.loaded)


def _document(project: Project) -> dict[str, Any]:
    loaded = project.loaded
    return {
        "project": str(project.folder),
        "settings": {
            path: {"value": _shown(value), "from": loaded.origins[path]}
            for path, value in flatten(loaded.settings)
        },
        "warnings": loaded.warnings,
    }


def _print_table(loaded: Loaded) -> None:
    table = Table("setting", "value", "from", "meaning", box=None, header_style="bold")
    for path, value in flatten(loaded.settings):
        origin = loaded.origins[path]
        style = "dim" if origin.startswith("default") else ""
        text = "" if value in (None, []) else str(_shown(value))
        cells = (path, text, origin, CATALOG[path].description)
        table.add_row(*map(Text, cells), style=style)
    print_table(table)
    for warning in loaded.warnings:
        click.echo(f"Warning: {warning}")


def _shown(value: Any) -> Any:
    if isinstance(value, Secret):
        return MASK
    if isinstance(value, Function):
        return repr(value)
    if isinstance(value, list):
        return [_shown(item) for item in value]
    return mask(value) if isinstance(value, str) else value
