"""Look-ups: batched, cached, in order, with time-outs and retries."""

import asyncio
from types import SimpleNamespace

import pytest

import streamproc.streams.enrich as module
from streamproc.errors import ConfigurationError, LookUpFailed
from streamproc.sinks import redis_lookup
from streamproc.streams.enrich import Cache, Enrich
from streamproc.streams.graph import Node, Source
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Map, Step, Task

NAMES = {"a": "Anna", "b": "Bert"}


@pytest.fixture(autouse=True)
def no_delay(monkeypatch):
    monkeypatch.setattr(module, "FIRST_DELAY", 0.001)


class Server:
    """An async look-up that notes what it is asked."""

    def __init__(self, answer=NAMES.get, fails=0):
        self.asked = []
        self.answer = answer
        self.fails = fails
        self.at_once = self.most_at_once = 0

    async def many(self, keys):
        await self._note(sorted(keys))
        return {key: self.answer(key) for key in keys}

    async def parallel(self, keys):
        await self._note(list(keys))
        return [self.answer(key) for key in keys]

    async def one(self, key):
        await self._note(key)
        return self.answer(key)

    async def _note(self, asked):
        self.asked.append(asked)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0)
        self.at_once -= 1
        if len(self.asked) <= self.fails:
            raise OSError("away")


def enrich(look_up, cache=None, app=None, **options):
    options = {
        "pick": None,
        "batched": True,
        "concurrency": 4,
        "timeout": 5.0,
        "retries": 3,
        "max_keys": 1000,
        "on_missing": "pass",
        "on_error": "dead-letter",
        **options,
    }
    return Enrich(
        "names", app, look_up, cache=Cache(1000, 300) if cache is None else cache, **options
    )


def rows(keys):
    return Rows(list(keys), list(range(len(keys))), [0] * len(keys), range(len(keys)))


async def run(step, keys):
    task = Task(0, 0.0, 0.0)
    out = await step.run(rows(keys), task)
    return out.values, task


@pytest.mark.parametrize("form", ["many", "parallel"])
async def test_a_batch_asks_once_for_its_distinct_keys(form):
    server = Server()
    step = enrich(getattr(server, form))
    values, _ = await run(step, "abacab")
    assert values == [
        (0, "Anna"),
        (1, "Bert"),
        (2, "Anna"),
        (3, None),
        (4, "Anna"),
        (5, "Bert"),
    ]
    assert [sorted(asked) for asked in server.asked] == [["a", "b", "c"]]


async def test_what_was_found_or_was_not_is_remembered():
    server = Server()
    step = enrich(server.many)
    await run(step, "ac")
    values, _ = await run(step, "acb")
    assert values == [(0, "Anna"), (1, None), (2, "Bert")]
    assert server.asked == [["a", "c"], ["b"]]


async def test_what_was_found_is_good_for_a_time():
    server = Server()
    step = enrich(server.many, Cache(1000, 0))
    await run(step, "a")
    await run(step, "a")
    assert server.asked == [["a"], ["a"]]


def test_the_cache_drops_what_was_not_used_for_longest():
    cache = Cache(2, 10)
    cache.keep({"a": 1, "b": 2}, 0)
    assert cache.find(["a"], 1) == {"a": 1}
    cache.keep({"c": 3}, 1)
    assert cache.find("abc", 2) == {"a": 1, "c": 3}
    assert cache.find("ac", 10.5) == {"c": 3}
    assert len(cache) == 1


async def test_keys_are_asked_for_in_calls_of_a_size():
    server = Server()
    step = enrich(server.parallel, max_keys=2)
    await run(step, "abcde")
    assert sorted(map(len, server.asked)) == [1, 2, 2]


async def test_one_by_one_calls_run_at_once_up_to_a_bound():
    server = Server()
    step = enrich(server.one, batched=False, concurrency=3)
    values, _ = await run(step, "abcdefgh")
    assert values[:3] == [(0, "Anna"), (1, "Bert"), (2, None)]
    assert server.most_at_once == 3


async def test_a_call_that_fails_is_made_again():
    server = Server(fails=2)
    step = enrich(server.many)
    values, task = await run(step, "a")
    assert values == [(0, "Anna")]
    assert not task.rejected
    assert (step.calls, step.failures) == (3, 2)


async def test_records_whose_look_up_failed_for_good_are_rejected():
    server = Server(fails=100)
    step = enrich(server.one, batched=False, retries=1)
    await run(step, "a")
    server.fails = 0
    server.answer = lambda key: 1 / 0 if key == "b" else "found"
    values, task = await run(step, "abc")
    assert values == [(0, "found"), (2, "found")]
    (rejected,) = task.rejected
    assert (rejected.key, rejected.origin) == ("b", 1)
    assert isinstance(rejected.error, LookUpFailed)
    assert "ZeroDivisionError" in str(rejected.error)


async def test_records_may_go_on_without_what_failed_and_it_is_not_remembered():
    server = Server(fails=1)
    step = enrich(server.many, retries=0, on_error="pass")
    assert (await run(step, "a"))[0] == [(0, None)]
    assert (await run(step, "a"))[0] == [(0, "Anna")]


