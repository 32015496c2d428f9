"""`streamproc dlq` without a broker: what letters say, which are wanted, what can be deleted."""

import json
import sys
import time
from collections import Counter, deque

import pytest
from click.testing import CliRunner

from streamproc.cli import dlq_work, main
from streamproc.cli.dlq import _moment, _place, _range
from streamproc.cli.dlq_work import Found, Prefix, Wanted
from streamproc.kafka.scan import StoredRecord
from streamproc.streams.letters import REPLAYED, Letter


def stored(offset=17, key=b"s1", value=b'{"a": 1}', extra=(), **told):
    told = {
        "topic": "readings",
        "partition": "2",
        "offset": "40",
        "timestamp": "1700000000000",
        "stage": "shop.agents.count",
        "agent": "shop.agents.count",
        "attempts": "4",
        "error": "ValueError",
        "reason": "no good",
        "app": "shop",
        "app-version": "3",
        **told,
    }
    headers = [(f"dead-letter-{name}", text.encode()) for name, text in told.items()]
    return StoredRecord(0, offset, 1_800_000_000_000, key, value, (*extra, *headers))


def test_a_letter_is_read_and_sent_as_it_came():
    record = stored(extra=(("trace", b"t1"),))
    letter = Letter.of(record)
    assert (letter.id, letter.topic, letter.partition, letter.offset) == ("0:17", "readings", 2, 40)
    assert (letter.attempts, letter.error, letter.app) == (4, "ValueError", "shop 3")
    again = letter.as_record("shop-dead-letters")
    assert again.headers == (("trace", b"t1"), (REPLAYED, b"shop-dead-letters/0@17"))
    assert (again.key, again.value, again.timestamp) == (b"s1", b'{"a": 1}', 1_700_000_000_000)


def test_what_is_sent_again_and_fails_again_names_only_the_last_letter():
    first = Letter.of(stored()).as_record("dlq")
    second = Letter.of(
        StoredRecord(1, 3, 0, first.key, first.value, (*first.headers, *stored().headers))
    )
    assert second.replayed == "dlq/0@17"
    assert second.as_record("dlq").headers == ((REPLAYED, b"dlq/1@3"),)


def test_a_record_that_is_no_letter():
    assert Letter.of(StoredRecord(0, 0, 0, None, b"x", (("trace", b"t"),))) is None


def test_letters_of_older_versions_lack_some_headers():
    headers = (("dead-letter-topic", b"t"), ("dead-letter-error", b"E"), ("dead-letter-x", b""))
    letter = Letter.of(StoredRecord(0, 5, 9, None, None, headers))
    assert (letter.offset, letter.partition, letter.attempts, letter.timestamp) == (-1, -1, 1, 9)
    assert not letter.is_record


def test_bytes_that_are_no_text_are_base64_in_json():
    letter = Letter.of(stored(key=b"\xff", value=None, extra=(("raw", b"\xfe"),)))
    found = json.loads(json.dumps(letter.as_dict()))
    assert (found["key_base64"], found["value"]) == ("/w==", None)
    assert found["headers"] == [{"name": "raw", "value_base64": "/g=="}]


@pytest.mark.parametrize(
    ("wanted", "is_in"),
    [
        ({}, True),
        ({"ids": ("0:17",)}, True),
        ({"ids": ("0:18",)}, False),
        ({"topics": ("readings", "others")}, True),
        ({"topics": ("others",)}, False),
        ({"partition": 2}, True),
        ({"partition": 0}, False),
        ({"agents": ("count",)}, True),
        ({"agents": ("shop.agents.count",)}, True),
        ({"agents": ("agents",)}, False),
        ({"errors": ("ValueError",)}, True),
        ({"errors": ("KeyError",)}, False),
        ({"key": "s1"}, True),
        ({"key": "s"}, False),
        ({"since": 1_800_000_000_000}, True),
        ({"until": 1_800_000_000_000}, False),
        ({"first": 40, "last": 40}, True),
        ({"first": 41}, False),
        ({"last": 39}, False),
        ({"begins": {0: 17, 1: 90}}, True),
        ({"begins": {0: 18}}, False),
        ({"errors": ("ValueError",), "key": "x"}, False),
    ],
)
def test_filters(wanted, is_in):
    assert (Letter.of(stored()) in Wanted(**wanted)) is is_in


