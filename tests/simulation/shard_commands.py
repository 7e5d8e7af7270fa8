"""What the simulated shard can do: the storage service's own commands, and one that is not idempotent.

`sim.append` extends a chain: a count, and a hash over every token in order. Applying a token twice, or in another
order, shows for ever, which a put would hide.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

from flotta_embedded.codec import decode_command, decode_value, encode_value
from flotta_embedded.registry import Registry
from flotta_embedded.txn import Txn
from flotta_storage.core.commands import EXPIRE, EXPIRE_VERSION, new_registry
from flotta_storage.core.splits import PRUNE, PRUNE_VERSION, SPLIT, SPLIT_VERSION
from flotta_storage.core.writes import (
    WRITE,
    WRITE_VERSION,
    Write,
    decode_write,
    encode_payload,
    encode_write,
    fingerprint,
)

APPEND: Final = "sim.append"
CHAINS: Final = "sim.chains"
WRITE_WIRE: Final = f"{WRITE}@{WRITE_VERSION}".encode()
EXPIRE_WIRE: Final = f"{EXPIRE}@{EXPIRE_VERSION}".encode()
APPEND_WIRE: Final = f"{APPEND}@1".encode()
SPLIT_WIRE: Final = f"{SPLIT}@{SPLIT_VERSION}".encode()
PRUNE_WIRE: Final = f"{PRUNE}@{PRUNE_VERSION}".encode()

Chain = tuple[int, bytes]
EMPTY_CHAIN: Chain = (0, b"")


def extend(chain: Chain, token: bytes) -> Chain:
    return chain[0] + 1, hashlib.blake2b(chain[1] + token, digest_size=8).digest()


def decode_chain(row: bytes | None) -> Chain:
    if row is None:
        return EMPTY_CHAIN
    count, mark = decode_value(row)
    return count, mark


def append(txn: Txn, key: bytes, token: bytes) -> list[Any]:
    """Add a token to a chain; the answer is the chain now, and the revision."""
    table = txn.table(CHAINS)
    count, mark = extend(decode_chain(table.get(key)), token)
    table.put(key, encode_value([count, mark]))
    return [count, mark, txn.revision]


def simulation_registry() -> Registry:
    registry = new_registry()
    registry.command(APPEND, version=1)(append)
    return registry


def tag_of_payload(payload: bytes) -> bytes | None:
    """Who proposed an entry: the request id if it has one (every attempt of a request carries it), else the token
    that every attempt puts into its value; None for entries that no client asked for."""
    command = decode_command(payload)
    if command.wire == WRITE_WIRE:
        write = decode_write(command.args)
        return write.request_id or bytes(write.value).rstrip(b".")
    if command.wire == APPEND_WIRE:
        return bytes(decode_value(command.args)[1])
    return None


def write_payload(stamp_ms: int, write: Write) -> bytes:
    """The log entry of a write."""
    guarded = write._replace(fingerprint=fingerprint(write)) if write.request_id else write
    return encode_payload(stamp_ms, encode_write(guarded))
