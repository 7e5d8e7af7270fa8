"""`flotta recover coordinators`: the coordinators lost their quorum for good, and one of them goes on alone."""

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


def _asked(service: Service, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = service.ask("post", "coordinators", "recover", body=body)
    return answer


def _show(found: dict[str, Any]) -> None:
    shown = table("coordinator", "state", "log ends at", "in term", "applied", "map", "knows as leader")
    for one in found["coordinators"]:
        figures = [str(one[name]) for name in ("last_index", "last_term", "applied_index", "map_version")]
        if one["state"] != "ANSWERS":
            figures = [""] * len(figures)
        shown.add_row(one["node_id"], one["state"], *figures, one["leader_id"] or "")
    out = console()
    out.print(shown)
    out.print(f"newest map that anybody has seen: {found['seen_map_version']}")
    if found["refused"]:
        out.print(f"refused: {found['refused']}", soft_wrap=True, markup=False)
    else:
        out.print(f"would go on: {found['message']}", soft_wrap=True, markup=False)
