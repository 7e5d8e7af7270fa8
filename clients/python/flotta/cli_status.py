"""`flotta status`: the cluster at a glance."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flotta.cli_keys import Gateway, Json, Timeout
from flotta.cli_support import Exit, duration_ms, fail, find, run
from flotta.overview import Overview, gather

Coordinators = Annotated[
    str | None,
    typer.Option(
        "--coordinators", "-c", metavar="HOST:PORT,…", help="Coordinators to ask. Environment: FLOTTA_COORDINATORS."
    ),
]
_COLOURS = {
    "ALIVE": "green",
    "STABLE": "green",
    "serving": "green",
    "leader": "bold green",
    "follower": "green",
    "SUSPECT": "yellow",
    "MOVING": "yellow",
    "CREATING": "yellow",
}


def status(
    gateway: Gateway = None,
    coordinators: Coordinators = None,
    timeout: Timeout = "2s",
    json_: Json = False,
) -> None:
    """Show coordinators, gateways, nodes and shards, and what is wrong.

    Exit code 0: all well; 1: something is wrong, and said; 4: nobody answers.
    """
    where = find(gateway, coordinators)
    work = gather(where.gateway, where.coordinators, duration_ms(timeout, "--timeout"), where.tls)
    overview = run(work, where)
    if json_:
        print(json.dumps(overview.as_json(), indent=2))
    elif overview.reachable:
        _print(overview, Console(highlight=False))
    if not overview.reachable:
        fail(
            f"nobody answers at gateway {', '.join(where.gateway)} (from {where.gateway_from}) or coordinators "
            f"{', '.join(where.coordinators)} (from {where.coordinators_from})",
            Exit.UNAVAILABLE,
            "start a cluster with `flotta dev`, or name one with --gateway and --coordinators",
        )
    raise typer.Exit(Exit.NOT_FOUND if overview.problems else Exit.OK)


def _print(overview: Overview, console: Console) -> None:
    console.print(
        f"cluster {overview.cluster_id or '(no id)'}, map version {overview.map_version}, "
        f"{overview.num_shards} shards, replication factor {overview.replication_factor}"
    )
    peers = _table("", "address", "state", "id", "term")
    for kind, group in (("coordinator", overview.coordinators), ("gateway", overview.gateways)):
        for peer in group:
            peers.add_row(kind, peer.address, _coloured(peer.state), peer.node_id, str(peer.term or ""))
    console.print(peers)
    if overview.nodes:
        nodes = _table("node", "address", "zone", "status", "leads", "replicas")
        for node in overview.nodes:
            counts = (str(node.shards_led), str(node.replicas))
            nodes.add_row(node.node_id, node.address, node.zone, _coloured(node.status), *counts)
        console.print(nodes)
    if overview.shards:
        shards = _table("shard", "epoch", "state", "leader", "replicas")
        for shard in overview.shards:
            leader = shard.leader or "[red]none[/red]"
            shards.add_row(shard.shard_id, str(shard.epoch), _coloured(shard.state), leader, ", ".join(shard.replicas))
        console.print(shards)
    for problem in overview.problems:
        console.print(f"[yellow]![/yellow] {problem}")


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column)
    return table


def _coloured(state: str) -> str:
    colour = _COLOURS.get(state, "red")
    return f"[{colour}]{state}[/{colour}]"
