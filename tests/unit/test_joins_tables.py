"""Joins with tables, joins of updates, and what is said when something can't be joined."""

from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from step_bench import OPTIONS, Event, StepBench, events

import streamproc as faust
from streamproc.aggregates import Count
from streamproc.errors import ConfigurationError, DecodeError, EncodeError
from streamproc.streams.copartition import Copartitioned
from streamproc.streams.intervals import TwoInputs
from streamproc.streams.joins import LatestJoin, join_tables, latest_form
from streamproc.streams.timing import Inputs
from streamproc.tables.pack import pack, unpack, value_codec
from streamproc.testing import TestDriver

INPUTS = TwoInputs(Inputs(None, 1), Inputs(None, 1), frozenset(), frozenset())


class Order(faust.Record):
    product: str
    amount: int = 1


class Product(faust.Record):
    name: str


@pytest.fixture
def app(tmp_path):
    return faust.App("shop", broker="kafka://localhost:1", datadir=str(tmp_path), store="memory://")


def products_in(app, table):
    topic = app.topic("products", key_type=str, value_type=Product)

    @app.agent(topic)
    async def fill(stream):
        async for key, product in stream.items():
            table[key] = product


def orders_of(app):
    return app.stream(app.topic("orders", key_type=str, value_type=Order)).flow()


def results_of(app, flow, products, orders, rejected=()):
    """Return what a flow gives when products come first; see what it rejects."""
    results = []
    flow.to(results.append)
    with TestDriver(app) as driver:
        for key, name in products.items():
            driver.topic("products").pipe(key, Product(name))
        for key, product in orders:
            driver.topic("orders").pipe(key, Order(product))
        assert [letter.error for letter in driver.dead_letters()] == list(rejected)
    return results


PRODUCTS = {"p1": "tea", "p2": "jam"}
ORDERS = [("p1", "p1"), ("p3", "p3"), ("p2", "p2"), ("p1", "p1")]


@pytest.mark.parametrize("how", ["inner", "left"])
def test_a_flow_joins_a_table(app, how):
    table = app.Table("products", key_type=str, value_type=Product)
    products_in(app, table)
    flow = orders_of(app).join(table, how)
    found = results_of(app, flow, PRODUCTS, ORDERS)
    expected = [(Order(key), Product(PRODUCTS[key])) for key, _ in ORDERS if key in PRODUCTS]
    if how == "left":
        expected.append((Order("p3"), None))
    assert Counter(found) == Counter(expected)


def test_a_function_makes_the_results_and_what_it_raises_at_is_rejected(app):
    table = app.Table("products", key_type=str, value_type=Product)
    products_in(app, table)
    flow = orders_of(app).join(table, "left", lambda order, product: product.name)
    found = results_of(app, flow, PRODUCTS, ORDERS, ["AttributeError"])
    assert Counter(found) == Counter(["tea", "tea", "jam"])


def test_a_flow_joins_running_aggregations(app):
    table_of = app.stream(app.topic("products", key_type=str, value_type=Product)).flow()
    table_of.aggregate(n=Count(), name="counted")
    flow = orders_of(app).join(app.tables["counted"], fn=lambda order, found: found["n"])
    assert results_of(app, flow, PRODUCTS, ORDERS) == [1, 1, 1]


