"""The short form of the suite of faults: what each mode promises, while all kinds of things break.

Fixed seeds; the long form, with seeds by chance, is ``make faults``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from faults import faults
from faults.run import Plan, Servers, assert_held, play

pytestmark = pytest.mark.apache_only


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """One broker and Redis, both behind proxies."""
    there = Servers(tmp_path_factory.mktemp("servers"))
    try:
        yield there.start()
    finally:
        there.stop()


@pytest.fixture
def hold(children: list[Any]) -> Callable[..., Any]:
    """``hold(servers, plan, schedule)`` fails when a promise of the mode is broken."""

    def check(servers: Servers, plan: Plan, schedule: list[faults.Fault]) -> None:
        run, figures = play(servers, plan, schedule, children)
        assert_held(run, figures)

    return check


@pytest.mark.parametrize(
    ("guarantee", "mode"), [("at_least_once", "batches"), ("exactly_once", "records")]
)
def test_workers_that_end_and_freeze(servers, hold, guarantee, mode):
    hold(
        servers,
        Plan(guarantee, mode, seed=1),
        [
            faults.kill_a_worker,
            faults.freeze_a_worker,
            faults.scale_up_and_down,
            *([faults.restart_workers_in_turn] if guarantee == "exactly_once" else []),
        ],
    )


@pytest.mark.parametrize(
    ("guarantee", "mode"), [("exact_redis", "records"), ("exactly_once", "flow")]
)
def test_networks_brokers_and_redis(servers, hold, guarantee, mode):
    hold(
        servers,
        Plan(guarantee, mode, seed=2),
        [
            faults.lose_answers_of_brokers,
            faults.separate_a_worker,
            faults.cut_redis,
            faults.lose_answers_of_redis,
            faults.cut_brokers,
            faults.kill_a_broker,
            # After the broker: one that restarts leaves open what a dead worker had begun.
            faults.kill_redis_and_a_worker,
        ],
    )


def test_three_brokers(tmp_path, hold):
    servers = Servers(tmp_path / "servers", brokers=3)
    try:
        hold(
            servers.start(),
            Plan("exactly_once", "batches", seed=3, rate=300),
            [faults.change_controller, faults.freeze_a_broker],
        )
    finally:
        servers.stop()


def test_disks_and_changelogs(servers, hold):
    hold(
        servers,
        Plan("exactly_once", "batches", seed=4, rate=300),
        [
            faults.corrupt_stores,
            faults.delete_stores_in_use,
            faults.delete_changelog,
        ],
    )


def test_a_full_disk(servers, hold):
    try:
        hold(servers, Plan("exactly_once", "records", seed=5, disk=64), [faults.fill_disk])
    except PermissionError as exc:
        pytest.skip(str(exc))


@pytest.mark.parametrize(
    ("guarantee", "mode"), [("at_least_once", "flow"), ("exactly_once", "batches")]
)
def test_clocks_records_and_user_code(servers, hold, guarantee, mode):
    hold(
        servers,
        Plan(guarantee, mode, seed=6),
        [
            faults.send_poison,
            faults.raise_in_user_code,
            faults.jump_clock,
            faults.send_burst,
            faults.block_in_user_code,
        ],
    )
