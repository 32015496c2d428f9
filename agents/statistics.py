"""Statistics of each meter every ten seconds, in the Redis hash ``stats:<sensor_id>``."""

from __future__ import annotations

from agents.clean import is_plausible
from agents.topics import readings
from streamproc import app
from streamproc.aggregates import Count, Max, Mean, Min, Quantile
from streamproc.sinks import RedisHash
from streamproc.windows import tumbling

statistics = (
    app.stream(readings)
    .flow("statistics")
    .filter(is_plausible)
    .window(tumbling("10s", grace="10s", late="dead-letter"))
    .aggregate(
        name="statistics",
        count=Count(),
        flow=Mean("flow"),
        min=Min("flow"),
        max=Max("flow"),
        p95=Quantile("flow", 0.95),
        pressure=Mean("pressure"),
    )
)
statistics.to(
    RedisHash(
        "stats:{key}",
        fields=["count", "flow", "min", "max", "p95", "pressure", "window_end"],
    )
)
