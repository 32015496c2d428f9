"""``streamproc replay``: a file into a topic."""

from __future__ import annotations

from pathlib import Path

import click

from streamproc.cli.options import bootstrap_of, project_folder
from streamproc.settings import load_settings


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--topic", required=True, help="Created when it doesn't exist.")
@click.option(
    "--rate",
    type=click.FloatRange(min=0),
    default=0,
    help="Records per second; 0 (default): as fast as the broker takes them.",
)
@click.option("--key", help="Field whose value is the record key.")
@click.option("--timestamp", help="Field with the event time.")
@click.option(
    "--format", type=click.Choice(["csv", "ndjson"]), help="When the file's name doesn't tell."
)
@click.option("--broker", help="host:port.  [default: the project's broker_list]")
def replay(
    file: Path,
    topic: str,
    rate: float,
    key: str | None,
    timestamp: str | None,
    format: str | None,
    broker: str | None,
) -> None:
    """Send a CSV or JSON-lines FILE (.gz too) to a topic."""
    from streamproc.dev.replay import replay_with_bar

    arguments = {} if broker is None else {"broker_list": broker}
    settings = load_settings(project_folder(), **arguments)
    replay_with_bar(
        file,
        bootstrap=bootstrap_of(settings),
        topic=topic,
        rate=rate,
        key=key,
        timestamp=timestamp,
        format=format,
        partitions=settings.partitions,
    )
