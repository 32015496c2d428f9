"""Pages about tables, and routed requests: right from any worker, or 503."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from itertools import cycle
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

import pytest

SETTINGS = "topic_partitions=4,"
ADDRESS = ("--web-host", "127.0.0.1")

COUNTING = """
topic = app.topic("{source}", key_type=str, value_type=Item)
counts = app.Table("counts", key_type=str, value_type=int, default=int, help="By <word>")

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        counts[key] += 1
"""

WORDS = [(f"w{n % 50:02d}", {"n": n}) for n in range(1000)]
COUNTS = {f"w{n:02d}": 20 for n in range(50)}


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    text: str

    def json(self) -> Any:
        return json.loads(self.text)


def ask(
    worker: Any, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str
) -> Reply:
    """Ask a worker; status 0 when it can't be reached."""
    connection = HTTPConnection("127.0.0.1", worker.web_port, timeout=30)
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        connection.request(method, path, body, names)
        response = connection.getresponse()
        return Reply(response.status, dict(response.headers), response.read().decode())
    except OSError as exc:
        return Reply(0, {}, str(exc))
    finally:
        connection.close()


def entries(worker: Any, path: str, **parameters: Any) -> list[dict[str, Any]]:
    """Read a whole list, page by page."""
    found: list[dict[str, Any]] = []
    while True:
        page = ask(worker, f"{path}?{urlencode(parameters)}").json()
        assert page["complete"], page
        found += page["entries"]
        if page["next"] is None:
            return found
        parameters["after"] = page["next"]


@pytest.fixture
def counting(
    faust_app: Any, topic_factory: Any, produce: Any, kafka_client: Any, wait_for: Any
) -> Callable[..., Any]:
    """``counting(workers)``: an app that has counted WORDS; its workers, ready."""

    def start(
        workers: int, source_text: str = COUNTING, records: Any = WORDS, settings: str = SETTINGS
    ) -> Any:
        source = topic_factory(partitions=4)
        produce(source, records)
        app = faust_app(source_text.replace("{source}", source), settings=settings, start=False)
        app.source = source
        app.workers = [app.start(web=True, args=ADDRESS) for _ in range(workers)]
        app.wait_committed(kafka_client, source, len(records))
        for worker in app.workers:
            wait_for(lambda w=worker: ask(w, "/tables/").status == 200, 40, f"{worker.name} ready")
        return app

    return start


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_keys_and_lists_from_any_worker(counting, workers):
    app = counting(workers)
    for worker in app.workers:
        for key, count in COUNTS.items():
            reply = ask(worker, f"/tables/counts/{key}/")
            assert (reply.status, reply.json()["value"]) == (200, count)
            assert reply.json()["key"] == key
        assert ask(worker, "/tables/counts/w00").json() == ask(worker, "/tables/counts/w00/").json()
        assert ask(worker, "/tables/counts/other/").status == 404
        found = entries(worker, "/tables/counts/", limit=7)
        assert [(each["key"], each["value"]) for each in found] == sorted(COUNTS.items())
        found = entries(worker, "/tables/counts/", prefix="w1", limit=3)
        assert [each["key"] for each in found] == [f"w1{n}" for n in range(10)]
        parts = [entries(worker, "/tables/counts/", partition=part) for part in range(4)]
        assert sum(map(len, parts)) == 50
        assert all(each["partition"] == part for part in range(4) for each in parts[part])


KEYED = """
class Spot(faust.Record, frozen=True):
    city: str
    number: int

topic = app.topic("{source}", key_type=KEY, value_type=Item)
counts = app.Table("counts", key_type=KEY, value_type=Item)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        counts[key] = item
"""


def spot(city: str, number: int) -> bytes:
    return json.dumps({"city": city, "number": number}, separators=(",", ":")).encode()


#: By type: keys as the topic has them, as an address has them, and as JSON.
KEYS = {
    "str": [
        (text.encode(), text, text) for text in ("a", "ä/ö ü", "x?y&z=%41#", "..", '"q"', "12")
    ],
    "int": [(str(n).encode(), str(n), n) for n in (0, 7, -12, 10**25)],
    "bytes": [(raw, raw.hex(), raw.hex()) for raw in (b"abc", b"\x00\xff\x80", b"/")],
    "Spot": [
        (spot(city, n), spot(city, n).decode(), {"city": city, "number": n})
        for city, n in (("Oslo", 1), ("Bergen / Vest", -2), ('"', 3))
    ],
}


