"""The benchmark's own parts: its input, its recomputations, its verdicts."""

from __future__ import annotations

import importlib.util
import io
import zlib
from types import SimpleNamespace

import pytest
from rich.console import Console

pytest.importorskip("confluent_kafka")

from benchmarks import report, targets
from benchmarks.checks import compare, flat
from benchmarks.inputs import keys, number_of
from benchmarks.jobs.by_hand_windows import Windows, untyped
from benchmarks.large import Large
from benchmarks.latency import Latency
from benchmarks.pauses import Output, Pause, pause
from benchmarks.readings import (
    CLOSING,
    PARTITIONS,
    closing_readings,
    expected_tables,
    expected_windows,
    make_readings,
    window_name,
)
from benchmarks.runner import Run
from benchmarks.systems import LARGE, SYSTEMS

NAMES = {system.name for system in SYSTEMS}


def message(value: bytes, partition: int) -> SimpleNamespace:
    return SimpleNamespace(value=lambda: value, partition=lambda: partition)


def test_each_system_is_unique_and_has_a_module():
    assert len(NAMES) == len(SYSTEMS)
    for system in [*SYSTEMS, LARGE]:
        assert importlib.util.find_spec(f"benchmarks.jobs.{system.module}") is not None
        assert system is LARGE or system.job in report.JOBS


def test_targets_and_comparisons_name_systems():
    compared = {each for target in targets.TARGETS for each in (target.system, target.baseline)}
    compared |= {name for kind in report.JOBS.values() for name in kind[1:] if name}
    assert compared | set(targets.RATE_TARGETS) <= NAMES


def test_readings_are_the_same_each_time_and_of_one_length():
    readings = make_readings(2_000)
    assert readings == make_readings(2_000)
    assert readings != make_readings(2_000, seed=2)
    assert min(len(each.value) for each in readings) >= 60
    assert max(len(each.value) for each in readings) <= 68


def test_windows_by_hand_are_those_of_the_recomputation():
    readings = make_readings(60_000, step=1)
    windows = Windows()
    # As the broker has them: each sensor in one partition, each partition in order.
    partitions = [(each, zlib.crc32(each.key) % PARTITIONS) for each in readings]
    partitions.sort(key=lambda pair: pair[1])
    partitions += [(each, each.partition) for each in closing_readings(readings)]
    windows.add([message(each.value, number) for each, number in partitions], untyped)
    found = {
        f"stats:{sensor}:{window_name(start)}": dict(
            zip(("count", "sum", "min", "max"), entry, strict=True)
        )
        for start, window in windows.closed
        for sensor, entry in window.items()
    }
    assert found == expected_windows(readings)
    assert not any(CLOSING in key for key in found)


def test_a_window_ends_where_the_next_begins():
    windows = expected_windows(make_readings(21_000, step=1))
    assert {key.rpartition(":")[2] for key in windows} == {"221320", "221330", "221340"}


def test_tables_count_all_readings():
    sums, counts = expected_tables(make_readings(5_000))
    assert sum(counts.values()) == 5_000
    assert sums.keys() == counts.keys()


@pytest.mark.parametrize("count", [1, 10, 4_096, 30_000])
def test_keys_are_distinct(count):
    assert sorted(map(number_of, keys(count))) == list(range(count))


def test_results_are_compared_by_key():
    assert compare({"a": 1, "b": 2}, {"a": 1, "b": 2}).wrong == 0
    missing, other, more = {"a": 1}, {"a": 1, "b": 3}, {"a": 1, "b": 2, "c": 3}
    for found in (missing, other, more):
        difference = compare({"a": 1, "b": 2}, found)
        assert (difference.wrong, difference.expected) == (1, 2)
        assert difference.example
    assert compare(flat([{"a": 1}, {"a": 2}]), flat([{"a": 1}, {"a": 3}])).wrong == 1


def test_targets_tell_what_is_met():
    runs = {
        "windows": [Run(300_000, 1.0, 150.0)],
        "windows-faust": [Run(2_000, 4.0, 90.0)],
        "windows-by-hand": [Run(700_000, 0.3, 100.0)],
    }
    met = {line["what"]: line["met"] for line in targets.lines(runs, "apache")}
    assert met["windows against windows-faust"] is True
    assert met["windows against windows-by-hand"] is False
    assert "windows against windows-quix" not in met


def test_wrong_results_of_peers_and_the_large_table_are_shown():
    runs = {
        "windows-by-hand": [Run(700_000, 0.3, 100.0, 1_000)],
        "windows-bytewax": [Run(50_000, 0.3, None, 1_000, 27)],
        "tables": [Run(100_000, 0.5, 120.0, 1_000)],
    }
    measured = report.Measured(runs, None, Large(10_000_000, 200_000, 800.0, 450.0), "apache")
    output = io.StringIO()
    report.show(Console(file=output, width=160), measured)
    assert "27 of 1,000" in output.getvalue()
    assert "sums[k] += v" in output.getvalue()
    assert "10,000,000 keys" in output.getvalue()
    assert "not met" not in output.getvalue()


def test_gaps_are_told_apart_by_who_made_the_results():
    ticks = [100.0 + number / 10 for number in range(100)]
    stays = [Output(at, "1") for at in ticks if not 103.05 < at < 103.45]
    moves = [Output(at, "1" if at < 103.05 else "2") for at in ticks if not 103.05 < at < 105.05]
    change = pause("leaves", {0: stays, 1: moves}, 102.0, 109.0, usual=0.1)
    assert change.stayed == pytest.approx(0.5)
    assert change.moved == pytest.approx(2.1)
    assert pause("joins", {0: stays}, 104.0, 109.0, usual=0.1).moved is None


def test_what_exactly_once_costs_is_shown_and_judged():
    runs = {
        "guarantees-agent": [Run(90_000, 2.0, 150.0, per_cpu=400_000.0), Run(200_000, 2.0, 150.0)],
        "guarantees-agent-exactly": [Run(130_000, 2.0, 150.0, per_cpu=300_000.0)],
    }
    late = Latency(5_000, 10, 500.0, 900.0, 1_150.0, 1_200.0)
    quiet = Latency(5_000, 10, 500.0, 900.0, 1_050.0, 1_100.0)
    delays = {"guarantees-agent-exactly": [late, quiet]}
    pauses = {"guarantees-agent": [Pause("leaves", 0.4, 3.5, 0.1), Pause("joins", None, 0.6, 0.1)]}
    measured = report.Measured(runs, None, None, "apache", delays, pauses)
    met = {line["what"]: line["met"] for line in report.target_lines(measured)}
    assert met["guarantees-agent-exactly against guarantees-agent"] is False
    assert met["guarantees-agent-exactly: latency p99, ms"] is True
    assert met["guarantees-agent: a worker leaves: who stays, s"] is True
    assert met["guarantees-agent: a worker leaves: who moves, s"] is False
    assert "guarantees-agent: a worker joins: who stays, s" not in met
    output = io.StringIO()
    report.show(Console(file=output, width=160), measured)
    for shown in ("0.65", "0.75", "1,050.0", "3.50 (3.50)"):
        assert shown in output.getvalue()
