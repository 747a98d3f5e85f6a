"""Segments of the embedded log: what goes in comes out."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from backend_adapters.local.segments import decode, encode
from gateway.ports import BackendError, Message, Properties, Refusal

_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\1\2"), min_size=1, max_size=20)
_names = _texts.map(lambda name: "p" + name)  # none of RocketMQ's own
_tags = st.one_of(st.just(""), st.from_regex(r"[a-zA-Z0-9_üé]{1,10}", fullmatch=True))
_messages = st.builds(
    lambda body, tag, properties, number: Message("t", body, tag, Properties(properties), "k", f"{number:032X}"),
    st.binary(max_size=200),
    _tags,
    st.dictionaries(_names, _texts, max_size=5),
    st.integers(0, 16**32 - 1),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(_messages, st.integers(0, 2**63)), max_size=20), st.integers(0, 25))
def test_what_is_encoded_is_decoded_from_any_message_on(items: list[tuple[Message, int]], skip: int) -> None:
    data = b"".join(part for message, born_at in items for part in encode(message, born_at))
    expected = [(m.id, m.tag, dict(m.properties), m.body, born_at) for m, born_at in items[skip:]]
    assert [tuple(read) for read in decode(data, skip)] == expected


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=4), st.text(max_size=4), max_size=3), st.text(max_size=4), st.text(max_size=4))
def test_anything_else_is_refused_as_invalid(properties: dict[str, str], tag: str, id: str) -> None:
    message = Message("t", b"", tag, Properties(properties), "k", id)
    refusals = []
    try:
        (read,) = decode(b"".join(encode(message, 0)), 0)
    except BackendError as refused:
        refusals.append(refused.refusal)
    else:
        assert (read.id, read.tag, read.properties) == (id, tag, properties)
    assert refusals in ([], [Refusal.INVALID])
