"""Why a broker doesn't take us, in words that say what to set.

Kafka clients say "unable to bootstrap" to a wrong password, an unknown CA, a missing
client certificate and a listener with or without TLS alike. Here one connection is made by
hand, and what happens on it is told apart.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from typing import Any, NamedTuple

from aiokafka.conn import create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    IllegalSaslStateError,
    KafkaError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
from aiokafka.protocol.admin import SaslHandShakeRequest
from aiokafka.protocol.metadata import MetadataRequest

from streamproc.kafka.hello import Answer, who_answers

#: Asked for to be told which ones there are.
_NO_MECHANISM = "?"
_HOST_MISMATCH, _ADDRESS_MISMATCH, _EXPIRED, _NOT_YET_VALID = 62, 64, 10, 9
_WANTS_CERTIFICATE = ("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "HANDSHAKE_FAILURE")
_REFUSES_CERTIFICATE = ("UNKNOWN_CA", "CERTIFICATE_UNKNOWN", "CERTIFICATE_EXPIRED", "ACCESS_DENIED")


class Refusal(NamedTuple):
    """Why a broker doesn't take us, and what to do about it."""

    problem: str
    advice: str

    def __str__(self) -> str:
        return f"{self.problem}. {self.advice}"


def client_security(client: Any) -> dict[str, Any]:
    """Return the arguments about security that a client of aiokafka was made with."""
    inner = getattr(client, "_client", None) or client.client
    names = (
        "security_protocol",
        "ssl_context",
        "sasl_mechanism",
        "sasl_plain_username",
        "sasl_plain_password",
        "sasl_kerberos_service_name",
        "sasl_kerberos_domain_name",
        "sasl_oauth_token_provider",
    )
    return {name: getattr(inner, f"_{name}") for name in names}


async def find_refusal(
    bootstrap: str, options: Mapping[str, Any], timeout: float = 5.0
) -> Refusal | None:
    """Return why the first broker that refuses us does so; None when none does.

    Args:
        bootstrap: "host:port,host:port".
        options: Arguments of aiokafka's clients about security.
        timeout: Seconds that a broker has to answer.
    """
    for server in bootstrap.split(","):
        host, _, port = server.rpartition(":")
        refusal = await refusal_of(host.strip("[]"), int(port), options, timeout)
        if refusal is not None:
            return refusal
    return None


async def refusal_of(
    host: str, port: int, options: Mapping[str, Any], timeout: float = 5.0
) -> Refusal | None:
    """Return why the broker at an address refuses us for good; None when it doesn't.

    A broker that isn't there, or doesn't answer in time, refuses nobody.
    """
    place = f"Kafka at {host}:{port}"
    try:
        connection = await create_conn(
            host, port, request_timeout_ms=int(timeout * 1000), **options
        )
        try:
            await connection.send(MetadataRequest([]))
        finally:
            connection.close()
    except (IllegalSaslStateError, UnsupportedSaslMechanismError):
        return _no_mechanism(place, await _mechanisms(host, port, options, timeout), options)
    except (AuthenticationFailedError, SaslAuthenticationFailed) as exc:
        return _login_refused(place, exc, options)
    except asyncio.TimeoutError:
        return None  # it hangs, or packets are dropped
    except (KafkaError, OSError) as exc:
        cause = exc if isinstance(exc, ssl.SSLError) else exc.__cause__
        if isinstance(cause, ssl.SSLError) and (refusal := _tls_refused(place, cause)):
            return refusal
        return await _misunderstood(place, host, port, options, timeout)
    return None


def _no_mechanism(place: str, mechanisms: list[str], options: Mapping[str, Any]) -> Refusal:
    if not mechanisms:
        return Refusal(
            f"{place} takes no logins at this listener",
            "Leave broker_username, broker_password and broker_token out, or name the port of "
            "the SASL listener in broker_list",
        )
    return Refusal(
        f"{place} takes no logins by {options.get('sasl_mechanism')}, only by "
        f"{', '.join(mechanisms)}",
        "Set broker_sasl_mechanism (STREAMPROC_BROKER_SASL_MECHANISM) to one that it takes",
    )


