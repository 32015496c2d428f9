"""A new project runs: by `streamproc dev`, and by a worker on servers of one's own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

READING = {"sensor_id": "s1", "value": 21.5, "at": "2026-03-02T00:00:00Z"}


def streamproc(*arguments: str, cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "streamproc", *arguments],
        cwd=cwd,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    done = streamproc("init", "shop", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return tmp_path / "shop"


def test_dev_runs_through_the_sample(project: Path) -> None:
    done = streamproc("dev", "--once", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "400 records sent, 400 processed by 1 worker, 2 dead letters" in done.stdout
    assert "latest:* (8 × hash)" in done.stdout
    assert streamproc("dev", "--clean", cwd=project).returncode == 0
    assert not (project / ".streamproc").exists()


def test_a_worker_on_servers_of_ones_own(
    project: Path,
    worker: Any,
    bootstrap: str,
    redis_url: str,
    redis_client: Any,
    topic: str,
    wait_for: Any,
) -> None:
    (project / ".env").write_text(f"STREAMPROC_BROKER_LIST={bootstrap}\nSTREAMPROC_TOPIC={topic}\n")
    config = (project / "config.yaml").read_text()
    (project / "config.yaml").write_text(config.replace("redis://127.0.0.1:6379/0", redis_url))
    done = streamproc(
        "replay", "sample_data.csv", "--topic", topic, "--key", "sensor_id", cwd=project
    )
    assert done.returncode == 0, done.stderr
    assert "400 records" in done.stdout
    running = worker(module="streamproc", cwd=project, ready=True)
    # The last reading of the sample of each of two sensors.
    wait_for(lambda: redis_client.hget("latest:sensor-1", "value") == "19.3")
    wait_for(lambda: redis_client.hget("latest:sensor-4", "value") == "25.29")
    assert running.stop() == 0
    assert f"| datadir     | {running.data_dir}" in running.log, "faust --datadir wins"


def test_the_app_has_the_settings(project: Path) -> None:
    (project / "agents" / "more.py").write_text(
        textwrap.dedent(
            """
            from streamproc import app
            from streamproc.project import current_app

            assert current_app() is app
            """
        )
    )
    look = (
        "import json; from streamproc import app; from streamproc.project import current_project;"
        "print(json.dumps([app.conf.id, str(app.conf.broker[0]), app.batch_size, app.max_retries,"
        "  app.conf.broker_session_timeout, app.conf.web_port, sorted(app.agents),"
        "  str(app.conf.datadir), current_project().settings.topic]))"
    )
    environ = {"STREAMPROC_BATCH_SIZE": "7", "STREAMPROC_SESSION_TIMEOUT": "6"}
    environ |= {"STREAMPROC_ERROR_HANDLING__RETRIES": "0", "STREAMPROC_WEB_PORT": "6100"}
    environ |= {"STREAMPROC_PROJECT": str(project)}
    done = subprocess.run(
        [sys.executable, "-c", look],
        cwd=project.parent,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        *("shop", "kafka://127.0.0.1:9092", 7, 0, 6.0, 6100),
        *(["agents.latest.keep_latest"], str(project / "shop-data"), "readings"),
    ]


def test_a_worker_in_no_project_says_so(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "faust", "-A", "streamproc", "worker"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "streamproc init NAME" in done.stderr
    assert "Traceback" not in done.stderr
