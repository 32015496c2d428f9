"""`streamproc dev` on a small project: once, until Ctrl-C, and when something is wrong."""

from __future__ import annotations

import os
import re
import signal
import sys
import textwrap
from pathlib import Path

import pytest

from streamproc.dev.demo import clean
from streamproc.dev.process import ChildProcess

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found by /proc")

PROJECT = """
import os, faust, redis
app = faust.App("small", broker=os.environ["STREAMPROC_BROKER_LIST"], topic_disable_leader=True,
                broker_session_timeout=6.0, broker_heartbeat_interval=1.0)
store = redis.Redis.from_url(os.environ["STREAMPROC_REDIS"])
readings = app.topic("readings")
positive = app.topic("positive")

@app.agent(readings)
async def check(stream):
    async for reading in stream:
        if reading["value"] > 0:
            await positive.send(value=reading)
            store.hincrby("seen:" + reading["id"], "count")
        if reading["value"] == 666:
            os._exit(3)
"""

RUN = """
import sys
from pathlib import Path
from streamproc.dev.demo import DevOptions, Sample, run_dev
from streamproc.errors import StreamprocError

sample = Sample(Path("sample.csv"), "readings", key="id")
options = DevOptions(app="small", sample=sample, once="--once" in sys.argv, kafka=sys.argv[1],
                     redis=sys.argv[2], rate=0 if "--once" in sys.argv else 100)
try:
    sys.exit(run_dev(options))
except StreamprocError as exc:
    sys.exit(str(exc))
"""


@pytest.fixture
def project(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "small.py").write_text(textwrap.dedent(PROJECT))
    (folder / "run.py").write_text(RUN)
    rows = "".join(f"s{i % 3},{i % 100}\n" for i in range(300))
    (folder / "sample.csv").write_text("id,value\n" + rows)
    return folder


@pytest.fixture
def dev(project, children, tmp_path, kafka):
    kind = "apache" if kafka.durable else "embedded"

    def start(*args, kafka=kind, redis="embedded"):
        child = ChildProcess("dev", tmp_path)
        children.append(child)
        child.spawn([sys.executable, "run.py", kafka, redis, *args], cwd=project)
        return child

    return start


def still_running(folder: Path) -> list[int]:
    """Return the processes that work in a folder (dead ones that wait for a parent don't)."""
    found = []
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            working_folder = os.readlink(link)
        except OSError:
            continue
        if Path(working_folder).is_relative_to(folder):
            found.append(int(link.parent.name))
    return found


def test_a_single_run_processes_everything_and_ends(dev, project, wait_for):
    run = dev("--once")
    wait_for(lambda: not run.running, 90, run.log_tail)
    text = run.log_tail(100)
    assert run.exit_code == 0, text
    assert "300 records sent, 300 processed by 1 worker, 0 dead letters" in text
    assert re.search(r"processed 300 .*lag 0  positive 297", text)
    assert re.search(r"Redis  seen:\* \(3 × hash\)", text)
    assert sum(map(int, re.findall(r"^s\d +(\d+)", text, re.M))) == 297
    address = r"127\.0\.0\.1:\d+"
    assert re.search(rf"^worker-1  http://{address}$", text, re.M)
    (kafka,) = re.findall(rf"^kafka://{address}$", text, re.M)
    (redis,) = re.findall(rf"^redis://{address}/0$", text, re.M)
    own = f"STREAMPROC_BROKER_LIST={kafka} STREAMPROC_REDIS={redis}"
    assert f"For commands in another terminal: export {own}\n" in text
    assert still_running(project) == []


def test_ctrl_c_ends_everything(dev, project, wait_for):
    run = dev()
    wait_for(lambda: re.search(r"processed [1-9]", run.log_tail()), 60, run.log_tail)
    # The run itself, Kafka, Redis and a worker.
    assert len(still_running(project)) >= 4
    run.send_signal(signal.SIGINT)
    wait_for(lambda: not run.running, 40, run.log_tail)
    assert run.exit_code == 0
    assert still_running(project) == []


def test_one_run_a_folder_and_clean_afterwards(dev, project, wait_for):
    first = dev()
    wait_for(lambda: "lag" in first.log_tail(), 60, first.log_tail)
    second = dev()
    wait_for(lambda: not second.running, 20, second.log_tail)
    assert second.exit_code == 1
    assert f"already runs in {project} (process {first.pid})" in second.log_tail()
    first.kill()
    wait_for(lambda: still_running(project) == [], 10, "servers end with their owner")
    assert (project / ".streamproc").is_dir()
    clean(project)
    assert not (project / ".streamproc").exists()


def test_a_worker_that_ends_fails_the_run_and_shows_its_log(dev, project, wait_for):
    with (project / "sample.csv").open("a") as file:
        file.write("s1,666\n")
    run = dev("--once")
    wait_for(lambda: not run.running, 90, run.log_tail)
    assert run.exit_code == 1
    assert re.search(
        r"worker-1 ended with exit code 3\. Its log .*worker-1\.log ends with:", (run.log_tail(100))
    )
    assert still_running(project) == []


def test_a_project_that_does_not_load_shows_why(dev, project, wait_for):
    (project / "small.py").write_text("import missing_module")
    run = dev("--once")
    wait_for(lambda: not run.running, 30, run.log_tail)
    assert run.exit_code == 1
    assert "No module named 'missing_module'" in run.log_tail()
    assert still_running(project) == []


def test_servers_that_run_already_are_used_by_their_urls(
    dev, project, kafka, redis_url, redis_client, wait_for
):
    run = dev("--once", kafka=kafka.url, redis=redis_url)
    wait_for(lambda: not run.running, 90, run.log_tail)
    assert run.exit_code == 0
    assert sum(int(redis_client.hget(f"seen:s{n}", "count")) for n in range(3)) == 297
    assert not list(project.glob(".streamproc/*/redis*"))
    assert "another terminal" not in run.log_tail(100)


@pytest.mark.parametrize(
    ("servers", "message"),
    [
        ({"kafka": "kafka://127.0.0.1:1"}, "No Kafka broker answers at 127.0.0.1:1."),
        ({"redis": "redis://127.0.0.1:1/0"}, "Redis can't be used: Error 111 connecting to"),
    ],
)
def test_servers_that_are_not_there_are_named(dev, wait_for, servers, message):
    run = dev("--once", **servers)
    wait_for(lambda: not run.running, 30, run.log_tail)
    assert run.exit_code == 1
    assert message in run.log_tail()
