"""Faust's Kafka transport with the batch data path's consumer, producer and conductor."""

from __future__ import annotations

from faust.transport.drivers import aiokafka as driver

from streamproc.kafka.conductor import Conductor
from streamproc.kafka.consumer import Consumer
from streamproc.kafka.producer import Producer


class Transport(driver.Transport):  # type: ignore[misc]
    """Kafka transport; takes the place of Faust's for ``kafka://`` and ``aiokafka://``."""

    Consumer = Consumer
    Producer = Producer
    Conductor = Conductor
