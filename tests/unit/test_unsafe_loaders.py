"""Nothing that runs what is in data: by ruff's rules about security, for all that users run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: pickle and its like, marshal, eval, exec, unsafe YAML; certificates that nobody checks;
#: passwords in the code.
RULES = "S102,S301,S302,S307,S323,S501,S506,S105,S106,S107"
#: What is allowed, each with its reason in the code.
ALLOWED = {"streamproc/aggregates/program.py", "streamproc/records/fields.py"}


def test_nothing_runs_what_is_in_data() -> None:
    pytest.importorskip("ruff")
    command = [sys.executable, "-m", "ruff", "check", "--isolated", "--ignore-noqa"]
    done = subprocess.run(
        [*command, "--select", RULES, "--output-format", "concise", "streamproc", "PyDataStream"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    found = {line.split(":")[0] for line in done.stdout.splitlines() if ": S" in line}
    assert found == ALLOWED, done.stdout + done.stderr
