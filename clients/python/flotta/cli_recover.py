"""`flotta recover --unsafe`: shards that lost their quorum for good go on from what is left of them.

Of the coordinators themselves: `cli_succession.py`.
"""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from flotta.cli_keys import Json, Timeout
from flotta.cli_orders import Admin, KeyFile, Service, Wait, of_map, waited
from flotta.cli_succession import recover_coordinators, replace_coordinator
from flotta.cli_support import Exit, fail
from flotta.cli_tables import console, table
from flotta.errors import PreconditionFailedError

COORDINATORS = "coordinators"  # in the place of a shard's name
WHY = "writes that only the lost replicas had are gone for ever, acknowledged ones included"


def recover(
    shards: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SHARD]…", autocompletion=of_map("shards"), help="E.g. shard-7; or the word coordinators."
        ),
    ] = None,
    unsafe: Annotated[bool, typer.Option("--unsafe", help=f"Needed: {WHY}.")] = False,
    node: Annotated[
        list[str] | None,
        typer.Option(
            "--node",
            metavar="NODE",
            autocompletion=of_map("nodes"),
            help="A node that is lost for good: every shard that lost its quorum with it. May be repeated.",
        ),
    ] = None,
    gone: Annotated[
        list[str] | None,
        typer.Option("--gone", metavar="COORDINATOR", help="A coordinator that is lost for good. May be repeated."),
    ] = None,
    replace: Annotated[
        str | None,
        typer.Option(
            "--replace",
            metavar="COORDINATOR",
            help="One coordinator that is lost for good while the others have a quorum: nothing is lost by it.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = False,
    admin: Admin = None,
    key_file: KeyFile = None,
    timeout: Timeout = "15s",
    json_: Json = False,
) -> None:
    """Let shards that lost their quorum for good go on from one surviving replica each, without what only the lost
    ones had. Refused while a quorum could still come back. `recover coordinators` is the same for the
    coordinators themselves, and only looks without --unsafe. `recover coordinators --replace NAME` gives up one of
    them while the others have a quorum, and only looks without --yes."""
    if shards and COORDINATORS in shards:
        if shards != [COORDINATORS] or node:
            fail("the coordinators are recovered by themselves", Exit.USAGE, "leave out the shards and --node")
        if replace:
            if gone or unsafe:
                fail("--replace loses nothing, and is for one", Exit.USAGE, "leave out --gone and --unsafe")
            replace_coordinator(Service(admin, key_file, timeout), replace, meant=yes and not dry_run, json_=json_)
            return
        meant = unsafe and not dry_run
        recover_coordinators(Service(admin, key_file, timeout), gone or [], meant=meant, yes=yes, json_=json_)
        return
    if gone or replace:
        fail(
            "--gone and --replace name lost coordinators",
            Exit.USAGE,
            "`flotta recover coordinators` takes them; nodes are --node",
        )
    if not unsafe:
        fail(f"this needs --unsafe: {WHY}", Exit.USAGE, "bring the nodes back if you can; --dry-run says what is lost")
    if not shards and not node:
        fail("name the shards, or with --node the nodes that are lost", Exit.USAGE, "`flotta status` shows both")
    service = Service(admin, key_file, timeout)
    wanted = _wanted(service, shards or [], node or [])
    answers = [_asked(service, shard, dry_run=True) for shard in wanted]
    found = [answer for answer in answers if "refused" not in answer]
    if not json_:
        _show(answers)
    if not dry_run and found:
        if not yes:
            _confirm(found)
        done = {one["shard_id"]: _asked(service, one["shard_id"], dry_run=False) for one in found}
        answers = [done.get(answer["shard_id"], answer) for answer in answers]
        if wait:
            for answer in done.values():
                if answer.get("operation") is not None:
                    answer["operation"] = waited(service, answer["operation"]["id"])
    _end(answers, dry_run, json_)


def _wanted(service: Service, shards: list[str], nodes: list[str]) -> list[str]:
    """Those that were named, and those that a lost node took the quorum of."""
    wanted = list(dict.fromkeys(shards))
    known = service.ask("get", "nodes") if nodes else []
    for node_id in nodes:
        if node_id not in {one["node_id"] for one in known}:
            fail(f"no node is registered as {node_id!r}", Exit.NOT_FOUND, "`flotta nodes` lists them")
    held = [one for one in (service.ask("get", "shards") if nodes else []) if set(one["replicas"]) & set(nodes)]
    for one in held:
        shard = one["shard_id"]
        if shard not in wanted and service.ask("get", "shards", shard, "explain")["health"] == "QUORUM_LOST":
            wanted.append(shard)
    if not wanted:
        fail(f"no shard lost its quorum with {', '.join(nodes)}", Exit.CONDITION, "nothing is to be recovered")
    return wanted


def _asked(service: Service, shard: str, *, dry_run: bool) -> dict[str, Any]:
    """The answer, or why it is refused."""
    body = {"dry_run": dry_run, "confirm": shard}
    try:
        answer: dict[str, Any] = service.try_("post", "shards", shard, "recover", body=body)
    except PreconditionFailedError as error:
        return {"shard_id": shard, "refused": str(error)}
    return answer


def _show(answers: list[dict[str, Any]]) -> None:
    shown = table("shard", "goes on from", "log ends at", "what it means")
    for one in answers:
        if "refused" in one:
            shown.add_row(one["shard_id"], "[red]refused[/red]", "", one["refused"])
        else:
            shown.add_row(one["shard_id"], one["node_id"], str(one["last_index"]), one["message"])
    console().print(shown)


def _confirm(found: list[dict[str, Any]]) -> None:
    word = found[0]["shard_id"] if len(found) == 1 else f"{len(found)} shards"
    said = typer.prompt(f"This cannot be taken back: {WHY}. Type `{word}` to go on", err=True)
    if said.strip() != word:
        fail("nothing was done", Exit.CONDITION)


def _end(answers: list[dict[str, Any]], dry_run: bool, json_: bool) -> None:
    if json_:
        print(json.dumps(answers, indent=2))
    elif not dry_run:
        for one in answers:
            operation = one.get("operation")
            if operation is not None:
                said = operation["outcome"] or f"follow it with `flotta ops {operation['id']} --wait`"
                print(f"operation {operation['id']}, {operation['text']}, is {operation['status']}: {said}")
    if any((one.get("operation") or {}).get("status") == "FAILED" for one in answers):
        raise typer.Exit(Exit.FAILED)
    if any("refused" in one for one in answers):
        raise typer.Exit(Exit.CONDITION)
