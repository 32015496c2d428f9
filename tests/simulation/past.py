"""What has failed once: seed, guarantee, and the point of the crash if it was the only fault.

A change of the simulation changes what a seed does; they are kept as more to run.
"""

PAST: list[tuple[int, str, int | None]] = [
    (14, "exactly_once", None),  # the answer to the end of a transaction was lost
    (55, "exactly_once", None),
    (79, "exactly_once", None),
    (72, "at_least_once", None),  # a zombie wrote changelogs that its successor had read
    (3022, "at_least_once", None),  # a rebalance while the worker went back to its checkpoint
    (3017, "exactly_once", None),
    (3019, "exactly_once", None),
    (4020, "exactly_once", None),  # a checkpoint between an assignment and its claims
    (4031, "at_least_once", None),
    (5090, "at_least_once", None),  # two checkpoints at once
    (6025, "at_least_once", None),
    (7023, "at_least_once", None),  # a rebalance while the worker stopped
    (60388, "exactly_once", None),  # a recovery whose transaction was aborted, again and again
    (317305801, "exactly_once", None),  # a zombie of partitions that had no committed offset
    (600001420, "exactly_once", None),
]
