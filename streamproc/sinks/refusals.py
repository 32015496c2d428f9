"""What a sink's server refuses for good, and what becomes of it by the sink's error policy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

from streamproc.errors import SinkError
from streamproc.streams.policies import Action, Policy, without_retries


class Refusal(NamedTuple):
    """Something that a server refused.

    Attributes:
        reason: Why.
        key: What a dead letter has as its key.
        value: What it has as its value, as JSON.
    """

    reason: str
    key: Any
    value: Any


def sink_policy(sink: str, policy: Policy | None) -> Policy | None:
    """Return the ``on_error`` of a sink; None: dead letters, if the app has a topic for them.

    Raises:
        ConfigurationError: It has retries, or is no policy.
    """
    if policy is None:
        return None
    return without_retries(
        policy,
        sink,
        "sinks don't need: they wait for a server that is away by themselves, and what one "
        "refuses for good it would refuse again",
    )


def action_of(policy: Policy | None, app: Any) -> Action:
    """Return what becomes of what a server refuses: where nothing keeps it, the worker stops."""
    if policy is not None:
        return policy.action
    letters = getattr(app, "dead_letters", None)
    return Action.STOP if letters is None or letters.topic is None else Action.DEAD_LETTER


async def settle(
    app: Any, sink: str, policy: Policy | None, refusals: Iterable[Refusal], error: SinkError
) -> None:
    """See what becomes of what a server refused.

    Args:
        app: The App.
        sink: Name of the sink.
        policy: Its ``on_error``.
        refusals: What was refused.
        error: Tells of all of it.

    Raises:
        SinkError: The worker is to stop; ``error``.
    """
    action = action_of(policy, app)
    if action is Action.STOP:
        raise error
    letters = app.dead_letters
    for refusal in refusals:
        reason = SinkError(refusal.reason)
        if action is Action.SKIP:
            letters.skip_result(sink, -1, sink, reason)
        else:
            await letters.send_result(sink, -1, refusal.key, refusal.value, sink, reason)
