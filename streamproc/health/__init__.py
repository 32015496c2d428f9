"""Whether a worker does its work: what it says to probes, and when it gives itself up.

Exit codes of a worker: 0 stopped as asked, 1 an error that it could not go on with (or, by
the last resort of :mod:`streamproc.health.loopwatch`, code that let no other thread run),
:data:`EXIT_STALLED`, :data:`EXIT_UNCLEAN`, and 128 plus the number of a second signal.
"""

from streamproc.health.exits import EXIT_STALLED, EXIT_UNCLEAN
from streamproc.health.stalls import Stall
from streamproc.health.status import Check, Health

__all__ = ["EXIT_STALLED", "EXIT_UNCLEAN", "Check", "Health", "Stall"]
