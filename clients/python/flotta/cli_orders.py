"""Asking the cluster for more, through the admin service: `why`, `move`, `transfer`, `drain`, `rebalance`, `reshard`,
`ops`."""

from __future__ import annotations

import json
import time
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flotta.admin_api import AdminApi
from flotta.cli_keys import Json, Timeout
from flotta.cli_support import Exit, complete_from_map, duration_ms, explained, fail, find
from flotta.cli_tables import coloured, console, table
from flotta.errors import PreconditionFailedError, UnavailableError

POLL_S = 0.5
SILENCE_S = 30.0  # how long the admin service may be away while an operation is waited for
DECISIONS = 10
FOR_GOOD = ("shard-count", "recover")  # operations that cannot be called off

Admin = Annotated[
    str | None, typer.Option("--admin", "-a", metavar="URL", help="The admin service. Environment: FLOTTA_ADMIN.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--admin-key-file", metavar="FILE", help="Holds its key. Environment: FLOTTA_ADMIN_API_KEY, or …_KEY_FILE."
    ),
]
Wait = Annotated[bool, typer.Option("--wait", "-w", help="Wait until it has ended, and show how far it is.")]


def of_map(kind: str) -> Any:
    return lambda incomplete: complete_from_map(kind, incomplete)


ShardId = Annotated[str, typer.Argument(metavar="SHARD", autocompletion=of_map("shards"), help="E.g. shard-7.")]
NodeId = Annotated[str, typer.Argument(metavar="NODE", autocompletion=of_map("nodes"), help="E.g. node-2.")]


class Service:
    """The admin service that the flags name, its errors explained."""

    def __init__(self, admin: str | None, key_file: Path | None, timeout: str) -> None:
        where = find(admin=admin, admin_key_file=key_file)
        named = f"name a running admin service with --admin (this address is from {where.admin_from})"
        self.unreachable = f"see `flotta status`; start a cluster with `flotta dev`, or {named}"
        self.unknown = "it may have been begun: look with `flotta ops` before you repeat it"
        self.not_now = "nothing was done; `flotta why SHARD|NODE` and `flotta ops` say what is in the way"
        with explained(self.unreachable):
            self.api = AdminApi(where.admin, where.admin_key, duration_ms(timeout, "--timeout"), where.tls)

    def ask(self, method: str, *path: str, **how: Any) -> Any:
        """The answer; or the end of the command."""
        with explained(self.unreachable, self.unknown, self.not_now):
            return getattr(self.api, method)("admin", *path, **how)

    def try_(self, method: str, *path: str, **how: Any) -> Any:
        """The answer; PreconditionFailedError if the cluster is not as it would have to be; or the end."""
        refused: PreconditionFailedError | None = None
        with explained(self.unreachable, self.unknown):
            try:
                return getattr(self.api, method)("admin", *path, **how)
            except PreconditionFailedError as error:
                refused = error
        raise refused


def why(
    subject: Annotated[
        str, typer.Argument(metavar="SHARD|NODE", autocompletion=of_map("both"), help="A shard or a node.")
    ],
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "5s",
    json_: Json = False,
) -> None:
    """Say why a shard or a node is as it is, what is done with it next, and what was decided about it."""
    service = Service(admin, key_file, timeout)
    is_shard = subject.startswith("shard-")
    found = service.ask("get", "shards", subject, "explain") if is_shard else service.ask("get", "nodes", subject)
    decisions = service.ask("get", "decisions", subject=subject, limit=DECISIONS)["decisions"]
    if json_:
        print(json.dumps(found | {"decisions": decisions}, indent=2))
        return
    out = console()
    if is_shard:
        out.print(f"{subject} is {coloured(found['health'])}")
        for title, sentences in (("now", found["now"]), ("next", found["next"])):
            for sentence in sentences:
                out.print(f"{title}: {sentence}", soft_wrap=True, markup=False)
    else:
        out.print(f"{subject} is {coloured(found['status'])} at {found['address']}")
    shown = table("when", "map", "kind", "decided because")
    for decision in decisions:
        when = datetime.fromtimestamp(decision["time_ms"] / 1000).astimezone().strftime("%m-%d %H:%M:%S")
        shown.add_row(when, str(decision["map_version"]), decision["kind"], decision["reason"])
    if decisions:
        out.print(shown)


def move(
    shard: ShardId,
    from_node: Annotated[
        str, typer.Argument(metavar="FROM", autocompletion=of_map("nodes"), help="The node that has the replica.")
    ],
    to_node: Annotated[
        str, typer.Argument(metavar="TO", autocompletion=of_map("nodes"), help="The node that gets it.")
    ],
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10s",
    json_: Json = False,
) -> None:
    """Move one replica of a shard from one node to another. The shard stays where it was put until a rebalance."""
    service = Service(admin, key_file, timeout)
    body = {"from_node_id": from_node, "to_node_id": to_node}
    ordered(service, service.ask("post", "shards", shard, "move", body=body), wait, json_)


def transfer(
    shard: ShardId,
    node: NodeId,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10s",
    json_: Json = False,
) -> None:
    """Have another replica lead a shard. The shard hands over as soon as that one can take over."""
    found = Service(admin, key_file, timeout).ask("post", "shards", shard, "leader", text=node)
    if json_:
        print(json.dumps(found, indent=2))
    else:
        print(f"{shard} is asked to be led by {node}; now it is {found['leader'] or 'nobody'}")


