"""What tables rely on inside of aiokafka and Faust: an upgrade breaks these, not users."""

import inspect

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import Fetcher
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState, TopicPartitionState
from faust.assignor.partition_assignor import PartitionAssignor
from faust.transport.consumer import Consumer


async def test_positions_of_a_reader_are_found():
    subscription = SubscriptionState()
    tp = TopicPartition("changelog", 0)
    subscription.assign_from_user([tp])
    state = subscription.subscription.assignment.state_value(tp)
    assert isinstance(state, TopicPartitionState)
    assert not state.has_valid_position
    state.seek(7)
    assert (state.has_valid_position, state.position) == (True, 7)
    assert state.highwater is None


def test_a_rebalance_can_be_asked_for():
    assert list(inspect.signature(GroupCoordinator.request_rejoin).parameters) == ["self"]
    assert "_coordinator" in inspect.getsource(AIOKafkaConsumer)
    assert "force_metadata_update" in inspect.getsource(Fetcher)


def test_static_members_do_not_leave_the_group():
    source = inspect.getsource(GroupCoordinator._maybe_leave_group)
    assert "_group_instance_id is None" in source


def test_an_assignment_tells_actives_from_standbys():
    for name in ("assigned_actives", "assigned_standbys"):
        assert callable(getattr(PartitionAssignor, name))


def test_a_commit_under_way_can_be_waited_for():
    assert inspect.iscoroutinefunction(Consumer.maybe_wait_for_commit_to_finish)
    assert "maybe_wait_for_commit_to_finish" in inspect.getsource(Consumer.commit)
