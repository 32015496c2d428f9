"""From values to commands: templates, merging, and the wire form. No server."""

from __future__ import annotations

import dataclasses
import enum
import uuid
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import ConfigurationError, SinkError
from streamproc.sinks.redis.collection_commands import (
    HashCommands,
    ListCommands,
    MemberCommands,
    SortedSetCommands,
    StreamCommands,
)
from streamproc.sinks.redis.commands import Commands, key_of
from streamproc.sinks.redis.resp import (
    Command,
    Replies,
    TransactionReplies,
    ValueReplies,
    pack,
)
from streamproc.sinks.redis.templates import Template
from streamproc.sinks.redis.value_commands import (
    CounterCommands,
    JSONCommands,
    PublishCommands,
    ScriptCommands,
    StringCommands,
    TimeSeriesCommands,
)
from streamproc.sinks.redis.values import Run, scalar


class Device(msgspec.Struct):
    id: str


class Moment(msgspec.Struct):
    at: datetime
    partition: int


class Reading(msgspec.Struct):
    sensor_id: str
    value: float
    note: str | None = None


class Window(msgspec.Struct):
    key: str
    window_start: datetime
    device: Device

    @property
    def minute(self) -> int:
        return self.window_start.minute


@dataclasses.dataclass
class Point:
    name: str
    x: int


class FaustLike:
    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def asdict(self) -> dict[str, Any]:
        return dict(self.__dict__)


def batch(values: list[Any], keys: list[Any] | None = None) -> Any:
    return SimpleNamespace(
        values=values,
        keys=keys or [None] * len(values),
        timestamps=[1_700_000_000_000 + i for i in range(len(values))],
        offsets=list(range(10, 10 + len(values))),
        topic="readings",
        partition=3,
    )


def commands_of(commands: Commands, values: Any) -> list[Command]:
    errors = commands.add(Run.of(values))
    if errors:
        raise errors[0]
    return commands.take()


def render(text: str, value: Any, run: Run | None = None) -> str:
    return Template(text).render(value, run or Run([value]), 0)


# -- templates ---------------------------------------------------------------------------------

AT_NOON = datetime(2026, 5, 4, 12, 30, tzinfo=timezone.utc)
WINDOW = Window("s1", AT_NOON, Device("d9"))


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [
        ("fixed", {"a": 1}, "fixed"),
        ("stats:{sensor_id}", Reading("s1", 1.0), "stats:s1"),
        ("stats:{sensor_id}", {"sensor_id": "s1"}, "stats:s1"),
        ("stats:{key}:{window_start:%H%M}", WINDOW, "stats:s1:1230"),
        ("{minute}:{device.id}", WINDOW, "30:d9"),
        ("{device[id]}", {"device": {"id": "d9"}}, "d9"),
        ("{{user}}:{sensor_id}", Reading("s1", 1.0), "{user}:s1"),
        ("{{{sensor_id}}}:x", Reading("s1", 1.0), "{s1}:x"),
        ("{name!r:>6}", {"name": "a"}, "   'a'"),
        ("{value:.2f}", 1.5, "1.50"),
        ("{value}", Reading("s1", 2.5), "2.5"),
        ("{name}/{x}", Point("p", 4), "p/4"),
        ("{name}", FaustLike(name="f"), "f"),
        ("{key}", {"key": "mine"}, "mine"),
        ("äöü:{sensor_id}", Reading("ß", 1.0), "äöü:ß"),
    ],
)
def test_template_is_filled_from_the_value(text: str, value: Any, expected: str) -> None:
    assert render(text, value) == expected


def test_template_is_filled_from_the_record() -> None:
    for value in (Reading("s1", 1.0), {"sensor_id": "s1"}, 7, None):
        run = Run.of(batch([value], [b"k1"]))
        assert render("{key}", value, run) == "k1"
        text = "{topic}/{partition}/{offset}/{timestamp:%Y-%m-%d}"
        assert render(text, value, run) == "readings/3/10/2023-11-14"


def test_one_template_serves_values_of_many_types() -> None:
    template = Template("n:{sensor_id}")
    values = [Reading("a", 1.0), {"sensor_id": "b"}, FaustLike(sensor_id="c"), Reading("d", 1.0)]
    run = Run(values)
    assert [template.render(v, run, i) for i, v in enumerate(values)] == [
        "n:a",
        "n:b",
        "n:c",
        "n:d",
    ]


