"""Checks of ``streamproc doctor``: broker, topics, consumer group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from streamproc.cli.findings import Finding, fault, note, ok
from streamproc.dev.words import counted
from streamproc.errors import BrokerUnavailable
from streamproc.kafka.hello import Answer, who_answers
from streamproc.kafka.inspect import GroupState, Inspector, TopicState
from streamproc.kafka.refusal import refusal_of
from streamproc.settings import Settings

#: Seconds without a new record after which a topic counts as quiet.
_QUIET = 60.0


async def check_kafka(
    settings: Settings,
    security: Mapping[str, Any],
    sources: list[str],
    rejected: str | None,
    seconds: float,
) -> list[Finding]:
    """Check the brokers and, when one can be used, the topics ``sources`` and the group.

    Args:
        settings: Where the brokers are, and the group.
        security: Arguments of Kafka clients about login and TLS.
        sources: Topics that agents read.
        rejected: Topic of dead letters.
        seconds: How long to look whether records come and are processed.
    """
    findings: list[Finding] = []
    usable: list[str] = []
    for broker in settings.brokers:
        found = await _check_broker(broker, security)
        findings.append(found)
        if found.level == "ok":
            usable.append(broker)
    if usable:
        try:
            async with Inspector(",".join(usable), security) as inspector:
                findings += await _check_content(inspector, settings, sources, rejected, seconds)
        except BrokerUnavailable as exc:
            findings.append(
                fault(
                    "cluster",
                    f"Kafka answers at {', '.join(usable)}, but can't be used: {exc}",
                    "Check that all its brokers run, and that its advertised.listeners can be "
                    "reached from here.",
                )
            )
    return findings


async def _check_broker(broker: str, security: Mapping[str, Any]) -> Finding:
    parts = urlsplit(f"kafka://{broker}")
    host, port = parts.hostname or "127.0.0.1", parts.port or 9092
    answer, reason = await who_answers(host, port)
    if answer is Answer.NOBODY:
        return fault(
            "broker",
            f"nobody answers at {host}:{port} ({reason})",
            "Start Kafka, or set broker_list (STREAMPROC_BROKER_LIST) to where it runs. "
            "`streamproc dev` brings a Kafka of its own.",
        )
    if answer is Answer.SILENT:
        return fault(
            "broker",
            f"{host}:{port} accepts connections, but says nothing",
            "It hangs, or it is no Kafka: look at its log, and check the port in broker_list.",
        )
    if answer not in (Answer.KAFKA, Answer.TLS, Answer.CLOSES):
        return _wrong_port(host, port, answer)
    if refusal := await refusal_of(host, port, security):
        return fault("broker", refusal.problem, f"{refusal.advice}.")
    if answer is Answer.CLOSES and not security:
        return _wrong_port(host, port, answer)
    return ok("broker", f"Kafka answers at {host}:{port}")


def _wrong_port(host: str, port: int, answer: Answer) -> Finding:
    return fault(
        "broker",
        f"wrong port: at {host}:{port} is {answer.value}, not a Kafka broker",
        "Set broker_list (STREAMPROC_BROKER_LIST) to the broker's own port, usually 9092.",
    )


async def _check_content(
    inspector: Inspector,
    settings: Settings,
    sources: list[str],
    rejected: str | None,
    seconds: float,
) -> list[Finding]:
    findings = [ok("cluster", counted(await inspector.brokers(), "broker"))]
    there = await inspector.topic_names()
    if not sources:
        advice = "Set `topic`, or write an agent in agents/ that reads one."
        findings.append(fault("topics", "no topic is read", advice))
    for name in sources:
        if name not in there:
            findings.append(_missing(name, settings))
    known = [name for name in sources if name in there]
    looked_at = [*known, *([rejected] if rejected in there and rejected else [])]
    states, group = await inspector.topics(looked_at, settings.name, seconds)
    for name in known:
        findings.append(_flow(name, states.get(name), seconds))
    if known:
        findings += _group(
            settings.name, group, {name: states[name] for name in known if name in states}, seconds
        )
    if rejected in states and rejected and (age := _age(states[rejected].newest)) is not None:
        text = f"there are some in {rejected}, the newest is {_duration(age)} old"
        advice = "`streamproc dlq list` counts them and says why; correct the sender or the models."
        findings.append(note("dead letters", text, advice))
    return findings


def _missing(name: str, settings: Settings) -> Finding:
    return fault(
        f"topic {name}",
        "topic not found",
        f"Create it (kafka-topics.sh --create --topic {name} --partitions {settings.partitions} "
        f"--bootstrap-server {settings.brokers[0]}), start the program that sends to it, or "
        f"send a file: streamproc replay FILE --topic {name}",
    )


def _flow(name: str, state: TopicState | None, seconds: float) -> Finding:
    check = f"topic {name}"
    if state is None or not state.ends:
        advice = "Its partitions have no leader: look at the brokers' logs."
        return fault(check, "its partitions can't be read", advice)
    most = "up to " if state.is_marked else ""
    sent = f"{most}{counted(state.end, 'record')} sent so far"
    text = f"{counted(len(state.ends), 'partition')}, {sent}"
    if state.new:
        return ok(check, f"{text}, {state.new / seconds:,.0f} new a second")
    if not state.end:
        return fault(
            check,
            f"no data: {counted(len(state.ends), 'partition')}, and nothing was ever sent to them",
            "Check that the sender runs and sends to this topic on this broker. To try without "
            f"it: streamproc replay FILE --topic {name}",
        )
    age = _age(state.newest)
    if age is not None and age < _QUIET:
        return ok(check, f"{text}, the newest {age:.0f} s ago")
    newest = f", the newest is {_duration(age)} old" if age is not None else ""
    return note(
        check,
        f"no data flowing: {text}, none within {seconds:g} s{newest}",
        "If records are expected now, check that the sender runs and sends to this topic.",
    )


def _age(timestamp: int | None) -> float | None:
    return None if timestamp is None else max(0.0, time.time() - timestamp / 1000)


def _duration(seconds: float | None) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds and seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds or 0:.0f} s"


def _group(
    name: str, group: GroupState, topics: dict[str, TopicState], seconds: float
) -> Iterator[Finding]:
    check = f"group {name}"
    lag = sum(
        max(0, end - max(0, group.committed.get((topic, partition), 0)))
        for topic, state in topics.items()
        for partition, end in state.ends.items()
    )
    start = "Start one: faust -A streamproc worker -l info"
    if not group.active:
        if lag:
            yield fault(check, f"no worker runs; waiting: {counted(lag, 'record')}", start)
        else:
            yield note(check, "no worker runs", start)
        return
    text = f"{group.state}, {counted(group.members, 'member')}, lag {lag:,}"
    if lag and group.progress <= 0:
        yield fault(
            check,
            f"{text}, and nothing was committed within {seconds:g} s",
            "Workers run but don't get on: look for errors of agents or sinks in their logs.",
        )
    else:
        yield ok(check, f"{text}, {group.progress / seconds:,.0f} committed a second")


def run(*arguments: Any) -> list[Finding]:
    """Run :func:`check_kafka` in an event loop of its own."""
    return asyncio.run(check_kafka(*arguments))