def _login_refused(place: str, exc: Exception, options: Mapping[str, Any]) -> Refusal:
    mechanism = options.get("sasl_mechanism")
    if mechanism == "OAUTHBEARER":
        return Refusal(
            f"{place} refused the login: it doesn't accept the token ({exc})",
            "Check what the function in broker_token returns: its issuer, audience and expiry",
        )
    user = options.get("sasl_plain_username")
    return Refusal(
        f"{place} refused the login of {user!r} by {mechanism} ({exc})",
        "Check broker_username, broker_password (STREAMPROC_BROKER_USERNAME, "
        "STREAMPROC_BROKER_PASSWORD) and broker_sasl_mechanism",
    )


def _tls_refused(place: str, exc: ssl.SSLError) -> Refusal | None:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _untrusted(place, exc)
    reason = f"{exc.reason or ''} {exc}".upper()
    if any(alert in reason for alert in _REFUSES_CERTIFICATE):
        return Refusal(
            f"{place} doesn't trust our certificate ({exc.reason or exc})",
            "Set broker_certificate_file and broker_key_file to a certificate signed by a CA "
            "that the broker trusts (ssl.truststore)",
        )
    if any(alert in reason for alert in _WANTS_CERTIFICATE):
        return Refusal(
            f"{place} asks for a client certificate ({exc.reason or exc})",
            "Set broker_certificate_file and broker_key_file (STREAMPROC_BROKER_CERTIFICATE_FILE, "
            "STREAMPROC_BROKER_KEY_FILE)",
        )
    return None


def _untrusted(place: str, exc: ssl.SSLCertVerificationError) -> Refusal:
    if exc.verify_code in (_HOST_MISMATCH, _ADDRESS_MISMATCH):
        return Refusal(
            f"The certificate of {place} is for another name ({exc.verify_message})",
            "Use the name in the certificate in broker_list and in the broker's "
            "advertised.listeners, or set broker_check_hostname to false",
        )
    if exc.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return Refusal(
            f"The certificate of {place} is not valid now ({exc.verify_message})",
            "Give the broker a new certificate, and check the clock of this machine",
        )
    return Refusal(
        f"The certificate of {place} is not trusted here ({exc.verify_message})",
        "Set broker_ca_file (STREAMPROC_BROKER_CA_FILE) to the PEM file of the CA that signed it",
    )


async def _misunderstood(
    place: str, host: str, port: int, options: Mapping[str, Any], timeout: float
) -> Refusal | None:
    """Tell why a connection was closed: by who answers when asked without TLS and login."""
    protocol = str(options.get("security_protocol") or "PLAINTEXT")
    answer, _ = await who_answers(host, port, timeout)
    if "SSL" in protocol:
        if answer is Answer.KAFKA:
            return Refusal(
                f"{place} speaks no TLS at this listener",
                "Name the port of its TLS listener in broker_list, or leave broker_tls, "
                "broker_ca_file and broker_certificate_file out",
            )
        return None
    if answer is Answer.TLS:
        return Refusal(
            f"{place} speaks TLS, and we don't",
            "Set broker_tls to true (STREAMPROC_BROKER_TLS), and broker_ca_file when its CA is "
            "your own",
        )
    if answer is Answer.KAFKA and protocol == "PLAINTEXT":
        mechanisms = await _mechanisms(host, port, options, timeout)
        if mechanisms:
            return Refusal(
                f"{place} asks for a login (SASL mechanisms: {', '.join(mechanisms)})",
                "Set broker_username, broker_password and broker_sasl_mechanism "
                "(STREAMPROC_BROKER_USERNAME, ...)",
            )
    return None


async def _mechanisms(
    host: str, port: int, options: Mapping[str, Any], timeout: float
) -> list[str]:
    """Return the SASL mechanisms of a listener; none when it takes no logins."""
    context = options.get("ssl_context")
    protocol = "PLAINTEXT" if context is None else "SSL"
    with contextlib.suppress(KafkaError, OSError, asyncio.TimeoutError):
        connection = await create_conn(
            host,
            port,
            request_timeout_ms=int(timeout * 1000),
            security_protocol=protocol,
            ssl_context=context,
        )
        try:
            reply = await connection.send(SaslHandShakeRequest(_NO_MECHANISM))
            return sorted(set(reply.enabled_mechanisms) - {_NO_MECHANISM})
        finally:
            connection.close()
    return []
