"""Login and TLS of brokers: what settings and arguments come to."""

from __future__ import annotations

import logging
import shutil
import ssl
from pathlib import Path
from typing import Any

import aiokafka.conn
import faust
import pytest
from aiokafka.errors import KafkaConnectionError
from certificates import KEY_PASSWORD, Certificates, make_certificates

from streamproc import App, BrokerSecurity
from streamproc.errors import ConfigurationError
from streamproc.kafka.refusal import client_security
from streamproc.kafka.security import TokenSource, app_credentials
from streamproc.records.secrets import mask

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def test_nothing_is_nothing() -> None:
    assert BrokerSecurity().client_options() == {}
    assert BrokerSecurity().credentials() is None


def test_a_user_logs_in_by_plain() -> None:
    security = BrokerSecurity(username="ann", password="w0rd-4711")
    assert security.client_options() == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "ann",
        "sasl_plain_password": "w0rd-4711",
    }
    assert "w0rd-4711" not in repr(security)
    assert "w0rd-4711" not in mask("it is w0rd-4711")


def test_tls_checks_certificate_and_name() -> None:
    options = BrokerSecurity(username="ann", mechanism="SCRAM-SHA-512", tls=True).client_options()
    context = options["ssl_context"]
    assert options["security_protocol"] == "SASL_SSL"
    assert options["sasl_mechanism"] == "SCRAM-SHA-512"
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname
    context = BrokerSecurity(tls=True, check_hostname=False).ssl_context()
    assert context is not None
    assert context.verify_mode is ssl.CERT_REQUIRED


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"mechanism": "GSSAPI"}, "is not known; there are PLAIN"),
        ({"mechanism": "OAUTHBEARER"}, "needs broker_token"),
        ({"mechanism": "PLAIN", "token": "m:f"}, "not for PLAIN"),
        ({"key_file": "k.pem"}, "needs broker_certificate_file"),
        ({"password": "w0rd-4711"}, "needs broker_username"),
    ],
)
def test_what_does_not_belong_together(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        BrokerSecurity(**values)


@needs_openssl
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"key_password": "wrong"}, "broker_key_password doesn't open the key"),
        ({"key_password": None}, "STREAMPROC_BROKER_KEY_PASSWORD"),
        ({"key_file": "server"}, "is not the key of broker_certificate_file"),
        ({"key_file": "/missing"}, "No such file"),
        ({"certificate_file": "/etc/hostname", "key_file": None}, "no certificate and key in PEM"),
        ({"ca_file": "/missing"}, "broker_ca_file = '/missing': No such file"),
        ({"ca_file": "/etc/hostname"}, "no CA certificates in PEM form"),
    ],
)
def test_files_that_can_not_be_used(
    made: Certificates, values: dict[str, Any], reason: str
) -> None:
    right = {"ca_file": made.ca, "certificate_file": made.client, "key_file": made.client_key}
    right["key_password"] = KEY_PASSWORD
    BrokerSecurity(**right).client_options()
    values = {n: made.server if value == "server" else value for n, value in values.items()}
    with pytest.raises(ConfigurationError, match=reason) as caught:
        BrokerSecurity(**{**right, **values}).client_options()
    assert KEY_PASSWORD not in str(caught.value)


class TestTokens:
    async def test_plain_and_coroutine_functions(self) -> None:
        async def coming() -> str:
            return "t0ken-b"

        assert await TokenSource(lambda: "t0ken-a").token() == "t0ken-a"
        assert await TokenSource(coming).token() == "t0ken-b"
        assert "t0ken" not in mask("t0ken-a t0ken-b")

    async def test_by_name(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "tokens_of_test.py").write_text("def get():\n    return 't0ken-c'\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert await TokenSource("tokens_of_test:get").token() == "t0ken-c"

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            ("no_such_module:get", "no_such_module:get raised ModuleNotFoundError"),
            (lambda: 1 / 0, "raised ZeroDivisionError"),
            (lambda: None, "returned NoneType, not text"),
        ],
    )
    async def test_failures_are_those_of_a_connection(self, function: Any, reason: str) -> None:
        with pytest.raises(KafkaConnectionError, match=reason):
            await TokenSource(function).token()

    async def test_a_refused_token_is_acknowledged(self) -> None:
        """aiokafka would take the broker's error for a success."""
        login = aiokafka.conn.OAuthAuthenticator(sasl_oauth_token_provider=TokenSource(lambda: "t"))
        assert await login.step(None) == (b"n,,\x01auth=Bearer t\x01\x01", True)
        assert await login.step(b'{"status":"invalid_token"}') == (b"\x01", True)
        assert await login.step(b"") is None


