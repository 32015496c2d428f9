"""No pickle on data that comes from outside: it runs code that comes with the data.

Faust (0.15.3) has codecs of it, three of them; here they do nothing but refuse, wherever their
name gets in: a topic, a table, a model, an App.
"""

from __future__ import annotations

from typing import Any, NoReturn

from faust.serializers import codecs

from streamproc.errors import ConfigurationError

_MESSAGE = "The pickle serializer runs code found in messages and is refused; use json"


def refuse_pickle(*serializers: Any) -> None:
    """Check names of serializers, and codecs of Faust.

    Raises:
        ConfigurationError: One of them is pickle, or has it as a part.
    """
    for serializer in serializers:
        if serializer is not None and "pickle" in str(serializer).lower():
            raise ConfigurationError(_MESSAGE)


class PickleRefused(codecs.Codec):  # type: ignore[misc]
    """A codec that neither decodes nor encodes."""

    def _loads(self, s: bytes) -> NoReturn:
        raise ConfigurationError(_MESSAGE)

    def _dumps(self, s: Any) -> NoReturn:
        raise ConfigurationError(_MESSAGE)


def disarm_pickle() -> None:
    """Take pickle out of Faust's codecs; again is free."""
    for name in [name for name in codecs.codecs if "pickle" in name]:
        codecs.register(name, PickleRefused())
