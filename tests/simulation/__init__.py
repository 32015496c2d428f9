"""A simulation of workers, their broker, disks and a sink's server, in which all of it fails.

What is simulated is only what is outside: time, the broker, the group, the disks, the server.
The workers are real: consumer, conductor, streams, tables, recovery, checkpoint and producer
run as they do in production. A seed decides the order of all that happens and what fails, so a
run can be repeated.
"""
