"""Ctrl-C in commands that do something step by step: no step is left half done."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress


class Interrupt:
    """Cancels a task at Ctrl-C, between two steps; a second Ctrl-C ends all at once.

    Attributes:
        came: Whether there was one.
    """

    def __init__(self) -> None:
        self.came = False
        self._is_in_step = False
        self._task: asyncio.Task[object] | None = None

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watch over what the current task does; it ends there when it was interrupted."""
        loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        with suppress(NotImplementedError):  # Windows: it ends at once
            loop.add_signal_handler(signal.SIGINT, self._on_signal)
        try:
            yield
        except asyncio.CancelledError:
            if not self.came:
                raise
        finally:
            with suppress(NotImplementedError):
                loop.remove_signal_handler(signal.SIGINT)

    @contextmanager
    def step(self) -> Iterator[None]:
        """What is done in here is done to its end."""
        self._is_in_step = True
        try:
            yield
        finally:
            self._is_in_step = False
        if self.came:
            raise asyncio.CancelledError

    def _on_signal(self) -> None:
        self.came = True
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
        if not self._is_in_step and self._task is not None:
            self._task.cancel()