def test_tables_are_joined_as_one(app):
    left = app.Table("products", key_type=str, value_type=Product)
    right = app.Table("prices", key_type=str, value_type=int)
    products_in(app, left)

    @app.agent(app.topic("prices", key_type=str, value_type=int))
    async def prices(stream):
        async for key, price in stream.items():
            right[key] = price

    inner = join_tables(left, right)
    outer = join_tables(left, right, "outer", lambda product, price: (product, price))
    results = []
    orders_of(app).join(join_tables(left, right, "left")).to(results.append)
    with TestDriver(app) as driver:
        for key, name in PRODUCTS.items():
            driver.topic("products").pipe(key, Product(name))
        driver.topic("prices").pipe("p1", 7)
        driver.topic("prices").pipe("p4", 9)
        assert dict(inner.items()) == {"p1": (Product("tea"), 7)}
        assert dict(outer.items()) == {
            "p1": (Product("tea"), 7),
            "p2": (Product("jam"), None),
            "p4": (None, 9),
        }
        assert inner["p1"] == (Product("tea"), 7)
        assert "p2" not in inner
        assert inner.get("p2", "nothing") == "nothing"
        assert sorted(outer) == ["p1", "p2", "p4"]
        with pytest.raises(KeyError):
            inner["p2"]
        for key in ("p1", "p2", "p4"):
            driver.topic("orders").pipe(key, Order(key))
    assert Counter(results) == Counter(
        [(Order("p1"), (Product("tea"), 7)), (Order("p2"), (Product("jam"), None))]
    )


@OPTIONS
@given(events(sides=2), st.sampled_from(["inner", "left", "outer"]), st.data())
def test_each_update_of_either_side_gives_a_result(sequence, how, data):
    bench = StepBench(
        lambda table: LatestJoin("test", table, INPUTS, how),
        latest_form(None, None),
        lambda plain: {},
    )
    bench.run(sequence, data)
    latest, expected = {}, []
    for event in sequence:
        pair = latest.setdefault(event.key, [None, None])
        pair[event.side] = event.value
        if (how == "outer" or pair[0] is not None) and (how != "inner" or pair[1] is not None):
            expected.append((event.key, tuple(pair), event.time))
    assert bench.results == expected
    assert {key: list(pair) for key, pair in bench.state.scan()} == latest


@pytest.mark.parametrize("how", ["right", "cross", ""])
def test_how_is_checked(app, how):
    flow, other = orders_of(app), orders_of(app)
    table = app.Table("products")
    for join in (
        lambda: flow.join(table, how),
        lambda: flow.interval_join(other, how=how),
        lambda: flow.asof_join(other, how=how),
        lambda: flow.join_updates(other, how=how),
    ):
        with pytest.raises(ConfigurationError, match="there are 'inner'"):
            join()


def test_a_flow_can_be_joined_with_another_part_of_itself(app):
    flow, results = orders_of(app), []
    small, large = flow.branch(lambda order: order.amount < 10)
    small.interval_join(large, how="outer").to(results.append)
    with TestDriver(app) as driver:
        driver.topic("orders").pipe_many(
            [("k", Order("p", amount), amount * 100) for amount in (1, 20, 2, 90)]
        )
        driver.advance("60s")
    amounts = [tuple(each and each.amount for each in pair) for pair in results]
    assert Counter(amounts) == Counter([(1, 20), (2, 20), (None, 90)])


@pytest.mark.parametrize("join", ["interval_join", "asof_join"])
@pytest.mark.parametrize("late", ["function", "dead-letter"])
def test_late_records_go_where_they_are_wanted(app, join, late):
    late_ones = []
    products = app.stream(app.topic("products", key_type=str, value_type=Product))
    policy = late_ones.append if late == "function" else late
    getattr(orders_of(app), join)(products, late=policy)
    with TestDriver(app, partitions=1) as driver:
        for second in (10, 20):
            driver.topic("orders").pipe("k", Order("p", second), timestamp=second * 1000)
            driver.topic("products").pipe("k", Product(str(second)), timestamp=second * 1000)
        driver.topic("orders").pipe("k", Order("p", 19), timestamp=19_000)
        letters = driver.dead_letters()
    if late == "function":
        assert late_ones == [Order("p", 19)]
    else:
        assert [(each.topic, each.offset, each.error) for each in letters] == [
            ("orders", 2, "LateRecord")
        ]


