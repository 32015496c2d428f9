"""When a recovery begins and when it doesn't."""

from types import SimpleNamespace

from streamproc.tables.recovery import Recovery


async def test_an_assignment_that_comes_while_the_worker_stops_starts_nothing():
    recovery = Recovery(SimpleNamespace(consumer_generation_id=3), SimpleNamespace())
    await recovery.stop()
    await recovery.on_rebalance(set(), set(), set(), generation_id=3)
    assert recovery._task is None
