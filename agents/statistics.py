"""Running statistics of each meter, in the Redis hash ``stats:<sensor_id>``.

The hash also holds the place of the last reading in it, and the script that adds readings
skips those up to there. So each reading counts once, however often Kafka gives it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator
from datetime import timezone

from agents.topics import clean_readings
from models import CleanReading, SensorRun
from streamproc import Batch, Stream, app
from streamproc.sinks import RedisScript

ADD_READINGS = """
local stats, place = KEYS[1], 'offset:' .. ARGV[1]
local old = redis.call('HMGET', stats, place, 'count', 'sum', 'min', 'max', 'last', 'at')
local done, count, sum = tonumber(old[1] or -1), tonumber(old[2] or 0), tonumber(old[3] or 0)
local min, max = tonumber(old[4] or math.huge), tonumber(old[5] or -math.huge)
local last, at = tonumber(old[6] or 0), old[7] or ''
local before = count
for _, reading in ipairs(cjson.decode(ARGV[2])) do
  local offset, flow, time = unpack(reading)
  if offset > done then
    done, count, sum = offset, count + 1, sum + flow
    min, max = math.min(min, flow), math.max(max, flow)
    if time >= at then last, at = flow, time end
  end
end
if count > before then
  local function text(number) return string.format('%.15g', number) end
  redis.call('HSET', stats, 'count', count, 'mean', text(sum / count), 'min', text(min),
    'max', text(max), 'last', text(last), 'at', at, 'sum', sum, place, done)
end
return count - before
"""

statistics = RedisScript(ADD_READINGS, keys=["stats:{sensor_id}"], args=["source", "readings"])


def runs_of(batch: Batch[CleanReading]) -> list[SensorRun]:
    """Group the readings of a batch by meter, so that each takes one call of the script."""
    runs: dict[tuple[str, str], list[tuple[int, float, str]]] = defaultdict(list)
    for reading in batch:
        time = reading.at.astimezone(timezone.utc).isoformat(timespec="milliseconds")
        run = runs[reading.sensor_id, reading.source]
        run.append((reading.offset, reading.flow, time))
    return [SensorRun(sensor_id, source, run) for (sensor_id, source), run in runs.items()]


@app.agent(clean_readings, sink=[statistics])
async def keep_statistics(stream: Stream) -> AsyncIterator[SensorRun]:
    async for batch in stream.batches():
        for run in runs_of(batch):
            yield run
