"""Streams whose failures lose nothing: what failed is given again, or rejected, in order."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from streamproc.errors import ConfigurationError, Fenced, SinkError
from streamproc.kafka.progress import Delivery
from streamproc.streams.buffers import BufferedStream
from streamproc.streams.failures import Failure, Failures, GivenUp
from streamproc.streams.policies import Action, Policy
from streamproc.streams.spans import Redo, Span

if TYPE_CHECKING:
    from typing_extensions import Self

    from streamproc.tables.windowed import Follower

#: Seconds before an agent is run again that failed without a record in hand.
IDLE_BACKOFF = 1.0


class GuardedStream(BufferedStream):
    """The part of a stream that deals with errors."""

    #: True while it is busy with records that the agent has done.
    _between = False
    _before_done: Callable[[], Awaitable[None]] | None = None
    _forget_results: Callable[[bool], None] | None = None
    _policy: Policy | None = None
    _follower: Follower | None
    _redo: Redo
    _failures: Failures
    _open: list[Span]
    _delivery: Delivery | None
    _row: int
    _iteration: int

    # -- what is in hand

    @property
    def place_in_hand(self) -> tuple[Delivery, int] | None:
        """The record in hand; None where a result isn't of a single one."""
        delivery = self._delivery
        return None if delivery is None or self._open else (delivery, self._row)

    @property
    def in_hand(self) -> tuple[int, Delivery, int] | None:
        """What the agent's code is at: which try, and the first record; None if nothing."""
        if self._between:
            return None
        if self._open:
            return self._iteration, self._open[0].delivery, self._open[0].start
        if self._delivery is None:
            return None
        return self._iteration, self._delivery, self._row

    def before_done(
        self, callback: Callable[[], Awaitable[None]], forget: Callable[[bool], None]
    ) -> None:
        """Await ``callback`` at the end of each batch, before its records count as done.

        Args:
            callback: Makes the results durable, or hands them on.
            forget: Drops the results of the records in hand, which are given again; those
                of all records, if it is called with True.
        """
        self._before_done, self._forget_results = callback, forget

    async def _finish_results(self) -> None:
        """See that the results of what is done are handed on."""
        if self._before_done is None:
            return
        self._between = True
        try:
            await self._before_done()
        finally:
            self._between = False

    async def _finish_before(self, delivery: Delivery, row: int) -> None:
        """See that the records of a batch before ``row`` count as done, with their results."""
        if self._before_done is not None:
            await self._finish_results()
            delivery.cursor = row
        if self._follower is not None:
            self._follower.observe(delivery, row)

    # -- errors

    def on_error(self, policy: Policy) -> Self:
        """Say what becomes of records that fail, undecodable ones too; see :mod:`.policies`.

        That of the agent, if it has one, comes first.

        Raises:
            ConfigurationError: It is no policy.
        """
        if not isinstance(policy, Policy):
            raise ConfigurationError(
                f"on_error({policy!r}): it takes retry(...), dead_letter, skip or stop"
            )
        self._policy = policy
        return self

    @property
    def policy(self) -> Policy:
        """What becomes of records that fail."""
        return self._policy or self.app.error_policy

    async def reject_result(
        self,
        place: tuple[Delivery, int] | None,
        value: Any,
        stage: str,
        error: BaseException,
        policy: Policy | None,
    ) -> None:
        """Do with what an agent made, and no sink can take, what the sink's policy says."""
        letters = self.app.dead_letters
        action = Action.DEAD_LETTER if policy is None else policy.action
        if action is Action.STOP:
            await self.halt(error)
        elif action is Action.SKIP:
            letters.skip_result(stage, self._place.partition, stage, error)
        elif place is not None:
            await letters.send(*place, stage, error)
        else:
            await letters.send_result(stage, self._place.partition, None, value, stage, error)

    async def _reject_undecoded(
        self, delivery: Delivery, row: int, part: str, error: BaseException
    ) -> None:
        action, letters = self.policy.action, self.app.dead_letters
        if action is Action.STOP:
            await self.halt(error)
        if action is Action.SKIP:
            letters.skip(delivery, row, part, error)
        else:
            await letters.send_undecoded(delivery, row, part, error)

    # -- giving again

    async def _next_spans(self, take: Callable[[], Awaitable[list[Span]]]) -> list[Span]:
        """Return what is to be given next: again, or what ``take`` gives.

        Records that failed before are given by themselves, or rejected.
        """
        while True:
            spans = self._redo.pop() or await take()
            if not self._failures:
                return spans
            first, *others = [piece for span in spans for piece in self._failures.cut(span)]
            if others and [first, *others] != spans:
                self._redo.first(*([each] for each in others))
                spans = [first]
            if len(spans) > 1 or not await self._is_rejected(first):
                return spans

    async def _is_rejected(self, span: Span) -> bool:
        """Reject a record that is not to be given again; False if it, or they, are."""
        failure = self._failures.known(span)
        if failure is None:
            return False
        offset = span.delivery.offsets[span.start]
        reason = failure.given_up.get(offset)
        if reason is not None:
            await self._gate.enter(self)
            await self._reject(span, failure, reason)
            self._gate.leave(self)
        elif failure.wrote and failure.fails_at(offset):
            # If it fails again the worker goes back to here, and not to where it did before.
            await self.app.consumer.commit()
        return reason is not None

    # -- failure

    def leave(self) -> None:
        """The agent has failed: its iteration is over, and another will begin.

        Python finalizes the generator that it was in some time later, which must not end the
        stream then.
        """
        self._iteration += 1

    async def on_failure(self, stage: str, error: BaseException) -> None:
        """An agent raised ``error``: see that its records are given again or rejected.

        If they have changed something already, the worker goes back to its last checkpoint,
        from where they come again: nothing of a failed record counts.
        Waits a growing time before the next try, unless the partition is revoked.
        """
        self.leave()
        checkpoint = self.app.checkpoint
        if isinstance(error, Fenced) or checkpoint.is_void:
            # No fault of the record's: what was done since the last checkpoint counts for nothing.
            await checkpoint.start_over(error)
            if self._forget_results is not None:
                self._forget_results(True)
            self._put_down()
            return
        wrote = self._place.wrote
        if self._forget_results is not None:
            self._forget_results(wrote)
        if not wrote:
            await self._write_results(stage)
        spans, rest = self._in_hand()
        if not spans:
            # It failed before or between records: there is nothing to reject.
            self._put_down()
            await asyncio.sleep(IDLE_BACKOFF)
            return
        noted = list(map(self._failures.note, spans))
        attempts = max(count for _, count in noted)
        policy = self.policy
        single = len(spans) == 1 and spans[0].end - spans[0].start == 1
        if policy.allows(error, attempts):
            again = [spans]
        elif policy.action is Action.STOP:
            await self._stop(spans[0], stage, error)
            return
        elif single:
            again = []
            await self._give_up(spans[0], noted[0][0], GivenUp(stage, error, attempts), wrote)
        else:
            again = []
            for span, (failure, _) in zip(spans, noted, strict=True):
                failure.isolate()
                again += [[piece] for piece in failure.pieces(span)]
        if wrote:
            for failure, _ in noted:
                failure.wrote = True
            await checkpoint.start_over(error)
        else:
            self._redo.first(*again, *([rest] if rest else []))
        self._put_down()
        if again or wrote:
            with self._failures.pause(spans[0]):
                await self._pause(policy.delay(attempts), None if wrote else spans[0].delivery)

    async def _stop(self, span: Span, stage: str, error: BaseException) -> None:
        delivery = span.delivery
        self.log.error(
            "%s/%s from offset %s on stops the worker (on_error=stop of %s): %r",
            *delivery.progress.tp,
            delivery.offsets[span.start],
            stage,
            error,
        )
        await self.halt(error)

    async def halt(self, error: BaseException) -> None:
        """Stop the worker, and never return: the agent's task ends with it."""
        await self.app.checkpoint.abandon(error)
        # A checkpoint may wait for the records in hand; it commits nothing any more.
        self._put_down()
        await asyncio.Event().wait()

    def _put_down(self) -> None:
        self._open, self._delivery = [], None
        self._place.wrote = False
        self._gate.leave(self)

    async def _write_results(self, stage: str) -> None:
        """Hand on the results of the records before the failed one."""
        place = self.place_in_hand
        try:
            if place is None or self._acks_by_row:
                await self._finish_results()
            else:
                # A checkpoint may come before the next try.
                await self._finish_before(*place)
        except SinkError as exc:
            self.log.error("Results of %s do not fit a sink: %s", stage, exc)

    async def _give_up(self, span: Span, failure: Failure, reason: GivenUp, wrote: bool) -> None:
        # Not to be given again, should the worker go back to before it.
        failure.given_up[span.delivery.offsets[span.start]] = reason
        if not wrote:
            await self._reject(span, failure, reason)

    async def _reject(self, span: Span, failure: Failure, reason: GivenUp) -> None:
        """Send a record to the dead letters, or pass over it; it is done then."""
        delivery, row, _ = span
        letters, offset = self.app.dead_letters, delivery.offsets[row]
        if offset in failure.rejected and not self.app.exactly_once:
            pass  # the letter is there
        elif self.policy.action is Action.SKIP:
            letters.skip(delivery, row, reason.stage, reason.error)
        else:
            await letters.send(delivery, row, *reason)
        failure.rejected.add(offset)
        if self._acks_by_row or self._by_hand:
            delivery.ack(row)
        else:
            self._mark_done(span)

    def _in_hand(self) -> tuple[list[Span], list[Span]]:
        """Return what the agent was given and isn't done, and what follows it."""
        if self._open:
            undone = [Span(each, max(start, each.cursor), end) for each, start, end in self._open]
            return [span for span in undone if span.start < span.end], []
        delivery, row = self._delivery, self._row
        if delivery is None:
            return [], []
        follows = row + 1 < self._end_row
        rest = [Span(delivery, row + 1, self._end_row)] if follows else []
        return [Span(delivery, row, row + 1)], rest

    async def _pause(self, seconds: float, delivery: Delivery | None) -> None:
        until = monotonic() + seconds
        # Neither a revoked partition nor a stop has an event to wait for.
        while (left := until - monotonic()) > 0:
            if self.should_stop or (delivery is not None and delivery.progress.closed):
                return
            await asyncio.sleep(min(0.05, left))
