"""The faults: each is a function that is given the run, breaks something, and mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import redis
from confluent_kafka import TopicPartition
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from faults.run import SESSION_TIMEOUT, Run
from harness import Worker

Fault = Callable[[Run], None]


# -- workers


def kill_a_worker(run: Run) -> None:
    """kill -9, and another one a little later."""
    run.end(run.any_worker(), kill=True)
    run.sleep(0.1, 2)
    run.start_worker()


def kill_all_workers(run: Run) -> None:
    """A power cut of all machines of the workers."""
    for worker in list(run.crew):
        run.end(worker, kill=True)
    for _ in range(run.plan.workers):
        run.start_worker()


def freeze_a_worker(run: Run) -> None:
    """SIGSTOP until the group has given its partitions away, then SIGCONT: a zombie."""
    worker = run.any_worker()
    worker.pause()
    run.sleep(1.5 * SESSION_TIMEOUT)
    worker.resume()
    run.sleep(1, 3)


def restart_workers_in_turn(run: Run) -> None:
    """A rolling restart, as a deployment does it."""
    for worker in list(run.crew):
        if worker in run.crew:
            run.end(worker)
            _until_ready(run, run.start_worker())


def scale_up_and_down(run: Run) -> None:
    """From one worker to five, and back."""
    while len(run.crew) > 1:
        run.end(run.any_worker())
    run.sleep(1, 2)
    for _ in range(4):
        run.start_worker()
        run.sleep(0.2, 1.5)
    run.wait_progress()
    run.sleep(2, 4)
    while len(run.crew) > run.plan.workers:
        run.end(run.any_worker())
        run.sleep(0.2, 1.5)


def _until_ready(run: Run, worker: Worker) -> None:
    run.wait(
        lambda: "Worker ready" in worker.log or worker not in run.crew,
        60,
        f"{worker.name} is ready",
    )


# -- brokers


def kill_a_broker(run: Run) -> None:
    """kill -9 of a broker, which comes back."""
    node = run.dice.choice(run.kafka.nodes)
    node.kill()
    run.sleep(2, 6)
    run.kafka.start()


def stop_a_broker(run: Run) -> None:
    """A broker is shut down in order, which comes back."""
    node = run.dice.choice(run.kafka.nodes)
    node.stop(20)
    run.sleep(1, 4)
    run.kafka.start()


def freeze_a_broker(run: Run) -> None:
    """A broker stands still for longer than the cluster waits for it."""
    node = run.dice.choice(run.kafka.nodes)
    node.pause()
    run.sleep(5, 8)
    node.resume()


def change_controller(run: Run) -> None:
    """The active controller is killed."""
    node = run.kafka.controller()
    node.kill()
    if len(run.kafka.nodes) > 1:
        run.wait(lambda: run.kafka.controller() is not node, 40, "another controller")
    run.sleep(0.5, 2)
    run.kafka.start()


def take_leaders_away(run: Run) -> None:
    """Two of three brokers are gone for 30 s: nothing has a leader or enough copies."""
    for node in run.dice.sample(run.kafka.nodes, 2):
        node.kill()
    run.sleep(30)
    run.kafka.start()


# -- networks


def cut_brokers(run: Run) -> None:
    """All connections to brokers are reset, several times."""
    for _ in range(3):
        for proxy in run.kafka.proxies:
            proxy.cut()
        run.sleep(0.2, 1)


def lose_answers_of_brokers(run: Run) -> None:
    """Brokers do what they are asked, and the answers are lost."""
    for _ in range(4):
        run.dice.choice(run.kafka.proxies).lose_answers(run.dice.randint(1, 3))
        run.sleep(0.5, 1.5)


def separate_a_worker(run: Run) -> None:
    """One worker can't reach the brokers for longer than the group waits for it."""
    _cut_off(run, [run.any_worker().pid], 1.5 * SESSION_TIMEOUT)


def separate_workers(run: Run) -> None:
    """No worker reaches the brokers for some seconds."""
    _cut_off(run, [], run.dice.uniform(2, 8))


def _cut_off(run: Run, pids: list[int], seconds: float) -> None:
    refuse = run.dice.random() < 0.5
    for proxy in run.kafka.proxies:
        (proxy.refuse if refuse else proxy.freeze)(pids)
    run.sleep(seconds)
    for proxy in run.kafka.proxies:
        proxy.heal()


def slow_brokers(run: Run) -> None:
    """Each message to and from brokers takes 0.2 s longer."""
    for proxy in run.kafka.proxies:
        proxy.latency = 0.2
    run.sleep(4, 6)
    for proxy in run.kafka.proxies:
        proxy.heal()


