"""A long stream at accelerated event time: memory and disk stay flat."""

import gc
import os
from pathlib import Path

import pytest

from streamproc.aggregates import Count, Max, Mean, compile_aggregates
from streamproc.tables.keyed import EntryCodec
from streamproc.tables.stores import RocksStore
from streamproc.tables.windowstate import AlignedWindows, KeyedWindows
from streamproc.windows import hopping, session, tumbling

MINUTE, DAY = 60_000, 86_400_000
START = 1_700_000_000_000
SENSORS = [f"sensor-{number}" for number in range(20)]
KINDS = {
    "tumbling": (AlignedWindows, tumbling("10m")),
    "hopping": (AlignedWindows, hopping("1h", "10m")),
    "session": (KeyedWindows, session("30m")),
}


def resident_mb():
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def folder_mb(folder):
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file()) / 1e6


def day_of_readings(day):
    """A reading a minute of each sensor, which is silent for an hour each night."""
    begin = START + day * DAY
    minutes = range(60, 24 * 60)
    times = [begin + minute * MINUTE for minute in minutes for _ in SENSORS]
    values = [float(minute % 97) for minute in minutes for _ in SENSORS]
    return SENSORS * len(minutes), values, times


def run(kind, days, folder):
    """Go through so many days, with a checkpoint each four hours; return what it came to."""
    make, spec = KINDS[kind]
    program = compile_aggregates({"n": Count(), "mean": Mean(), "high": Max()})
    codec = EntryCodec("t", str.encode, bytes.decode, program.encode, program.decode)
    store = RocksStore(folder / kind)
    state = make(0, store, codec, spec, program, 100_000)
    closed, sizes, done = 0, [], 0
    part = 4 * 60 * len(SENSORS)
    for day in range(days):
        keys, values, times = day_of_readings(day)
        for begin in range(0, len(keys), part):
            end = begin + part
            output = state.operator.process(
                keys[begin:end], values[begin:end], times[begin:end], float(day)
            )
            assert not output.late
            closed += len(output.finals)
            done += len(values[begin:end])
            flush = state.flush({"reader": done})
            flush.write(done)
        if day % max(1, days // 10) == 0:
            sizes.append((day, closed, state.count(), resident_mb(), folder_mb(folder / kind)))
    store.close()
    return sizes


@pytest.mark.parametrize("kind", KINDS)
def test_a_month_of_readings(kind, tmp_path):
    sizes = run(kind, 30, tmp_path)
    _, closed, _, _, _ = sizes[-1]
    assert closed > 500
    assert max(open_ones for _, _, open_ones, _, _ in sizes) <= 6 * len(SENSORS)
    early, late = sizes[2], sizes[-1]
    assert late[3] - early[3] < 15
    assert late[4] < 40


if __name__ == "__main__":
    import sys
    import tempfile
    import time

    with tempfile.TemporaryDirectory() as name:
        for each in KINDS:
            began = time.monotonic()
            for day, closed, open_ones, memory, disk in run(each, int(sys.argv[1]), Path(name)):
                print(f"{each} day {day}: {closed} closed, {open_ones} open")
                print(f"    {memory:.0f} MB, {disk:.1f} MB on disk")
            print(f"{each}: {time.monotonic() - began:.0f} s", flush=True)
