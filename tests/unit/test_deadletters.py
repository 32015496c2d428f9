"""Letters of records that don't decode: when they are sent, and that none is sent twice."""

from types import SimpleNamespace

import pytest
from faust.types import TP

from streamproc.errors import SinkError
from streamproc.kafka.fetch import RawBatch
from streamproc.kafka.progress import Progress
from streamproc.streams.deadletters import DeadLetters

TP0 = TP("readings", 0)


class App:
    """What dead letters need of an App."""

    conf = SimpleNamespace(id="app", version=1)
    consumer_generation_id = 1

    def __init__(self, exactly_once):
        self.exactly_once = exactly_once
        self.sent = []

    def topic(self, *args, **options):
        return self

    async def maybe_declare(self):
        pass

    async def maybe_start_producer(self):
        return self

    async def send(self, topic, key, value, partition, timestamp, headers):
        self.sent.append(value)


def delivery_of(offsets):
    columns = [[b"%d" % offset for offset in offsets] for _ in range(2)]
    progress = Progress(TP0, reader="agent")
    times = [0] * len(offsets)
    progress.add(RawBatch(*TP0, offsets, times, *columns, None, offsets[-1] + 1, 100, 0, 10))
    return progress.take(100)


async def reject(letters, offsets):
    delivery = delivery_of(offsets)
    for row in range(len(offsets)):
        await letters.send_undecoded(delivery, row, "value", ValueError("bad"))


async def test_letters_are_sent_at_once_and_once():
    app = App(exactly_once=False)
    letters = DeadLetters(app, "letters")
    await reject(letters, [3, 7])
    await reject(letters, [3, 7])
    assert app.sent == [b"3", b"7"]


async def test_with_exactly_once_letters_go_with_the_offsets_behind_them():
    app = App(exactly_once=True)
    letters = DeadLetters(app, "letters")
    await reject(letters, [3, 7])
    await letters.send_held({TP0: 3})
    assert app.sent == []
    await letters.send_held({TP0: 7})
    assert app.sent == [b"3"]
    await letters.send_held({TP0: 8})
    await letters.send_held({TP0: 9})
    assert app.sent == [b"3", b"7"]


async def test_letters_that_came_to_nothing_are_sent_when_the_records_come_again():
    app = App(exactly_once=True)
    letters = DeadLetters(app, "letters")
    await reject(letters, [3, 7])
    letters.forget()  # the transaction was aborted
    await reject(letters, [3, 7])
    await letters.send_held({TP0: 8})
    assert app.sent == [b"3", b"7"]
    app.consumer_generation_id = 2  # a rebalance
    await reject(letters, [7])
    await letters.send_held({TP0: 8})
    assert app.sent == [b"3", b"7", b"7"]


async def test_letters_of_partitions_that_were_given_away_are_left_to_others():
    app = App(exactly_once=True)
    letters = DeadLetters(app, "letters")
    await reject(letters, [3])
    app.consumer_generation_id = 2
    await letters.send_held({TP0: 8})
    assert app.sent == []


@pytest.mark.parametrize(
    ("partition", "stage", "line"),
    [
        (-1, "RedisHash redis://h/0", "A result of RedisHash redis://h/0 was rejected: bad."),
        (
            2,
            "flow close",
            "A result of RedisHash redis://h/0, partition 2, was rejected (flow close): bad.",
        ),
    ],
)
async def test_a_result_is_not_given_a_place_in_a_topic(caplog, partition, stage, line):
    letters = DeadLetters(App(exactly_once=False), "letters")
    source = "RedisHash redis://h/0"
    await letters.send_result(source, partition, "k", 1, stage, SinkError("bad"))
    assert caplog.messages == [f"{line} It went to topic 'letters'"]
