"""What errors of TLS connections to Redis mean, and what to set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from redis.asyncio.connection import parse_url

from streamproc.kafka.security import client_context


class TlsFault(NamedTuple):
    """What is wrong, said of "Redis at <place>", and what to do about it."""

    problem: str
    advice: str


_IN_URL = "or in the URL"
_FAULTS = {
    ("HOSTNAME MISMATCH", "IP ADDRESS MISMATCH"): TlsFault(
        "has a certificate for another name",
        "use the name that is in it, or set redis_check_hostname to false "
        f"({_IN_URL} ssl_check_hostname=false)",
    ),
    ("CERTIFICATE HAS EXPIRED", "NOT YET VALID"): TlsFault(
        "has a certificate that is not valid now",
        "give it a new one, and check the clock of this machine",
    ),
    ("CERTIFICATE_VERIFY_FAILED",): TlsFault(
        "has a certificate that is not trusted here",
        "name the CA in redis_ca_file (STREAMPROC_REDIS_CA_FILE), "
        f"{_IN_URL}: rediss://host:port/0?ssl_ca_certs=/path/ca.pem",
    ),
    ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE"): TlsFault(
        "asks for a client certificate",
        "set redis_certificate_file and redis_key_file (STREAMPROC_REDIS_CERTIFICATE_FILE, "
        f"STREAMPROC_REDIS_KEY_FILE), {_IN_URL} ssl_certfile and ssl_keyfile",
    ),
    ("UNKNOWN_CA", "CERTIFICATE_UNKNOWN"): TlsFault(
        "doesn't trust our certificate",
        "set redis_certificate_file and redis_key_file to one signed by a CA that it trusts",
    ),
    ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "RECORD LAYER FAILURE"): TlsFault(
        "speaks no TLS at this port",
        "write redis:// instead of rediss://, leave redis_tls and redis_ca_file out, or name "
        "the port that does",
    ),
}


def tls_fault(reason: str) -> TlsFault | None:
    """Return what an error's text says about TLS; None when it says nothing."""
    text = reason.upper()
    for marks, fault in _FAULTS.items():
        if any(mark in text for mark in marks):
            return fault
    return None


def check_files(url: str) -> None:
    """Check that the files that a URL names can be used.

    When redis-py connects it would say that the server is away.

    Raises:
        ConfigurationError: A file isn't there or can't be used.
        ValueError: It is no URL of a single server.
    """
    options: Mapping[str, Any] = parse_url(url)
    if options.get("ssl_ca_certs") or options.get("ssl_certfile"):
        client_context(
            "redis",
            ca_file=options.get("ssl_ca_certs"),
            certificate_file=options.get("ssl_certfile"),
            key_file=options.get("ssl_keyfile"),
            key_password=options.get("ssl_password"),
            check_hostname=True,
        )
