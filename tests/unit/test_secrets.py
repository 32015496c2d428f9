"""Masking of secrets in text, in log records and in what goes to stderr."""

from __future__ import annotations

import io
import logging
import pickle
import sys

import pytest

from streamproc.records import secrets
from streamproc.records.secrets import MASK, guard_output, mask, register, register_url


@pytest.fixture(autouse=True)
def _as_before(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(secrets, "_forms", set())
    monkeypatch.setattr(secrets, "_known", None)
    factory = logging.getLogRecordFactory()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("redis://:pa/s?s@h:6379/0 is away", f"redis://:{MASK}@h:6379/0 is away"),
        ("rediss://u:p'q@h", f"rediss://u:{MASK}@h"),
        (
            "kafka://a:b@h1,kafka://c:d@h2;kafka://h3",
            f"kafka://a:{MASK}@h1,kafka://c:{MASK}@h2;kafka://h3",
        ),
        ("redis://h?ssl_password=xx&a=1", f"redis://h?ssl_password={MASK}&a=1"),
        ("sasl_plain_password='x \\' y', a=1", f"sasl_plain_password={MASK}, a=1"),
        ("""{'password': 'x', "api_key": "y"}""", f"""{{'password': {MASK}, "api_key": {MASK}}}"""),
        (
            'Plain required username="a" password="b c";',
            f'Plain required username="a" password={MASK};',
        ),
        ("STREAMPROC_REDIS_PASSWORD=x y", f"STREAMPROC_REDIS_PASSWORD={MASK} y"),
        ("password: x", f"password: {MASK}"),
        ("Authorization: Bearer abcdefgh.ij", f"Authorization: Bearer {MASK}"),
        ("sub eyJhbGciOi.eyJzdWIi.", f"sub {MASK}"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----",
            f"-----BEGIN RSA PRIVATE KEY-----{MASK}-----END RSA PRIVATE KEY-----",
        ),
    ],
)
def test_what_looks_like_a_secret_is_masked(text: str, masked: str) -> None:
    assert mask(text) == masked
    assert mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "http://h:8080/users/@me",
        "kafka://host:9092 and redis://host/0",
        "unexpected token: x",
        "Set STREAMPROC_REDIS_PASSWORD in the environment",
        "password=None, tokenizer=x, token_count=5",
        "",
    ],
)
def test_other_text_is_left_alone(text: str) -> None:
    assert mask(text) == text


def test_known_secrets_are_masked_wherever_they_stand() -> None:
    register("öl/3 \"x'", "kafka", "ab", None, "")
    assert "öl" not in mask("it was öl/3 \"x' there")
    assert mask("%C3%B6l%2F3%20%22x%27") == MASK
    assert mask(repr({"a": "öl/3 \"x'"})) == f"{{'a': '{MASK}'}}"
    assert mask("the kafka") == f"the {MASK}"
    assert mask("aiokafka ab") == "aiokafka ab"


def test_passwords_of_urls_become_known() -> None:
    register_url("redis://u:p%40ss-1@h/0?ssl_password=keyword-1;kafka://a:w0rd-2@h")
    assert mask("p@ss-1 p%40ss-1 w0rd-2 keyword-1 u h") == f"{MASK} {MASK} {MASK} {MASK} u h"


def test_log_records_are_masked_with_their_tracebacks_on_every_handler() -> None:
    register("geheim-1")
    guard_output()
    guard_output()
    out = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(out))
    try:
        raise ValueError("geheim-1") from KeyError("redis://:word@h")
    except ValueError as exc:
        logger.exception("Failed: %s, %s", exc, "redis://:word@h")
    text = out.getvalue()
    assert "Traceback" in text
    assert "geheim" not in text
    assert "word" not in text
    assert f"Failed: {MASK}, redis://:{MASK}@h" in text


def test_a_masked_record_can_be_sent_to_another_process() -> None:
    guard_output()
    record = logging.getLogRecordFactory()("n", 20, "f", 1, "%s", ("redis://:word@h",), None)
    copy = logging.makeLogRecord(pickle.loads(pickle.dumps(record.__dict__)))
    assert mask(copy.getMessage()) == record.getMessage() == f"redis://:{MASK}@h"


def test_stderr_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    guard_output()
    print("redis://:word@h", file=sys.stderr)
    assert not sys.stderr.isatty()
    assert out.getvalue() == f"redis://:{MASK}@h\n"


@pytest.mark.parametrize(
    "part", ["1", "://x:", "password", "eyJaaaaa-", "://a:,b", "token=", "Bearer "]
)
def test_long_text_takes_no_long_time(part: str) -> None:
    """Were a pattern's time quadratic, this would not end."""
    mask("token ://a:" + part * (100_000 // len(part)))
