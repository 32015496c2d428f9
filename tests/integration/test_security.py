"""Logins and TLS on a real broker: each way works, and each mistake is named."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import harness
import pytest
from certificates import KEY_PASSWORD, Certificates, make_certificates

from streamproc import BrokerSecurity, KafkaReader
from streamproc.dev.apache import ApacheKafka, Listener
from streamproc.errors import ConfigurationError

pytestmark = [
    pytest.mark.apache_only,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl"),
]

PASSWORD = "open-sesame-4711"

_MODULES = "org.apache.kafka.common.security"
_LOGINS = {
    "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER",
    "plain.sasl.jaas.config": f"{_MODULES}.plain.PlainLoginModule required "
    f'user_alice="{PASSWORD}";',
    "scram-sha-256.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
    "scram-sha-512.sasl.jaas.config": f"{_MODULES}.scram.ScramLoginModule required;",
    "oauthbearer.sasl.jaas.config": f"{_MODULES}.oauthbearer.OAuthBearerLoginModule required "
    'unsecuredLoginStringClaim_sub="broker";',
}

AGENT = """
import os

from streamproc import app

source, results = app.topic(os.environ["SOURCE"]), app.topic(os.environ["RESULTS"])
counts = app.Table("counts", default=int)


@app.agent(source)
async def echo(stream):
    async for value in stream:
        counts[value["way"]] += 1
        await results.send(value={"way": value["way"], "count": counts[value["way"]]})
"""

SETTINGS = """
import base64, json, time


def broker_token():
    def part(data):
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    now = int(time.time())
    return f"{part({'alg': 'none'})}.{part({'sub': 'alice', 'iat': now, 'exp': now + 60})}."
"""


def token(subject: str = "alice", seconds: int = 60) -> str:
    """Return a token as brokers take them that check none; expired with less than 0 seconds."""

    def part(data: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(data).encode()).rstrip(b"=").decode()

    now = int(time.time())
    claims = {"sub": subject, "iat": now - 120, "exp": now + seconds}
    return f"{part({'alg': 'none'})}.{part(claims)}."


class Broker:
    """An Apache Kafka with one listener for each way in."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        tls = {"ssl.keystore.type": "PEM", "ssl.keystore.location": certificates.server}
        trust = {"ssl.truststore.type": "PEM", "ssl.truststore.location": certificates.ca}
        self.login = Listener("LOGIN", "SASL_PLAINTEXT", _LOGINS)
        self.tls = Listener("TLS", "SSL", tls)
        self.mutual = Listener("MUTUAL", "SSL", {**tls, **trust, "ssl.client.auth": "required"})
        self.both = Listener("BOTH", "SASL_SSL", {**tls, **_LOGINS})
        self.server = ApacheKafka(
            folder,
            listeners=[self.login, self.tls, self.mutual, self.both],
            scram_users={"alice": PASSWORD},
        )


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return make_certificates(tmp_path / "certificates")


@pytest.fixture
def broker(tmp_path: Path, certificates: Certificates, children: list[Any]) -> Broker:
    broker = Broker(tmp_path / "kafka", certificates)
    children.append(broker.server)
    broker.server.start()
    return broker


def ways(broker: Broker, made: Certificates) -> dict[str, tuple[Listener, dict[str, Any]]]:
    """Return the listener and the settings of each way in, by a name."""
    alice = {"username": "alice", "password": PASSWORD}
    client = {"certificate_file": made.client, "key_file": made.client_key}
    return {
        "plain": (broker.login, alice),
        "scram-256": (broker.login, {**alice, "mechanism": "SCRAM-SHA-256"}),
        "oauthbearer": (broker.login, {"token": True}),
        "tls": (broker.tls, {"ca_file": made.ca}),
        "mutual": (broker.mutual, {"ca_file": made.ca, **client, "key_password": KEY_PASSWORD}),
        "exactly-once": (
            broker.both,
            {**alice, "mechanism": "SCRAM-SHA-512", "ca_file": made.ca},
        ),
    }


def environment(listener: Listener, settings: dict[str, Any]) -> dict[str, str]:
    names = {"mechanism": "sasl_mechanism"}
    values = {
        f"STREAMPROC_BROKER_{names.get(name, name).upper()}": str(value)
        for name, value in settings.items()
        if name != "token"
    }
    return {**values, "STREAMPROC_BROKER_LIST": listener.address}


