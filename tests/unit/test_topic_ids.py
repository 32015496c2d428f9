"""Ids of topics, over the wire and in the state of a table."""

from __future__ import annotations

import pytest
from aiokafka.errors import IncompatibleBrokerVersion, NodeNotReadyError

from streamproc.kafka.topic_ids import (
    MetadataRequest_v10,
    MetadataResponse_v10,
    TopicIdRequest,
    fetch_topic_ids,
)
from streamproc.tables.changelog import Applier
from streamproc.tables.keyed import KeyedState
from streamproc.tables.state import Position
from streamproc.tables.stores import MemoryStore

ID = (0x0123456789ABCDEF, -2)


class Client:
    """A client of a broker that has these topics: error, name and id."""

    def __init__(self, *topics, versions=(0, 13), node=1):
        self.topics, self.versions, self.node = topics, versions, node

    def get_random_node(self):
        return self.node

    async def send(self, node, request):
        sent = MetadataRequest_v10.decode(request.prepare({3: self.versions}).encode())
        assert sent.topics == [(0, 0, "changelog", {})]
        assert not sent.allow_auto_topic_creation
        topics = [
            (error, name, *id_, False, [(0, 0, 1, 4, [1], [1], [], {})], -1, {})
            for error, name, id_ in self.topics
        ]
        brokers = [(1, "localhost", 9092, None, {})]
        return MetadataResponse_v10.decode(
            MetadataResponse_v10(0, brokers, "c", 1, topics, -1, {}).encode()
        )


async def test_a_topic_is_known_by_its_id():
    found = await fetch_topic_ids(Client((0, "changelog", ID)), ["changelog"])
    assert found == {"changelog": "0123456789abcdeffffffffffffffffe"}


@pytest.mark.parametrize(
    "client",
    [
        Client((3, "changelog", ID)),
        Client((0, "changelog", (0, 0))),
        Client(versions=(0, 9)),
    ],
    ids=["no topic", "no id", "an old broker"],
)
async def test_what_has_no_id(client):
    assert await fetch_topic_ids(client, ["changelog"]) == {}


async def test_a_broker_that_is_away_is_asked_again():
    with pytest.raises(NodeNotReadyError):
        await fetch_topic_ids(Client(node=None), ["changelog"])
    with pytest.raises(IncompatibleBrokerVersion):
        TopicIdRequest([]).prepare({})


def test_state_knows_of_which_changelog_it_is():
    store = MemoryStore()

    def opened():
        return KeyedState(0, store, None, 1000)

    state = opened()
    state.identify("one")
    assert Applier(state).begin == 0
    state.apply([b"a"], [b"1"], Position(), 7)
    for told in ("one", ""):  # a broker that doesn't say
        state = opened()
        state.identify(told)
        assert not state.is_of_another
        assert Applier(state).begin == 7
        state.apply([], [], Position(), 7)
    state = opened()
    for _ in range(2):  # a rebalance came in between
        state.identify("two")
        assert state.is_of_another
        assert Applier(state).begin == 0
    Applier(state).reset()
    assert not state.is_of_another
    state.apply([b"b"], [b"1"], Position(), 9)
    state = opened()
    state.identify("two")
    assert Applier(state).begin == 9