def cut_redis(run: Run) -> None:
    """All connections to Redis are reset, several times."""
    for _ in range(4):
        run.servers.redis_proxy.cut()
        run.sleep(0.1, 0.7)


def lose_answers_of_redis(run: Run) -> None:
    """Redis does what it is asked, and the answers are lost."""
    for _ in range(4):
        run.servers.redis_proxy.lose_answers(run.dice.randint(1, 4))
        run.sleep(0.3, 1)


def separate_redis(run: Run) -> None:
    """A worker, or all of them, can't reach Redis for a while."""
    proxy = run.servers.redis_proxy
    pids = [run.any_worker().pid] if run.dice.random() < 0.5 else []
    (proxy.refuse if run.dice.random() < 0.5 else proxy.freeze)(pids)
    run.sleep(2, 8)
    proxy.heal()


def slow_redis(run: Run) -> None:
    """A slow sink: each message to and from Redis takes 0.3 s longer."""
    run.servers.redis_proxy.latency = 0.3
    run.sleep(4, 6)
    run.servers.redis_proxy.heal()


# -- Redis


def kill_redis(run: Run) -> None:
    """Redis is killed and comes back with all that it had acknowledged."""
    run.redis.kill()
    run.sleep(0.5, 4)
    run.redis.start()


def kill_redis_and_a_worker(run: Run) -> None:
    """Both at once."""
    run.redis.kill()
    run.end(run.any_worker(), kill=True)
    run.start_worker()
    run.sleep(0.5, 3)
    run.redis.start()


def empty_redis(run: Run) -> None:
    """Redis loses all that it had."""
    run.redis_lost = True
    with redis.Redis(port=run.redis.port) as client:
        client.flushall()
    _go_on_without_results(run)


def set_redis_back(run: Run) -> None:
    """Redis comes back from an older snapshot."""
    run.redis_lost = True
    data, old = run.redis.data_dir, run.folder / "older"
    run.redis.stop()
    shutil.copytree(data, old)
    run.redis.start()
    run.sleep(3, 5)
    run.redis.kill()
    shutil.rmtree(data)
    old.rename(data)
    run.redis.start()
    _go_on_without_results(run)


def _go_on_without_results(run: Run) -> None:
    if run.plan.guarantee != "at_least_once":
        # Tables would count again what is missing in Redis, so the workers stop and say so.
        run.wait(
            lambda: any("fewer results than the group has offsets" in stop for stop in run.stops),
            60,
            "a worker stops since Redis has forgotten results",
        )
        run.env["WHEN_SINK_BEHIND"] = "continue"


# -- disks and changelogs


