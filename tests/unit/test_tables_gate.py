"""The gate: tables are looked at only while no stream has a record in hand."""

import asyncio
from types import SimpleNamespace

import pytest
from faust.types import TP

from streamproc import checkpoint
from streamproc import gate as gates
from streamproc.claims import Claims
from streamproc.gate import Gate
from streamproc.kafka.committed import Committed, Notes, read_committed_offset


async def held(gate, take, **options):
    async with gate.hold(**options):
        return take()


async def test_nobody_inside_is_not_waited_for():
    assert await held(Gate(), lambda: 7) == 7


async def test_a_checkpoint_waits_for_the_stream_inside_and_keeps_others_out():
    gate = Gate()
    await gate.enter("a")
    seen = []

    async def b():
        await gate.enter("b")
        seen.append("b")

    holding = asyncio.ensure_future(held(gate, lambda: seen.append("take")))
    await asyncio.sleep(0)
    entering = asyncio.ensure_future(b())
    await asyncio.sleep(0)
    assert (gate.shut, seen) == (True, [])
    gate.leave("a")
    await asyncio.gather(holding, entering)
    assert seen == ["take", "b"]
    assert not gate.shut


async def test_a_slow_stream_is_waited_for_once(monkeypatch, caplog):
    monkeypatch.setattr(gates, "GATE_TIMEOUT", 0.01)
    gate = Gate()
    await gate.enter("slow")
    assert await held(gate, lambda: 1) == 1
    assert "Agents take longer" in caplog.text
    monkeypatch.setattr(gates, "GATE_TIMEOUT", 60)
    assert await asyncio.wait_for(held(gate, lambda: 2), 5) == 2
    gate.leave("slow")
    await gate.enter("slow")
    # It is waited for again now that it was out.
    holding = asyncio.ensure_future(held(gate, lambda: 3))
    await asyncio.sleep(0)
    assert not holding.done()
    gate.leave("slow")
    assert await holding == 3


async def test_who_must_be_exact_waits_for_slow_streams_too(monkeypatch):
    monkeypatch.setattr(gates, "GATE_TIMEOUT", 0.01)
    gate = Gate()
    await gate.enter("slow")
    assert await held(gate, lambda: 1) == 1
    holding = asyncio.ensure_future(held(gate, lambda: 2, patiently=True))
    await asyncio.sleep(0.05)
    assert not holding.done()
    gate.leave("slow")
    assert await asyncio.wait_for(holding, 5) == 2


async def test_one_at_a_time_holds_the_gate():
    gate = Gate()
    async with gate.hold():
        other = asyncio.ensure_future(held(gate, lambda: gate.shut))
        await asyncio.sleep(0)
        assert not other.done()
    assert await other


async def test_streams_end_their_records_before_what_is_void_is_forgotten():
    seen = []

    async def abort():
        seen.append("abort")

    app = SimpleNamespace(
        exactly_once=True,
        producer=SimpleNamespace(abort_transaction=abort),
        dead_letters=SimpleNamespace(forget=lambda: None),
        tables=SimpleNamespace(roll_back=lambda: seen.append("roll back")),
    )
    it = checkpoint.Checkpoint(app)
    await it.clear()
    assert seen == []
    it.is_void = True
    await it.gate.enter("stream")
    clearing = asyncio.ensure_future(it.clear())
    await asyncio.sleep(0.01)
    seen.append("sent")
    it.gate.leave("stream")
    await clearing
    assert (seen, it.is_void) == (["sent", "abort", "roll back"], False)


async def test_the_gate_opens_when_taking_fails():
    gate = Gate()

    def take():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await held(gate, take)
    await asyncio.wait_for(gate.enter("a"), 1)


async def test_nobody_enters_a_full_gate_and_checkpoints_pass():
    gate = Gate()
    gate.set_full(True)
    entering = asyncio.ensure_future(gate.enter("a"))
    await asyncio.sleep(0)
    assert await held(gate, lambda: 1) == 1
    assert not entering.done()
    gate.set_full(False)
    await asyncio.wait_for(entering, 1)


class Tables(list):
    dirty_count = 0


class App:
    tables = Tables(["counts"])


