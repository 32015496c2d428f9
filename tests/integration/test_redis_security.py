"""Redis with users and behind TLS, by settings; and what each mistake is called."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import KEY_PASSWORD, Certificates, make_certificates
from tlsfront import TlsFront

from streamproc import RedisWriter
from streamproc.cli.check_redis import check_redis
from streamproc.dev.process import LOOPBACK
from streamproc.dev.servers import RedisServer
from streamproc.errors import ConfigurationError
from streamproc.settings import Settings, load_settings
from streamproc.sinks import RedisSet

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")

PASSWORD = "p@ss/w:rd-4711"


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def server(children: list[Any], tmp_path: Path) -> RedisServer:
    """A Redis whose user alice may write, and whose default user may nothing."""
    directives = [
        f"user alice on >{PASSWORD} ~* +@all",
        f"user bob on >{PASSWORD} ~* +ping +hset",
        "user default off",
    ]
    server = RedisServer(tmp_path / "redis", directives=directives)
    children.append(server)
    return server.start()


@pytest.fixture
def front(server: RedisServer, certificates: Certificates) -> Iterator[Callable[..., TlsFront]]:
    fronts: list[TlsFront] = []

    def make(**options: Any) -> TlsFront:
        fronts.append(TlsFront(certificates, server.port, **options))
        return fronts[-1]

    yield make
    for each in fronts:
        each.close()


def settings_of(port: int, **values: Any) -> Settings:
    environ = {f"STREAMPROC_REDIS_{name.upper()}": str(value) for name, value in values.items()}
    environ["STREAMPROC_REDIS"] = f"redis://{LOOPBACK}:{port}/0"
    return load_settings("/nowhere", environ=environ)


async def use(settings: Settings) -> None:
    """Write by a sink and by a RedisWriter, and let the doctor look."""
    sink = RedisSet("members")
    await sink.open(SimpleNamespace(redis_url=settings.redis_url))
    try:
        await sink.write(["a"])
        await sink.flush()
    finally:
        await sink.close()
    await asyncio.to_thread(_write, settings)
    assert check_redis(settings)[0].level == "ok"


def _write(settings: Settings) -> None:
    with RedisWriter(settings.redis_url, key="k:{n}") as writer:
        writer.publish_data({"n": 1})


async def mistake(settings: Settings) -> str:
    """Return what sink, RedisWriter and doctor say; all of them refuse."""
    sink = RedisSet("members")
    with pytest.raises(ConfigurationError) as by_sink:
        await sink.open(SimpleNamespace(redis_url=settings.redis_url))
    with pytest.raises(ConfigurationError) as by_writer:
        await asyncio.to_thread(_write, settings)
    finding = (await asyncio.to_thread(check_redis, settings))[0]
    assert finding.level == "fault"
    said = [str(by_sink.value), str(by_writer.value), f"{finding.message} {finding.advice}"]
    assert "4711" not in "".join(said)
    return "\n".join(said)


async def test_users_and_tls(
    server: RedisServer, front: Callable[..., TlsFront], certificates: Certificates
) -> None:
    alice = {"username": "alice", "password": PASSWORD}
    ca = {"ca_file": certificates.ca}
    client = {"certificate_file": certificates.client, "key_file": certificates.client_key}
    tls, mutual = front(wants_certificate=False), front(wants_certificate=True)
    await use(settings_of(server.port, **alice))
    await use(settings_of(tls.port, **alice, **ca))
    await use(settings_of(mutual.port, **alice, **ca, **client, key_password=KEY_PASSWORD))

    async def said(port: int, text: str, advice: str, **values: Any) -> None:
        found = await mistake(settings_of(port, **values))
        assert found.count(text) == 3, found
        assert found.count(advice) == 3, found

    wrong = {"username": "alice", "password": "wrong-4711"}
    await said(server.port, "refused", "STREAMPROC_REDIS_PASSWORD", **wrong)
    await said(tls.port, "is not trusted here", "redis_ca_file", **alice, tls=True)
    missing = f"{certificates.ca}.missing"
    await said(tls.port, "No such file", "redis_ca_file", **alice, ca_file=missing)
    await said(mutual.port, "a client certificate", "redis_certificate_file", **alice, **ca)
    bob = {"username": "bob", "password": PASSWORD}
    finding = (await asyncio.to_thread(check_redis, settings_of(server.port, **bob)))[0]
    assert finding.level == "note"
    assert "doesn't tell all" in finding.message
    unchecked = {**alice, **ca, "check_hostname": False}
    await use(settings_of(tls.port, **unchecked))
