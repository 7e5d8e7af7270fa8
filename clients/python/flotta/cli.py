"""The `flotta` command. Further commands are found by the entry point group `flotta.commands`.

Exit codes: 0 done, 1 no such key (status: something is wrong), 2 wrong use, 3 a condition did not hold,
4 unavailable, 5 outcome unknown, 6 something broke.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points, version
from pathlib import Path
from typing import Annotated

import typer
from flotta_runtime.tls import TlsFiles

from flotta import cli_keys, cli_status
from flotta.cli_support import TLS_FLAGS, Exit, fail

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
COMMAND_GROUP = "flotta.commands"


def _version(asked: bool) -> None:
    if asked:
        print(f"flotta {version('flotta')}")
        raise typer.Exit


def _root(
    tls_ca: TlsCa = None,
    tls_cert: TlsCert = None,
    tls_key: TlsKey = None,
    tls_server_name: TlsServerName = None,
    _version_flag: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """A sharded, strongly consistent key/value system."""
    TLS_FLAGS.set(TlsFiles(tls_cert, tls_key, None, tls_ca, tls_server_name))


def _unusable(entry: EntryPoint, reason: ImportError) -> Callable[[], None]:
    """Stands in for a command whose package is not installed, and says so when it is used."""

    def command() -> None:
        fail(f"`flotta {entry.name}` cannot start: {reason}", Exit.USAGE, "pip install 'flotta[server]'")

    command.__doc__ = "Needs the server parts: pip install 'flotta[server]'."
    return command


def build() -> typer.Typer:
    """The application with all commands that are installed."""
    app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
    app.callback()(_root)
    app.command("put")(cli_keys.put)
    app.command("get")(cli_keys.get)
    app.command("del")(cli_keys.delete)
    app.command("status")(cli_status.status)
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
