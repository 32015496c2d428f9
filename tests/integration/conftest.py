"""Faust apps written in a test, which report what they saw as lines of a file."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import pytest

PRELUDE = """
import asyncio, json, os, sys
import streamproc as faust

app = faust.App(
    os.environ["APP_ID"],
    broker="kafka://" + os.environ["BOOTSTRAP"],
    broker_session_timeout=6.0,
    broker_heartbeat_interval=1.0,
    {settings}
)
_results = open(os.environ["RESULTS"], "a", buffering=1)

def out(kind, *what):
    _results.write(json.dumps([kind, *what]) + "\\n")

class Item(faust.Record):
    n: int
    name: str = ""
"""


class FaustApp:
    """An app under test: its workers and the lines that it wrote with ``out(kind, ...)``."""

    def __init__(self, launcher: harness.WorkerLauncher, folder: Path, source: str, settings: str):
        self.id = f"app-{uuid.uuid4().hex[:8]}"
        self.folder = folder
        self.path = folder / f"{self.id}.results"
        self.path.touch()
        self.env = {"APP_ID": self.id, "RESULTS": str(self.path)}
        self._launcher = launcher
        self.module = "m" + self.id.replace("-", "_")
        prelude = PRELUDE.replace("{settings}", settings)
        (folder / f"{self.module}.py").write_text(prelude + source)

    def start(self, **options: Any) -> harness.Worker:
        """Start a worker; again for another one."""
        env = {**self.env, **options.pop("env", {})}
        return self._launcher(None, module=self.module, env=env, **options)

    def lines(self, kind: str) -> list[list[Any]]:
        """What was written with ``out(kind, ...)`` so far."""
        lines = self.path.read_text().split("\n")[:-1]
        return [row[1:] for row in map(json.loads, lines) if row[0] == kind]

    def values(self, kind: str) -> list[Any]:
        """The first thing of each line of ``kind``."""
        return [row[0] for row in self.lines(kind)]

    def wait(self, kind: str, count: int = 1, timeout: float = 40.0) -> list[list[Any]]:
        """Wait for ``count`` lines of ``kind``."""
        harness.wait_for(
            lambda: len(self.lines(kind)) >= count,
            timeout,
            lambda: f"{count} lines of {kind!r}, there are {self.lines(kind)}",
        )
        return self.lines(kind)

    def wait_committed(
        self, client: harness.KafkaClient, topic: str, count: int, timeout: float = 30.0
    ) -> None:
        """Wait until the committed offsets of a topic add up to ``count``."""
        harness.wait_for(
            lambda: client.total_committed(self.id, topic) == count,
            timeout,
            lambda: f"{count} of {topic} committed, there are {client.committed(self.id, topic)}",
        )


@pytest.fixture
def faust_app(worker: harness.WorkerLauncher, tmp_path: Path) -> Callable[..., FaustApp]:
    """``faust_app(source, settings="", start=True)``: an app of ``PRELUDE`` + ``source``."""

    def create(source: str, settings: str = "", start: bool = True) -> FaustApp:
        app = FaustApp(worker, tmp_path, source, settings)
        if start:
            app.start()
        return app

    return create
