"""The command line's configuration file: where a cluster is, and how to speak to it.

    gateway = ["db1:7000", "db2:7000"]
    coordinators = "db1:9001,db2:9001,db3:9001"
    admin = "https://db1:8089"
    admin_key_file = "/etc/flotta/admin-key"
    tls_ca = "/etc/flotta/ca.pem"

It is the file named by `--config` or FLOTTA_CONFIG, else `flotta/config.toml` in the user's configuration directory, if
there is one. Flags and the environment win over it. Paths in it are relative to it.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

KEYS = frozenset(
    {
        "gateway",
        "coordinators",
        "admin",
        "admin_key",
        "admin_key_file",
        "tls_ca",
        "tls_cert",
        "tls_key",
        "tls_server_name",
    }
)
LISTS = ("gateway", "coordinators")


class EndpointError(ValueError):
    """An address or a file that should name one is wrong; the text says which and how."""


@dataclass(frozen=True, slots=True)
class Config:
    """What the file says, lists joined by commas; nothing where there is no file."""

    path: Path | None = None
    values: Mapping[str, str] = field(default_factory=dict)

    def get(self, key: str) -> str | None:
        return self.values.get(key)

    def file(self, key: str) -> Path | None:
        """A path, from where the file is."""
        value = self.values.get(key)
        return None if value is None or self.path is None else self.path.parent / value


def load(named: Path | None, environ: Mapping[str, str]) -> Config:
    """The configuration in force. EndpointError for a named file that is missing, and for one that is wrong."""
    wanted = named or (Path(environ["FLOTTA_CONFIG"]) if environ.get("FLOTTA_CONFIG") else None)
    path = wanted or user_file(environ)
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        if wanted is None:
            return Config()
        raise EndpointError(f"there is no file {path} ({'--config' if named else 'FLOTTA_CONFIG'})") from error
    except OSError as error:
        raise EndpointError(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise EndpointError(f"{path} is not TOML: {error}") from error
    return Config(path, {key: _text(path, key, value) for key, value in content.items()})


def user_file(environ: Mapping[str, str]) -> Path:
    """Where a user keeps it."""
    base = environ.get("XDG_CONFIG_HOME") or str(Path(environ.get("HOME") or "~").expanduser() / ".config")
    return Path(base) / "flotta" / "config.toml"


def _text(path: Path, key: str, value: object) -> str:
    if key not in KEYS:
        near = difflib.get_close_matches(key, KEYS, 1)
        meant = f"did you mean {near[0]}?" if near else f"it may hold {', '.join(sorted(KEYS))}"
        raise EndpointError(f"{path}: there is no key {key}; {meant}")
    if isinstance(value, str):
        return value
    if isinstance(value, list) and key in LISTS and all(isinstance(one, str) for one in value):
        return ",".join(value)
    wanted = "a string or a list of strings" if key in LISTS else "a string"
    raise EndpointError(f"{path}: {key} must be {wanted}")
