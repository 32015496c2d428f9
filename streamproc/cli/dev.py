"""``streamproc dev`` and ``streamproc replay``."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from streamproc.errors import ConfigurationError
from streamproc.project import Project, project_folder
from streamproc.settings import Settings, load_settings
from streamproc.settings.catalog import CATALOG
from streamproc.settings.loading import DEFAULT

#: Seconds; joining a group takes half of it on the embedded broker.
_EMBEDDED_SESSION = "6"


@click.command()
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1), help="Workers.")
@click.option("--once", is_flag=True, help="Process the sample data once, print results, end.")
@click.option(
    "--rate",
    type=click.FloatRange(0),
    help="Records per second of the replay; 0: as fast as possible. [default: 1000; --once: 0]",
)
@click.option(
    "--kafka", default="embedded", show_default=True, help="embedded, apache, or a broker's URL."
)
@click.option("--redis", default="embedded", show_default=True, help="embedded, or a URL.")
@click.option("--clean", is_flag=True, help="Only remove what earlier runs left behind.")
def dev(workers: int, once: bool, rate: float | None, kafka: str, redis: str, clean: bool) -> None:
    """Run the project on servers of its own, and show what happens."""
    from streamproc.dev import demo

    if clean:
        demo.clean(Path(os.environ.get("STREAMPROC_PROJECT") or ".").absolute())
        return
    own = _own_servers(kafka, redis)
    project = Project(**own)
    security: dict[str, Any] = {}
    if kafka in ("embedded", "apache"):
        _without_security("broker")
    else:
        security = project.settings.broker_security.client_options()
    if redis == "embedded":
        _without_security("redis")
    if kafka == "embedded" and project.loaded.origins["session_timeout"] == DEFAULT:
        os.environ["STREAMPROC_SESSION_TIMEOUT"] = _EMBEDDED_SESSION
    options = demo.DevOptions(
        folder=project.folder,
        workers=workers,
        kafka=kafka,
        redis=redis,
        partitions=project.settings.partitions,
        sample=_sample(project),
        rate=(0 if once else 1000) if rate is None else rate,
        once=once,
        security=security,
        redis_url=None if redis == "embedded" else project.settings.redis_url,
    )
    sys.exit(demo.run_dev(options))


def _without_security(server: str) -> None:
    """Let the workers' settings have no login and no TLS for a server of our own."""
    for setting in CATALOG.values():
        if setting.path.startswith(f"{server}_") and setting.path != "broker_list":
            os.environ[setting.env] = "" if setting.can_be_none else str(setting.default).lower()


def _own_servers(kafka: str, redis: str) -> dict[str, Any]:
    """Return settings that win, since servers of our own need none of the project's."""
    own: dict[str, Any] = {"redis": "redis://127.0.0.1:6379/0" if redis == "embedded" else redis}
    if kafka in ("embedded", "apache"):
        own["broker_list"] = "127.0.0.1:9092"
    return own


def _sample(project: Project) -> Any:
    from streamproc.dev.demo import Sample

    sample = project.settings.sample
    if sample.file is None:
        return None
    return Sample(
        path=project.folder / sample.file,
        topic=sample.topic or _source_topic(project.settings),
        key=sample.key,
        timestamp=sample.timestamp,
    )


@click.command()
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--topic", help="Topic to send to; made when it isn't there. [default: topic]")
@click.option(
    "--rate",
    default=0.0,
    type=click.FloatRange(0),
    help="Records per second. [default: as fast as the broker takes them]",
)
@click.option("--key", help="Field whose value is the record key.")
@click.option("--timestamp", help="Field with the event time.")
@click.option(
    "--format", type=click.Choice(["csv", "ndjson"]), help="When the file's name doesn't tell."
)
@click.option("--broker", help="host:port. [default: the project's broker_list]")
def replay(
    file: str | None,
    topic: str | None,
    rate: float,
    key: str | None,
    timestamp: str | None,
    format: str | None,
    broker: str | None,
) -> None:
    """Send the records of FILE (CSV, JSON lines, .gz too) to a topic.

    Without FILE the project's sample data is sent.
    """
    from streamproc.dev.replay import replay_with_bar

    folder = project_folder()
    arguments: dict[str, Any] = {"broker_list": broker} if broker else {}
    settings = load_settings(folder, **arguments)
    if file is None:
        if settings.sample.file is None:
            raise click.UsageError("Name a FILE; the project's settings have no sample.file.")
        file = str(folder / settings.sample.file)
        topic = topic or settings.sample.topic
        key, timestamp = key or settings.sample.key, timestamp or settings.sample.timestamp
    replay_with_bar(
        file,
        bootstrap=",".join(settings.brokers),
        security=settings.broker_security.client_options(),
        topic=topic or settings.sample.topic or _source_topic(settings),
        rate=rate,
        key=key,
        timestamp=timestamp,
        format=format,
        partitions=settings.partitions,
    )


def _source_topic(settings: Settings) -> str:
    if not settings.topics:
        raise ConfigurationError("There is no source topic: set `topic`, or use --topic.")
    return settings.topics[0]
