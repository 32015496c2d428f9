"""Logins stay out of what is shown, and replies are told apart. No server."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from redis import exceptions

from streamproc.errors import ConfigurationError
from streamproc.sinks.redis.link import Link, is_passing, reply_of, shown_url


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("rediss://user:secret@host:1/2", "rediss://host:1/2"),
        ("redis://:se%40cret@host", "redis://host"),
        ("redis://host/0?password=secret", "redis://host/0"),
        ("unix:///run/redis.sock?password=secret", "unix:///run/redis.sock"),
        ("redis+cluster://:secret@host:7000", "redis+cluster://host:7000"),
        ("redis://:sec/ret@host", "redis://..."),
        ("redis://:sec#ret@host", "redis://..."),
        ("redis://:sec?ret@host", "redis://..."),
        ("redis://[secret", "redis://..."),
    ],
)
def test_shown_url_has_no_login(url: str, shown: str) -> None:
    assert shown_url(url) == shown


@pytest.mark.parametrize("url", ["redis://:sec/ret@host", "http://:secret@host", "nonsense", ""])
async def test_unusable_urls_are_refused_without_the_login(url: str) -> None:
    with pytest.raises(ConfigurationError, match="not usable") as caught:
        Link(url, cluster=False, timeout=1.0)
    assert "sec" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "passing"),
    [
        ("LOADING Redis is loading the dataset in memory", True),
        ("OOM command not allowed when used memory > 'maxmemory'.", True),
        ("READONLY You can't write against a read only replica.", True),
        ("BUSY Redis is busy running a script.", True),
        ("MASTERDOWN Link with MASTER is down", True),
        ("BUSYGROUP Consumer Group name already exists", False),
        ("WRONGTYPE Operation against a key holding the wrong kind of value", False),
        ("ERR syntax error", False),
    ],
)
def test_what_passes_by_itself(reply: str, passing: bool) -> None:
    assert is_passing(reply) is passing


def test_codes_that_redis_py_takes_off_are_put_back() -> None:
    assert reply_of(exceptions.MasterDownError("Link is down")) == "MASTERDOWN Link is down"
    assert reply_of(exceptions.ClusterDownError("down")) == "CLUSTERDOWN down"
    assert reply_of(exceptions.ResponseError("WRONGTYPE no")) == "WRONGTYPE no"


async def test_a_cluster_may_be_behind_tls() -> None:
    link = Link("rediss+cluster://host:7000?ssl_check_hostname=true", cluster=False, timeout=1.0)
    assert link.is_cluster
    assert link.client.connection_kwargs["ssl_check_hostname"] is True
    assert link.url == "rediss+cluster://host:7000"
    await link.close()


async def test_a_connection_that_was_lost_is_not_written_to() -> None:
    class Writer:
        """What uvloop makes of a connection that is closed."""

        transport = SimpleNamespace(abort=lambda: None)

        def is_closing(self) -> bool:
            return True

        def write(self, data: object) -> None:
            raise RuntimeError("unable to perform operation; the handler is closed")

    async def disconnect(nowait: bool) -> None:
        pass

    link = Link("redis://nowhere:1", cluster=False, timeout=1.0)
    channel = link.channel()
    channel._connection = SimpleNamespace(  # type: ignore[union-attr]
        is_connected=True, _reader=object(), _writer=Writer(), disconnect=disconnect
    )
    with pytest.raises(exceptions.ConnectionError, match="was lost"):
        await channel.request([("PING",)])
