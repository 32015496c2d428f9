"""Pages about tables, and routed requests: right from any worker, or 503."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
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

    def start(workers: int, source_text: str = COUNTING, records: Any = WORDS) -> Any:
        source = topic_factory(partitions=4)
        produce(source, records)
        app = faust_app(source_text.replace("{source}", source), settings=SETTINGS, start=False)
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
