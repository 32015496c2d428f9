"""When each meter was heard of, in Redis lists ``activity:<sensor_id>``: a session ends with
half a minute of silence."""

from __future__ import annotations

from agents.topics import readings
from streamproc import app
from streamproc.aggregates import Count, First, Last
from streamproc.sinks import RedisList
from streamproc.windows import session

(
    app.stream(readings)
    .flow("activity")
    .window(session("30s", grace="10s"))
    .aggregate(name="activity", readings=Count(), first=First("flow"), last=Last("flow"))
    .to(RedisList("activity:{key}", max_length=100))
)