@pytest.mark.parametrize("value", [Reading("s1", 1.0), {"sensor_id": "s1", "value": 1, "note": ""}])
def test_missing_field_names_template_field_and_what_there_is(value: Any) -> None:
    with pytest.raises(SinkError) as caught:
        render("stats:{sensor}", value)
    message = str(caught.value)
    assert "'stats:{sensor}'" in message
    assert "'sensor'" in message
    assert "note, sensor_id, value" in message


@pytest.mark.parametrize("value", [Reading("s1", 1.0), {"a": 1}, 5])
def test_a_record_without_key_is_no_key_none(value: Any) -> None:
    with pytest.raises(SinkError, match="needs 'key'"):
        render("{key}", value)
    with pytest.raises(SinkError, match="needs 'offset'"):
        render("{offset}", value)


def test_format_that_does_not_fit_is_told() -> None:
    with pytest.raises(SinkError, match="does not fit the value"):
        render("{sensor_id:%H%M:d}", Reading("s1", 1.0))


@pytest.mark.parametrize("text", ["{", "a}b", "{}", "{0}", "{a b}", "{__class__}", "{a._b}"])
def test_bad_templates_are_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigurationError, match="template"):
        Template(text)


@given(st.text(alphabet="ab{}:é", max_size=20), st.text(max_size=10))
def test_literal_text_survives(literal: str, name: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    assert render(escaped + "{sensor_id}" + escaped, Reading(name, 1.0)) == literal + name + literal


# -- runs --------------------------------------------------------------------------------------


def test_pairs_and_slices_keep_keys_in_step() -> None:
    run = Run.of([("a", 1), 2, ("c", 3)])
    assert [(run.key(i), v) for i, v in enumerate(run.values)] == [("a", 1), (None, 2), ("c", 3)]
    pieces = Run.of(batch(list(range(5)), list("vwxyz"))).slices(2)
    assert [list(p.values) for p in pieces] == [[0, 1], [2, 3], [4]]
    assert [p.key(0) for p in pieces] == ["v", "x", "z"]
    assert [p.metadata("offset", 0) for p in pieces] == [10, 12, 14]


@pytest.mark.parametrize("value", [Reading("a", 1.0), {"a": 1}, "text", b"bytes"])
def test_a_single_value_is_not_a_run(value: Any) -> None:
    with pytest.raises(SinkError, match=r"write\(\[value\]\)"):
        Run.of(value)


# -- scalars -----------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, 1),
        (Color.RED, "red"),
        (AT_NOON, "2026-05-04T12:30:00Z"),
        (Decimal("1.10"), "1.10"),
        (uuid.UUID(int=1), str(uuid.UUID(int=1))),
        ([1, "a"], b'[1,"a"]'),
        ({"a": None}, b'{"a":null}'),
        (FaustLike(a=1), b'{"a":1}'),
        (b"\x00\xff", b"\x00\xff"),
    ],
)
def test_scalar_forms(value: Any, expected: Any) -> None:
    assert scalar(value) == expected


def test_scalar_refuses_what_has_no_form() -> None:
    with pytest.raises(SinkError, match="object"):
        scalar(object())


def test_a_hash_reads_back_as_the_record() -> None:
    class All(msgspec.Struct):
        a: int
        b: float
        c: bool
        d: datetime
        e: Decimal
        f: str

    record = All(1, 2.5, True, AT_NOON, Decimal("9.99"), "x")
    _, _, *args = commands_of(HashCommands("h"), [record])[0]
    texts = [a if isinstance(a, str) else repr(a) for a in args]
    stored = dict(zip(texts[::2], texts[1::2], strict=True))
    assert msgspec.convert(stored, All, strict=False) == record


# -- commands ----------------------------------------------------------------------------------


def test_hash_merges_by_key_and_removes_none() -> None:
    values = [Reading("a", 1.0, "x"), Reading("b", 2.0), Reading("a", 3.0)]
    assert commands_of(HashCommands("h:{sensor_id}", ttl=60), values) == [
        ("HSET", "h:a", "sensor_id", "a", "value", 3.0),
        ("HDEL", "h:a", "note"),
        ("PEXPIRE", "h:a", 60_000),
        ("HSET", "h:b", "sensor_id", "b", "value", 2.0),
        ("HDEL", "h:b", "note"),
        ("PEXPIRE", "h:b", 60_000),
    ]


