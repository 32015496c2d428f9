"""What the test driver sets back when it ends or crashes an app, and what it leaves."""

import asyncio
import collections

import mode
import pytest

from streamproc.testing import TestDriver
from streamproc.testing.loop import VirtualLoop
from streamproc.testing.snapshot import Snapshot


class Part(mode.Service):
    """Something with all kinds of state."""

    def __post_init__(self):
        self.numbers = [1, 2]
        self.names = {"a": {"b"}}
        self.queue = collections.deque([1], maxlen=3)
        self.event = asyncio.Event()
        self.foreign = Foreign()
        self.late = 0


class Foreign:
    def __init__(self):
        self.seen = []


def test_services_are_set_back_and_foreign_objects_are_not():
    part = Part()
    other = part.other = Part()
    snapshot = Snapshot(part)
    part.numbers.append(3)
    part.names["a"].add("c")
    part.names["d"] = {}
    part.queue.extend([2, 3, 4])
    part.foreign.seen.append(1)
    other.event.set()
    other.numbers = None
    part.new = 1
    del part.late
    snapshot.restore()
    assert part.numbers == [1, 2]
    assert part.names == {"a": {"b"}}
    assert list(part.queue) == [1]
    assert part.foreign.seen == [1]
    assert not other.event.is_set()
    assert other.numbers == [1, 2]
    assert not hasattr(part, "new")
    assert part.late == 0


def test_services_bound_to_another_loop_are_unbound_and_bound_again():
    part, loop = Part(), asyncio.new_event_loop()
    part.loop = loop
    snapshot = Snapshot(part)
    snapshot.unbind()
    assert part._loop is None
    snapshot.restore()
    assert part.loop is loop
    loop.close()


def test_reading_an_app_of_a_project_leaves_its_settings():
    from streamproc.application import App
    from streamproc.settings import Settings

    app = App("settled", broker="kafka://nowhere")
    app.settings = Settings()
    with TestDriver(app):
        pass
    assert isinstance(app.settings, Settings)


# -- the loop


@pytest.fixture
def loop():
    loop = VirtualLoop()
    yield loop
    loop.kill_tasks()
    loop.close()


def test_time_stands_still_when_it_may_not_pass(loop):
    fired = []
    start = loop.time()
    loop.call_later(10, fired.append, 1)
    loop.call_soon(fired.append, 0)
    loop.run(lambda: None)
    assert fired == [0]
    assert loop.time() == pytest.approx(start, abs=1e-9)


def test_time_jumps_from_timer_to_timer_up_to_its_limit(loop):
    fired = []
    start = loop.time()
    for delay in (3, 1, 10, 2):
        loop.call_later(delay, lambda: fired.append(loop.time() - start))
    loop.run(lambda: start + 5)
    assert fired == pytest.approx([1, 2, 3])
    assert loop.time() == pytest.approx(start + 3)
    loop.jump(start + 5)
    loop.run(lambda: start + 20)
    assert fired == pytest.approx([1, 2, 3, 10])


async def test_code_that_misses_its_own_deadline_by_a_rounding_ends(loop):
    async def wait_for(seconds):
        deadline = loop.time() + seconds
        while (left := deadline - loop.time()) > 0:  # noqa: ASYNC110
            await asyncio.sleep(left)

    for seconds in (0.1, 1 / 3, 1e-6, 1.1, 7.7):
        loop.jump(loop.time() + 12345.678901)
        waiting = loop.create_task(wait_for(seconds))
        loop.run(lambda: float("inf"))
        assert waiting.done()


def test_a_task_that_starts_others_is_killed_with_them(loop):
    ended = []

    async def stubborn(left):
        try:
            await asyncio.sleep(100)
        finally:
            ended.append(left)
            if left:
                loop.create_task(stubborn(left - 1))

    loop.create_task(stubborn(3))
    loop.run(lambda: None)
    loop.kill_tasks()
    assert ended == [3, 2, 1, 0]
    assert not asyncio.all_tasks(loop)
