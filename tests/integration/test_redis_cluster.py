"""The sinks on a Redis Cluster of two nodes that share the slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import harness
import pytest
import redis
from exactly import READER, at, checkpoint, new_app, partitions, process
from redis.cluster import RedisCluster
from redis.crc import key_slot

from streamproc.dev.process import free_port
from streamproc.dev.servers import RedisServer
from streamproc.errors import ConfigurationError, Fenced, SinkError
from streamproc.sinks import (
    RedisCounter,
    RedisHash,
    RedisList,
    RedisPublish,
    RedisScript,
    RedisSink,
)

SLOTS = 16_384


class ClusterNode(RedisServer):
    """A Redis server in cluster mode."""

    def command(self) -> Sequence[str]:
        return [*super().command(), "--cluster-enabled", "yes"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[ClusterNode]]:
    """Two nodes that know each other and serve half of the slots each."""
    folder = tmp_path_factory.mktemp("cluster")
    nodes = [ClusterNode(folder / str(i), port=bus_port()) for i in range(2)]
    try:
        clients = [redis.Redis.from_url(node.start().url, decode_responses=True) for node in nodes]
        half = SLOTS // 2
        for index, client in enumerate(clients):
            client.cluster("ADDSLOTS", *range(index * half, (index + 1) * half))
        clients[0].cluster("MEET", "127.0.0.1", nodes[1].port)

        wait_until_up(nodes)
        for client in clients:
            client.close()
        yield nodes
    finally:
        for node in nodes:
            node.kill()


def wait_until_up(nodes: list[ClusterNode]) -> None:
    """Wait until all nodes serve."""

    def agreed() -> bool:
        infos = [client.cluster("INFO") for client in clients]
        return all(i["cluster_state"] == "ok" and i["cluster_size"] == "2" for i in infos)

    clients = [redis.Redis.from_url(node.url, decode_responses=True) for node in nodes]
    harness.wait_for(agreed)
    for client in clients:
        client.close()


def bus_port() -> int:
    """Return a free port whose cluster bus port, 10000 above, is a port too."""
    while (port := free_port()) > 55_000:
        pass
    return port


async def test_values_reach_the_nodes_of_their_keys(cluster: list[ClusterNode]) -> None:
    url = cluster[0].url.replace("redis://", "redis+cluster://")
    script = "return redis.call('SET', KEYS[1], ARGV[1])"
    sinks = [
        RedisHash("h:{key}", url=url, ttl=100),
        RedisList("{{same}}:{key}", url=cluster[1].url, cluster=True),
        RedisScript(script, keys=["s:{key}"], args=["value"], url=url),
    ]
    values = [[(str(n), {"n": n}) for n in range(200)], [(str(n % 3), n) for n in range(30)]]
    for sink, written in zip(sinks, [*values, [(str(n), n) for n in range(50)]], strict=True):
        await sink.open(None)
        await sink.write(written)
        await sink.flush()
        assert sink.pending == 0
        assert "answers" in await sink.check()
        await sink.close()
    with RedisCluster.from_url(cluster[0].url, decode_responses=True) as client:
        assert all(client.hgetall(f"h:{n}") == {"n": str(n)} for n in range(200))
        assert client.lrange("{same}:1", 0, -1) == [str(n) for n in range(1, 30, 3)]
        assert all(client.get(f"s:{n}") == str(n) for n in range(50))
    for node in cluster:
        with redis.Redis.from_url(node.url) as client:
            assert client.dbsize() > 50


async def test_wrong_type_on_a_cluster(cluster: list[ClusterNode]) -> None:
    with RedisCluster.from_url(cluster[0].url, decode_responses=True) as client:
        client.set("l:7", "a string")
        sink = RedisList("l:{key}", url=cluster[0].url, cluster=True)
        await sink.open(None)
        await sink.write([(str(n), n) for n in range(20)])
        with pytest.raises(SinkError, match=r"RPUSH 'l:7': .*WRONGTYPE"):
            await sink.flush()
        await sink.close()
        assert all(client.lrange(f"l:{n}", 0, -1) == [str(n)] for n in range(20) if n != 7)


async def test_cluster_taken_for_a_server(cluster: list[ClusterNode]) -> None:
    sink = RedisList("l:{key}", url=cluster[0].url)
    await sink.open(None)
    await sink.write([(str(n), n) for n in range(20)])
    with pytest.raises(SinkError, match=r"is a cluster.*redis\+cluster://"):
        await sink.flush()
    await sink.close()


async def test_node_restarts(cluster: list[ClusterNode]) -> None:
    sink = RedisHash("h:{key}", url=cluster[0].url, cluster=True)
    await sink.open(None)
    await sink.write([(str(n), {"n": 1}) for n in range(100)])
    await sink.flush()
    cluster[1].restart()
    await sink.write([(str(n), {"n": 2}) for n in range(100)])
    await sink.flush()
    await sink.close()
    with RedisCluster.from_url(cluster[0].url, decode_responses=True) as client:
        assert all(client.hgetall(f"h:{n}") == {"n": "2"} for n in range(100))


async def test_exactly_once_on_a_cluster(cluster: list[ClusterNode]) -> None:
    """Each source partition has its results, and its offset, in a slot of its own."""
    url = cluster[0].url.replace("redis://", "redis+cluster://")
    script = "return redis.call('INCR', KEYS[1])"

    async def worker() -> list[RedisSink]:
        app = new_app(url)
        sinks = [
            RedisCounter("n:{{p{partition}}}:{value}"),
            RedisList("{{p{partition}}}:l"),
            RedisScript(script, keys=["{{p{partition}}}:calls"]),
            RedisPublish("news"),
        ]
        for sink in sinks:
            await sink.open(app)
            await sink.claim(partitions(*range(6)))
        return sinks

    first = await worker()
    for partition in range(6):
        for offset in range(4):
            await process(first, partition, offset, offset % 2)
    await checkpoint(first, dict.fromkeys(range(6), 4))
    await process(first, 0, 4, 0)

    second = await worker()
    assert second[0].claimed == {number: {READER: 4} for number in range(6)}
    with pytest.raises(Fenced, match="claimed by"):
        await checkpoint(first, {0: 5})
    cluster[1].restart()
    wait_until_up(cluster)
    move_slot(cluster, key_slot(b"p0"))
    for partition in range(6):
        for offset in range(3, 6):
            await process(second, partition, offset, offset % 2)
    await checkpoint(second, dict.fromkeys(range(6), 6))

    with RedisCluster.from_url(cluster[0].url, decode_responses=True) as client:
        for number in range(6):
            tag = f"{{p{number}}}"
            assert [client.get(f"n:{tag}:{n}") for n in (0, 1)] == ["3", "3"]
            assert client.lrange(f"{tag}:l", 0, -1) == ["0", "1"] * 3
            assert client.get(f"{tag}:calls") == "6"
    for sink in [*first, *second]:
        await sink.close()


def move_slot(cluster: list[ClusterNode], slot: int) -> None:
    """Give a slot, and what is in it, to the other node."""
    clients = [redis.Redis.from_url(node.url) for node in cluster]
    source, target = clients if slot < SLOTS // 2 else reversed(clients)
    ids = {client: client.cluster("MYID").decode() for client in clients}
    target.cluster("SETSLOT", slot, "IMPORTING", ids[source])
    source.cluster("SETSLOT", slot, "MIGRATING", ids[target])
    keys = source.cluster("GETKEYSINSLOT", slot, 100)
    port = target.connection_pool.connection_kwargs["port"]
    source.execute_command("MIGRATE", "127.0.0.1", port, "", 0, 5000, "KEYS", *keys)
    for client in (target, source):
        client.cluster("SETSLOT", slot, "NODE", ids[target])
    for client in clients:
        client.close()


async def test_keys_of_other_slots_are_refused(cluster: list[ClusterNode]) -> None:
    app = new_app(cluster[0].url)
    sink = RedisCounter("n:{key}", cluster=True)
    with pytest.raises(ConfigurationError, match=r"'\{\{p\{partition\}\}\}:n:\{key\}'"):
        await sink.open(app)
    sink = RedisCounter("{{p{partition}}}:other:{value}", cluster=True)
    await sink.open(app)
    await sink.claim(partitions(0))
    with at(0, 0):
        # A field of the value is called as what is known of the record.
        await sink.write([{"partition": 9, "value": 1}, {"value": 2}])
    with pytest.raises(
        SinkError, match=r"1 commands were refused: INCRBY '\{p9\}:other:1'.*\{p0\}"
    ):
        await checkpoint([sink], {0: 1})
    with RedisCluster.from_url(cluster[0].url, decode_responses=True) as client:
        assert client.get("{p0}:other:2") == "1"
    await sink.close()