def test_hash_of_chosen_fields_and_hash_by_field() -> None:
    values = [Reading("a", 1.0), Reading("b", 2.0), Reading("a", 3.0)]
    assert commands_of(HashCommands("h:{sensor_id}", fields=["value"]), values[:1]) == [
        ("HSET", "h:a", "value", 1.0)
    ]
    by_field = HashCommands("latest", field="{sensor_id}", value="value")
    assert commands_of(by_field, values) == [("HSET", "latest", "a", 3.0, "b", 2.0)]
    assert commands_of(HashCommands("latest", field="{key}"), [("a", 1), ("b", None)]) == [
        ("HSET", "latest", "a", 1),
        ("HDEL", "latest", "b"),
    ]


def test_hash_leaves_the_callers_dict_alone() -> None:
    value = {"id": "a", "when": AT_NOON}
    commands_of(HashCommands("h:{id}"), [value])
    assert value == {"id": "a", "when": AT_NOON}


def test_big_hashes_go_in_pieces() -> None:
    values = [(f"f{i}", i) for i in range(2_500)]
    made = commands_of(HashCommands("h", field="{key}"), values)
    assert [len(c) for c in made] == [2_002, 2_002, 1_002]


@pytest.mark.parametrize(
    "commands",
    [
        StringCommands("k:{key}"),
        HashCommands("k:{key}"),
        CounterCommands("k:{key}"),
        ListCommands("k:{key}"),
        MemberCommands("SADD", "k:{key}"),
        SortedSetCommands("k:{key}", score=1),
        StreamCommands("k:{key}"),
        JSONCommands("k:{key}"),
        TimeSeriesCommands("k:{key}", value="v"),
    ],
)
def test_a_tombstone_deletes_and_what_follows_stays(commands: Commands) -> None:
    assert commands_of(commands, [("a", None)]) == [("DEL", "k:a")]
    run = Run.of(batch([{"v": 1}, None, {"v": 2}], ["a", "a", "a"]))
    assert commands.add(run) == []
    made = commands.take()
    assert made[0] == ("DEL", "k:a")
    assert len(made) == 2


def test_string_options() -> None:
    values = [("a", "x"), ("a", "y")]
    assert commands_of(StringCommands("{key}", ttl=timedelta(seconds=1.5)), values) == [
        ("SET", "a", "y", "PX", 1500)
    ]
    assert commands_of(StringCommands("{key}", nx=True), values) == [("SET", "a", "x", "NX")]
    assert commands_of(StringCommands("{key}", keepttl=True), values) == [
        ("SET", "a", "y", "KEEPTTL")
    ]
    record = Reading("a", 1.5)
    assert commands_of(StringCommands("{sensor_id}"), [record]) == [
        ("SET", "a", msgspec.json.encode(record))
    ]
    assert commands_of(StringCommands("{sensor_id}", value="value"), [record]) == [
        ("SET", "a", 1.5)
    ]


def test_counter_sums_first() -> None:
    values = [Reading("a", 1.0), Reading("b", 0.5), Reading("a", 2.0)]
    assert commands_of(CounterCommands("n:{sensor_id}"), values) == [
        ("INCRBY", "n:a", 2),
        ("INCRBY", "n:b", 1),
    ]
    assert commands_of(CounterCommands("n", field="{sensor_id}", amount="value"), values) == [
        ("HINCRBYFLOAT", "n", "a", 3.0),
        ("HINCRBYFLOAT", "n", "b", 0.5),
    ]


def test_list_keeps_order_and_trims() -> None:
    values = [("a", 1), ("b", 2), ("a", 3)]
    assert commands_of(ListCommands("{key}", max_length=10), values) == [
        ("RPUSH", "a", 1, 3),
        ("LTRIM", "a", -10, -1),
        ("RPUSH", "b", 2),
        ("LTRIM", "b", -10, -1),
    ]
    assert commands_of(ListCommands("l", left=True, max_length=2), [1]) == [
        ("LPUSH", "l", 1),
        ("LTRIM", "l", 0, 1),
    ]


