"""What `streamproc dev` shows."""

from __future__ import annotations

import io

from aiokafka import TopicPartition
from rich.console import Console

from streamproc.dev.replay import ReplayProgress
from streamproc.dev.results import ResultTable
from streamproc.dev.screen import Rate, Screen, State, line, picture
from streamproc.kafka.offsets import Offsets

A0, A1, OUT = (TopicPartition(*tp) for tp in (("a", 0), ("a", 1), ("out", 0)))


def state(**changes):
    offsets = Offsets({A0: 1500, A1: 1000, OUT: 7}, {A0: 1000, A1: 1000})
    fields = {
        "offsets": offsets,
        "replay": ReplayProgress("a", records=2500, seconds=2.0, fraction=0.5),
        "outputs": ["out"],
        "dead_letters": "dead",
        "rejected": 3,
        "marked": frozenset(),
        "workers": ["worker-1  http://127.0.0.1:1234"],
        "addresses": ["kafka://127.0.0.1:1", "redis://127.0.0.1:2"],
        "results": [ResultTable("stats:* (1 × hash)", ["key", "count"], [["s[1]", "42"]])],
    }
    return State(**{**fields, **changes})


def test_lag_counts_only_what_the_group_reads():
    offsets = state().offsets
    assert (offsets.lag(A0), offsets.lag(A1), offsets.total_lag) == (500, 0, 500)
    assert (offsets.done, offsets.end(["a"]), offsets.end(["out"])) == (2000, 2500, 7)


def test_a_commit_seen_before_its_end_is_no_negative_lag():
    assert Offsets({A0: 5}, {A0: 9}).total_lag == 0


def test_rate_looks_back_some_seconds():
    rate = Rate(seconds=3)
    assert rate.update(0, now=0.0) == 0
    assert rate.update(100, now=1.0) == 100
    assert [rate.update(100, now=t) for t in (2.0, 4.0, 8.0, 9.0)][-1] == 0


def test_line():
    assert line(state(), 250.4, 3.0) == (
        "   3.0 s  sent 2,500  processed 2,000 (250/s)  lag 500  out 7  dead letters 3"
    )


def test_offsets_of_topics_with_transactions_are_more_than_their_records():
    assert line(state(marked=frozenset({"a", "out"})), 0, 3.0) == (
        "   3.0 s  sent 2,500  processed ≤ 2,000 (0/s)  lag 500  out ≤ 7  dead letters 3"
    )


def test_picture_has_everything_and_takes_names_literally():
    console = Console(file=io.StringIO(), width=120)
    console.print(picture(state(errors=["worker-1: [ERROR] it [broke]"]), 250.4))
    text = console.file.getvalue()
    for part in (
        "http://127.0.0.1:1234",
        "2,000 records, 250/s, lag 500",
        "2,500 sent to a (1,250/s)",
        "500  0",
        "dead",
        "Redis  stats:* (1 × hash)",
        "s[1]",
        "worker-1: [ERROR] it [broke]",
    ):
        assert part in text


def test_without_a_terminal_lines_are_printed():
    console = Console(file=io.StringIO(), width=40)
    with Screen(console) as screen:
        screen.show(state())
        screen.show(state())
    assert console.file.getvalue().count("\n") == 1
