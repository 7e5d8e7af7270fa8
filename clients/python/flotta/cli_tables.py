"""How the commands show what they found."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.table import Table

from flotta.overview import NodeRow, ShardRow

_COLOURS = {
    "ALIVE": "green",
    "STABLE": "green",
    "HEALTHY": "green",
    "DONE": "green",
    "serving": "green",
    "leader": "bold green",
    "follower": "green",
    "SUSPECT": "yellow",
    "MOVING": "yellow",
    "CREATING": "yellow",
    "DEGRADED": "yellow",
    "RUNNING": "yellow",
    "CANCELLED": "dim",
}


PIPE_COLUMNS = 1_000


def console() -> Console:
    """Where tables go. What goes into a pipe or a file is not cut to the width of a terminal."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else PIPE_COLUMNS
    return Console(highlight=False, width=width)


def table(*columns: str) -> Table:
    """An empty one, without lines."""
    made = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        made.add_column(column)
    return made


def coloured(state: str) -> str:
    """A state in the colour of how good it is."""
    colour = _COLOURS.get(state, "red")
    return f"[{colour}]{state}[/{colour}]"


def node_table(nodes: tuple[NodeRow, ...]) -> Table:
    made = table("node", "address", "zone", "status", "leads", "replicas")
    for node in nodes:
        made.add_row(
            node.node_id, node.address, node.zone, coloured(node.status), str(node.shards_led), str(node.replicas)
        )
    return made


def shard_table(shards: tuple[ShardRow, ...]) -> Table:
    made = table("shard", "epoch", "state", "leader", "replicas")
    for shard in shards:
        leader = shard.leader or "[red]none[/red]"
        made.add_row(shard.shard_id, str(shard.epoch), coloured(shard.state), leader, ", ".join(shard.replicas))
    return made