def test_members_once_each() -> None:
    made = commands_of(MemberCommands("SADD", "s", member="{sensor_id}"), [Reading("a", 1.0)] * 3)
    assert made == [("SADD", "s", "a")]
    assert commands_of(MemberCommands("PFADD", "s"), ["x", "y", "x"]) == [("PFADD", "s", "x", "y")]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [("ZADD", "z", 2.0, "a")]),
        ({"gt": True}, [("ZADD", "z", "GT", 3.0, "a")]),
        ({"lt": True}, [("ZADD", "z", "LT", 1.0, "a")]),
        ({"incr": True}, [("ZINCRBY", "z", 6.0, "a")]),
    ],
)
def test_sorted_set_forms(options: dict[str, bool], expected: list[Command]) -> None:
    values = [Reading("a", 1.0), Reading("a", 3.0), Reading("a", 2.0)]
    commands = SortedSetCommands("z", score="value", member="{sensor_id}", **options)
    assert commands_of(commands, values) == expected


def test_stream_publish_json_time_series_and_script() -> None:
    assert commands_of(StreamCommands("x", max_length=5), [Reading("a", 1.0), 7]) == [
        ("XADD", "x", "MAXLEN", "~", 5, "*", "sensor_id", "a", "value", 1.0),
        ("XADD", "x", "MAXLEN", "~", 5, "*", "value", 7),
    ]
    assert commands_of(PublishCommands("c:{sensor_id}", value="value"), [Reading("a", 1.0)]) == [
        ("PUBLISH", "c:a", 1.0)
    ]
    assert commands_of(JSONCommands("j", path="$.a"), ["text"]) == [
        ("JSON.SET", "j", "$.a", b'"text"')
    ]
    series = TimeSeriesCommands("t:{sensor_id}", value="value", retention=60, labels={"a": "b"})
    tail = ("RETENTION", 60_000, "ON_DUPLICATE", "LAST", "LABELS", "a", "b")
    assert commands_of(series, batch([Reading("a", 1.0)])) == [
        ("TS.ADD", "t:a", 1_700_000_000_000, 1.0, *tail)
    ]
    by_field = TimeSeriesCommands("t", value="x", timestamp="at")
    assert commands_of(by_field, [{"x": 1, "at": AT_NOON}])[0][2] == AT_NOON.timestamp() * 1000
    script = ScriptCommands("return 1", keys=["k:{sensor_id}"], args=["value"])
    made = commands_of(script, [Reading("a", 1.0)])
    assert made == [("EVALSHA", script.sha, 1, "k:a", 1.0)]
    assert key_of(made[0]) == "k:a"


def test_what_does_not_fit_is_told_and_the_rest_is_taken() -> None:
    commands = HashCommands("h:{sensor_id}")
    errors = commands.add(Run.of([Reading("a", 1.0), {"x": 1}, 5, Reading("b", 2.0), object()]))
    assert len(errors) == 3
    assert commands.count == 2
    assert [c[1] for c in commands.take() if c[0] == "HSET"] == ["h:a", "h:b"]
    assert (commands.count, commands.size) == (0, 0)


@pytest.mark.parametrize(
    ("make", "values", "reason"),
    [
        (lambda: SortedSetCommands("z", score="v", member="m"), [{"v": float("nan")}], "NaN"),
        (lambda: SortedSetCommands("z", score="v", member="m"), [{"v": "x"}], "not a number"),
        (lambda: CounterCommands("c", amount="n"), [{"m": 1}], "no field 'n'.*its fields: m"),
        (lambda: StringCommands("{id}", value="v"), [{"id": 1, "v": None}], "'v' is None"),
        (lambda: StreamCommands("x"), [{"a": None}], "not None"),
        (lambda: TimeSeriesCommands("t", value="v"), [{"v": 1}], "timestamp="),
    ],
)
def test_reasons(make: Any, values: list[Any], reason: str) -> None:
    with pytest.raises(SinkError, match=reason):
        commands_of(make(), values)


@pytest.mark.parametrize(
    "make",
    [
        lambda: StringCommands("k", ttl=1, keepttl=True),
        lambda: StringCommands("k", ttl=0),
        lambda: HashCommands("k", value="v"),
        lambda: HashCommands("k", fields=["a"], field="b"),
        lambda: SortedSetCommands("k", score=1, gt=True, lt=True),
        lambda: ListCommands("k", max_length=0),
    ],
)
def test_options_that_contradict_are_refused(make: Any) -> None:
    with pytest.raises(ConfigurationError):
        make()


# -- properties --------------------------------------------------------------------------------

MAPPINGS = st.dictionaries(
    st.sampled_from("xyz"), st.one_of(st.none(), st.integers(), st.text(max_size=3)), min_size=1
)
STEPS = st.lists(st.tuples(st.sampled_from("abc"), st.one_of(st.none(), MAPPINGS)), max_size=30)


