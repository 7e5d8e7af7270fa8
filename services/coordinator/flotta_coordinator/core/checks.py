"""Shape checks of arguments: wrong whatever the state. Each names the field, the limit and what was found."""

from __future__ import annotations

import ipaddress
import re

from flotta_coordinator.core.results import Refused, RejectCode
from flotta_coordinator.core.state import NodeStatus

NODE_ID_CHARS_MAX = 128
ZONE_CHARS_MAX = 128
STORE_ID_CHARS_MAX = 128
HOST_CHARS_MAX = 253
SHARDS_MAX = 4096
REPLICATION_FACTOR_MAX = 16
NODES_MAX = 1024
PORT_MAX = 65535

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]*[A-Za-z0-9_])?)*", re.ASCII)
_NUMBERS = re.compile(r"[0-9.]+", re.ASCII)
_SHOWN_MAX = 64


def invalid(field: str, what: str) -> Refused:
    return Refused(RejectCode.INVALID_ARGUMENT, field, f"{field} {what}")


def shown(value: str) -> str:
    """A value for an error message: quoted, and short whatever was sent."""
    return repr(value) if len(value) <= _SHOWN_MAX else f"{value[:_SHOWN_MAX]!r}… ({len(value)} characters)"


def check_id(field: str, value: str, chars_max: int = NODE_ID_CHARS_MAX) -> None:
    if not value:
        raise invalid(field, "must not be empty")
    if len(value) > chars_max:
        raise invalid(field, f"must be at most {chars_max} characters, not {len(value)}")
    if not _ID.fullmatch(value):
        raise invalid(
            field, f"may hold letters, digits, '.', '_' and '-', and starts with a letter or digit, not {shown(value)}"
        )


def check_zone(field: str, value: str) -> None:
    if len(value) > ZONE_CHARS_MAX:
        raise invalid(field, f"must be at most {ZONE_CHARS_MAX} characters, not {len(value)}")
    if not value.isprintable():
        raise invalid(field, f"must be printable text, not {shown(value)}")


def check_address(field: str, value: str) -> None:
    if not value:
        raise invalid(field, "must not be empty; expected host:port")
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        raise invalid(field, f"must be host:port, not {shown(value)}")
    if not port.isascii() or not port.isdigit() or not 1 <= int(port[:8]) <= PORT_MAX or len(port) > 5:
        raise invalid(field, f"must end in a port between 1 and {PORT_MAX}, not {shown(value)}")
    if len(host) > HOST_CHARS_MAX:
        raise invalid(field, f"must name a host of at most {HOST_CHARS_MAX} characters, not {len(host)}")
    if not _is_host(host):
        raise invalid(
            field,
            f"must be host:port with a host name, an IPv4 address or a bracketed IPv6 address, not {shown(value)}",
        )


def _is_host(host: str) -> bool:
    try:
        if host.startswith("[") and host.endswith("]"):
            ipaddress.IPv6Address(host[1:-1])
        elif _NUMBERS.fullmatch(host):
            ipaddress.IPv4Address(host)
    except ValueError:
        return False
    return host.startswith("[") or _HOST.fullmatch(host) is not None


def check_range(field: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise invalid(field, f"must be between {low} and {high}, not {value}")


def check_status(field: str, value: int) -> NodeStatus:
    try:
        return NodeStatus(value)
    except ValueError:
        raise invalid(field, f"must be ALIVE (1), SUSPECT (2) or DEAD (3), not {value}") from None
