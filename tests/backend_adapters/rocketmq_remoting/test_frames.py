"""Frames: what goes out comes back, however the stream is cut; garbage gives our error and nothing else (design section 6)."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapters.rocketmq_remoting.frames import ANSWER, ONE_WAY, Decoder, Frame, FrameError, encode, encode_binary

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
some_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
frames = st.builds(
    Frame,
    code=st.integers(0, 32767),
    opaque=st.integers(0, 2**31 - 1),
    flag=st.integers(0, 3),
    remark=text,
    fields=st.dictionaries(some_text, text, max_size=5),
    body=st.binary(max_size=100),
)


def json_bytes(frame: Frame) -> bytes:
    return encode(frame.code, frame.opaque, frame.flag, frame.fields, len(frame.body), frame.remark) + frame.body


@given(st.lists(st.tuples(frames, st.booleans()), max_size=5), st.data())
def test_any_split_of_the_stream_gives_the_same_frames(sent: list[tuple[Frame, bool]], data: st.DataObject) -> None:
    stream = b"".join(encode_binary(frame) if binary else json_bytes(frame) for frame, binary in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    decoder = Decoder()
    received: list[Frame] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert received == [frame for frame, _ in sent]


@given(st.binary(max_size=200))
def test_garbage_gives_frames_or_our_error(data: bytes) -> None:
    try:
        Decoder().feed(data)
    except FrameError:
        pass


@given(st.binary(max_size=120), st.sampled_from([0, 1, 2, 255]))
def test_a_garbled_header_gives_our_error(header: bytes, kind: int) -> None:
    data = struct.pack(">II", 4 + len(header), kind << 24 | len(header)) + header
    try:
        assert len(Decoder().feed(data)) == 1
    except FrameError:
        pass


@given(frames, st.data())
def test_a_damaged_binary_header_gives_our_error(frame: Frame, data: st.DataObject) -> None:
    stream = bytearray(encode_binary(frame))
    at = data.draw(st.integers(8, len(stream) - 1))
    stream[at] ^= data.draw(st.integers(1, 255))
    try:
        Decoder().feed(bytes(stream))
    except FrameError:
        pass


@pytest.mark.parametrize(
    "header",
    [[], 1, "x", {}, {"code": 1}, {"code": "1", "opaque": 1}, {"code": 1, "opaque": None}, {"code": 1, "opaque": 2, "extFields": [1]}],
)
def test_json_of_another_shape_is_refused(header: object) -> None:
    data = json.dumps(header).encode()
    with pytest.raises(FrameError):
        Decoder().feed(struct.pack(">II", 4 + len(data), len(data)) + data)


def test_values_that_are_no_strings_are_read_as_strings() -> None:
    data = json.dumps({"code": 0, "opaque": 7, "flag": 1, "remark": None, "extFields": {"offset": 5, "none": None}}).encode()
    (frame,) = Decoder().feed(struct.pack(">II", 4 + len(data), len(data)) + data)
    assert frame == Frame(0, 7, 1, "", {"offset": "5"}, b"")


def test_a_frame_beyond_the_limit_is_refused_before_it_is_buffered() -> None:
    with pytest.raises(FrameError):
        Decoder(limit=1000).feed(struct.pack(">II", 1001, 10))


def test_a_header_longer_than_its_frame_is_refused() -> None:
    with pytest.raises(FrameError):
        Decoder().feed(struct.pack(">II", 10, 7) + bytes(6))


def test_flags() -> None:
    assert Frame(0, 0, ANSWER, "", {}, b"").is_answer
    assert not Frame(0, 0, ONE_WAY, "", {}, b"").is_answer
    assert Frame(0, 0, ONE_WAY, "", {}, b"").is_one_way
