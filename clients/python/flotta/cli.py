"""The `flotta` command. Further commands are found by the entry point group `flotta.commands`.

Exit codes: 0 done, 1 no such key, node, shard or operation (status, check: something is wrong), 2 wrong use, 3 a
condition did not hold, 4 unavailable, 5 outcome unknown, 6 something broke.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated

import typer
from flotta_runtime.tls import TlsFiles

from flotta import cli_backups, cli_check, cli_keys, cli_orders, cli_recover, cli_scan, cli_status, cli_watch
from flotta.cli_support import ROOT_FLAGS, Exit, fail
from flotta.endpoints import Flags

TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        envvar="FLOTTA_TLS_CA_FILE",
        help="Use TLS; trust what these authorities have signed.",
    ),
]
TlsCert = Annotated[
    Path | None,
    typer.Option("--tls-cert", metavar="FILE", envvar="FLOTTA_TLS_CERT_FILE", help="Certificate to show, if asked."),
]
TlsKey = Annotated[
    Path | None, typer.Option("--tls-key", metavar="FILE", envvar="FLOTTA_TLS_KEY_FILE", help="Key of --tls-cert.")
]
TlsServerName = Annotated[
    str | None,
    typer.Option(
        "--tls-server-name", metavar="NAME", envvar="FLOTTA_TLS_SERVER_NAME", help="Name to look for in certificates."
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file with addresses and keys; left out: FLOTTA_CONFIG, or ~/.config/flotta/config.toml.",
    ),
]
COMMAND_GROUP = "flotta.commands"


def _version(asked: bool) -> None:
    if asked:
        print(f"flotta {version('flotta')}")
        raise typer.Exit


def _root(
    config: ConfigFile = None,
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
    _version_flag: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A sharded, strongly consistent key/value system.

    Addresses come from the flags of a command, else the environment (FLOTTA_GATEWAY, FLOTTA_COORDINATORS,
    FLOTTA_ADMIN), else the configuration file, else what `flotta dev` left in its data directory, else localhost.
    """
    ROOT_FLAGS.set(Flags(config=config, tls=TlsFiles(tls_cert, tls_key, None, tls_ca, tls_server_name)))


def _unusable(entry: EntryPoint, reason: ImportError) -> Callable[[], None]:
    """Stands in for a command whose package is not installed, and says so when it is used."""

    def command() -> None:
        fail(f"`flotta {entry.name}` cannot start: {reason}", Exit.USAGE, "pip install 'flotta[server]'")

    command.__doc__ = "Needs the server parts: pip install 'flotta[server]'."
    return command


def build() -> typer.Typer:
    """The application with all commands that are installed."""
    app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
    app.callback()(_root)
    app.command("put")(cli_keys.put)
    app.command("get")(cli_keys.get)
    app.command("del")(cli_keys.delete)
    app.command("scan")(cli_scan.scan)
    app.command("status")(cli_status.status)
    app.command("cluster")(cli_status.cluster)
    app.command("nodes")(cli_status.nodes)
    app.command("shards")(cli_status.shards)
    app.command("watch-map")(cli_watch.watch_map)
    app.command("why")(cli_orders.why)
    app.command("move")(cli_orders.move)
    app.command("transfer")(cli_orders.transfer)
    app.command("drain")(cli_orders.drain)
    app.command("rebalance")(cli_orders.rebalance)
    app.command("reshard")(cli_orders.reshard)
    app.command("ops")(cli_orders.ops)
    app.command("backup")(cli_backups.backup)
    app.command("restore")(cli_backups.restore)
    app.command("check")(cli_check.check)
    app.command("recover")(cli_recover.recover)
    for entry in sorted(entry_points(group=COMMAND_GROUP), key=lambda one: one.name):
        try:
            command = entry.load()
        except ImportError as error:
            anything = {"ignore_unknown_options": True, "allow_extra_args": True}
            app.command(entry.name, context_settings=anything)(_unusable(entry, error))
        else:
            app.command(entry.name)(command)
    return app


def main() -> None:
    """Run the command line."""
    try:
        build()()
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        sys.exit(Exit.OK)


if __name__ == "__main__":
    main()
