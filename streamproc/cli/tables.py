"""Tables for people, and for the programs that their output is piped into."""

from __future__ import annotations

import click
from rich.console import Console
from rich.table import Table

#: Columns of what is no terminal: as many as it takes.
_WIDE = 100_000


def print_table(table: Table) -> None:
    """Print a table: as wide as the terminal, or with each row on one line where is none."""
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
        return
    console.width = _WIDE
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        click.echo(line.rstrip())