@pytest.mark.parametrize("kind", KEYS)
def test_keys_of_all_types(counting, kind):
    records = [(raw, {"n": n, "name": "<b>"}) for n, (raw, *_) in enumerate(KEYS[kind])]
    app = counting(2, KEYED.replace("KEY", kind), records)
    for worker in app.workers:
        for n, (_, text, key) in enumerate(KEYS[kind]):
            replies = [
                ask(worker, f"/tables/counts/?{urlencode({'key': text})}"),
                *([] if text == ".." else [ask(worker, f"/tables/counts/{quote(text, safe='')}/")]),
            ]
            for reply in replies:
                assert reply.status == 200, (text, reply)
                content = reply.json()
                assert (content["key"], content["value"]["n"]) == (key, n)
        listed = entries(worker, "/tables/counts/", limit=2)
        assert len(listed) == len(KEYS[kind])
        assert all(each["key"] in [key for *_, key in KEYS[kind]] for each in listed)
        for each in listed:
            reply = ask(worker, each["path"])
            assert (reply.status, reply.json()["key"]) == (200, each["key"]), each
            assert "&lt;b&gt;" in ask(worker, each["path"], Accept="text/html").text
    assert ask(app.workers[0], "/tables/counts/%ff%fe/").status in (400, 404)


def test_a_key_that_cannot_be(counting):
    records = [(b"1", {"n": 1})]
    app = counting(1, KEYED.replace("KEY", "int"), records)
    (worker,) = app.workers
    for path in ("abc/", "?limit=0", "?limit=1001", "?partition=4", "?after=x", "?from=y"):
        reply = ask(worker, f"/tables/counts/{path}")
        assert reply.status == 400, (path, reply)
        assert reply.json()["error"]
    assert ask(worker, "/tables/none/").status == 404
    assert ask(worker, "/tables/counts/", method="POST").status == 405
    assert ask(worker, "/tables/counts/1/", method="HEAD").status == 200


SCATTERED = """
topic = app.topic("{source}", key_type=str, value_type=Item)
names = app.Table("names", key_type=str, value_type=int, default=int)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        names[item.name] += 1
"""


def test_keys_that_are_not_those_of_the_records(counting):
    """Each of 40 keys writes one name of its own and one of five that all write."""
    records = [(f"k{n}", {"n": n, "name": f"own{n}"}) for n in range(40)]
    records += [(f"k{n}", {"n": n, "name": f"all{n % 5}"}) for n in range(40)]
    app = counting(2, SCATTERED, records)
    for worker in app.workers:
        for n in range(40):
            reply = ask(worker, f"/tables/names/own{n}/")
            assert (reply.status, reply.json().get("value")) == (200, 1), reply
        for n in range(5):
            content = ask(worker, f"/tables/names/all{n}/").json()
            values = content.get("entries") or [content]
            assert sum(each["value"] for each in values) == 8, content
        assert ask(worker, "/tables/names/own40/").status == 404
        assert sum(each["value"] for each in entries(worker, "/tables/names/", limit=6)) == 80


def test_replicated_and_set_tables(counting):
    source = """
topic = app.topic("{source}", key_type=str, value_type=Item)
everywhere = app.GlobalTable("everywhere", key_type=str, value_type=int, partitions=4)
members = app.SetTable("members", key_type=str, value_type=int)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        everywhere[key] = item.n
        members[key].add(item.n % 3)
"""
    app = counting(2, source, [(f"w{n % 5}", {"n": n}) for n in range(100)])
    from harness import wait_for

    for worker in app.workers:
        expected = [(f"w{n}", 95 + n) for n in range(5)]

        def all_there(worker=worker, expected=expected) -> bool:
            found = entries(worker, "/tables/everywhere/")
            return [(each["key"], each["value"]) for each in found] == expected

        wait_for(all_there, 20, "the copy is complete")
        assert ask(worker, "/tables/everywhere/w3/").json()["value"] == 98
        assert ask(worker, "/tables/members/w3/").json()["value"] == [0, 1, 2]
        listed = ask(worker, "/tables/").json()["tables"]
        assert [each["name"] for each in listed] == ["everywhere", "members"]


