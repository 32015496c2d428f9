"""``streamproc dlq``: dead letters, shown, sent again, deleted."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
from rich.table import Table

from streamproc.cli.tables import print_table
from streamproc.dev.words import counted
from streamproc.errors import ConfigurationError, DecodeError, StreamprocError
from streamproc.project import project_folder
from streamproc.records.durations import duration
from streamproc.records.times import milliseconds

if TYPE_CHECKING:
    from streamproc.cli.dlq_work import OnProgress, Place, Replayed, Wanted
    from streamproc.streams.letters import Letter

T = TypeVar("T")

#: Characters of a reason in a list.
SHOWN_REASON = 80


@click.group()
def dlq() -> None:
    """Look at dead letters (records that could not be processed), send them again, delete them."""


def _options(*options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _with_place(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``place`` instead of the options that say where the letters are."""

    @click.option("-A", "--app", help="Module with an App, as for faust -A. [default: the project]")
    @click.option("--broker", help="host:port. [default: the app's]")
    @click.option("--topic", help="The dead-letter topic. [default: the app's]")
    @wraps(command)
    def with_place(*args: Any, app: Any, broker: Any, topic: Any, **options: Any) -> Any:
        return command(*args, place=_place(app, broker, topic), **options)

    return with_place


def _with_filters(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``wanted`` instead of the options that say which letters."""

    @_options(
        click.option("--source", multiple=True, help="Topic that they were in."),
        click.option("--partition", type=int, help="Partition that they were in."),
        click.option("--offsets", help="Offsets that they had there: 17, 10-20, 10- or -20."),
        click.option("--agent", multiple=True, help="Agent or flow that failed."),
        click.option("--error", multiple=True, help="Type of the error, such as ValueError."),
        click.option("--key", help="Their key."),
        click.option("--since", help="Rejected since: 2026-01-31T12:00, or 2h (ago)."),
        click.option("--until", help="Rejected before: as --since."),
    )
    @wraps(command)
    def with_filters(
        *args: Any,
        source: tuple[str, ...],
        partition: int | None,
        offsets: str | None,
        agent: tuple[str, ...],
        error: tuple[str, ...],
        key: str | None,
        since: str | None,
        until: str | None,
        **options: Any,
    ) -> Any:
        from streamproc.cli.dlq_work import Wanted

        first, last = _range(offsets)
        wanted = Wanted(
            options.pop("ids", ()),
            source,
            partition,
            agent,
            error,
            key,
            _moment("--since", since),
            _moment("--until", until),
            first,
            last,
        )
        return command(*args, wanted=wanted, **options)

    return with_filters


def _place(app_name: str | None, broker: str | None, topic: str | None) -> Place:
    # Imported here: Kafka clients take a while to load.
    from streamproc.cli.dlq_work import Place
    from streamproc.kafka.scan import place_of
    from streamproc.settings import load_settings

    if app_name is not None:
        from faust.cli.base import find_app

        try:
            app: Any = find_app(app_name)
        except (ImportError, AttributeError) as exc:
            raise click.UsageError(f"-A {app_name}: {exc}") from exc
        bootstrap, security = place_of(app)
        default = app.dead_letters.topic
    elif broker is not None and topic is not None:
        return Place(broker, topic, {}, is_named=True)
    else:
        arguments: dict[str, Any] = {"broker_list": broker} if broker else {}
        settings = load_settings(project_folder(), **arguments)
        bootstrap, security = ",".join(settings.brokers), settings.broker_security.client_options()
        default = settings.dead_letter_topic
    if topic is None and default is None:
        raise ConfigurationError("The app has no dead-letter topic; name one by --topic")
    return Place(broker or bootstrap, topic or default, security, is_named=topic is not None)


def _range(text: str | None) -> tuple[int | None, int | None]:
    if text is None:
        return None, None
    first, dash, last = text.partition("-")
    try:
        begin = int(first) if first else None
        end = (int(last) if last else None) if dash else begin
    except ValueError:
        raise click.BadParameter(
            f"{text!r}: 17, 10-20, 10- or -20", param_hint="--offsets"
        ) from None
    return begin, end


def _moment(option: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return int(time.time() * 1000) - duration(text)
    except ConfigurationError:
        pass
    try:
        return milliseconds(text)
    except DecodeError as exc:
        advice = "a time such as 2026-01-31T12:00 (UTC), or how long ago: 2h, 30m"
        raise click.BadParameter(f"{exc}; it is {advice}", param_hint=option) from None


@contextmanager
def _progress(what: str, quiet: bool = False) -> Iterator[OnProgress]:
    """Show a bar on the terminal, if there is one."""
    console = Console(stderr=True)
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[letters]:,} letters"),
    )
    hidden = quiet or not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(what, total=1.0, letters=0)

        def show(part: float, letters: int) -> None:
            bar.update(task, completed=part, letters=letters)

        yield show


def _run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


# -- list and show


@dlq.command("list")
@_with_place
@_with_filters
@click.option(
    "--limit", type=click.IntRange(1), default=50, show_default=True, help="Show the newest."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines, all of what is known.")
def list_letters(place: Place, wanted: Wanted, limit: int, as_json: bool) -> None:
    """List dead letters, and count them by topic and error."""
    from streamproc.cli.dlq_work import find

    with _progress("reading", as_json) as show:
        found = _run(find(place, wanted, limit, show))
    if as_json:
        for letter in found.letters:
            click.echo(json.dumps(letter.as_dict(), ensure_ascii=False))
        return
    if not found.total:
        click.echo(f"No dead letters in {place.topic}.")
    else:
        print_table(_table(list(found.letters)))
        hidden = found.total - len(found.letters)
        more = f", of which the newest {len(found.letters)} are shown (--limit)" if hidden else ""
        click.echo(f"{counted(found.total, 'dead letter')} in {place.topic}{more}:")
        for (topic, error), count in found.counts.most_common():
            click.echo(f"  {count:,} {error} of {topic}")
    if found.others:
        click.echo(
            f"Not counted, since they are no dead letters: {counted(found.others, 'record')}."
        )


def _table(letters: list[Letter]) -> Table:
    table = Table(box=None, header_style="bold")
    for name in ("id", "rejected", "was at", "key", "agent", "tries", "error"):
        table.add_column(name, overflow="fold")
    for letter in letters:
        reason = letter.reason.partition("\n")[0]
        reason = reason if len(reason) <= SHOWN_REASON else f"{reason[: SHOWN_REASON - 1]}…"
        again = " (sent again)" if letter.replayed else ""
        cells = (
            letter.id,
            _time(letter.record.timestamp),
            _where(letter),
            _line(letter.record.key),
            letter.agent or letter.stage,
            str(letter.attempts),
            f"{letter.error}: {reason}{again}",
        )
        table.add_row(*map(escape, cells))
    return table


def _where(letter: Letter) -> str:
    if not letter.is_record:
        return letter.topic
    return f"{letter.topic}/{letter.partition}@{letter.offset}"


def _time(timestamp: int) -> str:
    return datetime.fromtimestamp(timestamp / 1000, timezone.utc).strftime("%Y-%m-%d %H:%M:%SZ")


def _line(value: bytes | None) -> str:
    return "\\n".join(_text(value).splitlines())


def _text(value: bytes | None) -> str:
    return "" if value is None else value.decode("utf-8", "backslashreplace")


@dlq.command("show")
@click.argument("ids", nargs=-1, required=True)
@_with_place
@click.option("--json", "as_json", is_flag=True, help="Print JSON lines.")
def show_letters(ids: tuple[str, ...], place: Place, as_json: bool) -> None:
    """Show all of some dead letters; IDS as `dlq list` gives them (partition:offset)."""
    from streamproc.cli.dlq_work import Wanted, find

    with _progress("reading", as_json) as show:
        found = _run(find(place, Wanted(ids), None, show))
    for letter in found.letters:
        if as_json:
            click.echo(json.dumps(letter.as_dict(), ensure_ascii=False))
        else:
            _show(letter)
    missing = set(ids) - {letter.id for letter in found.letters}
    if missing:
        raise click.ClickException(f"No dead letter {', '.join(sorted(missing))} in {place.topic}")


def _show(letter: Letter) -> None:
    lines = {
        "letter": letter.id,
        "rejected at": _time(letter.record.timestamp),
        "was at": _where(letter),
        "timestamp": _time(letter.timestamp),
        "key": _text(letter.record.key),
        "stage": letter.stage,
        "agent": letter.agent,
        "attempts": str(letter.attempts),
        "app": letter.app,
        "sent again": letter.replayed or "",
        **{f"header {name}": _text(value) for name, value in letter.headers},
        "error": f"{letter.error}: {letter.reason}",
        "value": _text(letter.record.value),
    }
    width = max(map(len, lines))
    for name, text in lines.items():
        if text:
            click.echo(f"{click.style(name.ljust(width), bold=True)}  {text}")
    if letter.traceback:
        click.echo(f"\n{letter.traceback}")
    click.echo()


# -- replay and purge


@dlq.command("replay")
@click.argument("ids", nargs=-1)
@_with_place
@_with_filters
@click.option("--to", "target", help="Topic to send to. [default: where each was]")
@click.option(
    "--to-file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write JSON lines to this new file instead.",
)
@click.option(
    "--from",
    "begins",
    multiple=True,
    metavar="ID",
    help="Begin with this letter (partition:offset) in its partition, where a replay ended.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would be sent.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; needs --yes.")
def replay_letters(
    place: Place,
    wanted: Wanted,
    target: str | None,
    to_file: Path | None,
    begins: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Send dead letters again: IDS, or all that the options select.

    Each record goes to the topic that it was in, with its key, value, timestamp and headers,
    and a header dead-letter-replayed that names the letter. The letters stay: delete them with
    `dlq purge`, or they are sent again by the next replay. When it is interrupted, or fails, it
    says where the next one should begin.
    """
    from streamproc.cli import dlq_work

    wanted = replace(wanted, begins=_begins(begins))
    if to_file is not None:
        if target is not None:
            raise click.UsageError("Give either --to or --to-file.")
        if dry_run:
            found = _run(dlq_work.find(place, wanted, 1, lambda *_: None))
            _tell_written(found.total, to_file, as_json, dry_run)
            return
        with _progress("writing", as_json) as show:
            _tell_written(_run(dlq_work.write(place, wanted, to_file, show)), to_file, as_json)
        return
    if not (dry_run or yes):
        planned = _replay(place, wanted, target, is_dry=True)
        if not planned.sent:
            _tell_replayed(planned, as_json, is_dry=True)
            return
        _confirm(f"Send {_counts(planned)}?", as_json)
    _tell_replayed(_replay(place, wanted, target, dry_run, as_json), as_json, is_dry=dry_run)


def _replay(
    place: Place, wanted: Wanted, target: str | None, is_dry: bool, as_json: bool = False
) -> Replayed:
    """Replay, and say how far it came if that isn't to the end."""
    from streamproc.cli import dlq_work

    done = dlq_work.Replayed()
    with _progress("reading" if is_dry else "sending", as_json) as show:
        work = dlq_work.replay(
            place, wanted, topic=target, is_dry=is_dry, on_progress=show, result=done
        )
        try:
            _run(work)
        except (StreamprocError, KeyboardInterrupt):
            if not is_dry and done.done:
                _tell_how_to_go_on(done, wanted)
            raise
    if done.is_interrupted:
        if not is_dry:
            _tell_how_to_go_on(done, wanted)
        raise click.Abort
    return done


def _tell_how_to_go_on(done: Replayed, wanted: Wanted) -> None:
    begins = {**wanted.begins, **done.done}
    options = " ".join(f"--from {part}:{offset}" for part, offset in sorted(begins.items()))
    click.echo(f"Sent {_counts(done)}. To go on, add {options}", err=True)


def _begins(ids: tuple[str, ...]) -> dict[int, int]:
    try:
        return {int(part): int(offset) for part, offset in (each.split(":") for each in ids)}
    except ValueError:
        raise click.BadParameter("it is a letter, such as 0:17", param_hint="--from") from None


def _confirm(question: str, as_json: bool) -> None:
    if as_json or not sys.stdin.isatty():
        raise click.UsageError(
            "Nobody is there to be asked: use --yes, or --dry-run to look first."
        )
    click.confirm(question, abort=True)


def _counts(replayed: Replayed) -> str:
    parts = [
        f"{counted(count, 'record')} to {topic}" for topic, count in replayed.sent.most_common()
    ]
    return ", ".join(parts) or "nothing"


def _tell_replayed(replayed: Replayed, as_json: bool, *, is_dry: bool) -> None:
    if as_json:
        result = {"dry_run": is_dry, "sent": replayed.sent, "left_out": replayed.left_out}
        click.echo(json.dumps(result))
        return
    click.echo(f"{'Would send' if is_dry else 'Sent'} {_counts(replayed)}.")
    for source, count in replayed.left_out.items():
        click.echo(
            f"Left out {counted(count, 'result')} of {source}: no record of a topic. Use "
            "--to TOPIC or --to-file FILE."
        )


def _tell_written(count: int, path: Path, as_json: bool, is_dry: bool = False) -> None:
    if as_json:
        click.echo(json.dumps({"dry_run": is_dry, "written": count, "file": str(path)}))
    else:
        letters = counted(count, "dead letter")
        click.echo(f"{'Would write' if is_dry else 'Wrote'} {letters} to {path}.")


@dlq.command("purge")
@_with_place
@_with_filters
@click.option("--dry-run", is_flag=True, help="Only say what would be deleted.")
@click.option("--yes", is_flag=True, help="Don't ask.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON; needs --yes.")
def purge_letters(place: Place, wanted: Wanted, dry_run: bool, yes: bool, as_json: bool) -> None:
    """Delete dead letters, from the oldest on: all of them, or those --until a time.

    Kafka deletes records of a partition from its beginning only: other filters work as far as
    they select the first letters, and are refused where they don't.
    """
    from streamproc.cli import dlq_work

    def confirm(count: int) -> None:
        if not yes:
            letters = counted(count, "dead letter")
            _confirm(f"Delete {letters} of {place.topic} for good?", as_json)

    everything = wanted == dlq_work.Wanted()
    with _progress("reading", as_json or not yes) as show:
        count = _run(
            dlq_work.purge(
                place,
                None if everything else wanted,
                is_dry=dry_run,
                confirm=confirm,
                on_progress=show,
            )
        )
    if as_json:
        click.echo(json.dumps({"dry_run": dry_run, "deleted": count}))
    else:
        click.echo(f"{'Would delete' if dry_run else 'Deleted'} {counted(count, 'dead letter')}.")
