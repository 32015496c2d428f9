"""Read a topic and write to Redis, record by record, in plain Python.

python examples/five_lines.py config.yaml
"""

import sys

import yaml

from PyDataStream import KafkaReader, RedisWriter


def transform_data(record):
    return {**record, "seen_by": "five_lines"}


with open(sys.argv[1] if len(sys.argv) > 1 else "config.yaml") as file:
    config = yaml.safe_load(file)
reader = KafkaReader(config["broker_list"], config["topic"])
writer = RedisWriter(config["redis"])
for record in reader.get_stream():
    try:
        writer.publish_data(transform_data(record))
    except Exception as e:
        print(f"Error during processing and pushing to redis {e}")