def test_a_killed_worker_is_named_in_lists(counting, wait_for):
    """Its partitions are missing at once, and there again after the rebalance."""
    app = counting(3)
    survivor, second, victim = app.workers
    victim_url = f"http://127.0.0.1:{victim.web_port}"
    (table,) = ask(survivor, "/tables/").json()["tables"]
    owned = table["workers"][victim_url]
    assert owned
    victim.kill()
    seen: Counter[str] = Counter()
    while True:
        time.sleep(0.02)
        reply = ask(survivor, "/tables/counts/?limit=100")
        assert reply.status in (200, 503), reply
        if reply.status == 503:
            assert reply.headers["Retry-After"] == "1"
            seen["unavailable"] += 1
            continue
        content = reply.json()
        listed = {each["key"]: each["value"] for each in content["entries"]}
        assert listed.items() <= COUNTS.items()
        if content["complete"]:
            assert listed == COUNTS
            break
        seen["incomplete"] += 1
        for missing in content["missing"]:
            assert missing["reason"]
            if missing["worker"] == victim_url:
                assert missing["partitions"] == owned
                seen["named"] += 1
    assert seen["named"]
    assert entries(second, "/tables/counts/") == entries(survivor, "/tables/counts/")


class Questions(threading.Thread):
    """Asks workers for keys and lists until stopped; keeps what was neither right nor 503."""

    def __init__(self, workers: list[Any]) -> None:
        super().__init__()
        self.workers = workers
        self.wrong: list[Any] = []
        self.seen: Counter[Any] = Counter()
        self._ended = threading.Event()

    def run(self) -> None:
        for key in cycle([*COUNTS, "none", None]):
            time.sleep(0.005)
            for worker in list(self.workers):
                path = "/tables/counts/" if key is None else f"/tables/counts/{key}/"
                reply = ask(worker, path)
                self.seen["list" if key is None else "key", reply.status] += 1
                if not self._is_right(key, reply):
                    self.wrong.append((worker.name, key, reply))
            if self._ended.is_set():
                return

    def _is_right(self, key: str | None, reply: Reply) -> bool:
        if reply.status == 503:
            return reply.headers.get("Retry-After") == "1"
        if reply.status == 0:
            # A worker that isn't there (yet, or any more) gives no answer.
            return True
        content = reply.json()
        if key is None:
            listed = {each["key"]: each["value"] for each in content["entries"]}
            return listed == COUNTS if content["complete"] else listed.items() <= COUNTS.items()
        expected = (200, COUNTS[key]) if key in COUNTS else (404, None)
        return (reply.status, content.get("value")) == expected

    def end(self) -> None:
        self._ended.set()
        self.join(60)


def test_answers_are_right_or_503_while_workers_come_and_go(counting, wait_for):
    app = counting(1)
    questions = Questions(list(app.workers))
    questions.start()
    try:
        for _ in range(2):
            more = app.start(web=True, args=ADDRESS)
            questions.workers.append(more)
            wait_for(lambda w=more: ask(w, "/tables/counts/").status == 200, 40, "it answers")
        second, third = questions.workers[1:]
        third.kill()
        wait_for(
            lambda: ask(second, "/tables/counts/").json().get("complete"), 40, "it is replaced"
        )
        second.stop()
        first = app.workers[0]
        wait_for(lambda: ask(first, "/tables/counts/").json().get("complete"), 40, "one has all")
    finally:
        questions.end()
    assert not questions.wrong, questions.wrong[:5]
    for kind in ("key", "list"):
        assert questions.seen[kind, 200]
        assert questions.seen[kind, 503]


ROUTED = (
    COUNTING
    + """
from faust import web

@app.page("/value/{key}/")
@app.table_route(table=counts, match_info="key")
async def value(web, request, key):
    return web.json({"key": key, "value": counts[key], "pid": os.getpid()})

@app.page("/query/")
@app.table_route(table=counts, query_param="word")
async def by_query(web, request):
    return web.json({"value": counts[request.query["word"]], "more": request.query["more"]})

class Posted(web.View):
    @app.table_route(table=counts, match_info="key")
    async def post(self, request, key):
        body = await request.read()
        response = self.bytes(body[::-1], status=201, content_type="application/x-own")
        response.headers["X-Value"] = str(counts[key])
        response.headers["X-Asked"] = request.headers["X-Ask"]
        response.headers["Set-Cookie"] = "secret=1"
        return response

    @app.table_route(table=counts, match_info="key")
    async def put(self, request, key):
        return self.json({"cookie": request.headers.get("Cookie"), "value": counts[key]})

app.page("/posted/{key}/")(Posted)
"""
)


