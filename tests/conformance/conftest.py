"""One cluster of processes for all tests of this folder: 3 coordinators, 3 nodes, 2 shards of 2 replicas."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from conformance_support import Doors
from process_cluster import ProcessCluster


@pytest.fixture(scope="session")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Doors]:
    cluster = ProcessCluster(Path(tmp_path_factory.mktemp("conformance")), shards=2, gateways=1)
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
