"""The data folder of one worker instance.

Workers on one machine share a data directory, and each takes the first instance folder
in it that no other worker holds, so that none meets another's locks and a worker that
comes back finds its state.
"""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock, Timeout

from streamproc.errors import StoreError

#: More workers than anybody starts on one machine.
MAX_INSTANCES = 1000


class InstanceFolder:
    """A folder that is this worker's alone until it is released or the process ends.

    Args:
        root: The data directory of the app.

    Raises:
        StoreError: The directory can't be written to.
    """

    def __init__(self, root: Path) -> None:
        for number in range(MAX_INSTANCES):
            path = root / f"instance-{number}"
            try:
                path.mkdir(parents=True, exist_ok=True)
                self._lock = FileLock(path / "in-use.lock")
                self._lock.acquire(timeout=0)
            except Timeout:
                continue
            except OSError as exc:
                raise StoreError(
                    f"The data folder {path} can't be used: {exc}. Choose another with datadir="
                ) from exc
            self.path = path
            return
        raise StoreError(f"All {MAX_INSTANCES} instance folders in {root} are in use")

    def release(self) -> None:
        self._lock.release()
