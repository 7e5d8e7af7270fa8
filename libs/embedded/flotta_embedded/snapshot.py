"""The bytes of a snapshot: a replica's whole state at exactly one index, as a stream.

    magic "FLOTSNAP" | version u16 | header length u32 | header (canonical value)
    rows: key length u32 | value length u32 | key | value      in ascending key order
    end:  0xFFFFFFFF | row count u64 | crc32 u32 of everything before it

Invariants: it is read from a frozen view, in slices, so it never blocks a writer; the reader of the stream takes
nothing on trust (order, limits, count and checksum) and says what is wrong.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from itertools import chain

from . import keys
from .api import FrozenView
from .meta import Header
from .overlay import Row

MAGIC = b"FLOTSNAP"
FORMAT = 1
END = 0xFFFF_FFFF
KEY_BYTES_MAX = 1 << 20
VALUE_BYTES_MAX = 64 << 20
HEADER_BYTES_MAX = 1 << 20
SLICE_ROWS = 512

_PREAMBLE = struct.Struct(">8sHI")
_LENGTHS = struct.Struct(">II")
_FOOTER = struct.Struct(">IQI")


class FrozenSnapshot:
    """A `SnapshotSource` over a frozen view. `index` is exactly the view's applied index."""

    def __init__(self, header: Header, view: FrozenView) -> None:
        self.index = header.index
        self.header = header
        self._view = view

    def chunks(self, bytes_max: int) -> Iterator[bytes]:
        """Every chunk but the last has exactly `bytes_max` bytes, so one big value does not make a big chunk."""
        if bytes_max < 1:
            raise ValueError(f"bytes_max {bytes_max} must be positive")
        buffer = bytearray()
        for piece in self._pieces():
            buffer += piece
            while len(buffer) >= bytes_max:
                yield bytes(memoryview(buffer)[:bytes_max])
                del buffer[:bytes_max]
        if buffer:
            yield bytes(buffer)

    def close(self) -> None:
        self._view.close()

    def _pieces(self) -> Iterator[bytes]:
        header = self.header.encode()
        preamble = _PREAMBLE.pack(MAGIC, FORMAT, len(header)) + header
        crc = zlib.crc32(preamble)
        yield preamble
        count = 0
        for rows in self._slices():
            parts = [(_LENGTHS.pack(len(key), len(value)), key, value) for key, value in rows]
            piece = b"".join(chain.from_iterable(parts))
            crc = zlib.crc32(piece, crc)
            count += len(rows)
            yield piece
        yield _FOOTER.pack(END, count, crc)

    def _slices(self) -> Iterator[list[Row]]:
        """Slices by rows and bytes; no iterator of the engine stays open between two of them."""
        for low, high in ((b"", keys.META), (keys.META_END, None)):
            at = low
            while rows := take(self._view.scan(at, high, limit=SLICE_ROWS), 1 << 20):
                yield rows
                at = rows[-1][0] + b"\x00"


def take(rows: Iterator[Row], bytes_max: int) -> list[Row]:
    """Rows until they have more than `bytes_max` bytes."""
    taken: list[Row] = []
    size = 0
    for row in rows:
        taken.append(row)
        size += len(row[0]) + len(row[1])
        if size > bytes_max:
            break
    return taken


class SnapshotParser:
    """Takes the stream in any cut and gives back its rows. ValueError as soon as something is wrong with it."""

    def __init__(self) -> None:
        self.header: Header | None = None
        self.finished = False
        self._buffer = bytearray()
        self._crc = 0
        self._rows = 0
        self._last_key: bytes | None = None

    def feed(self, chunk: bytes) -> list[Row]:
        self._buffer += chunk
        if self.finished and self._buffer:
            raise ValueError(f"{len(self._buffer)} bytes after the end of the snapshot")
        at = 0
        if self.header is None:
            at = self._read_header()
            if self.header is None:
                return []
        rows, at, ended = self._read_rows(at)
        self._crc = zlib.crc32(memoryview(self._buffer)[:at], self._crc)
        del self._buffer[:at]
        if ended:
            self._read_footer()
        return rows

    def _read_header(self) -> int:
        if len(self._buffer) < _PREAMBLE.size:
            return 0
        magic, version, length = _PREAMBLE.unpack_from(self._buffer)
        if magic != MAGIC:
            raise ValueError("this is not a snapshot")
        if version != FORMAT:
            raise ValueError(f"snapshot format {version} is unknown, this build reads format {FORMAT}")
        if length > HEADER_BYTES_MAX:
            raise ValueError(f"snapshot header of {length} bytes, the limit is {HEADER_BYTES_MAX}")
        end = int(_PREAMBLE.size + length)
        if len(self._buffer) < end:
            return 0
        self.header = Header.decode(bytes(self._buffer[_PREAMBLE.size : end]))
        return end

    def _read_rows(self, at: int) -> tuple[list[Row], int, bool]:
        buffer = self._buffer
        size = len(buffer)
        rows: list[Row] = []
        last = self._last_key
        while size - at >= _LENGTHS.size:
            key_length, value_length = _LENGTHS.unpack_from(buffer, at)
            if key_length == END:
                self._last_key = last
                return rows, at, True
            if key_length > KEY_BYTES_MAX or value_length > VALUE_BYTES_MAX:
                raise ValueError(f"snapshot row of {key_length} + {value_length} bytes is over the limit")
            key_at = at + _LENGTHS.size
            value_at = key_at + key_length
            end = value_at + value_length
            if end > size:
                break
            key = bytes(buffer[key_at:value_at])
            if last is not None and key <= last:
                raise ValueError("snapshot rows are not in ascending order")
            if key.startswith(keys.META):
                raise ValueError("snapshot row under the machine's own prefix")
            last = key
            rows.append((key, bytes(buffer[value_at:end])))
            self._rows += 1
            at = end
        self._last_key = last
        return rows, at, False

    def _read_footer(self) -> None:
        if len(self._buffer) < _FOOTER.size:
            return
        _, count, crc = _FOOTER.unpack_from(self._buffer)
        if count != self._rows:
            raise ValueError(f"snapshot says it has {count} rows, it has {self._rows}")
        if crc != self._crc:
            raise ValueError("snapshot checksum does not match")
        del self._buffer[: _FOOTER.size]
        self.finished = True
        if self._buffer:
            raise ValueError(f"{len(self._buffer)} bytes after the end of the snapshot")
