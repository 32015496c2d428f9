"""From which offset on records are given to agents, by what their tables have."""

from types import SimpleNamespace

from streamproc.tables.manager import TableManager


def starts(*positions, marked=True):
    """Return the starts for tables of one partition with these positions."""
    tables = [
        SimpleNamespace(
            is_replicated=False, states={0: SimpleNamespace(positions=each, marked=marked or each)}
        )
        for each in positions
    ]
    manager = SimpleNamespace(values=lambda: tables)
    return TableManager.start_positions(manager).get(0, {})


def test_the_table_that_is_least_far_counts():
    assert starts({"numbers@count": 7}, {"numbers@count": 5}) == {"numbers@count": 5}


def test_what_one_table_has_nothing_of_is_given_from_the_committed_offset():
    assert starts({"numbers@count": 7, "numbers@add": 3}, {"numbers@add": 3}) == {"numbers@add": 3}
    assert starts({"numbers@count": 7}, {}) == {}


def test_a_new_table_is_not_asked():
    assert starts({"numbers@count": 7}, {}, marked=False) == {"numbers@count": 7}
