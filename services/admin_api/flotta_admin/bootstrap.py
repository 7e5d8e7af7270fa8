"""Brings an empty cluster to life over the admin API: registers nodes, creates the shards, waits for leaders.

Every step is idempotent, so a second run (a restarted container, an impatient operator) changes nothing.

    python -m flotta_admin.bootstrap --admin http://127.0.0.1:8089 --nodes node-1=127.0.0.1:8001 --shards 8 --rf 3

The API key is read from KVDB_ADMIN_SECURITY_API_KEY or from the file named by FLOTTA_ADMIN_API_KEY_FILE. For an https
address FLOTTA_TLS_CA_FILE names the authorities to trust, FLOTTA_TLS_CERT_FILE and FLOTTA_TLS_KEY_FILE what to show.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

Answer = TypeVar("Answer")


class NotYet(Exception):
    """The cluster is not there yet, or refuses; worth another try until the deadline."""


class Refused(Exception):
    """The cluster will never accept this; the text is its own."""


@dataclass(frozen=True)
class AdminClient:
    """The few admin calls a bootstrap needs."""

    url: str
    api_key: str
    tls: ssl.SSLContext | None = None

    def call(self, method: str, path: str, body: object = None) -> Any:
        """One call. NotYet while the service is unreachable or answers 409, 412, 429 or 5xx; Refused on any other 4xx.

        409 and 412 are among them because nodes may not have sent their first heartbeat.
        """
        request = urllib.request.Request(
            self.url + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "X-Admin-Api-Key": self.api_key},
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.tls) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as refusal:
            text = f"{method} {path}: {refusal.code} {refusal.read().decode(errors='replace')}"
            refusal.close()
            if refusal.code in (409, 412, 429) or refusal.code >= 500:
                raise NotYet(text) from refusal
            raise Refused(text) from refusal
        except OSError as failure:
            raise NotYet(f"{method} {path}: no answer from {self.url}: {failure}") from failure


def bootstrap(
    client: AdminClient,
    nodes: dict[str, str],
    *,
    zone: str,
    shards: int,
    replication_factor: int,
    timeout_s: float,
    say: Callable[[str], None],
) -> None:
    """Raises NotYet with the last answer when the deadline passes, Refused at once."""
    retry = Retrying(
        retry=retry_if_exception_type(NotYet), wait=wait_fixed(0.1), stop=stop_after_delay(timeout_s), reraise=True
    )
    for node_id, address in nodes.items():
        retry(client.call, "POST", "/admin/nodes", {"node_id": node_id, "address": address, "zone": zone})
        say(f"{node_id} registered at {address}")
    retry(lambda: check_alive(client, set(nodes)))
    sizes = {"num_shards": shards, "replication_factor": replication_factor}
    retry(client.call, "POST", "/admin/config/shard-init", sizes)
    retry(lambda: check_led(client))
    say(f"{shards} shards, replication factor {replication_factor}: every shard has a leader")


def check_alive(client: AdminClient, wanted: set[str]) -> None:
    """NotYet until every wanted node is ALIVE by heartbeats of its own."""
    nodes = client.call("GET", "/admin/nodes")
    alive = {node["node_id"] for node in nodes if node["status"] == "ALIVE" and node["last_heartbeat_ms"]}
    if missing := wanted - alive:
        raise NotYet(f"no heartbeat yet from {', '.join(sorted(missing))}")


def check_led(client: AdminClient) -> None:
    """NotYet until every shard has a leader."""
    shards = client.call("GET", "/admin/shards")
    if waiting := [shard["shard_id"] for shard in shards if not shard["leader"]]:
        raise NotYet(f"no leader yet for {', '.join(sorted(waiting))}")


def api_key() -> str:
    if key := os.environ.get("KVDB_ADMIN_SECURITY_API_KEY"):
        return key
    if name := os.environ.get("FLOTTA_ADMIN_API_KEY_FILE"):
        return Path(name).read_text().strip()
    raise Refused("set KVDB_ADMIN_SECURITY_API_KEY, or FLOTTA_ADMIN_API_KEY_FILE to a file that holds the key")


def tls_context(url: str) -> ssl.SSLContext | None:
    """For an https address, from the environment."""
    if not url.startswith("https:"):
        return None
    try:
        context = ssl.create_default_context(cafile=os.environ.get("FLOTTA_TLS_CA_FILE") or None)
        if cert := os.environ.get("FLOTTA_TLS_CERT_FILE"):
            context.load_cert_chain(cert, os.environ.get("FLOTTA_TLS_KEY_FILE") or None)
    except OSError as error:
        raise Refused(f"the files of FLOTTA_TLS_CA_FILE, _CERT_FILE and _KEY_FILE cannot be used: {error}") from error
    return context


def node_list(text: str) -> dict[str, str]:
    """`node-1=host:8001,node-2=host:8002` as a dictionary."""
    pairs = [item.partition("=") for item in text.split(",") if item]
    if not pairs or any(not name or not address for name, _, address in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form node-1=host:8001,node-2=host:8002")
    return {name: address for name, _, address in pairs}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--admin", default="http://127.0.0.1:8089", help="base URL of the admin service")
    parser.add_argument("--nodes", type=node_list, required=True, help="node-1=host:port,…")
    parser.add_argument("--zone", default="", help="of all of them; unset: what each node says of itself")
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--rf", type=int, default=3, help="replication factor")
    parser.add_argument("--timeout-s", type=float, default=60)
    given = parser.parse_args()
    try:
        bootstrap(
            AdminClient(given.admin.rstrip("/"), api_key(), tls_context(given.admin)),
            given.nodes,
            zone=given.zone,
            shards=given.shards,
            replication_factor=given.rf,
            timeout_s=given.timeout_s,
            say=lambda line: print(f"  {line}", flush=True),  # noqa: T201
        )
    except (NotYet, Refused) as error:
        print(f"error: bootstrap failed: {error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