@given(STEPS, st.integers(1, 30))
def test_merging_hashes_ends_as_writing_one_by_one(steps: list[Any], cut: int) -> None:
    """Any cut into batches leaves the same hashes as applying every value in turn."""
    expected: dict[str, dict[str, Any]] = {}
    for key, mapping in steps:
        if mapping is None:
            expected.pop(key, None)
        else:
            now = {**expected.pop(key, {}), **mapping}
            now = {name: data for name, data in now.items() if data is not None}
            if now:
                expected[key] = now
    commands = HashCommands("{key}")
    redis: dict[Any, dict[Any, Any]] = {}
    for start in range(0, len(steps), cut):
        for name, key, *args in commands_of(commands, steps[start : start + cut]):
            if name == "DEL":
                redis.pop(key, None)
            elif name == "HSET":
                redis.setdefault(key, {}).update(zip(args[::2], args[1::2], strict=True))
            else:
                for field in args:
                    redis.get(key, {}).pop(field, None)
                if not redis.get(key):
                    redis.pop(key, None)
    assert redis == expected


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers()), max_size=40))
def test_sums_and_lists_hold_every_value(pairs: list[tuple[str, int]]) -> None:
    counted = commands_of(CounterCommands("{key}", amount="value"), pairs)
    assert sum(amount for _, _, amount in counted) == sum(n for _, n in pairs)
    pushed = commands_of(ListCommands("{key}"), pairs)
    assert {key: args for _, key, *args in pushed} == {
        key: [n for k, n in pairs if k == key] for key, _ in pairs
    }


ARGS = st.one_of(st.text(), st.binary(), st.integers(), st.floats(allow_nan=False))


@given(st.lists(st.lists(ARGS, min_size=1, max_size=5).map(tuple), max_size=10))
def test_packed_commands_read_back(commands: list[Command]) -> None:
    def parse(data: bytes) -> list[list[bytes]]:
        out, position = [], 0

        def line() -> int:
            nonlocal position
            end = data.index(b"\r\n", position)
            number = int(data[position + 1 : end])
            position = end + 2
            return number

        while position < len(data):
            args = []
            for _ in range(line()):
                size = line()
                args.append(data[position : position + size])
                position += size + 2
            out.append(args)
        return out

    def plain(arg: Any) -> bytes:
        return arg if isinstance(arg, bytes) else str(arg).encode()

    assert parse(pack(commands)) == [[plain(arg) for arg in command] for command in commands]


def test_binary_keys_and_halves_of_surrogates_are_packed() -> None:
    key = Run.of(batch([1], [b"\xff\x00"])).key(0)
    assert b"\xff\x00" in pack([("DEL", key)])
    assert b"\xed\xa0\xbd" in pack([("DEL", "\ud83d")])


REPLIES = st.recursive(
    st.one_of(
        st.integers(-9, 99).map(lambda n: b":%d\r\n" % n),
        st.just(b"+OK\r\n"),
        st.just(b"$-1\r\n"),
        st.just(b"*-1\r\n"),
        st.binary(max_size=9).map(lambda b: b"$%d\r\n%b\r\n" % (len(b), b)),
        st.just(b"-ERR no\r\n"),
    ),
    lambda inner: st.lists(inner, max_size=3).map(
        lambda parts: b"*%d\r\n%b" % (len(parts), b"".join(parts))
    ),
    max_leaves=5,
)


@given(st.lists(REPLIES, max_size=10), st.integers(1, 7))
def test_replies_are_counted_however_they_arrive(replies: list[bytes], size: int) -> None:
    data = b"".join(replies)
    seen = Replies(len(replies))
    for start in range(0, len(data), size):
        seen.feed(data[start : start + size])
    assert seen.count == len(replies)
    assert seen.errors == {i: "ERR no" for i, r in enumerate(replies) if r == b"-ERR no\r\n"}


@given(st.lists(REPLIES, max_size=6), st.booleans(), st.integers(1, 7))
def test_replies_to_a_transaction_however_they_arrive(
    replies: list[bytes], aborted: bool, size: int
) -> None:
    head = b"*-1\r\n" if aborted else b"*%d\r\n" % len(replies)
    ran = b"" if aborted else b"".join(replies)
    data = b"+OK\r\n" + b"+QUEUED\r\n" * len(replies) + head + ran
    seen = TransactionReplies(len(replies))
    for start in range(0, len(data), size):
        assert not seen.complete
        seen.feed(data[start : start + size])
    assert seen.complete
    assert seen.applied is not aborted
    assert not seen.refused
    assert not seen.failure
    refused = {i: "ERR no" for i, r in enumerate(replies) if r == b"-ERR no\r\n"}
    assert seen.errors == ({} if aborted else refused)


