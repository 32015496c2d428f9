"""The names of streamproc's five-line form under the import path of its first README."""

from streamproc import App, KafkaReader, Record, RedisWriter

__all__ = ["App", "KafkaReader", "Record", "RedisWriter"]
