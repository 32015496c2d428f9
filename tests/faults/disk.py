"""A small disk of the test's own, which can be filled."""

from __future__ import annotations

import subprocess
from pathlib import Path


class SmallDisk:
    """Keeps a folder on a disk of a few MB.

    Raises:
        PermissionError: A disk can't be mounted here.
    """

    def __init__(self, folder: Path, megabytes: int) -> None:
        self.folder, self.megabytes = folder, megabytes

    def __enter__(self) -> None:
        self.folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={self.megabytes}m", "tmpfs"]
        try:
            subprocess.run([*command, str(self.folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as exc:
            raise PermissionError(f"a tmpfs can't be mounted here: {exc}") from exc

    def __exit__(self, *error: object) -> None:
        subprocess.run(["umount", "-l", str(self.folder)], check=True)
