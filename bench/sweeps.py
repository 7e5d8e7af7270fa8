"""One thing varied at a time: shards, value sizes, storage nodes, transports. Variants alternate within the rounds."""

from __future__ import annotations

import contextlib
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bars import ONE_GROUP
from figures import Measure
from records import Result
from report import failures, process_table, quietness, rate_table, ratio_facts, ratio_table
from rounds import Bench, Cell, Plan
from systems import Target, etcd, flotta

BOTH = [Cell("put", 50, 8), Cell("get", 50, 8)]
FOUR = [*BOTH, Cell("put", 200, 8), Cell("get", 200, 8)]
BYTES_OF_ALL_KEYS_MAX = 64 << 20
TRANSPORTS = ("native", "grpcio")


def shards(given: Namespace, folder: Path) -> Result:
    """1, 8 and 64 shards on three nodes, beside etcd, which has one group as the first of them has."""
    counts = {ONE_GROUP: 1, "8 shards": 8, "64 shards": 64}
    with contextlib.ExitStack() as stack:
        targets: dict[str, Target] = {
            name: stack.enter_context(flotta(folder / f"shards-{count}", shards=count, transport=given.transport))
            for name, count in counts.items()
        }
        targets["etcd"] = stack.enter_context(etcd(folder / "shards-etcd"))
        measures = _measure(given, folder, targets, FOUR)
    result = _result("shards", "Number of shards", measures)
    tables = [ratio_table(f"{name} ÷ etcd", measures, name, "etcd") for name in counts]
    return replace(result, tables=[*result.tables, *tables], facts=ratio_facts(measures, ONE_GROUP, "etcd"))


def nodes(given: Namespace, folder: Path) -> Result:
    """1 node with one replica, 3 and 5 with three replicas; a lone etcd beside the lone node."""
    with contextlib.ExitStack() as stack:
        targets: dict[str, Target] = {
            f"{count} nodes": stack.enter_context(
                flotta(folder / f"nodes-{count}", nodes=count, transport=given.transport)
            )
            for count in (1, 3, 5)
        }
        targets["etcd x 1"] = stack.enter_context(etcd(folder / "etcd-1", members=1))
        return _result(
            "nodes", "Number of storage nodes (etcd x 1: one member)", _measure(given, folder, targets, FOUR)
        )


def values(given: Namespace, folder: Path) -> Result:
    """16 bytes, 4 KiB and 256 KiB, beside etcd."""
    cells = [
        replace(cell, value_bytes=size, keys=min(10_000, BYTES_OF_ALL_KEYS_MAX // size))
        for size in (16, 4 << 10, 256 << 10)
        for cell in BOTH
    ]
    with flotta(folder / "values", transport=given.transport) as ours, etcd(folder / "values-etcd") as theirs:
        measures = _measure(given, folder, {"flotta": ours, "etcd": theirs}, cells)
    result = _result("values", "Value sizes", measures)
    return replace(result, tables=[*result.tables, ratio_table("Flotta ÷ etcd", measures, "flotta", "etcd")])


def transports(given: Namespace, folder: Path) -> Result:
    """The whole path over the native transport, and over grpcio."""
    with contextlib.ExitStack() as stack:
        targets: dict[str, Target] = {
            name: stack.enter_context(flotta(folder / name, transport=name)) for name in TRANSPORTS
        }
        measures = _measure(given, folder, targets, BOTH)
    result = _result("transports", "Transports", measures)
    tables = [ratio_table("native ÷ grpcio", measures, *TRANSPORTS), process_table("By process", measures, TRANSPORTS)]
    return replace(result, tables=[*result.tables, *tables], facts=ratio_facts(measures, *TRANSPORTS))


def _measure(given: Namespace, folder: Path, targets: dict[str, Target], cells: Sequence[Cell]) -> list[Measure]:
    for target in targets.values():
        target.pause()
    if given.smoke:
        cells = [replace(cell, keys=min(cell.keys, given.keys), concurrency=20) for cell in cells[:2]]
    plan = Plan(given.rounds, given.seconds, given.calls)
    return Bench(folder, plan).run({label: (target, cells) for label, target in targets.items()})


def _result(part: str, title: str, measures: list[Measure]) -> Result:
    return Result(part, [rate_table(title, measures, quietness(measures))], {}, measures, failures(measures))