def test_changes_of_tables_are_bounded(monkeypatch):
    monkeypatch.setattr(checkpoint, "BATCHES_PER_LOOK", 1)
    it = checkpoint.Checkpoint(App())
    for count, wanted, full in [(1, False, False), (150_000, True, False), (250_000, True, True)]:
        App.tables.dirty_count = count
        it.on_progress()
        assert (it.wanted.is_set(), it.gate.full) == (wanted, full)
    App.tables.dirty_count = 0
    it.on_progress()
    assert not it.gate.full


class Sink:
    is_full = True
    has_taken = True

    async def commit(self, positions):
        self.is_full = False


async def test_streams_that_wait_for_a_full_sink_go_on_without_tables_too(monkeypatch):
    monkeypatch.setattr(checkpoint, "BATCHES_PER_LOOK", 1)

    async def nothing(*args):
        return False

    flushed = SimpleNamespace(flush=nothing)
    consumer = SimpleNamespace(_handle_attached=nothing)
    app = SimpleNamespace(tables=[], producer=flushed, consumer=consumer)
    it = checkpoint.Checkpoint(app)
    it.claims.sinks.append(Sink())
    it.on_progress()
    assert it.wanted.is_set()
    assert it.gate.full
    await it._commit_at_least_once(checkpoint.Taken({}, [], {}))
    assert not it.gate.full


TP0 = TP("t", 0)


class Claimed:
    """A sink whose server has these offsets of readers."""

    results_id = "x"

    def __init__(self, offsets):
        self.claimed = {0: offsets}

    async def claim(self, sources):
        assert sources == {TP0}
        return self.claimed


@pytest.fixture
def claiming():
    """The claims of an app whose group has offset 9 of partition 0."""

    async def beginnings(partitions):
        return dict.fromkeys(partitions, 3)

    topics = SimpleNamespace(
        progress=lambda: [SimpleNamespace(tp=TP0, reader="t@now")], cut_at=lambda offsets: None
    )
    app = SimpleNamespace(
        tables=SimpleNamespace(
            changelog_topics=set(), names_up_to=lambda offsets: dict.fromkeys(offsets, ())
        ),
        topics=topics,
        consumer=SimpleNamespace(
            committed_offset=lambda tp: 9, positions={}, beginnings=beginnings
        ),
        when_sink_behind="replay",
    )
    return Claims(app)


async def test_what_readers_of_other_names_have_written_is_not_missed(claiming):
    for offset, behind in [(9, {}), (12, {}), (7, {TP0: 7})]:
        sink = Claimed({"t@old": 5, "t@now": offset})
        assert await claiming.claim_for(sink, {TP0}) == behind


async def test_results_are_missed_of_a_reader_that_is_ahead(claiming):
    """All go back to the offset, which the slower ones have not passed."""
    claiming.app.consumer.positions = {0: {"t@now": 15}}
    for offset, behind in [(15, {}), (12, {TP0: 9}), (7, {TP0: 7})]:
        assert await claiming.claim_for(Claimed({"t@now": offset}), {TP0}) == behind


async def test_a_sink_that_the_group_knows_of_has_lost_what_it_has_nothing_of(claiming):
    nothing, others, some = Claimed({}), Claimed({"u@now": 5}), Claimed({"t@old": 5})
    for sinks, lost in [((), {}), (("y",), {}), (("y", "x"), {TP0: 3})]:
        claiming.note({TP0: Committed(9, Notes(sinks=[*sinks]))})
        assert await claiming.claim_for(nothing, {TP0}) == lost
        assert await claiming.claim_for(others, {TP0}) == lost
        assert await claiming.claim_for(some, {TP0}) == {}


async def test_offsets_name_sinks_that_have_results_and_those_that_had(claiming):
    sink = Claimed({"u@now": 5})
    claiming.sinks.append(sink)

    def named(partition):
        (noted,) = claiming.noted({TP("t", partition): 9}, {}).values()
        return read_committed_offset(noted).notes.sinks

    assert named(0) == []
    sink.claimed = {0: {"t@now": 9}}
    assert (named(0), named(1)) == (["x"], [])
    claiming.note({TP0: Committed(9, Notes(sinks=["y"]))})
    assert named(0) == ["x", "y"]
