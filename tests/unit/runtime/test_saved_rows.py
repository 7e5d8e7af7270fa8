from __future__ import annotations

import pytest
from flotta_runtime.saved_rows import HEAD_BYTES, VALUE_BYTES_MAX, RowReader, SavedRow, encode_row, read_rows
from hypothesis import given
from hypothesis import strategies as st

times = st.integers(0, 2**62)
rows = st.builds(
    lambda key, value, version, created, later, expire: SavedRow(key, value, version, created, created + later, expire),
    st.binary(min_size=1, max_size=40),
    st.binary(max_size=200),
    st.integers(1, 2**63),
    times,
    times,
    times,
)


@given(st.lists(rows, max_size=20), st.integers(1, 300))
def test_rows_come_back_whatever_the_pieces(made: list[SavedRow], piece_bytes: int) -> None:
    encoded = b"".join(map(encode_row, made))
    assert len(encoded) == sum(row.size for row in made)
    reader = RowReader()
    found: list[SavedRow] = []
    for at in range(0, len(encoded), piece_bytes):
        found += reader.feed(encoded[at : at + piece_bytes])
    reader.finish()
    assert found == made
    assert read_rows(encoded) == made


def test_a_row_that_is_cut_off_is_refused_at_the_end() -> None:
    whole = encode_row(SavedRow(b"key", b"value", 3, 1, 2, 0))
    for length in range(1, len(whole)):
        with pytest.raises(ValueError, match=f"cut off: {length} bytes"):
            read_rows(whole[:length])


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (SavedRow(b"", b"", 1, 0, 0, 0), "key has 0 bytes"),
        (SavedRow(b"k" * 1025, b"", 1, 0, 0, 0), "key has 1025 bytes"),
        (SavedRow(b"k", b"", 0, 0, 0, 0), "has version 0"),
        (SavedRow(b"k", b"", 1, 2, 1, 0), "made at 2 and changed at 1"),
    ],
)
def test_what_is_no_row_is_refused_by_its_head(row: SavedRow, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        RowReader().feed(encode_row(row)[:HEAD_BYTES])


def test_a_length_out_of_bounds_is_not_waited_for() -> None:
    head = bytearray(encode_row(SavedRow(b"k", b"", 1, 0, 0, 0))[:HEAD_BYTES])
    head[2:6] = (VALUE_BYTES_MAX + 1).to_bytes(4, "big")
    with pytest.raises(ValueError, match="the limit is"):
        RowReader().feed(bytes(head))
