"""Run the simulation: ``python -m tests.simulation --help``."""

from __future__ import annotations

import os
import sys

if __name__ == "__main__":
    # Sets of topics are gone through in the order of their hashes.
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", "tests.simulation", *sys.argv[1:]])

    from tests.simulation.run import main

    sys.exit(main(sys.argv[1:]))
