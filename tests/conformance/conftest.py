"""One cluster of processes for all tests of this folder, and one after the other for each transport: 3 coordinators,
3 nodes, 2 shards of 2 replicas.

At the end no process may have logged an error or a traceback: bad input is the caller's mistake, and never surprises.
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance_support import Doors
from flotta_runtime.settings import Transport
from process_cluster import ProcessCluster

SURPRISES = ('"level": "error"', '"level": "critical"', "Traceback")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """These come last: the cluster would go on beside all other tests otherwise."""
    here = Path(__file__).parent
    items.sort(key=lambda item: here in item.path.parents)


@pytest.fixture(scope="session", params=["native", "grpcio"])
def transport(request: pytest.FixtureRequest) -> Transport:
    chosen: Transport = request.param
    return chosen


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory, transport: Transport) -> Iterator[Doors]:
    folder = Path(tmp_path_factory.mktemp(f"conformance-{transport}"))
    cluster = ProcessCluster(folder, shards=2, gateways=1, transport=transport)
    cluster.environment["RF"] = "2"  # so that there is a node that is no replica
    found: Doors | None = None
    try:
        asyncio.run(cluster.command("start"))
        asyncio.run(cluster.command("bootstrap"))
        found = Doors(cluster)
        yield found
    except BaseException:
        print(cluster.tails())
        raise
    finally:
        if found is not None:
            found.close()
        asyncio.run(cluster.command("stop"))
    lines = [line for log in (cluster.folder / "logs").glob("*.log") for line in log.read_text().splitlines()]
    surprised = [line for line in lines if any(word in line for word in SURPRISES)]
    assert lines and not surprised, surprised[:3]
