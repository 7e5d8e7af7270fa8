"""LOW_LATENCY: of the replicas that may serve a read, the one that has least to do, within one batch too."""

from __future__ import annotations

from flotta_gateway.call import Call
from flotta_proto.flotta.storage_pb2 import GET, PUT
from flotta_proto.kvdb import gateway_pb2 as gw
from gateway_support import NODES, Cluster


def read(**options: int) -> gw.GetRequest:
    return gw.GetRequest(key=b"k", options=gw.ReadOptions(**options))  # type: ignore[arg-type]


def reads(cluster: Cluster, count: int, **options: int) -> None:
    asked = read(**options)
    cluster.dispatcher.submit([Call(GET, asked, 6_000, lambda _: None) for _ in range(count)])


def waiting(cluster: Cluster) -> list[int]:
    return [cluster.nodes[address].operations_open for address in NODES]


async def test_reads_go_where_least_waits() -> None:
    cluster = Cluster()
    route = cluster.current.route_of(b"k")
    assert route is not None
    put = gw.PutRequest(key=b"k", value=b"v")
    cluster.dispatcher.submit([Call(PUT, put, 6_000, lambda _: None) for _ in range(6)])
    busy, idle = NODES.index(route.leader), 1 - NODES.index(route.leader)
    reads(cluster, 4, consistency=gw.EVENTUAL, read_mode=gw.LOW_LATENCY)
    assert (waiting(cluster)[busy], waiting(cluster)[idle]) == (6, 4)
    reads(cluster, 6, consistency=gw.EVENTUAL, read_mode=gw.LOW_LATENCY)
    assert waiting(cluster) == [8, 8]
    cluster.nodes[NODES[idle]].up = False
    reads(cluster, 3, consistency=gw.EVENTUAL, read_mode=gw.LOW_LATENCY)
    assert (waiting(cluster)[busy], waiting(cluster)[idle]) == (11, 8)
    cluster.dispatcher.close()


async def test_who_asks_for_more_gets_it_from_the_leader_all_the_same() -> None:
    cluster = Cluster()
    route = cluster.current.route_of(b"k")
    assert route is not None
    for options in ({"read_mode": gw.LOW_LATENCY}, {"consistency": gw.STRONG, "read_mode": gw.LOW_LATENCY}):
        reads(cluster, 5, **options)
    assert cluster.nodes[route.leader].operations_open == 10
    cluster.dispatcher.close()