@pytest.mark.parametrize(
    ("wanted", "before", "count", "behind"),
    [("", 0, 0, 0), ("yyn", 2, 2, 0), ("yyy", 3, 3, 0), ("nyy", 0, 0, 2), ("yny", 1, 1, 1)],
)
def test_what_can_be_deleted_is_what_is_first(wanted, before, count, behind):
    prefix = Prefix()
    for offset, each in enumerate(wanted):
        prefix.add(stored(offset), each == "y")
    assert (prefix.before, prefix.count, prefix.behind) == (before, count, behind)


def test_options_of_places_and_times():
    assert _range("17") == (17, 17)
    assert _range("10-20") == (10, 20)
    assert _range("10-") == (10, None)
    assert _range("-20") == (None, 20)
    assert _range(None) == (None, None)
    assert _moment("--since", "2026-01-31T12:00") == 1769860800000
    ago = _moment("--since", "2h")
    assert 0 <= time.time() * 1000 - 7_200_000 - ago < 60_000


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["list", "--offsets", "a-b"], "17, 10-20"),
        (["list", "--since", "yesterday"], "how long ago"),
        (["replay", "--to", "x", "--to-file", "y"], "either --to or --to-file"),
        (["replay", "--from", "17"], "such as 0:17"),
        (["show"], "Missing argument"),
        (["list", "-A", "no.such.module"], "no.such.module"),
    ],
)
def test_wrong_command_lines_end_with_2(options, said):
    where = [] if "-A" in options else ["--broker", "127.0.0.1:1", "--topic", "t"]
    result = CliRunner().invoke(main, ["dlq", *options, *where])
    assert result.exit_code == 2, result.output
    assert said in result.output


def test_places_come_from_an_app(tmp_path, monkeypatch):
    (tmp_path / "shop_app.py").write_text(
        "import streamproc\n"
        "app = streamproc.App('shop', broker='kafka://one:1;kafka://two')\n"
        "silent = streamproc.App('silent', broker='kafka://one', dead_letters=False)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert _where("shop_app", None, None) == ("one:1,two:9092", "shop-dead-letters", False)
    assert _where("shop_app", "three:3", "letters") == ("three:3", "letters", True)
    result = CliRunner().invoke(main, ["dlq", "list", "-A", "shop_app:silent"])
    assert result.exit_code == 1
    assert "no dead-letter topic" in result.output


def _where(*options):
    place = _place(*options)
    return place.bootstrap, place.topic, place.is_named


@pytest.fixture
def found(monkeypatch):
    """What `dlq` finds, without a broker."""
    found = Found(deque())

    async def find(*args):
        found.counts = Counter((each.topic, each.error) for each in found.letters)
        return found

    async def purge(*args, **options):
        return len(found.letters)

    monkeypatch.setattr(dlq_work, "find", find)
    monkeypatch.setattr(dlq_work, "purge", purge)
    return found


def dlq(*options):
    where = ["--broker", "127.0.0.1:1", "--topic", "letters"]
    result = CliRunner().invoke(main, ["dlq", *options, *where])
    assert result.exit_code == 0, result.output
    return result.output.splitlines()


def test_a_pipe_gets_a_line_a_letter(found, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    reason = "much longer than forty columns, whatever [is] said"
    found.letters += [Letter.of(stored(n, b"k\n1", reason=f"{reason} {n}")) for n in (1, 2)]
    head, first, second, *_ = dlq("list")
    assert head.split()[:2] == ["id", "rejected"]
    for line, number in ((first, 1), (second, 2)):
        assert line.split()[0] == f"0:{number}"
        assert "readings/2@40" in line
        assert r" k\n1 " in line
        assert line.endswith(f"ValueError: {reason} {number}")


def test_one_letter_is_no_letters(found):
    found.letters.append(Letter.of(stored()))
    assert dlq("list")[-2:] == ["1 dead letter in letters:", "  1 ValueError of readings"]
    assert dlq("purge", "--yes") == ["Deleted 1 dead letter."]
    found.letters.append(Letter.of(stored()))
    assert dlq("list")[-2] == "2 dead letters in letters:"
    assert dlq("purge", "--yes") == ["Deleted 2 dead letters."]
