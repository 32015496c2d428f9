"""Who answers at an address: a Kafka broker, or something else."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from enum import Enum

#: ApiVersions 0 with this correlation id and no client id: every broker answers it, also
#: before a login.
_CORRELATION = 0x73747265
_HELLO = struct.pack(">ihhih", 10, 18, 0, _CORRELATION, -1)


class Answer(Enum):
    """How what is at an address answers."""

    KAFKA = "a Kafka broker"
    NOBODY = "nobody"
    SILENT = "something that accepts connections and says nothing"
    CLOSES = "something that closes the connection"
    REDIS = "a Redis server"
    WEB = "a web server"
    TLS = "something that speaks TLS"
    OTHER = "something that is no Kafka broker"


async def who_answers(host: str, port: int, timeout: float = 3.0) -> tuple[Answer, str]:
    """Say hello in Kafka's way; return who answers and, when nobody does, why.

    Args:
        host: Name or address.
        port: TCP port.
        timeout: Seconds for the connection, and again for the answer.
    """
    answer, reason = await _say(_HELLO, host, port, timeout)
    if answer is Answer.SILENT:
        # Redis waits for the rest of a line that it can't read; a new one it answers.
        other, _ = await _say(b"PING\r\n", host, port, 1.0)
        answer = other if other is Answer.REDIS else answer
    return answer, reason


async def _say(hello: bytes, host: str, port: int, timeout: float) -> tuple[Answer, str]:
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(host, port), timeout)
    except asyncio.TimeoutError:
        return Answer.NOBODY, f"no connection within {timeout:g} s"
    except OSError as exc:
        return Answer.NOBODY, exc.strerror or str(exc)
    try:
        writer.write(hello)
        return _recognize(await asyncio.wait_for(_start(reader), timeout)), ""
    except asyncio.TimeoutError:
        return Answer.SILENT, ""
    except OSError:
        return Answer.CLOSES, ""
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def _start(reader: asyncio.StreamReader) -> bytes:
    """Read the eight bytes that tell who answers, or the line or the end that comes before."""
    reply = b""
    while len(reply) < 8 and not reply.endswith(b"\r\n"):
        if not (more := await reader.read(8 - len(reply))):
            break
        reply += more
    return reply


def _recognize(reply: bytes) -> Answer:
    if not reply:
        return Answer.CLOSES
    if reply[4:] == struct.pack(">i", _CORRELATION):
        return Answer.KAFKA
    if reply.startswith((b"+PONG", b"-ERR", b"-DENIED", b"-NOAUTH")):
        return Answer.REDIS
    if reply.startswith(b"HTTP"):
        return Answer.WEB
    return Answer.TLS if reply[:2] in (b"\x15\x03", b"\x16\x03") else Answer.OTHER
