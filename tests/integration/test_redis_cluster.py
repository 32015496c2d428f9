"""The sinks on a Redis Cluster of two nodes that share the slots."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import harness
import pytest
import redis
from redis.cluster import RedisCluster

from streamproc.dev.process import free_port
from streamproc.dev.servers import RedisServer
from streamproc.errors import SinkError
from streamproc.sinks import RedisHash, RedisList, RedisScript

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

        def agreed() -> bool:
            infos = [client.cluster("INFO") for client in clients]
            return all(i["cluster_state"] == "ok" and i["cluster_size"] == "2" for i in infos)

        harness.wait_for(agreed)
        for client in clients:
            client.close()
        yield nodes
    finally:
        for node in nodes:
            node.kill()


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
