"""Messages: what is read is what was written, and any damage is found."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgekd.agent.frames import FrameError, arrays_packed, arrays_unpacked, read, write


def written(message: dict[str, object], body: bytes = b"") -> bytes:
    stream = io.BytesIO()
    write(stream, message, body)
    return stream.getvalue()


def test_bytes_on_the_way_are_as_documented() -> None:
    line, _, rest = written({"do": "put"}, b"abc").partition(b"\n")
    header = json.loads(line)
    assert rest == b'{"do":"put"}abc'
    assert (header["bytes"], header["message"]) == (15, 12)
    assert set(header) == {"bytes", "message", "sha256", "check"}


@given(st.dictionaries(st.text(), st.one_of(st.floats(allow_nan=False), st.text(), st.booleans())), st.binary())
def test_messages_come_back_one_after_another(message: dict[str, object], body: bytes) -> None:
    stream = io.BytesIO(written(message, body) * 2)
    assert read(stream) == (message, body)
    assert read(stream) == (message, body)
    assert read(stream) is None


@settings(max_examples=300)
@given(st.data())
def test_any_changed_byte_is_found(data: st.DataObject) -> None:
    content = bytearray(written({"do": "put", "n": 12}, b"some bytes"))
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read(io.BytesIO(bytes(content)))
    except FrameError:
        return
    # a blank of the line may become another: the message is the same
    assert found == ({"do": "put", "n": 12}, b"some bytes")


@pytest.mark.parametrize("kept", [1, 40, 170, 200])
def test_message_that_is_cut_off_is_found(kept: int) -> None:
    with pytest.raises(FrameError, match=r"instead of a message came|ended after"):
        read(io.BytesIO(written({"do": "put"}, bytes(1000))[:kept]))


@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "int8", "uint8", "int64", "bool", ">f4"])
def test_arrays_keep_type_shape_and_values(dtype: str) -> None:
    arrays = {
        "a": np.arange(6).reshape(1, 2, 3).astype(dtype),
        "scalar": np.array(1, dtype),
        "none": np.zeros((0, 3), dtype),
        "turned": np.arange(6).reshape(2, 3).astype(dtype).T,
    }
    table, body = arrays_packed(arrays)
    found, end = arrays_unpacked(table, body)
    assert end == len(body) == (6 + 1 + 0 + 6) * np.dtype(dtype).itemsize
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert np.array_equal(found[name], array)
        assert found[name].shape == array.shape


def test_array_of_texts_is_refused() -> None:
    with pytest.raises(TypeError, match=r"'words' has element type .*, which is no number"):
        arrays_packed({"words": np.array(["a"])})


@pytest.mark.parametrize(
    "row", [{"dtype": "<f4", "shape": [99]}, {"dtype": "<f4", "shape": [-1]}, {"dtype": "O", "shape": [1]}]
)
def test_table_that_asks_for_more_than_was_sent_is_refused(row: dict[str, object]) -> None:
    with pytest.raises(FrameError, match="'x' does not fit what was sent"):
        arrays_unpacked([{"name": "x", **row}], bytes(8))
