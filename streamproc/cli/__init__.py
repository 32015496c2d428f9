"""The command line: ``streamproc init | dev | replay | config | doctor | dlq``."""

from __future__ import annotations

from typing import Any

import click

from streamproc._version import __version__
from streamproc.cli.config import config
from streamproc.cli.dev import dev, replay
from streamproc.cli.dlq import dlq
from streamproc.cli.doctor import doctor
from streamproc.cli.init import init
from streamproc.errors import StreamprocError
from streamproc.records.secrets import guard_output

__all__ = ["main"]


class _Commands(click.Group):
    """Commands whose errors of ours are one message, not a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException:
            raise
        except StreamprocError as exc:
            raise click.ClickException(str(exc)) from exc


@click.group(cls=_Commands)
@click.version_option(__version__, prog_name="streamproc")
def main() -> None:
    """Stream processing with Kafka and Redis. Workers start with: faust -A streamproc worker"""
    guard_output()


def __getattr__(name: str) -> Any:
    """Give ``option``, ``AppCommand`` and the rest of ``faust.cli`` to apps ported from it."""
    import faust.cli

    if name in faust.cli.__all__:
        return getattr(faust.cli, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


for _command in (init, dev, replay, config, doctor, dlq):
    main.add_command(_command)
