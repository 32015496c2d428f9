"""Every exception type of streamproc, so that a caller can catch what it means.

All derive from :class:`StreamprocError`. A message names what was wrong, where
(topic, partition, offset, file, line, key) and what to do next.
"""

from __future__ import annotations

from collections.abc import Sequence


class StreamprocError(Exception):
    """Base of all errors raised by streamproc."""


class ConfigurationError(StreamprocError):
    """A setting, URL or option is wrong; raised at start, before any record is read."""


class DecodeError(StreamprocError, ValueError):
    """Bytes could not be turned into a key or value of the declared type.

    ``str(error)`` is the reason alone (for example "Expected `float`, got `str`
    - at `$.value`"); the place (topic, partition, offset) is added by whoever knows it.
    """


class EncodeError(StreamprocError, TypeError):
    """A key or value could not be turned into bytes."""


class SinkError(StreamprocError):
    """A sink refused data for a reason that trying again will not mend.

    Attributes:
        row: Which value of the run that was written doesn't fit, if it is about one.
        misfits: An error for each value that doesn't fit, if it is about a run; the sink
            accepted the others.
    """

    row: int | None = None
    misfits: Sequence[SinkError] = ()


class SinkUnavailable(SinkError):
    """A sink's server is away or overloaded; the same write may succeed later."""


class SinkBehind(StreamprocError):
    """A transactional sink's server has forgotten results whose offsets are committed."""


class AgentTimeout(StreamprocError, TimeoutError):
    """An agent waited for longer than its ``timeout`` with the same records in hand."""


class Fenced(StreamprocError):
    """Another worker owns the partitions: what was done since the last checkpoint is void."""


class TransactionAborted(Fenced):
    """The transaction came to nothing, but the partitions are still the worker's."""


class ProducerError(StreamprocError):
    """Records sent to Kafka were not acknowledged; their source offsets are not committed."""


class BrokerUnavailable(StreamprocError):
    """No Kafka broker answered at the configured address."""


class ServerNotInstalled(StreamprocError):
    """A server for development (Kafka, Redis) isn't there and no wheel of it fits."""


class ServerFailed(StreamprocError):
    """A server for development ended, or did not answer in time; its log is quoted."""


class ReplayError(StreamprocError):
    """A file to replay can't be read, or a line of it makes no record; names file and line."""


class StoreError(StreamprocError):
    """The state of a table can't be opened, read or written; names table and partition."""


class TableError(StreamprocError):
    """A table is used in a way it can't serve; says which and what to do instead."""


class AggregateError(StreamprocError, ValueError):
    """A record can't be aggregated; the message names aggregation, field, value and row.

    Attributes:
        aggregate: Name of the aggregation's result.
        field: Name of the field or function that picks its value; None: the record itself.
        value: The value that doesn't fit, or the record that it can't be read of.
        row: Which record of the batch, from 0.
    """

    def __init__(
        self, message: str, *, aggregate: str, field: str | None, value: object, row: int
    ) -> None:
        super().__init__(message)
        self.aggregate = aggregate
        self.field = field
        self.value = value
        self.row = row


class LateRecord(StreamprocError):
    """A record came when the windows of its event time were closed."""


class DriverError(StreamprocError):
    """A test driver is used wrongly, or the app that it runs failed."""


class LookUpFailed(StreamprocError):
    """A look-up of ``enrich()`` failed, took too long, or found nothing that was needed."""