def test_table_route(counting):
    app = counting(3, ROUTED)
    pids = set()
    for worker in app.workers:
        for key, count in COUNTS.items():
            reply = ask(worker, f"/value/{key}/")
            assert (reply.status, reply.json()["value"]) == (200, count), reply
            pids.add(reply.json()["pid"])
            body = bytes(range(256)) * 100
            reply = ask(worker, f"/query/?word={key}&more=a%26b")
            assert reply.json() == {"value": count, "more": "a&b"}
        connection = HTTPConnection("127.0.0.1", worker.web_port, timeout=30)
        connection.request("POST", "/posted/w07/", body, {"X-Ask": "me"})
        response = connection.getresponse()
        assert (response.status, response.read()) == (201, body[::-1])
        assert response.headers["Content-Type"] == "application/x-own"
        assert (response.headers["X-Value"], response.headers["X-Asked"]) == ("20", "me")
        assert response.headers["Set-Cookie"] == "secret=1"
        connection.close()
        reply = ask(worker, "/posted/w07/", method="PUT")
        assert reply.json() == {"cookie": None, "value": 20}
    assert len(pids) == 3


TOPIC_ROUTED = """
from streamproc.kafka.producer import partition_of

topic = app.topic("{source}", key_type=str, value_type=Item)

@app.agent(topic)
async def nothing(stream):
    async for key, item in stream.items():
        pass

counts = app.Table("counts", key_type=str, value_type=int)

@app.page("/reader/{key}/")
@app.topic_route(topic=topic, match_info="key")
async def reader(web, request, key):
    partitions = [tp.partition for tp in app.consumer.assignment() if tp.topic == "{source}"]
    return web.json({"here": partition_of(key.encode(), 4) in partitions, "pid": os.getpid()})
"""


def test_topic_route(counting):
    app = counting(2, TOPIC_ROUTED)
    for worker in app.workers:
        replies = [ask(worker, f"/reader/{key}/").json() for key in COUNTS]
        assert all(reply["here"] for reply in replies)
        assert len({reply["pid"] for reply in replies}) == 2


def test_a_web_server_in_its_own_thread(counting):
    app = counting(2, ROUTED, settings=SETTINGS + "web_in_thread=True,")
    for worker in app.workers:
        assert len(entries(worker, "/tables/counts/", limit=20)) == 50
        for key in list(COUNTS)[:10]:
            assert ask(worker, f"/tables/counts/{key}/").json()["value"] == 20
            assert ask(worker, f"/value/{key}/").json()["value"] == 20


FAUST_WINDOWS = """
topic = app.topic("{source}", key_type=str, value_type=Item)
counts = app.Table("counts", key_type=str, value_type=int, default=int).tumbling(10.0)

@app.agent(topic)
async def count(stream):
    async for key, item in stream.items():
        counts[key] += 1
"""


def test_windows_of_a_table(counting):
    records = [(f"w{n % 7}", {"n": n}, START + 1000 * n) for n in range(210)]
    app = counting(2, FAUST_WINDOWS, records)
    for worker in app.workers:
        for key in range(7):
            windows = ask(worker, f"/tables/counts/w{key}/").json()["windows"]
            assert sum(each["value"] for each in windows) == 30
            for each in windows:
                times = [START + 1000 * n for n in range(key, 210, 7)]
                inside = [time for time in times if each["start"] <= time < each["end"]]
                assert each["value"] == len(inside)
                assert each["end"] - each["start"] == 10_000
        listed = entries(worker, "/tables/counts/", limit=11)
        assert sum(each["value"] for each in listed) == 210


def test_a_forwarded_request_goes_no_further(counting):
    app = counting(2)
    owners = ask(app.workers[0], "/tables/").json()["tables"][0]["workers"]
    assert len(owners) == 2
    for worker in app.workers:
        others = [url for url in owners if not url.endswith(str(worker.web_port))]
        (part, *_) = owners[others[0]]
        # As asked by a worker that takes this one for the owner, or is of another generation.
        for generation in ("0", "9999999"):
            headers = {"Streamproc-Generation": generation, "Streamproc-Partitions": str(part)}
            reply = ask(worker, "/tables/counts/?key=w01", **headers)
            assert (reply.status, reply.headers["Retry-After"]) == (503, "1")