async def test_a_flow_may_fail_with_its_look_up():
    step = enrich(Server(fails=100).many, retries=0, on_error="fail")
    with pytest.raises(LookUpFailed, match="names of 'a' failed: OSError"):
        await run(step, "a")


async def test_a_call_has_a_time_limit():
    async def never(keys):
        await asyncio.Event().wait()

    step = enrich(never, timeout=0.001, retries=0)
    _, task = await run(step, "ab")
    assert [each.key for each in task.rejected] == ["a", "b"]
    assert "no answer within 0.001 s" in str(task.rejected[0].error)


@pytest.mark.parametrize("answer", [["too few"], "ab", None, 3])
async def test_an_answer_of_another_form_is_a_failure(answer):
    async def wrong(keys):
        return answer

    step = enrich(wrong, retries=0)
    _, task = await run(step, "abc")
    assert "neither a dict nor a list of 3 values" in str(task.rejected[0].error.__cause__)


async def test_an_error_in_the_place_of_a_value_is_of_that_key_alone():
    step = enrich(Server(lambda key: ValueError("bad") if key == "b" else key).parallel)
    values, task = await run(step, "abc")
    assert values == [(0, "a"), (2, "c")]
    assert [each.key for each in task.rejected] == ["b"]


@pytest.mark.parametrize(("on_missing", "rejected"), [("drop", []), ("dead-letter", ["c"])])
async def test_records_whose_key_is_not_found(on_missing, rejected):
    step = enrich(Server().many, on_missing=on_missing)
    values, task = await run(step, "ac")
    assert values == [(0, "Anna")]
    assert [each.key for each in task.rejected] == rejected


async def test_the_key_may_be_a_function_of_the_value():
    step = enrich(Server().many, pick=lambda value: "ab"[value])
    values, task = await run(step, "xyz")
    assert values == [(0, "Anna"), (1, "Bert")]
    assert isinstance(task.rejected[0].error, IndexError)


@pytest.mark.parametrize(
    "wrong",
    [{"on_missing": "skip"}, {"on_error": "skip"}, {"concurrency": 0}, {"timeout": 0}],
)
def test_options_are_checked(wrong):
    with pytest.raises(ConfigurationError):
        enrich(Server().many, **wrong)


@pytest.mark.parametrize("key", ["sensor", "{other}", "{key", "{key.x}"])
def test_a_template_of_a_redis_key_has_the_key(key):
    with pytest.raises(ConfigurationError, match="no template"):
        redis_lookup(key)


class Note(Step):
    """Notes what comes, as a step with state."""

    name = "note"

    def __init__(self, seen, table=None):
        self.seen = seen
        self.table = table

    def process(self, rows, task):
        self.seen += rows.values
        return rows


class Gate:
    def __init__(self):
        self.log = []

    async def enter(self, stream):
        self.log.append("enter")

    def leave(self, stream):
        self.log.append("leave")

    def keep_out(self, stream, partition):
        self.log.append(f"keep out {partition}")


def graph(*steps):
    """Return a source, without an agent, before a chain of steps."""
    source = Source.__new__(Source)
    Node.__init__(source)
    source.app = SimpleNamespace(checkpoint=SimpleNamespace(gate=Gate()))
    node = source
    for step in steps:
        node = node.add(step)
    return source


async def test_batches_of_a_partition_go_through_in_turn():
    release = {key: asyncio.Event() for key in "ab"}

    async def slow(keys):
        await release[keys[0]].wait()
        return {}

    seen = []
    source = graph(enrich(slow), Map("first", lambda pair: pair[0]), Note(seen))

    async def one(key, value, partition=0):
        task = Task(partition, 0.0, 0.0)
        source.push(Rows([key], [value], [0]), task)
        await source._wait(task, None)

    tasks = [asyncio.ensure_future(one(key, key)) for key in "ab"]
    release["b"].set()
    await asyncio.sleep(0.01)
    assert seen == []
    await asyncio.wait_for(one("b", "another partition", 1), 5)
    assert seen == ["another partition"]
    release["a"].set()
    await asyncio.gather(*tasks)
    assert seen == ["another partition", "a", "b"]


async def test_a_batch_that_fails_lets_the_next_one_go_on():
    async def fails(keys):
        await asyncio.sleep(0)
        raise OSError(keys[0])

    seen = []
    source = graph(enrich(fails, retries=0, on_error="fail"), Note(seen))

    async def one(key):
        task = Task(0, 0.0, 0.0)
        source.push(Rows([key], [key], [0]), task)
        await source._wait(task, None)

    results = await asyncio.wait_for(asyncio.gather(one("a"), one("b"), return_exceptions=True), 5)
    assert [type(each) for each in results] == [LookUpFailed, LookUpFailed]


@pytest.mark.parametrize(
    ("table", "log"), [(None, ["leave", "enter", "keep out 0"]), ("a table", [])]
)
async def test_a_checkpoint_waits_for_look_ups_only_after_changes_of_state(table, log):
    seen = []
    source = graph(Note([], table), enrich(Server().many), Note(seen, "a table"))
    task = Task(0, 0.0, 0.0)
    source.push(rows("ab"), task)
    await source._wait(task, "stream")
    assert seen == [(0, "Anna"), (1, "Bert")]
    assert source.app.checkpoint.gate.log == log
    assert task.keeps_state