def test_entries_that_have_expired_are_not_found(app):
    table, results = app.Table("products", key_type=str, value_type=Product, ttl="10s"), []
    products_in(app, table)
    orders_of(app).join(table, "left", lambda order, product: product).to(results.append)
    with TestDriver(app, partitions=1) as driver:
        driver.topic("products").pipe("p1", Product("tea"), timestamp=0)
        driver.topic("orders").pipe("p1", Order("p1"), timestamp=1000)
        driver.topic("products").pipe("p2", Product("jam"), timestamp=60_000)
        driver.topic("orders").pipe("p1", Order("p1"), timestamp=61_000)
    assert results == [Product("tea"), None]


def test_what_is_not_a_table_or_flow_is_refused(app):
    flow = orders_of(app)
    with pytest.raises(ConfigurationError, match="interval_join"):
        flow.join(orders_of(app))
    with pytest.raises(ConfigurationError, match="neither a flow nor a stream"):
        flow.interval_join(app.Table("products"))
    with pytest.raises(ConfigurationError, match="on= needs a GlobalTable"):
        flow.join(app.Table("others"), on="product")
    for table in (
        app.Table("hours").tumbling(3600),
        app.Table("days", window=faust.TumblingWindow(86400)),
    ):
        with pytest.raises(ConfigurationError, match="without windows"):
            flow.join(table)
    with pytest.raises(ConfigurationError, match="join_tables"):
        app.Table("names").join(Order.product)
    raw = app.stream(app.topic("raw", value_type=Order)).flow()
    with pytest.raises(ConfigurationError, match="type str, and those of flow 'flow-raw' of bytes"):
        flow.asof_join(raw)
    with pytest.raises(ConfigurationError, match="table 'typed' of str: they are never equal"):
        raw.join(app.Table("typed", key_type=str))
    raw.join(app.Table("untyped"))
    raw.key_by("product").interval_join(flow)
    other = faust.App("other", broker="kafka://localhost:1")
    with pytest.raises(ConfigurationError, match="two apps"):
        flow.interval_join(orders_of(other))


def test_streams_have_the_names_of_joins_that_faust_has(app):
    table = app.Table("products", key_type=str, value_type=Product)

    def stream():
        return app.stream(app.topic("orders", key_type=str, value_type=Order))

    for name in ("join", "inner_join", "left_join"):
        assert getattr(stream(), name)(table).name.startswith("flow-orders")
    with pytest.raises(ConfigurationError, match="interval_join"):
        stream().outer_join(table)
    with pytest.raises(ConfigurationError, match="asof_join"):
        stream().join(stream())
    for fields in ((), (Order.product,), (Order.product, Product.name)):
        with pytest.raises(ConfigurationError, match="join_updates"):
            stream().join(*fields)


def test_what_is_joined_needs_as_many_partitions():
    other = SimpleNamespace(
        topic=SimpleNamespace(get_topic_name=lambda: "payments"), partitions=None
    )
    pair = Copartitioned("test", other)
    pair.check("orders", 4, {"payments": 4})
    pair.check("orders", 4, {})
    with pytest.raises(ConfigurationError, match=r"'orders' has 4 .* topic 'payments' has 8"):
        pair.check("orders", 4, {"payments": 8})
    table = SimpleNamespace(name="names", changelog_topic_name="app-names-changelog", partitions=2)
    with pytest.raises(ConfigurationError, match=r"table 'names' \(topic 'app-names-changelog'\)"):
        Copartitioned("test", table).check("orders", 4, {})


def test_values_without_a_declared_type_come_back_as_what_they_were():
    values = [
        None,
        "text",
        b"bytes",
        {"a": [1, 2.5, (None, True)], 3: {"x"}},
        (Order("p", 2), [Product("tea")]),
        [Event],
    ]
    for value in values[:-1]:
        assert unpack(pack(value)) == value
        assert type(unpack(pack(value))) is type(value)
    with pytest.raises(EncodeError, match="declare value_type"):
        pack(values[-1])
    with pytest.raises(DecodeError):
        unpack(b"\xc1")


def test_values_of_a_declared_type_take_new_fields():
    encode, _ = value_codec(dict)
    _, decode = value_codec(Order)
    assert decode(encode({"product": "p"})) == Order("p", 1)