WINDOWED = """
from streamproc.aggregates import Count, Mean
from streamproc.windows import session, tumbling

topic = app.topic("{source}", key_type=str, value_type=Item)
windows = (
    app.stream(topic).window(tumbling("10s", idle_timeout=None, grace="1d"))
    .aggregate(name="ten", n=Count(), mean=Mean("n"))
)
sessions = (
    app.stream(topic).window(session("5s", idle_timeout=None, grace="1d"))
    .aggregate(name="sessions", n=Count())
)
totals = app.stream(topic).aggregate(name="totals", n=Count())
"""

START = 1_700_000_000_000


def test_windows_of_a_key(counting):
    """Each of 20 keys has a record each second of a minute: six windows of ten."""
    times = [(n, START + 1000 * n) for n in range(60)]
    records = [(f"w{key:02d}", {"n": n}, time) for n, time in times for key in range(20)]
    app = counting(2, WINDOWED, records)
    for worker in app.workers:
        for key in ("w00", "w07", "w19"):
            content = ask(worker, f"/tables/ten/{key}/").json()
            assert content["key"] == key
            assert [each["start"] for each in content["windows"]] == [
                START + 10_000 * n for n in range(6)
            ]
            for n, each in enumerate(content["windows"]):
                assert each["end"] == each["start"] + 10_000
                assert each["value"] == {"n": 10, "mean": 10 * n + 4.5}
            # Windows that end after `from` and start before `to`.
            asked = urlencode({"from": START + 20_000, "to": "2023-11-14T22:13:50Z"})
            content = ask(worker, f"/tables/ten/{key}/?{asked}").json()
            assert [each["start"] - START for each in content["windows"]] == [20_000]
            (session,) = ask(worker, f"/tables/sessions/{key}/").json()["windows"]
            assert session["value"] == {"n": 60}
            assert session["start"] == START
            assert ask(worker, f"/tables/totals/{key}/").json()["value"] == {"n": 60}
        listed = entries(worker, "/tables/ten/", limit=13)
        assert [(each["key"], each["start"]) for each in listed] == [
            (f"w{key:02d}", START + 10_000 * n) for key in range(20) for n in range(6)
        ]
        listed = entries(worker, "/tables/ten/", limit=5, prefix="w0", to=START + 1)
        assert [each["key"] for each in listed] == [f"w0{n}" for n in range(10)]
        assert len(entries(worker, "/tables/sessions/")) == 20
        page = ask(worker, "/tables/ten/w07/", Accept="text/html").text
        assert "2023-11-14 22:13:20" in page
        assert ask(worker, "/tables/ten/none/").status == 404


def test_workers_that_were_frozen_or_cut_off_give_no_old_answers(
    counting, produce, wait_for, kafka
):
    """Others took its partitions meanwhile; it hears of that a moment after it wakes."""
    app = counting(2)
    first, second = app.workers
    second.pause()
    try:
        wait_for(lambda: ask(first, "/tables/counts/").json().get("complete"), 40, "it has all")
        produce(app.source, WORDS)
        twice = {key: 2 * count for key, count in COUNTS.items()}

        def counted() -> bool:
            found = ask(first, "/tables/counts/").json().get("entries", ())
            return {each["key"]: each["value"] for each in found} == twice

        wait_for(counted, 30, "the records are counted")
        early = [Early(second, key) for key in COUNTS]
        for each in early:
            each.start()
    finally:
        second.resume()
    for each in early:
        each.join(60)
    found = Counter((each.reply.status, each.reply.json().get("value")) for each in early)
    assert set(found) <= {(200, 40), (503, None)}, found

    # Without a broker that answers, nobody knows whether others have the partitions by now.
    wait_for(lambda: ask(first, "/tables/counts/").json().get("complete"), 40, "all are back")
    kafka.pause()
    try:
        wait_for(lambda: "Kafka did not answer" in ask(first, "/tables/counts/").text, 20, "503")
        for key in COUNTS:
            assert ask(first, f"/tables/counts/{key}/").status == 503
            assert ask(second, f"/tables/counts/{key}/").status == 503
    finally:
        kafka.resume()
    wait_for(lambda: ask(first, "/tables/counts/").json().get("complete"), 60, "all are back")


class Early(threading.Thread):
    """A question that waits in the socket of a worker until that wakes."""

    def __init__(self, worker: Any, key: str) -> None:
        super().__init__()
        self.worker, self.key = worker, key
        self.reply = Reply(0, {}, "{}")

    def run(self) -> None:
        self.reply = ask(self.worker, f"/tables/counts/{self.key}/")
