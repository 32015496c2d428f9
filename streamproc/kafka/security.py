"""Login and TLS of the brokers: one object for the App, the KafkaReader and all tools."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import unquote

import aiokafka.conn
from aiokafka.abc import AbstractTokenProvider
from aiokafka.conn import OAuthAuthenticator
from aiokafka.errors import KafkaConnectionError
from faust.auth import Credentials, OAuthCredentials, SASLCredentials, SSLCredentials
from faust.types.auth import AuthProtocol

from streamproc.errors import ConfigurationError
from streamproc.records.secrets import register

MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")

#: Arguments of aiokafka's clients for brokers without login and TLS.
NO_SECURITY: Mapping[str, Any] = MappingProxyType({})

TokenFunction = Callable[[], "str | Awaitable[str]"]


class TokenSource(AbstractTokenProvider):  # type: ignore[misc]
    """Where OAUTHBEARER tokens come from: a function, called for each new connection.

    Args:
        function: A function or coroutine function without arguments that returns a token;
            or ``"module:function"``, imported when the first token is needed. A plain
            function runs in a thread, so that it may ask a server.
    """

    def __init__(self, function: TokenFunction | str) -> None:
        self._function = function

    async def token(self) -> str:
        """Return a new token.

        Raises:
            KafkaConnectionError: The function raised; connecting is tried again, as when
                the broker is away.
        """
        try:
            function = self._resolved()
            if inspect.iscoroutinefunction(function):
                token = await function()
            else:
                token = await asyncio.to_thread(function)
                if inspect.isawaitable(token):
                    token = await token
        except Exception as exc:
            raise KafkaConnectionError(
                f"no token for Kafka: {self} raised {type(exc).__name__}: {exc}"
            ) from exc
        if not isinstance(token, str) or not token:
            raise KafkaConnectionError(
                f"no token for Kafka: {self} returned {type(token).__name__}, not text"
            )
        register(token)
        return token

    def _resolved(self) -> Any:
        if isinstance(self._function, str):
            module, _, name = self._function.partition(":")
            self._function = getattr(importlib.import_module(module), name)
        return self._function

    def __repr__(self) -> str:
        if isinstance(self._function, str):
            return self._function
        return str(getattr(self._function, "__qualname__", type(self._function).__name__))


class _TokenLogin(OAuthAuthenticator):  # type: ignore[misc]
    """The login by a token, to its end when the broker refuses it.

    Brokers send the error as a challenge, which the client has to acknowledge (RFC 7628, 3.2.3).
    aiokafka 0.14 takes it for a success, and its next request fails in ways that tell nothing.
    """

    async def step(self, payload: bytes | None) -> Any:
        if payload:
            return b"\x01", True
        return await super().step(payload)


aiokafka.conn.OAuthAuthenticator = _TokenLogin


@dataclass(frozen=True)
class BrokerSecurity:
    """How clients log in to the brokers and how connections are encrypted.

    For ``App(broker_credentials=...)`` and ``KafkaReader(security=...)``. With a user name
    or a token clients log in (SASL); with ``tls``, a CA or a certificate connections are
    encrypted, and the broker's certificate and host name are checked.

    Args:
        username: User of SASL PLAIN or SCRAM.
        password: The user's password; take it from the environment.
        mechanism: ``PLAIN``, ``SCRAM-SHA-256``, ``SCRAM-SHA-512`` or ``OAUTHBEARER``;
            PLAIN, or OAUTHBEARER where there is a ``token``, when left out.
        token: Function that returns a token for OAUTHBEARER; see :class:`TokenSource`.
        tls: Encrypt connections, trusting the system's CAs unless ``ca_file`` is given.
        ca_file: PEM file with the CA that signed the brokers' certificates.
        certificate_file: PEM file with a certificate for brokers that ask for one.
        key_file: PEM file with its key, when that isn't in ``certificate_file``.
        key_password: Password of the key.
        check_hostname: Whether the broker's certificate must be for the name it is
            reached by.

    Raises:
        ConfigurationError: Parts that don't belong together.
    """

    username: str | None = None
    password: str | None = field(default=None, repr=False)
    mechanism: str | None = None
    token: TokenSource | TokenFunction | str | None = None
    tls: bool = False
    ca_file: str | None = None
    certificate_file: str | None = None
    key_file: str | None = None
    key_password: str | None = field(default=None, repr=False)
    check_hostname: bool = True

    def __post_init__(self) -> None:
        register(self.password, self.key_password)
        if self.mechanism is not None and self.mechanism not in MECHANISMS:
            raise ConfigurationError(
                f"SASL mechanism {self.mechanism!r} is not known; there are {', '.join(MECHANISMS)}"
            )
        if self.token is not None and self.mechanism not in (None, "OAUTHBEARER"):
            raise ConfigurationError(
                f"broker_token is for the SASL mechanism OAUTHBEARER, not for {self.mechanism}"
            )
        if self.mechanism == "OAUTHBEARER" and self.token is None:
            raise ConfigurationError(
                "The SASL mechanism OAUTHBEARER needs broker_token: a function that returns a token"
            )
        if self.password and self.username is None:
            raise ConfigurationError("broker_password needs broker_username, too")
        if self.key_file is not None and self.certificate_file is None:
            raise ConfigurationError("broker_key_file needs broker_certificate_file, too")

    @property
    def is_encrypted(self) -> bool:
        """Whether connections use TLS."""
        return self.tls or self.ca_file is not None or self.certificate_file is not None

    @property
    def has_login(self) -> bool:
        """Whether clients log in by SASL."""
        return self.username is not None or self.token is not None

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return what TLS connections are made with; None without TLS.

        Raises:
            ConfigurationError: A file isn't there or can't be used.
        """
        if not self.is_encrypted:
            return None
        return client_context(
            "broker",
            ca_file=self.ca_file,
            certificate_file=self.certificate_file,
            key_file=self.key_file,
            key_password=self.key_password,
            check_hostname=self.check_hostname,
        )

    def client_options(self) -> dict[str, Any]:
        """Return the arguments of aiokafka's clients that these settings mean.

        Raises:
            ConfigurationError: A file isn't there or can't be used.
        """
        context = self.ssl_context()
        options: dict[str, Any] = {}
        if context is not None:
            options = {"security_protocol": "SSL", "ssl_context": context}
        if not self.has_login:
            return options
        options["security_protocol"] = "SASL_PLAINTEXT" if context is None else "SASL_SSL"
        if self.token is not None:
            options["sasl_mechanism"] = "OAUTHBEARER"
            options["sasl_oauth_token_provider"] = self._token_source()
        else:
            options["sasl_mechanism"] = self.mechanism or "PLAIN"
            options["sasl_plain_username"] = self.username
            options["sasl_plain_password"] = self.password or ""
        return options

    def credentials(self) -> Credentials | None:
        """Return the same in Faust's words; None when neither login nor TLS is wanted.

        Raises:
            ConfigurationError: A file isn't there or can't be used.
        """
        context = self.ssl_context()
        if self.token is not None:
            return OAuthCredentials(oauth_cb=self._token_source(), ssl_context=context)
        if self.username is not None:
            return SASLCredentials(
                username=self.username,
                password=self.password or "",
                mechanism=self.mechanism or "PLAIN",
                ssl_context=context,
            )
        return None if context is None else SSLCredentials(context)

    def _token_source(self) -> TokenSource:
        if isinstance(self.token, TokenSource):
            return self.token
        assert self.token is not None
        return TokenSource(self.token)