def drain(
    node: NodeId,
    cancel: Annotated[bool, typer.Option("--cancel", help="End the drain; what has left stays away.")] = False,
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the node off the map at the end, for good: decommission it.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether --remove is meant.")] = False,
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10s",
    json_: Json = False,
) -> None:
    """Empty a node: leaderships leave it, then replicas; it serves until the last one has gone."""
    if cancel and (remove or wait):
        fail("--cancel ends a drain at once", Exit.USAGE, "leave out --remove and --wait")
    if remove and not yes:
        typer.confirm(f"{node} can never come back under this name or with this data. Remove it?", abort=True, err=True)
    service = Service(admin, key_file, timeout)
    if cancel:
        answer = service.ask("delete", "nodes", node, "drain")
    else:
        answer = service.ask("post", "nodes", node, "decommission" if remove else "drain")
    ordered(service, answer, wait, json_)


def rebalance(
    wait: Wait = False, admin: Admin = None, key_file: KeyFile = None, timeout: Timeout = "10s", json_: Json = False
) -> None:
    """Level replicas and leaderships over the nodes, shards that were placed by hand included."""
    service = Service(admin, key_file, timeout)
    ordered(service, service.ask("post", "cluster", "rebalance"), wait, json_)


def reshard(
    shards: Annotated[int, typer.Argument(metavar="SHARDS", min=1, help="How many there are to be.")],
    name: Annotated[str, typer.Option("--table", help="The table whose shards they are.")] = "default",
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "10s",
    json_: Json = False,
) -> None:
    """Change the number of a table's shards while it serves: they divide, grow together, or first one and then the
    other."""
    service = Service(admin, key_file, timeout)
    ordered(service, service.ask("post", "tables", name, "shards", body={"num_shards": shards}), wait, json_)


def ops(
    number: Annotated[int | None, typer.Argument(metavar="[NUMBER]", min=1, help="Only this one.")] = None,
    cancel: Annotated[bool, typer.Option("--cancel", help="Call it off.")] = False,
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "5s",
    json_: Json = False,
) -> None:
    """List long work that was asked for, or follow or call off one piece of it."""
    if number is None and (cancel or wait):
        fail("--cancel and --wait are of one operation; give its number", Exit.USAGE, "`flotta ops` lists them")
    if cancel and wait:
        fail("--cancel calls the operation off, so there is nothing to --wait for", Exit.USAGE, "leave it out")
    service = Service(admin, key_file, timeout)
    if number is not None and cancel:
        ordered(service, service.ask("post", "ops", str(number), "cancel"), False, json_)
        return
    if number is not None and wait:
        _end(waited(service, number), json_)
    found = service.ask("get", "ops")["operations"] if number is None else [service.ask("get", "ops", str(number))]
    if json_:
        print(json.dumps(found if number is None else found[0], indent=2))
        return
    shown = table("number", "what", "status", "done", "text")
    for one in found:
        done = f"{one['steps_done']}/{one['steps_total']}"
        shown.add_row(str(one["id"]), one["operation"], coloured(one["status"]), done, one["outcome"] or one["text"])
    console().print(shown)


def ordered(service: Service, answer: Any, wait: bool, json_: bool) -> None:
    """Say what an order has begun, or wait for its end."""
    operation = answer["operation"]
    if wait and operation is not None:
        if not json_:
            print(answer["message"])
        _end(waited(service, operation["id"]), json_)
    if json_:
        print(json.dumps(answer, indent=2))
        return
    print(answer["message"])
    if operation is not None and operation["status"] == "RUNNING":
        follow = f"flotta ops {operation['id']}"
        end = "" if operation["operation"] in FOR_GOOD else f", end it with `{follow} --cancel`"
        print(f"operation {operation['id']}: follow it with `{follow} --wait`{end}")


def waited(service: Service, number: int) -> Any:
    """The operation once it has ended. A terminal shows how far it is meanwhile."""
    err = Console(stderr=True, highlight=False)
    count = TextColumn("{task.completed:.0f}/{task.total:.0f}")
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), count, TimeElapsedColumn())
    seen: dict[str, Any] = {}  # the operation as it last was; empty before the first answer
    try:
        with Progress(*columns, console=err, disable=not err.is_terminal, transient=True) as progress:
            return _followed(service, number, progress, seen)
    except KeyboardInterrupt:
        end = f", end it with `flotta ops {number} --cancel`"
        if not seen or seen["operation"] in FOR_GOOD:
            end = "; it cannot be called off" if seen else ""
        fail(f"operation {number} goes on", Exit.UNKNOWN, f"follow it with `flotta ops {number} --wait`{end}")


def _followed(service: Service, number: int, progress: Progress, seen: dict[str, Any]) -> Any:
    bar = progress.add_task(f"operation {number}", total=1)
    heard_s = time.monotonic()
    while True:
        try:
            found = service.api.get("admin", "ops", str(number))
        except UnavailableError:
            if time.monotonic() - heard_s > SILENCE_S:
                return service.ask("get", "ops", str(number))
        else:
            if found["status"] != "RUNNING":
                return found
            seen.update(found)
            heard_s = time.monotonic()
            progress.update(bar, description=found["text"], total=found["steps_total"], completed=found["steps_done"])
        time.sleep(POLL_S)


def _end(operation: Any, json_: bool) -> None:
    """End the command as the operation did."""
    if json_:
        print(json.dumps(operation, indent=2))
    else:
        print(f"operation {operation['id']} is {operation['status']}: {operation['outcome'] or operation['text']}")
    codes = {"DONE": Exit.OK, "CANCELLED": Exit.CONDITION, "RUNNING": Exit.UNKNOWN}
    raise typer.Exit(codes.get(operation["status"], Exit.FAILED))