def corrupt_stores(run: Run) -> None:
    """Bytes of the stores of a worker that was killed are overwritten."""
    run.end(run.any_worker(), kill=True)
    files = [path for path in _idle_files(run) if path.stat().st_size and path.name != "LOCK"]
    for path in run.dice.sample(files, min(len(files), 12)):
        data = bytearray(path.read_bytes())
        for _ in range(20):
            data[run.dice.randrange(len(data))] ^= 0xFF
        path.write_bytes(data[: run.dice.choice([len(data), len(data) // 2])])
    run.start_worker()


def delete_stores(run: Run) -> None:
    """The data folder of a worker that was killed is gone."""
    run.end(run.any_worker(), kill=True)
    for path in _idle_files(run):
        path.unlink(missing_ok=True)
    run.start_worker()


def delete_stores_in_use(run: Run) -> None:
    """The data folder is deleted under the workers that use it; then they are killed."""
    shutil.rmtree(run.tables, ignore_errors=True)
    run.sleep(2, 4)
    kill_all_workers(run)


def _idle_files(run: Run) -> list[Path]:
    """Return the files of instance folders that no worker holds."""
    held = set()
    for worker in run.crew:
        for entry in Path(f"/proc/{worker.pid}/fd").iterdir():
            try:
                target = entry.readlink()
            except OSError:
                continue
            if target.is_relative_to(run.tables):
                held.add(target.relative_to(run.tables).parts[0])
    return [
        path
        for path in sorted(run.tables.rglob("*"))
        if path.is_file() and path.relative_to(run.tables).parts[0] not in held
    ]


def fill_disk(run: Run) -> None:
    """The disk with the data folder is full for a while; the plan needs ``disk``."""
    filler = run.tables / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass
    run.sleep(6, 9)
    filler.unlink()


def changelogs(run: Run) -> list[str]:
    """Return the names of the app's changelog topics."""
    topics = AdminClient({"bootstrap.servers": run.kafka.bootstrap}).list_topics(timeout=10).topics
    return [name for name in topics if name.startswith(run.app_id) and "changelog" in name]


def shorten_changelog(run: Run) -> None:
    """The older half of the changelogs is deleted, and with it a worker's folder."""
    admin = AdminClient({"bootstrap.servers": run.kafka.bootstrap})
    parts = []
    may_delete = ConfigEntry(
        "cleanup.policy", "compact,delete", incremental_operation=AlterConfigOpType.SET
    )
    for name in changelogs(run):
        resource = ConfigResource(ResourceType.TOPIC, name, incremental_configs=[may_delete])
        for future in admin.incremental_alter_configs([resource]).values():
            future.result(30)
        ends = {r.partition: r.offset + 1 for r in run.client.consume_all(name)}
        parts += [TopicPartition(name, p, end // 2) for p, end in ends.items()]
    for future in admin.delete_records(parts).values():
        future.result(30)
    delete_stores(run)
    _wait_for_refusal(run, "they were deleted")
    for worker in list(run.crew):
        run.end(worker, kill=True)
    run.client.delete_topics(*changelogs(run))
    _build_tables_again(run)


def delete_changelog(run: Run) -> None:
    """The changelogs are deleted while nobody runs: workers refuse to go on with half a table."""
    for worker in list(run.crew):
        run.end(worker)
    run.client.delete_topics(*changelogs(run))
    for _ in range(run.plan.workers):
        run.start_worker()
    _wait_for_refusal(run, "it was deleted, truncated")
    for worker in list(run.crew):
        run.end(worker, kill=True)
    _build_tables_again(run)


def _wait_for_refusal(run: Run, text: str) -> None:
    run.wait(
        lambda: any(text in stop for stop in run.stops),
        60,
        "a worker stops since a table is lost",
    )


def _build_tables_again(run: Run) -> None:
    """Do what the error says, all being stopped: reset the group's offsets to the earliest."""
    run.rebuilt = True
    run.client.reset_offsets(run.app_id, run.topic)
    for _ in range(run.plan.workers):
        run.start_worker()


# -- clocks, records, user code


def jump_clock(run: Run) -> None:
    """The clocks of all workers go forward by a day, back by two, and right again."""
    for seconds in (86_400, -172_800):
        mend = run.flag("clock", str(seconds))
        run.sleep(2, 3)
        if run.dice.random() < 0.5:
            kill_a_worker(run)
        mend()
    run.sleep(1)


def send_poison(run: Run) -> None:
    """Records that don't decode and records at which the app always raises."""
    run.feed.poison += 20
    run.wait(lambda: run.feed.poison == 0, 30, "poison is sent")


def send_burst(run: Run) -> None:
    """20 times as many records for three seconds."""
    rate, run.feed.rate = run.feed.rate, run.feed.rate * 20
    run.sleep(3)
    run.feed.rate = rate


def raise_in_user_code(run: Run) -> None:
    """Some records fail the first time, after they have left traces."""
    mend = run.flag("raise")
    run.sleep(3, 5)
    mend()


def hang_in_user_code(run: Run) -> None:
    """User code awaits something that doesn't come, and a worker is killed meanwhile."""
    mend = run.flag("hang")
    run.sleep(4)
    kill_a_worker(run)
    run.sleep(SESSION_TIMEOUT)
    mend()


def block_in_user_code(run: Run) -> None:
    """User code keeps the event loop for longer than the session time-out."""
    mend = run.flag("block")
    run.sleep(1.5 * SESSION_TIMEOUT)
    mend()


WORKERS = [
    kill_a_worker,
    kill_all_workers,
    freeze_a_worker,
    restart_workers_in_turn,
    scale_up_and_down,
]
BROKERS = [kill_a_broker, stop_a_broker, freeze_a_broker, change_controller]
NETWORK = [
    cut_brokers,
    lose_answers_of_brokers,
    separate_a_worker,
    separate_workers,
    slow_brokers,
    cut_redis,
    lose_answers_of_redis,
    separate_redis,
    slow_redis,
]
REDIS = [kill_redis, kill_redis_and_a_worker]
DISKS = [corrupt_stores, delete_stores, delete_stores_in_use]
CODE = [
    jump_clock,
    send_poison,
    send_burst,
    raise_in_user_code,
    hang_in_user_code,
    block_in_user_code,
]
#: What may come at any time, in any order, with any number of brokers.
ANY = [*WORKERS, *BROKERS, *NETWORK, *REDIS, *DISKS, *CODE]
#: What loses something for good, so that workers stop or less is promised: as the last fault.
LOSSES = [empty_redis, set_redis_back, shorten_changelog, delete_changelog]
