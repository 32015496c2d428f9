"""Topics that the agents share."""

from models import CleanReading, Reading
from streamproc import app

readings = app.topic("readings", key_type=str, value_type=Reading)
clean_readings = app.topic("clean-readings", key_type=str, value_type=CleanReading)
