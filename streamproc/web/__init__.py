"""Pages of a worker: tables of the whole group, and requests that go to the owner of a key."""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Give ``View``, ``Request`` and the rest of ``faust.web`` to apps ported from it."""
    import faust.web

    return getattr(faust.web, name)
