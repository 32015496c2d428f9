"""Session windows: for each key, as long as its records come less than a gap apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any

from streamproc.windows.operator import WindowOperator, pick
from streamproc.windows.state import Accumulator, Entry, KeyedState, Output, Program
from streamproc.windows.watermark import Watermark

if TYPE_CHECKING:
    from streamproc.windows.spec import Session


class OpenSession:
    """A session while a batch is added: it is the key of its accumulator."""

    __slots__ = ("first", "last")

    def __init__(self, first: int, last: int) -> None:
        self.first = first
        self.last = last


class SessionOperator(WindowOperator):
    """Computes session windows.

    A record belongs to the sessions of its key that are open (by the watermark of the
    records before it) and that it is less than a gap before, in or after; if there are
    several, it makes one of them. If there is none, it begins a session, unless that
    session would be closed already: then the record is late.

    With ``max_length``, the record joins those of these sessions, the earliest first, that
    it doesn't make too long.
    """

    def __init__(
        self, spec: Session, program: Program, state: KeyedState, watermark: Watermark
    ) -> None:
        super().__init__(spec, program, watermark)
        self._state = state
        self._gap = spec.gap
        self._max_span = None if spec.max_length is None else spec.max_length - spec.gap
        # From the last record of a session to the watermark at which it closes.
        self._reach = spec.gap + spec.grace

    def _add(
        self,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        lowest: int,
        highest: int,
        input: int,
        output: Output,
    ) -> None:
        batch = SessionBatch(
            self._program.merge, partial(self._update, output=output), values, timestamps
        )
        opened: dict[Any, list[OpenSession]] = {}
        earlier: dict[Any, list[tuple[int, int]]] = {}
        running = self.watermark.running(timestamps, input)
        for row, (key, timestamp, watermark) in enumerate(
            zip(keys, timestamps, running, strict=True)
        ):
            sessions = opened.get(key)
            if sessions is None:
                sessions = opened[key] = batch.load(self._state.get(key))
                if self._updates:
                    earlier[key] = [(one.first, one.last) for one in sessions]
            session = self._place(batch, sessions, timestamp, watermark)
            if session is None:
                output.late.append(row)
            else:
                batch.add(row, session)
        batch.flush()
        for key, sessions in opened.items():
            if batch.changed.isdisjoint(sessions):
                continue
            self._put(key, [(one.first, one.last, batch.states[one]) for one in sessions])
            if self._updates:
                self._note_updates(key, sessions, earlier[key], batch, output)

    def _update(
        self,
        states: dict[OpenSession, Accumulator],
        sessions: Sequence[OpenSession],
        values: Sequence[Any],
        timestamps: Sequence[int],
        rows: Sequence[int],
        output: Output,
    ) -> None:
        """Add records to their sessions; one of failed records only is there all the same."""
        if self._aggregate(states, sessions, values, timestamps, lambda _: None, output, rows):
            for session in sessions:
                if session not in states:
                    states[session] = self._program.new()

    def _place(
        self, batch: SessionBatch, sessions: list[OpenSession], timestamp: int, watermark: float
    ) -> OpenSession | None:
        """Return the session that a record belongs to, merged or new; None if it is late."""
        gap, reach = self._gap, self._reach
        if len(sessions) == 1 and self._max_span is None:
            # What most records are: the next of their key's only session.
            only = sessions[0]
            if only.last <= timestamp < only.last + gap and only.last + reach > watermark:
                only.last = timestamp
                return only
        touched = [
            one
            for one in sessions
            if one.first - gap < timestamp < one.last + gap and one.last + reach > watermark
        ]
        if len(touched) > 1:
            touched.sort(key=attrgetter("first", "last"))
        session = None
        for one in touched:
            first, last = min(one.first, timestamp), max(one.last, timestamp)
            if session is not None:
                first, last = min(first, session.first), max(last, session.last)
            if self._max_span is not None and last - first > self._max_span:
                continue
            if session is None:
                session = one
            else:
                batch.merge(session, one)
                sessions.remove(one)
            session.first, session.last = first, last
        if session is None and timestamp + reach > watermark:
            session = OpenSession(timestamp, timestamp)
            sessions.append(session)
        return session

    def _put(self, key: Any, entries: list[Entry]) -> None:
        entries.sort(key=itemgetter(1, 0))
        self._state.put(key, entries, entries[0][1] + self._reach)

    def _note_updates(
        self,
        key: Any,
        sessions: list[OpenSession],
        earlier: list[tuple[int, int]],
        batch: SessionBatch,
        output: Output,
    ) -> None:
        gap = self._gap
        output.updates.extend(
            (key, one.first, one.last + gap, batch.states[one])
            for one in sessions
            if one in batch.changed
        )
        remaining = {(one.first, one.last) for one in sessions}
        output.retracted.extend(
            (key, first, last + gap) for first, last in earlier if (first, last) not in remaining
        )

    def _close(self, output: Output) -> None:
        watermark = self.watermark.current
        if watermark is None:
            return
        for key in self._state.due(watermark):
            open_ones: list[Entry] = []
            for entry in self._state.get(key):
                first, last, acc = entry
                if last + self._reach > watermark:
                    open_ones.append(entry)
                elif not self._updates:
                    output.finals.append((key, first, last + self._gap, acc))
            if open_ones:
                self._put(key, open_ones)
            else:
                self._state.delete(key)
        output.finals.sort(key=itemgetter(2))


class SessionBatch:
    """A batch on its way into sessions: rows are kept back, to update all at once.

    Only a merge of sessions needs the rows before it to be in their accumulators.
    """

    def __init__(
        self,
        merge: Callable[[Accumulator, Accumulator], Accumulator],
        update: Callable[..., None],
        values: Sequence[Any],
        timestamps: Sequence[int],
    ) -> None:
        self.states: dict[OpenSession, Accumulator] = {}
        self.changed: set[OpenSession] = set()
        self._merge = merge
        self._update = update
        self._values = values
        self._timestamps = timestamps
        self._rows: list[int] = []
        self._sessions: list[OpenSession] = []

    def load(self, entries: Sequence[Entry]) -> list[OpenSession]:
        """Return a key's stored sessions."""
        sessions = []
        for first, last, acc in entries:
            session = OpenSession(first, last)
            self.states[session] = acc
            sessions.append(session)
        return sessions

    def add(self, row: int, session: OpenSession) -> None:
        """Add a row to a session."""
        self._rows.append(row)
        self._sessions.append(session)

    def merge(self, session: OpenSession, other: OpenSession) -> None:
        """Add a session to one that begins before it."""
        self.flush()
        states = self.states
        states[session] = self._merge(states[session], states.pop(other))
        self.changed.discard(other)

    def flush(self) -> None:
        """Bring the rows kept back into the accumulators."""
        rows, sessions = self._rows, self._sessions
        if not rows:
            return
        values, timestamps = pick(self._values, rows), pick(self._timestamps, rows)
        self._update(self.states, sessions, values, timestamps, rows)
        self.changed.update(sessions)
        self._rows, self._sessions = [], []
