"""What goes into the columns comes out as it was."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.ports import Event, Message, Properties, Queue, Retained, Will
from gateway.store import packed

TEXT = st.text()
NUMBER = st.integers(0, 2**53)
MESSAGE = st.builds(Message, TEXT, st.binary(), TEXT, st.dictionaries(TEXT, TEXT, max_size=4).map(Properties), TEXT, TEXT, st.booleans())
RETAINED = st.builds(Retained, TEXT, st.binary(), st.integers(0, 2), TEXT, NUMBER)


@given(MESSAGE, st.none() | RETAINED, st.booleans())
def test_wills(message: Message, retained: Retained | None, same: bool) -> None:
    if retained is not None and same:
        retained = retained._replace(payload=message.body)
    found = packed.unpack_will(packed.pack_will(Will(message, retained)))
    assert found is not None
    assert found.retained == retained
    assert isinstance(found.message.properties, Properties)
    for name in Message.__slots__:
        assert getattr(found.message, name) == getattr(message, name)


def test_a_retained_payload_that_is_the_body_is_kept_once() -> None:
    body = b"x" * 60_000
    will = packed.pack_will(Will(Message("p", body, "", Properties(), "k", "I"), Retained("p", body, 1, "I", 1)))
    assert will is not None
    assert len(will) < 61_000


@given(st.builds(Event, TEXT, TEXT, TEXT, NUMBER, NUMBER, TEXT, TEXT, TEXT, TEXT))
def test_events(event: Event) -> None:
    assert packed.unpack_event(event.client_id, packed.pack_event(event)) == event


@given(TEXT, st.builds(Queue, TEXT, TEXT, NUMBER), NUMBER)
def test_sources(key: str, queue: Queue, offset: int) -> None:
    text = packed.pack_source(key, (queue, offset))
    assert text is not None
    assert packed.unpack_source(text) == (key, queue, offset)
    assert packed.pack_source(key, None) is None
