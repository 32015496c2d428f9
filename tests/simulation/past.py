"""What has failed once.

A change of the simulation changes what a seed does; they are kept as more to run.
"""

from __future__ import annotations

from tests.simulation.cases import Case

PAST = [
    Case(14, "exactly_once"),  # the answer to the end of a transaction was lost
    Case(55, "exactly_once"),
    Case(79, "exactly_once"),
    Case(72, "at_least_once"),  # a zombie wrote changelogs that its successor had read
    Case(3022, "at_least_once"),  # a rebalance while the worker went back to its checkpoint
    Case(3017, "exactly_once"),
    Case(3019, "exactly_once"),
    Case(4020, "exactly_once"),  # a checkpoint between an assignment and its claims
    Case(4031, "at_least_once"),
    Case(5090, "at_least_once"),  # two checkpoints at once
    Case(6025, "at_least_once"),
    Case(7023, "at_least_once"),  # a rebalance while the worker stopped
    Case(60388, "exactly_once"),  # a recovery whose transaction was aborted, again and again
    Case(317305801, "exactly_once"),  # a zombie of partitions that had no committed offset
    Case(600001420, "exactly_once"),
    Case(138, "at_least_once", "windows", "zombie"),  # ... that had the committed offset 0
    Case(155, "at_least_once"),  # a crash between two tries at a record
    Case(300, "at_least_once"),
    Case(3092, "exactly_once"),  # a store with what a refused transaction had of its changelog
]
