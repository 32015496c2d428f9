"""Results in tables of PostgreSQL, exactly once."""

from streamproc.sinks.postgres.sink import PostgresSink

__all__ = ["PostgresSink"]
