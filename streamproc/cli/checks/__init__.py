"""What ``streamproc doctor`` checks, one module for each thing that can be ill."""

from streamproc.cli.checks.check import Check, Status

__all__ = ["Check", "Status"]
