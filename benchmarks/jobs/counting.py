"""A count of each key in a RocksDB table: for state larger than memory, and for its recovery.

Runs unchanged on plain Faust and on streamproc: only the import differs. With
``BENCH_RECOVERY`` the times are those of the table's recovery, from the first assignment of
partitions (known to the app before its tables know) to the tasks, which both start when the
tables are complete. What is in the table is told after that.
"""

from __future__ import annotations

import os

from benchmarks.jobs.meter import BROKER, GROUP, TOPIC, Meter

if os.environ.get("BENCH_LIBRARY") == "streamproc":
    import streamproc as faust
else:
    import faust

RECOVERY = bool(os.environ.get("BENCH_RECOVERY"))
meter = Meter()


class App(faust.App):
    async def _on_partitions_assigned(self, *args, **options):
        if RECOVERY:
            meter.add(0)
        return await super()._on_partitions_assigned(*args, **options)


app = App(
    GROUP,
    broker=f"kafka://{BROKER}",
    store="rocksdb://",
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    web_enabled=False,
)
keys = app.topic(TOPIC, key_type=str, value_type=bytes, value_serializer="raw")
counts = app.Table("counts", default=int, partitions=4)


@app.agent(keys)
async def count(stream):
    async for key, _ in stream.items():
        finished = meter.add(1)
        counts[key] += 1
        if finished:
            meter.done()


@app.task
async def recovered():
    if RECOVERY:
        meter.done()
        values = [value for _, value in counts.items()]
        meter.tell("content", keys=len(values), total=sum(values))