class TestApps:
    def credentials(self, tmp_path: Path, **options: Any) -> Any:
        app = App("secured", datadir=str(tmp_path), store="memory://", **options)
        self.app = app
        return app.conf.broker_credentials

    def test_a_login_in_the_url_is_used_and_not_shown(self, tmp_path: Path) -> None:
        found = self.credentials(tmp_path, broker="kafka://ann:p%40ss-4711@a:9092;kafka://b")
        assert (found.username, found.password) == ("ann", "p@ss-4711")
        assert [str(url) for url in self.app.conf.broker] == ["kafka://a:9092", "kafka://b"]

    def test_credentials_of_faust_stay(self, tmp_path: Path) -> None:
        given = faust.SASLCredentials(username="ann", password="w0rd", mechanism="SCRAM-SHA-256")
        assert self.credentials(tmp_path, broker_credentials=given) is given

    def test_credentials_take_the_ssl_context(self, tmp_path: Path) -> None:
        """Faust would leave it out and send the password as it is."""
        given = faust.SASLCredentials(username="ann", password="w0rd")
        context = ssl.create_default_context()
        found = self.credentials(tmp_path, broker_credentials=given, ssl_context=context)
        assert found.ssl_context is context
        assert found.protocol.value == "SASL_SSL"
        assert given.ssl_context is None

    def test_tokens(self, tmp_path: Path) -> None:
        found = self.credentials(tmp_path, broker_token=lambda: "t")
        assert isinstance(found, faust.auth.OAuthCredentials)
        found = self.credentials(
            tmp_path, broker_token=lambda: "t", broker_credentials=BrokerSecurity(tls=True)
        )
        assert found.protocol.value == "SASL_SSL"
        with pytest.raises(ConfigurationError, match="either broker_token or broker_credentials"):
            app_credentials({"broker_credentials": faust.SASLCredentials()}, lambda: "t")

    async def test_clients_tell_their_security(self) -> None:
        """What a refusal is looked for with is what the client was made with."""
        options = BrokerSecurity(username="ann", password="w0rd", tls=True).client_options()
        for kind in (aiokafka.AIOKafkaConsumer, aiokafka.AIOKafkaProducer):
            client = kind(bootstrap_servers="a:1", **options)
            assert options.items() <= client_security(client).items()
            await client.stop()


class TestPages:
    def address(self, tmp_path: Path, **options: Any) -> tuple[str, str]:
        conf = App("paged", datadir=str(tmp_path), store="memory://", **options).conf
        return conf.web_bind, conf.web_host

    def test_are_served_on_this_machine_only(self, tmp_path: Path) -> None:
        assert self.address(tmp_path) == ("127.0.0.1", "127.0.0.1")
        assert self.address(tmp_path, web_host="me")[0] == "127.0.0.1"

    def test_unless_told_otherwise(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        bound, host = self.address(tmp_path, web_bind="0.0.0.0")
        assert bound == "0.0.0.0"
        assert host != "127.0.0.1"  # the machine's name, as Faust has it
        monkeypatch.setenv("WEB_BIND", "10.0.0.1")
        assert self.address(tmp_path)[0] == "10.0.0.1"

    @pytest.mark.parametrize(("bind", "warned"), [("0.0.0.0", True), ("127.0.0.1", False)])
    def test_all_addresses_are_warned_of(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture, bind: str, warned: bool
    ) -> None:
        app = App("paged", datadir=str(tmp_path), store="memory://", web_bind=bind)
        with caplog.at_level(logging.WARNING):
            app.warn_of_open_pages()
        assert ("are served on all addresses" in caplog.text) is warned