def test_replies_to_a_transaction_that_was_refused() -> None:
    seen = TransactionReplies(3)
    seen.feed(b"+OK\r\n+QUEUED\r\n-OOM no\r\n+QUEUED\r\n-EXECABORT Transaction discarded\r\n")
    assert seen.complete
    assert not seen.applied
    assert seen.refused == {1: "OOM no"}
    assert seen.failure == "EXECABORT Transaction discarded"


def test_values_of_replies() -> None:
    seen = ValueReplies(5)
    seen.feed(b"+OK\r\n:7\r\n$-1\r\n*3\r\n$2\r\nab\r\n*1\r\n:1\r\n$0\r\n\r\n*0\r\nrest")
    assert seen.values == ["OK", 7, None, [b"ab", [1], b""], []]
    assert seen.rest == b"rest"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{p{partition}}}:stats:{key}", True),
        ("stats:{{p{partition}}}", True),
        ("{{p{partition}}}", True),
        ("{key}:{{p{partition}}}", False),  # a key with braces in it would be the hash tag
        ("{{a}}:{{p{partition}}}", False),
        ("{{p{partition}:}}", False),
        ("{{p{partition:02}}}", False),
        ("{{p{key}}}", False),
        ("p{partition}", False),
        ("stats", False),
    ],
)
def test_hash_tags_of_partitions(template: str, expected: bool) -> None:
    assert Template(template).is_of_partition is expected


def test_the_partition_of_results_is_known() -> None:
    run = Run.of([{"v": 1}], partition=0)
    assert Template("{{p{partition}}}:{v}").render(run.values[0], run, 0) == "{p0}:1"
    device = Device("d")
    runs = [Run.of([device, ("k", device)], partition=number) for number in (0, 12)]
    for template, expected in (
        ("{{p{partition}}}:{id}", ["{p0}:d", "{p12}:d"]),
        ("{partition:03}:{key}", ["000:k", "012:k"]),
        ("{partition!r:>3}{id}", ["  0d", " 12d"]),
        ("{partition}{partition}{key}", ["00k", "1212k"]),
    ):
        compiled = Template(template)
        assert [compiled.render(device, run, 1) for run in runs] == expected
    moment = Moment(datetime(2026, 1, 1, 12, 30), 7)
    assert Template("{partition}:{at:%H%M}").render(moment, runs[0], 0) == "7:1230"
    with pytest.raises(SinkError, match="needs 'partition'"):
        Template("{partition}").render(1, Run.of([1]), 0)


def test_collectors_are_independent() -> None:
    prototypes = [
        HashCommands("h:{key}"),
        PublishCommands("c"),
        ScriptCommands("return 1", keys=["{key}"]),
        MemberCommands("SADD", "s"),
    ]
    for prototype in prototypes:
        first, second = prototype.fresh(), prototype.fresh()
        first.add(Run.of([("k", {"a": 1})]))
        assert (prototype.count, first.count, second.count) == (0, 1, 0)
        assert second.take() == []
        assert len(first.take_alone()) == 1


def test_a_script_is_taken_along() -> None:
    commands = ScriptCommands("return 1", keys=["{key}"])
    commands.add(Run.of([("a", 1), ("b", 2)]))
    first, second = commands.take_alone()
    assert first == ("EVAL", "return 1", 1, "a")
    assert second[0] == "EVALSHA"


@pytest.mark.parametrize("make", [dict, msgspec.defstruct("Moment", [("at", Any)], kw_only=True)])
def test_equal_moments_of_two_zones_have_texts_of_their_own(make):
    utc = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
    moments = [utc, utc.astimezone(timezone(timedelta(hours=2))), utc.replace(tzinfo=None), "x"]
    values = [make(at=moment) for moment in [utc, *moments]]
    template, run = Template("{at:%H%M}"), Run.of(values)
    texts = [template.render(value, run, row) for row, value in enumerate(values[:-1])]
    assert texts == ["1200", "1200", "1400", "1200"]
    with pytest.raises(SinkError, match="does not fit the value"):
        template.render(values[-1], run, len(values) - 1)
