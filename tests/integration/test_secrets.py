"""Secrets show in no log, dead letter, page or traceback, however a worker is broken."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import redis

REDIS_PASSWORD = "r3dis-geheim/4711"
BROKER_PASSWORD = "br0ker-geheim-4712"
API_TOKEN = "t0ken-geheim-4713"

SECRETS = ("geheim", "4711", "4712", "4713")

AGENT = """
import logging
import os

import redis
from streamproc import app
from streamproc.sinks import RedisSet

source = app.topic(os.environ["SOURCE"], value_type=dict)
log = logging.getLogger("agents.leaky")
URL = app.redis_url
results = RedisSet("results")


@app.agent(source)
async def leak(stream):
    async for value in stream:
        if value["do"] == "raise":
            try:
                raise KeyError(f"password={value['word']!r} for {URL}")
            except KeyError as exc:
                raise ValueError(f"No {URL}, no {os.environ['STREAMPROC_REDIS_PASSWORD']}") from exc
        if value["do"] == "log":
            print("printed", URL, app.conf.broker_credentials)
            log.error("logged %s %r", URL, {"password": os.environ["STREAMPROC_REDIS_PASSWORD"]})
            log.warning("settings %s %r", app.settings, app.settings.broker_security)
            try:
                redis.Redis.from_url(URL + "&password=x").ping()
                raise RuntimeError(URL)
            except Exception:
                log.exception("failed for %s", URL)
            log.warning("Authorization: Bearer %s", os.environ["API_TOKEN"])
        await results.write([value["do"]])
        log.warning("done %s", value["do"])


@app.page("/broken/")
async def broken(self, request):
    raise RuntimeError(URL)


@app.task
async def crash_later():
    if os.environ.get("CRASH"):
        raise RuntimeError(f"crash of {URL}")
"""


def text_of(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return str(page.read(), "utf-8")
    except urllib.error.HTTPError as error:
        return str(error.read(), "utf-8")


def assert_clean(*texts: str) -> None:
    for text in texts:
        for line in text.splitlines():
            assert not any(secret in line for secret in SECRETS), line


def test_a_worker_that_is_broken_in_many_ways(
    worker: harness.WorkerLauncher,
    topic: str,
    produce: Any,
    consume_all: Callable[..., list[harness.Received]],
    new_redis: Callable[..., Any],
    tmp_path: Path,
    wait_for: Any,
) -> None:
    server = new_redis(password=REDIS_PASSWORD)
    folder = tmp_path / "project"
    (folder / "agents").mkdir(parents=True)
    (folder / "agents" / "__init__.py").touch()
    (folder / "agents" / "leaky.py").write_text(AGENT)
    env = {
        "STREAMPROC_NAME": f"leaky-{topic}",
        "STREAMPROC_BROKER_LIST": worker._env["BOOTSTRAP"],
        "STREAMPROC_REDIS": f"redis://127.0.0.1:{server.port}/0?client_name=leaky",
        "STREAMPROC_REDIS_PASSWORD": REDIS_PASSWORD,
        "STREAMPROC_ERROR_HANDLING__RETRIES": "0",
        "SOURCE": topic,
        "API_TOKEN": API_TOKEN,
    }
    # In debug mode aiohttp's own page of an error would have its traceback.
    debug = {**env, "PYTHONASYNCIODEBUG": "1"}
    running = worker(module="streamproc", cwd=folder, env=debug, web=True, ready=True)
    produce(topic, [{"do": "log"}, {"do": "raise", "word": REDIS_PASSWORD}], partition=0)
    running.wait_log("done log")
    letters = consume_all(f"leaky-{topic}-dead-letters", at_least=1)
    headers = {name: value.decode() for name, value in letters[0].headers}
    assert "ValueError: No redis://:******@127.0.0.1" in headers["dead-letter-traceback"]
    assert_clean(*headers.values())  # the record itself stays as it came

    with redis.Redis.from_url(server.url) as admin:
        admin.config_set("requirepass", "an0ther-geheim")
        admin.client_kill_filter(_type="normal", skipme=True)
    produce(topic, [{"do": "fail"}], partition=0)
    running.wait_log("refused the login")
    pages = [text_of(f"{running.web_url}{page}") for page in ("/", "/live", "/ready", "/broken/")]
    assert "its log says how" in pages[-1]

    apart = {**env, "STREAMPROC_NAME": f"refused-{topic}"}
    refused = worker(module="streamproc", cwd=folder, env=apart)
    crashed = worker(module="streamproc", cwd=folder, env={**env, "CRASH": "1"})
    (tmp_path / "login.py").write_text(
        "import os, streamproc\n"
        f"broker = 'kafka://alice:{BROKER_PASSWORD}@' + os.environ['BOOTSTRAP']\n"
        "app = streamproc.App('login', broker=broker, store='memory://')\n"
        "@app.agent(app.topic('t'))\n"
        "async def read(stream):\n    pass\n"
    )
    unwanted = worker(module="login", args=["-l", "debug"])
    (tmp_path / "broken.py").write_text(
        f"import streamproc\napp = streamproc.App('x', redis='redis://:{API_TOKEN}@h/0')\n"
        "raise OSError(app.redis_url)\n"
    )
    broken = worker(module="broken")
    assert unwanted.wait_end() != 0
    assert "takes no logins at this listener" in unwanted.log
    assert broken.wait_end() != 0
    assert "redis://:******@h/0" in broken.log
    assert crashed.wait_end() != 0
    assert "crash of redis://:******@" in crashed.log
    refused.wait_log("refused the login")
    logs = [each.log for each in (running, refused, crashed, unwanted, broken)]
    assert "Traceback" in logs[0]
    assert_clean(*pages, *logs)
