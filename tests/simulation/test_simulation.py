"""A short form of the simulation; ``python -m tests.simulation`` has the long one."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def simulate(*arguments):
    """Run it in a process of its own, in which sets have the same order each time."""
    result = subprocess.run(
        [sys.executable, "-m", "tests.simulation", "--jobs", "1", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_random_seeds():
    simulate("--seconds", "15")


def test_a_crash_at_random_steps():
    simulate("--crashes", "--seconds", "16")


def test_what_has_failed_once():
    simulate("--past")


def test_a_seed_is_one_run():
    first, second = (
        simulate("--first", "1", "--seeds", "12", "--digests").splitlines()[:-1] for _ in range(2)
    )
    assert len(first) == 24
    assert first == second
