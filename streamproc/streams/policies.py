"""Error policies: what becomes of a record at which an agent, a flow or a sink fails.

    @app.agent(readings, on_error=retry(3, backoff="100ms", on=(TimeoutError,)).then(dead_letter))

A policy is how often a record is given again, and what becomes of it then: :data:`dead_letter`
keeps it in the dead-letter topic, :data:`skip` counts and logs it, :data:`stop` ends the worker,
whose successor begins with that record.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from enum import Enum

from streamproc.errors import ConfigurationError
from streamproc.records.durations import Duration, duration

#: Seconds before the first retry, and at most between two; the time is doubled for each.
FIRST_BACKOFF, LONGEST_BACKOFF = 0.1, 5.0
#: More doublings than any longest time needs.
MOST_DOUBLINGS = 60

ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]


class Action(Enum):
    """What becomes of a record that is not given again."""

    DEAD_LETTER = "dead_letter"
    SKIP = "skip"
    STOP = "stop"


@dataclass(frozen=True)
class Policy:
    """How often a failed record is given again, and what becomes of it then.

    Made by :func:`retry`; :data:`dead_letter`, :data:`skip` and :data:`stop` are policies
    that give nothing again.

    Attributes:
        action: What becomes of it then.
        retries: How often it is given again; None: until it succeeds.
        backoff: Seconds before the first retry; doubled for each further one.
        longest: Most seconds between two.
        on: Types of errors after which it is given again; others go on to the action at once.
    """

    action: Action = Action.DEAD_LETTER
    retries: int | None = 0
    backoff: float = FIRST_BACKOFF
    longest: float = LONGEST_BACKOFF
    on: tuple[type[BaseException], ...] = (Exception,)

    def then(self, policy: Policy) -> Policy:
        """Return this policy with the action of ``policy`` for what can't be processed.

        Raises:
            ConfigurationError: It isn't ``dead_letter``, ``skip`` or ``stop``, or this policy
                has none of its own to begin with (``skip.then(...)``).
        """
        if self.retries == 0:
            raise ConfigurationError(
                f"{self} gives nothing again, so nothing comes after it: "
                "retry(3).then(dead_letter) has retries and then an end"
            )
        if not isinstance(policy, Policy) or policy.retries != 0:
            raise ConfigurationError(
                f"then({policy!r}): after retries comes dead_letter, skip or stop"
            )
        return replace(self, action=policy.action)

    def allows(self, error: BaseException, attempts: int) -> bool:
        """Return whether a record that failed ``attempts`` times is given again."""
        if not isinstance(error, self.on):
            return False
        return self.retries is None or attempts <= self.retries

    def delay(self, attempts: int) -> float:
        """Return the seconds to wait after a record failed for the ``attempts``-th time."""
        doublings = min(max(0, attempts - 1), MOST_DOUBLINGS)
        return min(self.backoff * 2.0**doublings, self.longest)

    def __str__(self) -> str:
        if self.retries == 0:
            return self.action.value
        times = "" if self.retries is None else self.retries
        return f"retry({times}).then({self.action.value})"


#: Keep the record, as it came, in the dead-letter topic, with the reason.
dead_letter = Policy(Action.DEAD_LETTER)
#: Count and log the record, and go on.
skip = Policy(Action.SKIP)
#: Stop the worker, and commit nothing of the record.
stop = Policy(Action.STOP)


def retry(
    times: int | None = 3,
    backoff: Duration = FIRST_BACKOFF,
    *,
    longest: Duration = LONGEST_BACKOFF,
    on: ErrorTypes = Exception,
) -> Policy:
    """Give a failed record again, up to so many times; then it is a dead letter.

    ``retry(...).then(skip)`` and ``.then(stop)`` end otherwise.

    Args:
        times: How often at most; None: until it succeeds, which holds up what follows it.
        backoff: Time before the first retry; doubled for each further one.
        longest: Most time between two.
        on: A type of error, or a tuple of them, for which trying again makes sense; others
            go on to what comes then at once.

    Raises:
        ConfigurationError: An argument is none of these.
    """
    if times is not None and (not isinstance(times, int) or isinstance(times, bool) or times < 1):
        raise ConfigurationError(
            f"retry({times!r}): times is a number of at least 1, or None for no end; without "
            "retries, use dead_letter, skip or stop"
        )
    types = on if isinstance(on, tuple) else (on,)
    if not types or not all(isinstance(each, type) for each in types):
        raise ConfigurationError(f"retry(on={on!r}): it is a type of error, or a tuple of them")
    if TimeoutError in types:
        types = (*types, asyncio.TimeoutError)  # another one before Python 3.11
    first, most = duration(backoff) / 1000, duration(longest) / 1000
    return Policy(Action.DEAD_LETTER, times, first, max(first, most), types)


def without_retries(policy: object, what: str, advice: str) -> Policy:
    """Return a policy that must not have retries.

    Raises:
        ConfigurationError: It has some, or is no policy.
    """
    if not isinstance(policy, Policy):
        raise ConfigurationError(f"{what}: on_error is dead_letter, skip or stop, not {policy!r}")
    if policy.retries != 0:
        raise ConfigurationError(f"{what}: {policy} has retries, which {advice}")
    return policy
