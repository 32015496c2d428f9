"""The commands, and how errors of ours are shown."""

from __future__ import annotations

from typing import Any

import click

from streamproc._version import __version__
from streamproc.cli.config import config
from streamproc.cli.dev import dev
from streamproc.cli.replay import replay
from streamproc.errors import StreamprocError


class _Group(click.Group):
    """Shows an error of ours as a message: what is wrong and what to do, no traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StreamprocError as exc:
            raise click.ClickException(str(exc)) from exc


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="streamproc")
def main() -> None:
    """Kafka stream processing in Python."""


for command in (dev, replay, config):
    main.add_command(command)
