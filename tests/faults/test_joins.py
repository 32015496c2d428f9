"""Joins and timers of three workers that are killed at any moment, by a recomputation."""

import random
import threading
import time

from joins_app import APP, EVERYTHING, expected, records


class Feed(threading.Thread):
    """Goes on producing to both sides while workers die."""

    def __init__(self, produce, left, right):
        super().__init__(daemon=True)
        self.produce, self.topics = produce, (left, right)
        self.sides = [], []
        self._stopped = threading.Event()

    def run(self):
        sent = 0
        while not self._stopped.is_set():
            for side, topic in enumerate(self.topics):
                new = [
                    record
                    for record in records(sent, sent + 100, 0, 30 * side)
                    if record[1]["id"] % (5 - 2 * side)
                ]
                self.sides[side].extend(new)
                self.produce(topic, new)
            sent += 100
            time.sleep(0.2)

    def finish(self):
        self._stopped.set()
        self.join()


def test_workers_that_are_killed_join_exactly(
    worker, tmp_path, topic_factory, produce, consume_all, wait_for
):
    left, right = topic_factory(partitions=8), topic_factory(partitions=8)
    topic_factory(partitions=8, name=f"{left}-results")
    env = {"APP_ID": f"app-{left}", "LEFT": left, "RIGHT": right}
    dice = random.Random(1)

    def start():
        there = (tmp_path / "app_under_test.py").exists()
        return worker(None if there else APP + EVERYTHING, env=env)

    feed = Feed(produce, left, right)
    feed.start()
    workers = [start() for _ in range(3)]
    workers[0].wait_ready(60)
    for _ in range(4):
        time.sleep(dice.uniform(2.0, 6.0))
        victim = dice.randrange(3)
        workers[victim].kill()
        workers[victim] = start()
    time.sleep(2)
    feed.finish()
    want = expected(*feed.sides)

    def found():
        return {tuple(each.json()) for each in consume_all(f"{left}-results")}

    wait_for(lambda: not want - found(), 120, lambda: f"missing {len(want - found())} results")
    surplus = found() - want
    assert not surplus, sorted(map(str, surplus))[:10]
