"""The heart of the benchmark: Put and Get, ours beside etcd's three members and Redis, in alternating rounds."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from figures import Measure
from records import Result
from report import failures, process_table, quietness, rate_table, ratio_facts, ratio_table
from rounds import Bench, Cell, Plan
from systems import Target, etcd, flotta, redis

H2LOAD_CONNECTIONS = 8
H2LOAD_CLIENTS_MIN = 16


def run(given: Namespace, folder: Path) -> Result:
    measures = measure(given, folder)
    ours, theirs = ("flotta", "etcd")
    tables = [rate_table("Rates, latencies, CPU", measures, quietness(measures))]
    if {ours, theirs} <= set(given.systems.split(",")):
        tables.append(ratio_table("Flotta ÷ etcd, median of the rounds (min–max)", measures, ours, theirs))
    tables.append(process_table("CPU by process", measures, (ours, theirs)))
    return Result("core", tables, ratio_facts(measures, ours, theirs), measures, failures(measures))


def measure(given: Namespace, folder: Path) -> list[Measure]:
    targets: dict[str, tuple[Target, Sequence[Cell]]] = {}
    with contextlib.ExitStack() as stack:
        for system in given.systems.split(","):
            target = stack.enter_context(start(system, given, folder / system))
            target.pause()
            targets[system] = (target, cells(given, system))
        return Bench(folder, Plan(given.rounds, given.seconds, given.calls)).run(targets)


def start(system: str, given: Namespace, folder: Path) -> AbstractContextManager[Target]:
    if system == "etcd":
        return etcd(folder)
    if system == "redis":
        return redis(folder)
    return flotta(
        folder,
        nodes=given.nodes,
        coordinators=given.coordinators,
        shards=given.shards,
        transport=given.transport,
    )


def cells(given: Namespace, system: str) -> list[Cell]:
    """The rows of the tables for one system."""
    found = []
    for operation in given.only.split(","):
        for concurrency in map(int, given.conc.split(",")):
            size = {"value_bytes": given.value_bytes, "keys": given.keys}
            if system == "redis":
                found.append(Cell(operation, concurrency, concurrency, "redis-benchmark", **size))
                continue
            shared = [int(count) for count in given.conn.split(",")] if concurrency > 1 else [1]
            if "ghz" in given.tools:
                found += [Cell(operation, concurrency, connections, **size) for connections in shared]
            if "h2load" in given.tools and concurrency >= H2LOAD_CLIENTS_MIN:
                found.append(Cell(operation, concurrency, H2LOAD_CONNECTIONS, "h2load", **size))
    return found
