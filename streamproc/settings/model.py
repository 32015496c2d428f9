"""The settings object: every setting, its type, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from streamproc.records.secrets import MASK, mask, register
from streamproc.settings.urls import redis_url

if TYPE_CHECKING:
    from streamproc.kafka.security import BrokerSecurity

#: What Kafka takes as a group and in a topic's name.
NAME_PATTERN = "^[A-Za-z0-9._-]{1,200}$"

Positive = Meta(gt=0)
Port = Meta(ge=1, le=65535)


class Secret:
    """Text that shows in no log and no repr; ``reveal()`` gives it."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        """Keep ``text``, and make it known so that it is masked wherever it stands."""
        self._text = text
        register(text)

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)


class Function:
    """A function without arguments: the function itself, or ``module:name`` of one."""

    __slots__ = ("target",)

    def __init__(self, target: Any) -> None:
        """Keep ``target``.

        Raises:
            ValueError: It is neither.
        """
        is_name = isinstance(target, str) and re.fullmatch(r"[\w.]+:\w+", target)
        if not is_name and not callable(target):
            raise ValueError("Expected a function, or the name of one as module:function")
        self.target = target

    def __repr__(self) -> str:
        return str(getattr(self.target, "__qualname__", self.target))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Function) and other.target == self.target

    def __hash__(self) -> int:
        return hash(self.target)


class ErrorHandling(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to records that can't be processed."""

    retries: Annotated[
        int,
        Meta(ge=0, description="How often a record is tried again after an agent raised."),
    ] = 3
    dead_letters: Annotated[
        bool,
        Meta(description="Send rejected records to the dead-letter topic, not only count and log."),
    ] = True
    dead_letter_topic: Annotated[
        str | None,
        Meta(description="Topic of rejected records. Default: `<name>-dead-letters`."),
    ] = None


