"""Decoding raw batches, and how far a loop over them is."""

import inspect
import sys

import pytest
from aiokafka.consumer.fetcher import Fetcher

from streamproc import Record
from streamproc.errors import ConfigurationError
from streamproc.kafka.fetch import RawBatch
from streamproc.sources.frames import frame_of, pandas
from streamproc.sources.runs import run_decoder


class Reading(Record):
    sensor_id: str
    value: float


def raw(*values, keys=None, offsets=None, headers=None):
    offsets = offsets or list(range(10, 10 + len(values)))
    return RawBatch(
        topic="t",
        partition=3,
        offsets=offsets,
        timestamps=[1000 + offset for offset in offsets],
        keys=keys or [None] * len(values),
        values=list(values),
        headers=headers,
        next_offset=offsets[-1] + 5,
        high_watermark=100,
        timestamp_type=0,
        size=0,
    )


def test_what_is_done_is_committed_up_to_the_record_in_hand():
    run, rejected = run_decoder(None, None, "json")(raw(b"1", b"2", b"3", offsets=[10, 14, 20]))
    assert not rejected
    assert run.values == [1, 2, 3]
    seen = []
    while run.at < run.end:
        seen.append(run.done_offset)
        run.at += 1
    assert seen == [10, 14, 20]
    assert run.exhausted
    assert run.done_offset == 25, "over the gap at the end of the batch"


def test_rejected_records_are_left_out_and_passed_over():
    run, rejected = run_decoder(None, Reading, "json")(
        raw(b"{", b'{"sensor_id": "a", "value": 1}', b'{"sensor_id": "a"}', None, b"\xff")
    )
    assert [(each.row, each.part) for each in rejected] == [
        (0, "value"),
        (2, "value"),
        (4, "value"),
    ]
    assert "value" in str(rejected[1].error)
    assert run.values == [Reading("a", 1.0), None]
    assert run.done_offset == 11
    run.at = 1
    assert run.done_offset == 13
    assert run.message(1).offset == 13
    run.at = 2
    assert run.done_offset == 19


def test_a_batch_with_nothing_in_it_that_can_be_decoded_is_done():
    run, rejected = run_decoder(None, None, "json")(raw(b"{", b"]"))
    assert len(rejected) == 2
    assert run.exhausted
    assert run.done_offset == 16


def test_undeclared_keys_are_text_where_they_can_be():
    run, rejected = run_decoder(None, None, "json")(
        raw(b"1", b"2", b"3", keys=[b"k", b"\xff", None])
    )
    assert not rejected
    assert [run.message(row).key for row in range(3)] == ["k", b"\xff", None]


def test_declared_keys_are_checked():
    run, rejected = run_decoder(int, None, "json")(raw(b"1", b"2", keys=[b"7", b"x"]))
    assert [(each.row, each.part) for each in rejected] == [(1, "key")]
    assert run.message(0).key == 7


def test_messages_know_their_place():
    headers = [(("trace", b"1"),), ()]
    run, _ = run_decoder(None, None, "json")(raw(b"1", b"2", headers=headers))
    first = run.message(0)
    assert (first.topic, first.partition, first.offset, first.timestamp) == ("t", 3, 10, 1010)
    assert first.headers == (("trace", b"1"),)


def test_a_dropped_run_ends_the_loop():
    run, _ = run_decoder(None, None, "json")(raw(b"1", b"2", b"3"))
    run.at = 1
    run.drop()
    assert run.end == 0
    assert run.done_offset == 11


def test_frames_have_a_column_for_each_field():
    run, _ = run_decoder(None, Reading, "json")(
        raw(b'{"sensor_id": "a", "value": 1}', None, b'{"sensor_id": "b", "value": 2}')
    )
    frame = frame_of(run, 0, 3)
    assert list(frame.columns) == ["sensor_id", "value"]
    assert list(frame.index) == [10, 11, 12]
    assert frame.attrs == {"topic": "t", "partition": 3}
    plain, _ = run_decoder(None, None, "json")(raw(b"1.5", b"2.5"))
    assert list(frame_of(plain, 1, 2)["value"]) == [2.5]


def test_pandas_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'streamproc\[pandas\]'"):
        pandas()


def test_an_unknown_codec_is_named():
    with pytest.raises(ConfigurationError, match="jsn"):
        run_decoder(None, None, "jsn")


def test_aiokafka_reads_its_bounds_at_each_fetch():
    """What bounds the reader's buffer, as aiokafka 0.14 has it."""
    assert "self._max_partition_fetch_bytes" in inspect.getsource(Fetcher._get_actions_per_node)
