"""What all tables of a partition share of a checkpoint."""

import streamproc
from streamproc.tables.manager import CHECKPOINT_NUMBER
from streamproc.testing import TestDriver


def test_checkpoints_are_numbered_alike_in_all_tables_of_a_partition():
    app = streamproc.App("numbered", broker="kafka://nowhere")
    numbers = app.topic("numbers", key_type=str, value_type=int)
    sums = app.Table("sums", key_type=str, value_type=int, default=int)
    large = app.Table("large", key_type=str, value_type=int, default=int)

    @app.agent(numbers)
    async def add(stream):
        async for key, value in stream.items():
            sums[key] += value
            if value > 10:
                large[key] += 1

    def stored():
        return [
            [state.store.meta.positions.get(CHECKPOINT_NUMBER) for state in table.states.values()]
            for table in (sums, large)
        ]

    with TestDriver(app, partitions=2) as driver:
        driver.topic("numbers").pipe("a", 1, partition=0)
        driver.checkpoint()
        assert stored() == [[1, None], [1, None]]
        driver.topic("numbers").pipe("a", 11, partition=0)
        driver.topic("numbers").pipe("b", 12, partition=1)
        driver.checkpoint()
        assert stored() == [[2, 1], [2, 1]]
        # Time alone changes a table: the positions of readers stay, the number doesn't.
        large.states[0].set("a", 5)
        driver.checkpoint()
        assert stored() == [[3, 1], [3, 1]]
