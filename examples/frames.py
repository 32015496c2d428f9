"""A topic as pandas frames: the flow of the water network by the hour.

python examples/frames.py 127.0.0.1:9092
"""

import sys
from uuid import uuid4

import pandas as pd

from PyDataStream import KafkaReader

broker = sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:9092"
# A new group reads from the beginning; the timeout ends the loop when nothing more comes.
with KafkaReader(broker, "clean-readings", group=f"frames-{uuid4().hex[:8]}", timeout=3) as reader:
    readings = pd.concat(reader.get_frames())

readings["at"] = pd.to_datetime(readings["at"], format="ISO8601")
hourly = readings.groupby(readings["at"].dt.hour).agg(
    readings=("flow", "size"),
    mean_flow=("flow", "mean"),
    greatest_flow=("flow", "max"),
    least_pressure=("pressure", "min"),
)
print(hourly.round(2).to_string())
