"""Agents: Faust's, with failures that lose nothing and sinks that write by the batch.

Checked against faust-streaming 0.15.3.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable
from typing import Any

import faust.agents.agent
from faust.agents.agent import _current_agent, current_agent
from faust.agents.models import ReqRepRequest
from faust.types import AgentT, ChannelT
from mode.utils.futures import maybe_async
from mode.utils.text import want_str

from streamproc.errors import ConfigurationError, SinkError, TableError
from streamproc.records.durations import Duration, duration
from streamproc.records.record import METADATA, Record
from streamproc.streams.policies import Policy
from streamproc.streams.stream import Stream
from streamproc.streams.timeouts import TimeLimit


def _takes_batches(sink: Any) -> bool:
    """True for sinks of streamproc, which live on a higher floor."""
    return hasattr(sink, "write") and hasattr(sink, "flush")


class Agent(faust.agents.agent.Agent):  # type: ignore[misc]
    """An async function over a stream, and its sinks.

    Args:
        fun: The function.
        errors: What becomes of records at which it raises, or a function that is called then.
        timeout: How long it may wait with the same records in hand.
        **options: Those of Faust's Agent.

    Raises:
        ConfigurationError: ``errors`` or ``timeout`` is none of these.
    """

    def __init__(
        self, fun: Any, *, errors: Any = None, timeout: Duration | None = None, **options: Any
    ) -> None:
        super().__init__(fun, **options)
        self.policy: Policy | None = None
        if isinstance(errors, Policy):
            self.policy = errors
        elif callable(errors):
            self._on_error = errors
        elif errors is not None:
            raise ConfigurationError(
                f"Agent {self.name!r}: on_error={errors!r} is neither retry(...), dead_letter, "
                "skip or stop, nor a function of the agent and the error"
            )
        milliseconds = None if timeout is None else duration(timeout)
        if milliseconds == 0:
            raise ConfigurationError(f"Agent {self.name!r}: a timeout is longer than 0")
        self._limit = milliseconds and TimeLimit(self, milliseconds / 1000)

    @property
    def _batch_sinks(self) -> list[Any]:
        return [sink for sink in self._sinks if _takes_batches(sink)]

    async def on_start(self) -> None:
        for sink in self._batch_sinks:
            await self.app.open_sink(sink)
        if self.concurrency > 1 and self.app.checkpoint.is_exact:
            raise ConfigurationError(
                f"Agent {self.name} has concurrency={self.concurrency}, so records are done out of "
                "order, and results can't be exactly once: leave it out, and start more workers"
            )
        await super().on_start()
        if self._limit:
            self.add_future(self._limit.run())

    async def ask(self, *args: Any, **kwargs: Any) -> Any:
        """Send a request to the agent and wait for its reply.

        Raises:
            ConfigurationError: From an agent, with exactly once: the request is read when the
                record that waits for the reply is committed.
        """
        if self.app.exactly_once and current_agent() is not None:
            raise ConfigurationError(
                f"ask() of agent {self.name} in an agent would wait for ever: with exactly once "
                "the request is seen when the asking record is committed. Use send(), and handle "
                "the answer as records of another topic"
            )
        return await super().ask(*args, **kwargs)

    async def _execute_actor(self, coro: Any, aref: Any) -> None:
        """Run the agent function, again after each failure, on the same stream."""
        _current_agent.set(self)
        if self.policy is not None:
            for stream in aref.stream.get_root_stream()._iter_ll_forwards():
                if isinstance(stream, Stream):
                    stream.on_error(self.policy)
        while True:
            try:
                await coro
            except asyncio.CancelledError as exc:
                if self.should_stop:
                    raise
                late = self._limit and self._limit.error_of(aref, exc)
                if late and await self._is_handled(late, aref):
                    coro = self._run_again(aref)
                    continue
                await self._replace(exc, aref)
            except Exception as exc:  # noqa: BLE001 - user code may raise anything
                if await self._is_handled(exc, aref):
                    coro = self._run_again(aref)
                    continue
                await self._replace(exc, aref)
            return

    async def _replace(self, error: BaseException, aref: Any) -> None:
        await aref.crash(error)
        self.supervisor.wakeup()

    async def _is_handled(self, error: Exception, aref: Any) -> bool:
        """See that what the agent failed at is given again or rejected."""
        self.log.error("Agent %s raised: %r", self.name, error, exc_info=error)
        stream = aref.stream.get_active_stream()
        stream.leave()
        if isinstance(error, TableError):
            # The app is wrong and not the record, which would be lost if it were rejected.
            await stream.halt(error)
        if self._on_error is not None:
            await maybe_async(self._on_error(self, error))
        if not (isinstance(stream, Stream) and stream.reads_batches):
            return False
        await stream.on_failure(self.name, error)
        return True

    def _run_again(self, aref: Any) -> Any:
        aref.stream.keep_operators()
        result = aref.it = self.fun(aref.stream)
        return self._slurp(aref, aiter(result)) if isinstance(result, AsyncIterable) else result

    async def _slurp(self, res: Any, it: Any) -> None:
        """Drive an agent that yields: reply to who asked, and pass results to the sinks."""
        sinks = self._batch_sinks
        results: list[Any] = []
        #: The record that each result is of.
        places: list[Any] = []
        stream: Any = None

        def forget(everything: bool) -> None:
            """Drop the results of the records in hand, which are not done."""
            unfinished = len(results)
            if not everything and (place := stream.place_in_hand) is not None:
                while unfinished and places[unfinished - 1] == place:
                    unfinished -= 1
                del results[unfinished:], places[unfinished:]
            else:
                results.clear()
                places.clear()

        async def write_results() -> None:
            if results:
                written, of = results.copy(), places.copy()
                results.clear()
                places.clear()
                for sink in sinks:
                    try:
                        await sink.write(written)
                    except SinkError as exc:
                        if not exc.misfits:
                            raise
                        for error in exc.misfits:
                            row = error.row or 0
                            await stream.reject_result(
                                of[row],
                                written[row],
                                self.name,
                                error,
                                getattr(sink, "on_error", None),
                            )

        async for value in it:
            if stream is None:
                stream = res.stream.get_active_stream()
                if sinks and stream.reads_batches:
                    stream.before_done(write_results, forget)
            if stream.may_want_reply:
                await self._maybe_reply(stream.current_event, value)
            if sinks:
                results.append(value)
                places.append(stream.place_in_hand)
                if not stream.reads_batches:
                    await write_results()
            await self._delegate_to_sinks(value)

    async def _delegate_to_sinks(self, value: Any) -> None:
        """Pass one result to sinks that are agents, channels or callables."""
        for sink in self._sinks:
            if isinstance(sink, AgentT | ChannelT):
                await sink.send(value=value)
            elif not _takes_batches(sink):
                await maybe_async(sink(value))

    async def _reply(self, key: Any, value: Any, reply_to: str, correlation_id: str) -> None:
        # Who asked gets the model back by its namespace.
        if isinstance(value, Record):
            value = {**value.to_representation(), METADATA: {"ns": value._options.namespace}}
        await super()._reply(key, value, reply_to, correlation_id)

    async def _maybe_reply(self, event: Any, value: Any) -> None:
        if event is None:
            return
        if isinstance(event.value, ReqRepRequest):
            request = event.value
            await self._reply(event.key, value, request.reply_to, request.correlation_id)
            return
        reply_to = event.headers.get("Faust-Ag-ReplyTo")
        if reply_to:
            correlation_id = event.headers.get("Faust-Ag-CorrelationId")
            await self._reply(event.key, value, want_str(reply_to), want_str(correlation_id or b""))


async def open_in_agent(sink: Any) -> None:
    """Open a sink for the App of the agent that is running.

    Raises:
        SinkError: It isn't called from an agent.
    """
    agent = current_agent()
    if agent is None:
        raise SinkError(
            f"{type(sink).__name__} is used outside of an agent: await app.open_sink(sink) first"
        )
    await agent.app.open_sink(sink)


__all__ = ["Agent", "current_agent", "open_in_agent"]