def app_credentials(options: Mapping[str, Any], token: Any = None) -> dict[str, Any]:
    """Return what arguments of an App about brokers mean, as Faust takes them.

    Logins are taken out of broker URLs, which Faust shows. An ``ssl_context`` goes with
    credentials that have none, which Faust would send unencrypted.

    Args:
        options: The App's arguments: ``broker``, ``broker_credentials``, ``ssl_context``...
        token: The argument ``broker_token``.

    Raises:
        ConfigurationError: Arguments that don't belong together, or a file can't be used.
    """
    found: dict[str, Any] = {}
    credentials, context = options.get("broker_credentials"), options.get("ssl_context")
    user, password = None, None
    for name in ("broker", "broker_consumer", "broker_producer"):
        urls = options.get(name) or (os.environ.get("BROKER_URL") if name == "broker" else None)
        if urls is not None:
            found[name], (user, password) = _without_logins(urls, (user, password))
    if token is not None and credentials is None:
        credentials = BrokerSecurity(token=token)
    elif token is not None and isinstance(credentials, BrokerSecurity):
        credentials = replace(credentials, token=token)
    elif token is not None:
        raise ConfigurationError("Give either broker_token or broker_credentials, not both")
    if credentials is None and user is not None:
        credentials = BrokerSecurity(username=user, password=password)
    if isinstance(credentials, BrokerSecurity):
        credentials = credentials.credentials()
    if isinstance(credentials, SASLCredentials):
        register(credentials.password)
    if context is not None and getattr(credentials, "ssl_context", context) is None:
        credentials = copy(credentials)
        assert credentials is not None
        credentials.ssl_context, credentials.protocol = context, AuthProtocol.SASL_SSL
    found["broker_credentials"] = credentials
    return found


