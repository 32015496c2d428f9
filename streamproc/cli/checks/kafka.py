"""Checks of Kafka: brokers, topics, whether records come, the consumer group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from streamproc.cli.checks.check import Check, fault, ok, warning
from streamproc.errors import BrokerUnavailable
from streamproc.kafka.inspect import GroupState, Inspector, Login, PartitionState, Probe, probe
from streamproc.settings import Settings

#: Seconds without a record after which a topic counts as still.
_STILL = 300.0
_LIST_TOPICS = "Set `topic` (STREAMPROC_TOPIC) to one that exists"

Partition = tuple[str, int]


@dataclass(frozen=True)
class Needs:
    """What a project needs from Kafka."""

    group: str
    sources: list[str]
    outputs: list[str]


def login_of(settings: Settings) -> Login | None:
    """Return the login of the settings, if there is one."""
    if settings.broker_username is None:
        return None
    password = settings.broker_password
    return Login(
        settings.broker_username,
        password.reveal() if password else "",
        settings.broker_sasl_mechanism,
    )


async def check_kafka(settings: Settings, needs: Needs) -> AsyncIterator[Check]:
    """Check brokers, and with one that takes us topics and group."""
    login = login_of(settings)
    probes = await asyncio.gather(*(probe(address, login) for address in settings.brokers))
    for address, found in zip(settings.brokers, probes, strict=True):
        yield _judge(address, found, login)
    usable = [a for a, p in zip(settings.brokers, probes, strict=True) if p.answer == "kafka"]
    if not usable:
        return
    try:
        async with Inspector(usable, login) as inspector:
            async for check in _check_cluster(inspector, settings, needs, login):
                yield check
    except BrokerUnavailable as exc:
        yield fault(
            "broker",
            f"Kafka answers, but not our questions: {exc}",
            "Look into the broker's log; is the cluster complete and has it a leader?",
        )


def _judge(address: str, found: Probe, login: Login | None) -> Check:
    subject = "broker"
    setting = "STREAMPROC_BROKER_LIST (or `broker_list` in config.yaml)"
    if found.answer == "kafka":
        return ok(
            subject, f"Kafka answers at {address}" + (" and takes our login" if login else "")
        )
    if found.answer == "unknown host":
        return fault(subject, f"{address}: there is no such host", f"Check the host in {setting}.")
    if found.answer == "refused":
        return fault(
            subject,
            f"nothing listens at {address}: connection refused",
            f"Start Kafka there (docker compose up kafka, or streamproc dev), or check {setting}.",
        )
    if found.answer == "unreachable":
        return fault(
            subject,
            f"{address} can't be reached: {found.detail}",
            f"Check network, firewall and the address in {setting}.",
        )
    if found.answer == "silent":
        return fault(
            subject,
            f"{address} accepts connections but doesn't answer: {found.detail}",
            "The broker hangs or is still starting, or the port is another program's; "
            f"check its log, and the port in {setting}.",
        )
    if found.answer == "not kafka":
        return fault(
            subject,
            f"wrong port: {found.detail} answers at {address}, not Kafka",
            f"Correct the port in {setting}; Kafka's is 9092 by default.",
        )
    if found.answer == "tls":
        return fault(
            subject,
            f"{address} speaks TLS",
            "Use the port of a listener without TLS; TLS to Kafka can't be set yet.",
        )
    return _judge_login(address, found, login)


def _judge_login(address: str, found: Probe, login: Login | None) -> Check:
    if login is None:
        return fault(
            "broker",
            f"authentication: Kafka at {address} hung up on a client without a login",
            "Set STREAMPROC_BROKER_USERNAME and STREAMPROC_BROKER_PASSWORD, or use the port of a "
            "listener that asks for none.",
        )
    return fault(
        "broker",
        f"authentication refused: Kafka at {address} doesn't take user {login.username!r} by "
        f"{login.mechanism}: {found.detail}",
        "Check STREAMPROC_BROKER_USERNAME, STREAMPROC_BROKER_PASSWORD and "
        "STREAMPROC_BROKER_SASL_MECHANISM; leave them out where the listener asks for no login.",
    )


async def _check_cluster(
    inspector: Inspector, settings: Settings, needs: Needs, login: Login | None
) -> AsyncIterator[Check]:
    for address in set(await inspector.advertised()) - set(settings.brokers):
        if (found := await probe(address, login)).answer != "kafka":
            yield fault(
                "broker",
                f"Kafka tells clients to use {address}, where we get: {found.answer}",
                "Set advertised.listeners of that broker to an address reachable from here.",
            )
            return
    existing = await inspector.partitions()
    for name in needs.sources:
        if name not in existing:
            yield _missing(name, existing, settings)
    for name in needs.outputs:
        if name not in existing:
            yield warning(
                f"topic {name}",
                "not there yet",
                f"Create it with {settings.partitions} partitions, unless the broker creates "
                "topics that are written to.",
            )
    there = [name for name in needs.sources if name in existing]
    partitions = [(name, number) for name in there for number in existing[name]]
    before = await _group(inspector, needs.group, partitions)
    seconds = 2 * settings.commit_interval + 0.5 if partitions else 0.0
    states = await inspector.watch(partitions, seconds)
    for name in there:
        yield _judge_flow(name, [states[name, number] for number in existing[name]])
    if partitions:
        after = await _group(inspector, needs.group, partitions)
        yield _judge_group(needs.group, before, after, states)


def _missing(name: str, existing: Iterable[str], settings: Settings) -> Check:
    others = sorted(topic for topic in existing if not topic.startswith("__"))
    shown = ", ".join(others[:10]) + (", ..." if len(others) > 10 else "")
    return fault(
        f"topic {name}",
        "topic not found" + (f"; there are: {shown}" if others else "; the broker has none"),
        f"{_LIST_TOPICS}, or create it: streamproc replay FILE --topic {name} makes it with "
        f"{settings.partitions} partitions.",
    )


def _judge_flow(name: str, states: list[PartitionState]) -> Check:
    subject = f"topic {name}"
    total = sum(state.end for state in states)
    finding = f"{len(states)} partitions, {total:,} records so far"
    if any(state.grows for state in states):
        return ok(subject, f"{finding}, records are coming in")
    if not total:
        return fault(
            subject,
            f"{len(states)} partitions, no data flowing: nothing was ever written to it",
            "Check that the producer runs, and writes to this topic of this broker; try "
            f"streamproc replay FILE --topic {name}.",
        )
    last = max((s.last_timestamp for s in states if s.last_timestamp is not None), default=None)
    if last is None:
        return ok(subject, finding)
    age = time.time() - last / 1000
    if age < -60:
        return warning(
            subject,
            f"{finding}, the last one is from the future (in {_duration(-age)})",
            "Check the producer's clock, or its timestamp field.",
        )
    finding += f", the last one {_duration(max(age, 0))} ago by its timestamp"
    if age > _STILL:
        return warning(
            subject,
            f"{finding}: no data flowing",
            "Check that the producer still runs (a replay of old data looks the same).",
        )
    return ok(subject, finding)


async def _group(inspector: Inspector, name: str, partitions: list[Partition]) -> GroupState | str:
    """Return the group's state, or why it isn't known."""
    try:
        return await inspector.group(name, partitions)
    except BrokerUnavailable as exc:
        return str(exc)


def _judge_group(
    name: str,
    before: GroupState | str,
    after: GroupState | str,
    states: dict[Partition, PartitionState],
) -> Check:
    subject = f"group {name}"
    if isinstance(after, str) or isinstance(before, str):
        return warning(subject, f"state not known: {after}", "Start a worker, then look again.")
    lag = sum(max(0, s.end - after.committed.get(tp, 0)) for tp, s in states.items())
    count = len(after.members)
    finding = f"{after.state}, {count} member{'s' * (count != 1)}, lag {lag:,}"
    if not count:
        return warning(
            subject,
            f"no worker is running ({finding})",
            "Start one: faust -A streamproc worker -l info",
        )
    if lag and before.committed == after.committed and not _is_new(before, after):
        return fault(
            subject,
            f"workers are members but don't get on ({finding})",
            "Look into the workers' logs: a sink that is away, an agent that hangs, or an "
            "assignment that is being negotiated.",
        )
    return ok(subject, finding)


def _is_new(before: GroupState, after: GroupState) -> bool:
    """Whether the group was forming while we looked."""
    return before.state != "Stable" or after.state != "Stable" or before.members != after.members


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
