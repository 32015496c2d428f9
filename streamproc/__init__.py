"""streamproc: Faust-style Kafka stream processing on a batch data path."""

from streamproc._version import __version__

__all__ = ["__version__"]
