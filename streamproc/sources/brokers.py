"""Addresses of brokers, as people write them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote

from streamproc.errors import ConfigurationError

DEFAULT_PORT = 9092
SCHEMES = ("kafka", "aiokafka", "confluent")


class Brokers(NamedTuple):
    """``bootstrap`` is "host:port,host:port"; ``login`` holds aiokafka's settings for it."""

    bootstrap: str
    login: dict[str, Any]


def brokers(
    broker_list: str | Sequence[str], username: str | None = None, password: str | None = None
) -> Brokers:
    """Read a broker list: "a:9092,b:9092", a list of these, or ``kafka://`` URLs.

    A login in a URL (``kafka://user:password@host``), or ``username`` and ``password``,
    mean SASL/PLAIN unless other settings say otherwise.

    Raises:
        ConfigurationError: There is none, or one is malformed.
    """
    text = broker_list if isinstance(broker_list, str) else ",".join(map(str, broker_list))
    hosts = []
    for part in filter(None, map(str.strip, text.replace(";", ",").split(","))):
        login, host = _parse(part)
        hosts.append(host)
        if login and username is None:
            username, _, word = login.partition(":")
            username, password = unquote(username), unquote(word)
    if not hosts:
        raise ConfigurationError('broker_list is empty; give for example "localhost:9092"')
    if username is None:
        return Brokers(",".join(hosts), {})
    return Brokers(
        ",".join(hosts),
        {
            "security_protocol": "SASL_PLAINTEXT",
            "sasl_mechanism": "PLAIN",
            "sasl_plain_username": username,
            "sasl_plain_password": password or "",
        },
    )


def _parse(part: str) -> tuple[str, str]:
    """Return the login (may be empty) and "host:port" of one broker."""
    scheme, separator, rest = part.partition("://")
    place = rest if separator else part
    login, _, address = place.rstrip("/").rpartition("@")
    if separator and scheme not in SCHEMES:
        raise ConfigurationError(
            f"Broker {scheme}://{address} is not Kafka's; write host:port or kafka://host:port"
        )
    if address.startswith("["):  # IPv6
        host, _, port = address[1:].partition("]")
        host, port = f"[{host}]", port.lstrip(":")
    else:
        host, _, port = address.partition(":")
    if not host or (port and not port.isdigit()):
        raise ConfigurationError(f"Broker {address!r} is malformed; write host:port")
    return login, f"{host}:{port or DEFAULT_PORT}"
