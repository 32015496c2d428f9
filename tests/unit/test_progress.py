"""The offset to commit: right with gaps, splits, merges, and acks in any order."""

from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.progress import Progress

TP0 = TP("readings", 0)


def raw(offsets, next_offset=None, size=10):
    offsets = list(offsets)
    return RawBatch(
        topic="readings",
        partition=0,
        offsets=offsets,
        timestamps=[offset * 1000 for offset in offsets],
        keys=[None] * len(offsets),
        values=[str(offset).encode() for offset in offsets],
        headers=None,
        next_offset=next_offset if next_offset is not None else (offsets[-1] + 1),
        high_watermark=1_000_000,
        timestamp_type=0,
        size=size,
    )


def test_nothing_is_committable_before_anything_is_done():
    progress = Progress(TP0)
    progress.add(raw([5, 6, 7]))
    delivery = progress.take(100)
    assert progress.committable() is None
    delivery.complete()
    assert progress.committable() == 8


def test_cursor_inside_a_delivery_is_the_offset_of_the_next_record():
    progress = Progress(TP0)
    progress.add(raw([5, 9, 12]))
    delivery = progress.take(100)
    delivery.cursor = 1
    assert progress.committable() == 9


def test_a_gap_after_the_last_record_is_passed_over():
    progress = Progress(TP0)
    progress.add(raw([1, 2], next_offset=50))
    progress.take(10).complete()
    assert progress.committable() == 50


def test_a_run_of_control_records_alone_moves_the_position():
    progress = Progress(TP0)
    progress.add(raw([], next_offset=17))
    progress.take(10).complete()
    assert progress.committable() == 17


def test_deliveries_done_out_of_order_wait_for_the_first():
    progress = Progress(TP0)
    progress.add(raw(range(10)))
    progress.add(raw(range(10, 20)))
    first, second = progress.take(10), progress.take(10)
    second.complete()
    assert progress.committable() is None
    first.complete()
    assert progress.committable() == 20


def test_a_closed_progress_is_idle_when_what_was_handed_out_is_done():
    progress = Progress(TP0)
    progress.add(raw(range(10)))
    delivery = progress.take(10)
    progress.close()
    delivery.handed = 3
    delivery.release()
    delivery.ack(0)
    delivery.ack(2)
    assert not progress.idle
    delivery.ack(1)
    assert progress.idle
    assert progress.committable() == 3


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=8), min_size=1, max_size=6),
    st.integers(1, 10),
    st.randoms(use_true_random=False),
)
def test_committable_never_passes_an_undone_record(gaps_of_runs, max_records, random):
    """Whatever the runs, splits and order of acks, the committed prefix is done."""
    progress = Progress(TP0)
    offset = 0
    for gaps in gaps_of_runs:
        offsets = []
        for gap in gaps:
            offset += gap
            offsets.append(offset)
        offset += 1
        progress.add(raw(offsets, next_offset=offset, size=len(offsets)))
    deliveries = []
    while progress.has_backlog:
        deliveries.append(progress.take(max_records))
    for delivery in deliveries:
        if not len(delivery):
            delivery.complete()
    todo = [(delivery, row) for delivery in deliveries for row in range(len(delivery))]
    random.shuffle(todo)
    undone = {delivery.offsets[row] for delivery, row in todo}
    for delivery, row in todo:
        committable = progress.committable()
        if committable is not None:
            assert committable <= min(undone)
        delivery.ack(row)
        undone.discard(delivery.offsets[row])
    assert progress.committable() == offset
    assert progress.held_bytes == 0


@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.integers(1, 15))
def test_records_come_out_once_and_in_order(lengths, max_records):
    progress = Progress(TP0)
    offset = 0
    expected = []
    for length in lengths:
        offsets = list(range(offset, offset + length))
        expected += offsets
        offset += length
        progress.add(raw(offsets, next_offset=offset))
    seen = []
    while progress.has_backlog:
        delivery = progress.take(max_records)
        assert len(delivery) <= max_records
        seen += delivery.offsets
        assert [int(value) for value in delivery.raw_values] == delivery.offsets
    assert seen == expected


@given(
    st.lists(st.lists(st.integers(1, 4), min_size=0, max_size=8), min_size=1, max_size=6),
    st.integers(1, 30),
    st.sets(st.integers(0, 40), max_size=3),
)
def test_no_delivery_goes_over_a_cut(gaps_of_runs, max_records, cuts):
    """Gaps are where control records are; a cut may be in one, inside of a run or between two."""
    progress = Progress(TP0)
    progress.cuts = sorted(cuts)
    offset = 0
    expected = []
    for gaps in gaps_of_runs:
        offsets = []
        for gap in gaps:
            offset += gap
            offsets.append(offset)
        expected += offsets
        offset += 1
        progress.add(raw(offsets, next_offset=offset))
    seen = []
    while progress.has_backlog:
        offsets = progress.take(max_records).offsets
        assert not any(offsets[0] < cut <= offsets[-1] for cut in cuts if offsets)
        seen += offsets
    assert seen == expected


def test_the_first_record_that_is_not_done_counts_from_when_it_was_fetched():
    progress = Progress(TP0)
    assert progress.undone() is None
    progress.add(raw([], next_offset=5))
    progress.add(raw([5, 6, 7]))
    assert progress.undone() == 5
    first = progress.take(2)
    if not len(first):  # the run of control records
        first.complete()
        first = progress.take(2)
    assert progress.undone() == 5
    first.ack(0)
    assert progress.undone() == 6
    first.complete()
    assert progress.undone() == 7
    progress.take(2).complete()
    assert progress.undone() is None