def _without_logins(urls: Any, login: Any) -> tuple[Any, Any]:
    """Return broker URLs without logins, and the first login found (else ``login``)."""
    parts = (
        [str(u) for u in urls] if isinstance(urls, list | tuple) else re.split("[;,]", str(urls))
    )
    if not any("@" in part for part in parts):
        return urls, login
    cleaned = []
    for part in parts:
        scheme, separator, rest = part.rpartition("://")
        words, at, place = rest.rpartition("@")
        if at:
            user, _, password = words.partition(":")
            login = login if login[0] is not None else (unquote(user), unquote(password))
            register(password, unquote(password))
        cleaned.append(f"{scheme}{separator}{place}")
    return ";".join(cleaned), login


def client_context(
    prefix: str,
    *,
    ca_file: str | None,
    certificate_file: str | None,
    key_file: str | None,
    key_password: str | None,
    check_hostname: bool,
) -> ssl.SSLContext:
    """Return a context for TLS connections to servers whose certificates are checked.

    Args:
        prefix: What the names of the settings begin with, for errors.
        ca_file: PEM file with the CAs to trust; None: the system's.
        certificate_file: PEM file with our certificate.
        key_file: PEM file with its key, None when that is in the same file.
        key_password: Password of the key.
        check_hostname: Whether the server's certificate must be for its name.

    Raises:
        ConfigurationError: A file isn't there or can't be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except OSError as exc:  # an SSLError is one, too
        raise ConfigurationError(
            f"{prefix}_ca_file = {ca_file!r}: {_reason(exc, 'no CA certificates in PEM form')}"
        ) from exc
    context.check_hostname = check_hostname
    if certificate_file is not None:
        # Without a function OpenSSL would ask on the terminal.
        word = key_password or ""
        try:
            context.load_cert_chain(certificate_file, key_file, lambda: word)
        except OSError as exc:
            raise ConfigurationError(
                _bad_certificate(prefix, certificate_file, key_file, exc)
            ) from exc
    return context


def _bad_certificate(prefix: str, certificate: str, key: str | None, exc: OSError) -> str:
    reason = str(getattr(exc, "reason", None) or "")
    if "KEY_VALUES_MISMATCH" in reason:
        return f"{prefix}_key_file = {key!r} is not the key of {prefix}_certificate_file"
    if not isinstance(exc, ssl.SSLError):
        return f"{prefix}_certificate_file = {certificate!r}, key {key!r}: {exc.strerror}"
    # What OpenSSL says to a wrong password differs from version to version.
    if "ENCRYPTED" in Path(key or certificate).read_text(errors="replace"):
        return (
            f"{prefix}_key_password doesn't open the key in {key or certificate!r}: set "
            f"STREAMPROC_{prefix.upper()}_KEY_PASSWORD in the environment"
        )
    return (
        f"{prefix}_certificate_file = {certificate!r}, {prefix}_key_file = {key!r}: "
        f"no certificate and key in PEM form ({reason or exc})"
    )


def _reason(exc: OSError, otherwise: str) -> str:
    return otherwise if isinstance(exc, ssl.SSLError) else exc.strerror or str(exc)