def test_every_way_in_and_every_mistake(
    broker: Broker, certificates: Certificates, worker: harness.WorkerLauncher, tmp_path: Path
) -> None:
    client = harness.KafkaClient(broker.server.bootstrap)
    source, results = client.create_topic(1), client.create_topic(1)
    client.produce(source, [{"way": way} for way in ways(broker, certificates)])

    def start(name: str, listener: Listener, settings: dict[str, Any]) -> harness.Worker:
        folder = tmp_path / name
        (folder / "agents").mkdir(parents=True)
        (folder / "agents" / "__init__.py").touch()
        (folder / "agents" / "echo.py").write_text(AGENT)
        if "token" in settings:
            (folder / "settings.py").write_text(SETTINGS)
        names = {"STREAMPROC_NAME": name, "SOURCE": source, "RESULTS": results}
        env = {**environment(listener, settings), **names}
        if name == "exactly-once":  # with a transactional producer
            env["STREAMPROC_PROCESSING_GUARANTEE"] = "exactly_once"
        return worker(module="streamproc", cwd=folder, env=env)

    for way, (listener, settings) in ways(broker, certificates).items():
        start(way, listener, settings)
    wrong = {"username": "alice", "password": "wrong-4711", "mechanism": "SCRAM-SHA-256"}
    refused = start("refused", broker.login, wrong)
    tools = [Tool(tmp_path, way, *ways(broker, certificates)[way]) for way in ("mutual", "plain")]
    _reader_reads_each_way(source, broker, certificates)
    _mistakes_are_named(source, broker, certificates)
    for tool in tools:
        tool.check(client)
    found = client.consume_all(results, at_least=36, timeout=60)
    counts = [record.json()["count"] for record in found]
    assert counts == [1] * 36  # of each of the six workers, one of each way
    assert refused.wait_end() != 0
    assert "refused the login of 'alice' by SCRAM-SHA-256" in refused.log
    assert "wrong-4711" not in refused.log


class Tool:
    """`streamproc replay` and then `streamproc doctor`, by the settings of a way in."""

    def __init__(self, folder: Path, way: str, listener: Listener, values: dict[str, Any]) -> None:
        self._topic = f"replayed-{way}"
        data = folder / f"{way}.csv"
        data.write_text("n\n1\n2\n")
        name = [sys.executable, "-m", "streamproc"]
        replay = shlex.join([*name, "replay", str(data), "--topic", self._topic])
        doctor = shlex.join([*name, "doctor", "--json", "--seconds", "0.5"])
        self._process = subprocess.Popen(
            ["sh", "-c", f"{replay} >&2 && {doctor}"],
            cwd=folder / way,
            env={**os.environ, **environment(listener, values), "STREAMPROC_TOPIC": self._topic}
            | {"SOURCE": self._topic, "RESULTS": self._topic},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def check(self, client: harness.KafkaClient) -> None:
        output, errors = self._process.communicate(timeout=60)
        assert output, errors
        found = {each["check"]: each for each in json.loads(output)}
        assert found["broker"]["level"] == "ok"
        assert "2 records" in found[f"topic {self._topic}"]["message"]
        assert len(client.consume_all(self._topic, at_least=2)) == 2


def _reader_reads_each_way(source: str, broker: Broker, certificates: Certificates) -> None:
    for way, (listener, settings) in ways(broker, certificates).items():
        if "token" in settings:
            settings = {"token": token}
        security = BrokerSecurity(**settings)
        with KafkaReader(
            listener.address, source, group=f"reader-{way}", security=security, limit=6
        ) as reader:
            assert len(list(reader.get_stream())) == 6


def _mistakes_are_named(source: str, broker: Broker, made: Certificates) -> None:
    def refused(listener: Listener, host: str = "127.0.0.1", **settings: Any) -> str:
        security = BrokerSecurity(**settings)
        with pytest.raises(ConfigurationError) as caught:
            KafkaReader(f"{host}:{listener.port}", source, security=security, connect_timeout=5)
        assert "wrong-4711" not in str(caught.value)
        return str(caught.value)

    alice = {"username": "alice", "password": "wrong-4711"}
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        text = refused(broker.login, **alice, mechanism=mechanism)
        assert f"refused the login of 'alice' by {mechanism}" in text
        assert "STREAMPROC_BROKER_PASSWORD" in text
    text = refused(broker.login, token=lambda: token(seconds=-60))
    assert "doesn't accept the token" in text
    assert "broker_token" in text
    text = refused(broker.login)
    assert "asks for a login" in text
    assert "SCRAM-SHA-512" in text
    text = refused(broker.tls)
    assert "speaks TLS, and we don't" in text
    assert "STREAMPROC_BROKER_TLS" in text
    text = refused(broker.login, ca_file=made.ca)
    assert "speaks no TLS at this listener" in text
    text = refused(broker.tls, ca_file=made.ca, **alice)
    assert "takes no logins at this listener" in text
    text = refused(broker.tls, tls=True)
    assert "is not trusted here" in text
    assert "STREAMPROC_BROKER_CA_FILE" in text
    text = refused(broker.tls, ca_file=made.ca, host="localhost")
    assert "is for another name" in text
    assert "broker_check_hostname" in text
    text = refused(broker.mutual, ca_file=made.ca)
    assert "asks for a client certificate" in text
    assert "STREAMPROC_BROKER_CERTIFICATE_FILE" in text
