"""The peers: packages of others, in an environment of their own."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache

from benchmarks.systems import PEERS, SYSTEMS

_ASK = """
import json
from importlib.metadata import PackageNotFoundError, version
import sys
found = {}
for package in sys.argv[1:]:
    try:
        found[package] = version(package)
    except PackageNotFoundError:
        pass
print(json.dumps(found))
"""


@lru_cache(maxsize=1)
def peer_versions() -> dict[str, str]:
    """Return the installed peers and their versions; none before ``make bench-peers``."""
    python = PEERS / "bin" / "python"
    if not python.exists():
        return {}
    packages = sorted({each.peer for each in SYSTEMS if each.peer is not None})
    command = [str(python), "-c", _ASK, *packages]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return json.loads(output)
