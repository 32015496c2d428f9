"""Settings that belong to the application's code; config.yaml and the environment win over them.

`streamproc config` shows every setting and where its value comes from.
"""

#: Seconds after which the partitions of a worker that died go to the others; the least that
#: Kafka allows by default.
SESSION_TIMEOUT = 6.0
