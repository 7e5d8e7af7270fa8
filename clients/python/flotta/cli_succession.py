"""`flotta recover coordinators`: the coordinators lost their quorum for good, and one of them goes on alone; or only
one is lost for good, and the others go on without it."""

from __future__ import annotations

import json
from typing import Any

import typer

from flotta.cli_orders import Service
from flotta.cli_support import Exit, fail
from flotta.cli_tables import console, table

WHY = "changes of the cluster that only the lost coordinators had are gone for ever, acknowledged ones included"


def recover_coordinators(service: Service, gone: list[str], *, meant: bool, yes: bool, json_: bool) -> None:
    """Show what every coordinator holds and which would go on; let it, if that is meant."""
    found = _asked(service, {"gone": gone, "dry_run": True})
    if not json_:
        _show(found)
        console().print(f"newest map that anybody has seen: {found['seen_map_version']}")
        _judge(found, "would go on")
    if meant and not found["refused"]:
        heir = found["node_id"]
        if not yes:
            said = typer.prompt(f"This cannot be taken back: {WHY}. Type `{heir}` to go on", err=True)
            if said.strip() != heir:
                fail("nothing was done", Exit.CONDITION)
        found = _asked(service, {"gone": gone, "confirm": heir})
        if not json_:
            print(f"done: {found['message']}; the map is at version {found['map_version']}")
            others = [one["node_id"] for one in found["coordinators"] if one["node_id"] != heir]
            print(f"now start {', '.join(others)} with empty data directories, or have {heir} alone")
    elif not json_ and not found["refused"]:
        print("nothing was done; add --unsafe to let it: " + WHY)
    if json_:
        print(json.dumps(found, indent=2))
    if found["refused"]:
        raise typer.Exit(Exit.CONDITION)


def replace_coordinator(service: Service, lost: str, *, meant: bool, json_: bool) -> None:
    """Show what every coordinator holds and whether that one may be given up; do it, if that is meant."""
    found = _asked(service, {"node_id": lost, "dry_run": True}, "replace")
    if not json_:
        _show(found)
        console().print(f"who votes: {', '.join(found['voters'])}")
        _judge(found, "what would happen")
    if meant and not found["refused"]:
        found = _asked(service, {"node_id": lost}, "replace")
        if not json_:
            print(f"done: {found['message']}")
    elif not json_ and not found["refused"]:
        print(f"nothing was done; add --yes to do it: the data directory that {lost} had is refused from then on")
    if json_:
        print(json.dumps(found, indent=2))
    if found["refused"]:
        raise typer.Exit(Exit.CONDITION)


def _asked(service: Service, body: dict[str, Any], order: str = "recover") -> dict[str, Any]:
    answer: dict[str, Any] = service.ask("post", "coordinators", order, body=body)
    return answer


def _show(found: dict[str, Any]) -> None:
    shown = table("coordinator", "state", "log ends at", "in term", "applied", "map", "knows as leader")
    for one in found["coordinators"]:
        figures = [str(one[name]) for name in ("last_index", "last_term", "applied_index", "map_version")]
        if one["state"] != "ANSWERS":
            figures = [""] * len(figures)
        shown.add_row(one["node_id"], one["state"], *figures, one["leader_id"] or "")
    console().print(shown)


def _judge(found: dict[str, Any], verdict: str) -> None:
    said = f"refused: {found['refused']}" if found["refused"] else f"{verdict}: {found['message']}"
    console().print(said, soft_wrap=True, markup=False)
