"""Topics and tables that the agents share."""

from models import Reading, Sensor
from streamproc import app

readings = app.topic("readings", key_type=str, value_type=Reading)
clean_readings = app.topic("clean-readings", key_type=str, value_type=Reading)
sensors = app.topic("sensors", key_type=str, value_type=Sensor, compacting=True, partitions=1)

#: The registry of meters: each worker has all of it, as the topic `sensors` says.
registry = app.GlobalTable("registry", changelog_topic=sensors, help="Where each meter is")

#: The newest clean reading of each meter; ask any worker for /tables/latest/meter-7/.
latest = app.Table("latest", key_type=str, value_type=Reading, help="Newest reading of a meter")
