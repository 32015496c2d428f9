"""Secrets in text: one function that masks them, used wherever text leaves the process.

What is masked: every known secret (settings, logins of URLs and of App's arguments register
theirs), and what looks like one: passwords in URLs, ``password=...``, bearer tokens, JSON Web
Tokens and private keys in PEM form.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any, TextIO
from urllib.parse import quote, quote_plus, unquote

MASK = "******"

#: A shorter text is part of too many words to be looked for.
SHORTEST = 3
#: From this length on a secret is masked inside of words too.
_LONG = 8

_NAMES = (
    r"passw(?:or)?d|passphrase|pwd|secret(?:[_-]?key)?|token|(?:api|access|private)[_-]?key"
    r"|jaas\.config"
)
# All of these are bounded: the text may be what a sender of records wrote, and long.
# Up to the last "@": passwords with unescaped special characters are among those that people
# write. A list of URLs is told apart by the scheme that follows a comma or a semicolon.
_URL = re.compile(r"(://[^\s:/?#@\"'<>]*:)(?!//)(?:(?![,;]\s*[\w+.-]{1,20}://)[^\s\"<>]){0,200}@")
_PORT_AND_PATH = re.compile(r"://[^\s:/?#@]*:\d+/[^:@]*@")
_ASSIGNED = re.compile(
    # name=value, "name": "value", 'name': 'value' and password: value
    rf"((?:{_NAMES})\d{{0,3}}[\"']?(?:\s*=|(?<=[\"'])\s*:|(?<=word):)\s*)"
    r"(?:b?\"(?:[^\"\\\n]|\\.)*\"|b?'(?:[^'\\\n]|\\.)*'"
    r"|(?!(?:None|True|False|null)\b)[^\s\"',;&)}\]<>]+)",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b((?:Bearer|Basic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_JWT = re.compile(r"\beyJ[\w-]{5,2000}\.[\w-]{1,4000}\.[\w-]*")
_PEM = re.compile(
    r"(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
# What all of the above need: text without any of it is left alone at once.
_SUSPECT = re.compile(rf"://|{_NAMES}|Bearer|Basic|eyJ|PRIVATE KEY", re.IGNORECASE)

_lock = threading.Lock()
_forms: set[str] = set()
_known: re.Pattern[str] | None = None


def mask(text: str) -> str:
    """Return ``text`` with all secrets in it masked."""
    known = _known
    if known is not None:
        text = known.sub(MASK, text)
    if _SUSPECT.search(text) is None:
        return text
    text = _URL.sub(_mask_login, text)
    text = _ASSIGNED.sub(rf"\g<1>{MASK}", text)
    text = _BEARER.sub(rf"\g<1>{MASK}", text)
    text = _JWT.sub(MASK, text)
    return _PEM.sub(rf"\g<1>{MASK}\g<2>", text)


def _mask_login(match: re.Match[str]) -> str:
    if _PORT_AND_PATH.fullmatch(match.group()):
        return match.group()  # http://host:8080/users/@me
    return f"{match.group(1)}{MASK}@"


def register(*secrets: str | None) -> None:
    """Make secrets known, so that :func:`mask` masks them wherever they stand.

    Those of less than three characters are not looked for: too many words have them.
    """
    global _known
    found = {
        form
        for secret in secrets
        if secret and len(secret) >= SHORTEST and secret != MASK
        for form in _spellings(secret)
    }
    with _lock:
        if found <= _forms:
            return
        _forms.update(found)
        longest_first = sorted(_forms, key=len, reverse=True)
        _known = re.compile("|".join(map(_pattern, longest_first)))


def register_url(url: str | Iterable[str]) -> None:
    """Make the passwords of URLs known: of one, or of several."""
    for text in [url] if isinstance(url, str) else url:
        for part in re.split(r"[,;](?=\s*[\w+.-]+://)", text):
            login = part.partition("://")[2].rpartition("@")[0]
            word = login.partition(":")[2]
            register(word, unquote(word))
            for option in re.findall(rf"[?&][\w.-]*(?:{_NAMES})[\w.-]*=([^&\s]+)", part):
                register(option, unquote(option))


def _spellings(secret: str) -> set[str]:
    """Return the secret as it stands in URLs, in JSON and in a repr."""
    return {
        secret,
        quote(secret, safe=""),
        quote_plus(secret),
        json.dumps(secret)[1:-1],
        repr(secret)[1:-1],
    }


def _pattern(form: str) -> str:
    pattern = re.escape(form)
    return pattern if len(form) >= _LONG else rf"(?<![A-Za-z0-9]){pattern}(?![A-Za-z0-9])"


def guard_output() -> None:
    """Mask what this process logs and what it writes to stderr; again is free.

    Log records are masked as they are made, their tracebacks too, so that it holds for
    every handler, whenever it is installed.
    """
    factory = logging.getLogRecordFactory()
    if not isinstance(factory, _MaskedRecords):
        logging.setLogRecordFactory(_MaskedRecords(factory))
    # Python's own tracebacks, and those that Faust prints when a command fails.
    if sys.stderr is not None and not isinstance(sys.stderr, _MaskedStream):
        sys.stderr = _MaskedStream(sys.stderr)


class _MaskedRecords:
    """Makes log records whose text is masked."""

    def __init__(self, factory: Callable[..., logging.LogRecord]) -> None:
        self._factory = factory

    def __call__(self, *args: Any, **kwargs: Any) -> logging.LogRecord:
        record = self._factory(*args, **kwargs)
        if record.exc_info and not record.exc_text:
            # Formatters take it as it is; the exception itself stays for who wants it.
            record.exc_text = mask("".join(traceback.format_exception(*record.exc_info))).rstrip()
        record.__class__ = _masked(type(record))  # type: ignore[arg-type]
        return record


@cache
def _masked(kind: type[logging.LogRecord]) -> type[logging.LogRecord]:
    """Return a class of log records whose message is masked."""

    class MaskedRecord(kind):  # type: ignore[misc, valid-type]
        def getMessage(self) -> str:
            return mask(super().getMessage())

    return MaskedRecord


class _MaskedStream:
    """A text stream that masks what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.write(mask(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
