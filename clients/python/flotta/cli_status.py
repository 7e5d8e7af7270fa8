"""What a cluster looks like: `flotta status`, `flotta cluster`, `flotta nodes`, `flotta shards`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from flotta.cli_keys import Gateway, Json, Timeout
from flotta.cli_support import Exit, complete_from_map, duration_ms, fail, find, run
from flotta.cli_tables import coloured, console, node_table, shard_table, table
from flotta.overview import Overview, gather

Coordinators = Annotated[
    str | None,
    typer.Option(
        "--coordinators", "-c", metavar="HOST:PORT,…", help="Coordinators to ask. Environment: FLOTTA_COORDINATORS."
    ),
]
NO_MAP_HINT = "see `flotta status`; start a cluster with `flotta dev`, or name its coordinators with --coordinators"
OnNode = Annotated[
    str | None,
    typer.Option(
        "--node",
        metavar="NODE",
        help="Only shards with a replica on this node.",
        autocompletion=lambda incomplete: complete_from_map("nodes", incomplete),
    ),
]


def status(
    gateway: Gateway = None,
    coordinators: Coordinators = None,
    timeout: Timeout = "2s",
    json_: Json = False,
) -> None:
    """Show coordinators, gateways, nodes and shards, and what is wrong.

    Exit code 0: all well; 1: something is wrong, and said; 4: nobody answers.
    """
    where = find(gateway=gateway, coordinators=coordinators)
    work = gather(where.gateway, where.coordinators, duration_ms(timeout, "--timeout"), where.tls)
    overview = run(work, where)
    if json_:
        print(json.dumps(overview.as_json(), indent=2))
    elif overview.reachable:
        _print(overview, console())
    if not overview.reachable:
        fail(
            f"nobody answers at gateway {', '.join(where.gateway)} (from {where.gateway_from}) or coordinators "
            f"{', '.join(where.coordinators)} (from {where.coordinators_from})",
            Exit.UNAVAILABLE,
            "start a cluster with `flotta dev`, or name one with --gateway and --coordinators",
        )
    raise typer.Exit(Exit.NOT_FOUND if overview.problems else Exit.OK)


def cluster(coordinators: Coordinators = None, timeout: Timeout = "2s", json_: Json = False) -> None:
    """Show the cluster in numbers: its map, its nodes and shards by state, its coordinators."""
    found = _map(coordinators, timeout)
    facts = {
        "cluster_id": found.cluster_id,
        "map_version": found.map_version,
        "num_shards": found.num_shards,
        "replication_factor": found.replication_factor,
        "nodes": _counted(found.nodes, lambda node: node.status),
        "shards": _counted(found.shards, lambda shard: shard.state),
        "shards_without_leader": sum(not shard.leader for shard in found.shards),
        "coordinators": {peer.address: peer.state for peer in found.coordinators},
    }
    if json_:
        print(json.dumps(facts, indent=2))
        return
    shown = table("", "")
    shown.show_header = False
    for name, value in facts.items():
        if isinstance(value, dict):
            value = ", ".join(f"{coloured(key)} {count}" for key, count in value.items())
            if name == "coordinators":
                value = ", ".join(f"{peer.address} {coloured(peer.state)}" for peer in found.coordinators)
        shown.add_row(name.replace("_", " "), str(value))
    console().print(shown)


def nodes(coordinators: Coordinators = None, timeout: Timeout = "2s", json_: Json = False) -> None:
    """List the storage nodes, with their status and what they hold."""
    found = _map(coordinators, timeout)
    if json_:
        print(json.dumps([asdict(node) for node in found.nodes], indent=2))
    else:
        console().print(node_table(found.nodes))


def shards(
    node: OnNode = None, coordinators: Coordinators = None, timeout: Timeout = "2s", json_: Json = False
) -> None:
    """List the shards, with their leaders and replicas."""
    found = _map(coordinators, timeout)
    if node is not None and node not in {one.node_id for one in found.nodes}:
        fail(f"there is no node {node!r}", Exit.NOT_FOUND, "`flotta nodes` lists them")
    chosen = tuple(shard for shard in found.shards if node is None or node in shard.replicas)
    if json_:
        print(json.dumps([asdict(shard) for shard in chosen], indent=2))
    else:
        console().print(shard_table(chosen))


def _map(coordinators: str | None, timeout: str) -> Overview:
    """What the coordinators know; ends the command when none answers."""
    where = find(coordinators=coordinators)
    found = run(gather((), where.coordinators, duration_ms(timeout, "--timeout"), where.tls), where)
    if not found.has_map:
        states = ", ".join(f"{peer.address} {peer.state}" for peer in found.coordinators)
        fail(
            f"no coordinator can tell the map (addresses from {where.coordinators_from}): {states}",
            Exit.UNAVAILABLE,
            NO_MAP_HINT,
        )
    return found


def _counted(rows: tuple[Any, ...], state: Callable[[Any], str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in rows:
        found[state(row)] = found.get(state(row), 0) + 1
    return dict(sorted(found.items()))


def _print(overview: Overview, out: Console) -> None:
    out.print(
        f"cluster {overview.cluster_id or '(no id)'}, map version {overview.map_version}, "
        f"{overview.num_shards} shards, replication factor {overview.replication_factor}"
    )
    peers = table("", "address", "state", "id", "term")
    for kind, group in (("coordinator", overview.coordinators), ("gateway", overview.gateways)):
        for peer in group:
            peers.add_row(kind, peer.address, coloured(peer.state), peer.node_id, str(peer.term or ""))
    out.print(peers)
    if overview.nodes:
        out.print(node_table(overview.nodes))
    if overview.shards:
        out.print(shard_table(overview.shards))
    for problem in overview.problems:
        out.print(f"[yellow]![/yellow] {problem}")
