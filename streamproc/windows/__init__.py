"""Event-time windows: specifications, watermarks, and the logic that closes windows.

Pure: no broker, no store, no clock and no asyncio. Tables keep the state and call the
operators with batches.
"""

from streamproc.windows.create import hopping, session, sliding, tumbling
from streamproc.windows.operator import WindowOperator
from streamproc.windows.ranges import HoppingWindow, SlidingWindow, TumblingWindow, Window
from streamproc.windows.spec import AlignedSpec, Hopping, Session, Sliding, Tumbling, WindowSpec
from streamproc.windows.state import KeyedState, Output, Program, WindowState
from streamproc.windows.watermark import Watermark

__all__ = [
    "AlignedSpec",
    "Hopping",
    "HoppingWindow",
    "KeyedState",
    "Output",
    "Program",
    "Session",
    "Sliding",
    "SlidingWindow",
    "Tumbling",
    "TumblingWindow",
    "Watermark",
    "Window",
    "WindowOperator",
    "WindowSpec",
    "WindowState",
    "hopping",
    "session",
    "sliding",
    "tumbling",
]