class SampleData(msgspec.Struct, frozen=True, kw_only=True):
    """What `streamproc dev` replays."""

    file: Annotated[
        str | None,
        Meta(description="File that `streamproc dev` replays, in the project folder."),
    ] = None
    topic: Annotated[
        str | None, Meta(description="Topic it goes to. Default: the source topic.")
    ] = None
    key: Annotated[str | None, Meta(description="Its column whose value is the record key.")] = None
    timestamp: Annotated[str | None, Meta(description="Its column with the event time.")] = None


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of a project."""

    name: Annotated[
        str,
        Meta(pattern=NAME_PATTERN, description="Application id and consumer group."),
    ] = "streamproc"
    broker_list: Annotated[
        str | list[str],
        Meta(description="Kafka brokers: `host:port` or `kafka://host:port`, a list or commas."),
    ] = "127.0.0.1:9092"
    broker_username: Annotated[
        str | None, Meta(description="User name for Kafka (SASL). Default: no login.")
    ] = None
    broker_password: Annotated[
        Secret | None, Meta(description="Password for Kafka (SASL); from the environment.")
    ] = None
    broker_sasl_mechanism: Annotated[
        Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None,
        Meta(
            description="SASL mechanism: `PLAIN`, `SCRAM-SHA-256`, `SCRAM-SHA-512` or "
            "`OAUTHBEARER`. Default: `PLAIN`, or `OAUTHBEARER` where there is a `broker_token`."
        ),
    ] = None
    broker_token: Annotated[
        Function | None,
        Meta(
            description="Function that returns a token for OAUTHBEARER: in `settings.py` the "
            "function itself, elsewhere `module:function`."
        ),
    ] = None
    broker_tls: Annotated[
        bool,
        Meta(
            description="Encrypt connections to Kafka; they are too when `broker_ca_file` or "
            "`broker_certificate_file` is set."
        ),
    ] = False
    broker_ca_file: Annotated[
        str | None,
        Meta(description="PEM file of the CA that signed the brokers'. Default: the system's CAs."),
    ] = None
    broker_certificate_file: Annotated[
        str | None, Meta(description="PEM file of our certificate, where brokers ask for one.")
    ] = None
    broker_key_file: Annotated[
        str | None,
        Meta(description="PEM file of its key. Default: `broker_certificate_file` has it."),
    ] = None
    broker_key_password: Annotated[
        Secret | None, Meta(description="Password of that key; from the environment.")
    ] = None
    broker_check_hostname: Annotated[
        bool, Meta(description="Brokers' certificates must be for the names they are reached by.")
    ] = True
    topic: Annotated[
        str | list[str],
        Meta(description="Source topic, or a list of them."),
    ] = msgspec.field(default_factory=list)
    redis: Annotated[
        str | None,
        Meta(description="Redis URL, or a mapping of host, port, db, username, password."),
    ] = "redis://127.0.0.1:6379/0"
    redis_username: Annotated[
        str | None, Meta(description="User of Redis (ACL). Default: the one that Redis calls so.")
    ] = None
    redis_password: Annotated[
        Secret | None, Meta(description="Password for Redis; from the environment.")
    ] = None
    redis_tls: Annotated[
        bool,
        Meta(
            description="Encrypt connections to Redis; they are too with `rediss://` and when "
            "`redis_ca_file` or `redis_certificate_file` is set."
        ),
    ] = False
    redis_ca_file: Annotated[
        str | None,
        Meta(description="PEM file of the CA that signed Redis'. Default: the system's CAs."),
    ] = None
    redis_certificate_file: Annotated[
        str | None, Meta(description="PEM file of our certificate, where Redis asks for one.")
    ] = None
    redis_key_file: Annotated[
        str | None,
        Meta(description="PEM file of its key. Default: `redis_certificate_file` has it."),
    ] = None
    redis_key_password: Annotated[
        Secret | None, Meta(description="Password of that key; from the environment.")
    ] = None
    redis_check_hostname: Annotated[
        bool, Meta(description="Redis' certificate must be for the name it is reached by.")
    ] = True
    serialization: Annotated[
        str, Meta(description="Codec of record values when a topic names none.")
    ] = "json"
    batch_size: Annotated[int, Positive, Meta(description="Most records in one batch.")] = 5000
    buffer_bytes: Annotated[
        int,
        Positive,
        Meta(description="Bytes fetched of one partition and not yet processed; then it pauses."),
    ] = 8 * 1024 * 1024
    commit_interval: Annotated[
        float, Positive, Meta(description="Seconds between two checkpoints.")
    ] = 1.0
    checkpoint_records: Annotated[
        int, Positive, Meta(description="Records read after which one comes before its time.")
    ] = 1_000_000
    checkpoint_bytes: Annotated[
        int, Positive, Meta(description="Bytes read after which one comes before its time.")
    ] = 256 * 1024 * 1024
    processing_guarantee: Annotated[
        Literal["at_least_once", "exactly_once"],
        Meta(
            description="How often a record counts in topics, tables and sinks after a crash: "
            "`at_least_once` or `exactly_once`."
        ),
    ] = "at_least_once"
    transaction_timeout: Annotated[
        float,
        Positive,
        Meta(description="Seconds after which the broker aborts a transaction (exactly once)."),
    ] = 10.0
    error_handling: ErrorHandling = ErrorHandling()
    sample: SampleData = SampleData()
    partitions: Annotated[
        int, Positive, Meta(description="Partitions of topics that the application creates.")
    ] = 4
    replication: Annotated[
        int, Positive, Meta(description="Replicas of topics that the application creates.")
    ] = 1
    stall_timeout: Annotated[
        Annotated[float, Positive] | None,
        Meta(
            description="Seconds in which no record is finished, though some wait, after which a "
            "worker ends itself; `null` for never."
        ),
    ] = 120.0
    drain_timeout: Annotated[
        float,
        Positive,
        Meta(description="Seconds that agents have to finish the records in hand, at a stop."),
    ] = 20.0
    ready_max_lag: Annotated[
        Annotated[int, Meta(ge=0)] | None,
        Meta(description="Most records that may wait for a worker that is ready."),
    ] = None
    session_timeout: Annotated[
        float,
        Positive,
        Meta(description="Seconds without a sign of life after which a worker counts as dead."),
    ] = 10.0
    group_instance_id: Annotated[
        str | None,
        Meta(
            description="Name of this worker that stays when it restarts, and that no other has: "
            "a restart within `session_timeout` then costs the others no rebalance."
        ),
    ] = None
    web_host: Annotated[str, Meta(description="Address that the worker's web page listens on.")] = (
        "127.0.0.1"
    )
    web_port: Annotated[int, Port, Meta(description="Port of the worker's web page.")] = 6066
    data_dir: Annotated[
        str | None,
        Meta(description="Folder for tables, in the project folder. Default: `<name>-data`."),
    ] = None
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Meta(
            description="Least level of streamproc's own log lines: `debug`, `info`, `warning` or "
            "`error`; `faust -l` limits all."
        ),
    ] = "info"

    @property
    def topics(self) -> list[str]:
        """``topic`` as a list."""
        return split(self.topic)

    @property
    def brokers(self) -> list[str]:
        """The brokers as ``host:port`` each."""
        return [broker.rpartition("://")[2] for broker in split(self.broker_list)]

    @property
    def broker_urls(self) -> list[str]:
        """The brokers as URLs; ``kafka://`` where none is given."""
        return [b if "://" in b else f"kafka://{b}" for b in split(self.broker_list)]

    @property
    def broker_security(self) -> BrokerSecurity:
        """Login and TLS of the brokers: for ``App(broker_credentials=...)``, ``KafkaReader``
        and, by ``client_options()``, for any client of aiokafka.

        Raises:
            ConfigurationError: Settings that don't belong together.
        """
        from streamproc.kafka.security import BrokerSecurity  # loads the Kafka client

        return BrokerSecurity(
            username=self.broker_username,
            password=_revealed(self.broker_password),
            mechanism=self.broker_sasl_mechanism,
            token=self.broker_token.target if self.broker_token else None,
            tls=self.broker_tls,
            ca_file=self.broker_ca_file,
            certificate_file=self.broker_certificate_file,
            key_file=self.broker_key_file,
            key_password=_revealed(self.broker_key_password),
            check_hostname=self.broker_check_hostname,
        )

    @property
    def redis_url(self) -> str | None:
        """The Redis URL with login and TLS in it: for clients, not for logs."""
        if self.redis is None:
            return None
        return redis_url(
            self.redis,
            username=self.redis_username,
            password=_revealed(self.redis_password),
            tls=self.redis_tls,
            ca_file=self.redis_ca_file,
            certificate_file=self.redis_certificate_file,
            key_file=self.redis_key_file,
            key_password=_revealed(self.redis_key_password),
            check_hostname=self.redis_check_hostname,
        )

    @property
    def dead_letter_topic(self) -> str | None:
        """Topic of rejected records; None when there is none."""
        if not self.error_handling.dead_letters:
            return None
        return self.error_handling.dead_letter_topic or f"{self.name}-dead-letters"

    def __repr__(self) -> str:
        shown = ", ".join(f"{path}={show(value)}" for path, value in flatten(self))
        return f"Settings({shown})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [
            (path, mask(value) if isinstance(value, str) else value)
            for path, value in flatten(self)
        ]


def split(value: str | list[str]) -> list[str]:
    """Return a list, or a text with commas (or semicolons, as Faust has them), as a list."""
    parts = re.split(r"[,;]", value) if isinstance(value, str) else value
    return [part.strip() for part in parts if part.strip()]


def show(value: Any) -> str:
    """Return a value as text, secrets masked."""
    return mask(repr(value))


def _revealed(secret: Secret | None) -> str | None:
    return secret.reveal() if secret else None


def flatten(struct: msgspec.Struct, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the path (``error_handling.retries``) and value of every setting."""
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        if isinstance(value, msgspec.Struct):
            yield from flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
