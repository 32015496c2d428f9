"""What several commands share."""

from __future__ import annotations

import os
from pathlib import Path

from streamproc.settings import Settings


def project_folder() -> Path:
    """Return the folder that commands work in: ``STREAMPROC_PROJECT``, else the current one."""
    return Path(os.environ.get("STREAMPROC_PROJECT") or ".").absolute()


def bootstrap_of(settings: Settings) -> str:
    """Return the brokers as ``host:port,host:port``."""
    return ",".join(settings.brokers)
