"""Hypothesis strategies for everything that MQTT's packets can hold."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import strategies as st

from gateway.mqtt.packets import (
    ConnAck,
    Connect,
    Disconnect,
    Level,
    Packet,
    PingReq,
    PingResp,
    PubAck,
    PubComp,
    Publish,
    PubRec,
    PubRel,
    SubAck,
    Subscribe,
    UnsubAck,
    Unsubscribe,
    Will,
)

LEVELS = (Level.V31, Level.V311)

ids = st.integers(1, 65535)
qoss = st.integers(0, 2)
blobs = st.one_of(st.binary(max_size=40), st.integers(100, 20_000).map(lambda size: b"\x00\xff" * (size // 2)))
# No surrogates (Cs) and no control characters (Cc): both are refused.
letters = st.characters(exclude_categories=("Cs", "Cc"))
words = st.text(letters, max_size=12)
names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="+#"), min_size=1, max_size=20)
levels_of_names = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="+#/"), max_size=4)


@st.composite
def filters(draw: st.DrawFn, levels: st.SearchStrategy[str] = levels_of_names) -> str:
    """Well formed topic filters."""
    parts = draw(st.lists(st.one_of(levels, st.just("+")), max_size=4))
    if draw(st.booleans()) or "/".join(parts) == "":
        parts.append("#")
    return "/".join(parts)


wills = st.builds(Will, names, blobs, qoss, st.booleans())


@st.composite
def connects(draw: st.DrawFn, level: Level) -> Connect:
    clean = draw(st.booleans())
    may_be_empty = clean and level is not Level.V31
    client_id = draw(st.text(letters, min_size=0 if may_be_empty else 1, max_size=64))
    username = draw(st.none() | words)
    password = None if username is None else draw(st.none() | blobs)
    return Connect(level, client_id, clean, draw(st.integers(0, 65535)), draw(st.none() | wills), username, password)


@st.composite
def publishes(draw: st.DrawFn) -> Publish:
    qos = draw(qoss)
    packet_id = draw(ids) if qos else 0
    return Publish(draw(names), draw(blobs), qos, draw(st.booleans()), bool(qos) and draw(st.booleans()), packet_id)


def connacks(level: Level) -> st.SearchStrategy[Packet]:
    accepted: st.SearchStrategy[Packet] = st.builds(ConnAck, st.booleans() if level is not Level.V31 else st.just(False), st.just(0))
    return st.one_of(accepted, st.builds(ConnAck, st.just(False), st.integers(1, 5)))


def midway(level: Level) -> st.SearchStrategy[Packet]:
    """What may come from a client between CONNECT and DISCONNECT, at any level."""
    return st.one_of(
        publishes(),
        *(st.builds(kind, ids) for kind in (PubAck, PubRec, PubRel, PubComp)),
        st.builds(Subscribe, ids, st.lists(st.tuples(filters(), qoss), min_size=1, max_size=4)),
        st.builds(Unsubscribe, ids, st.lists(filters(), min_size=1, max_size=4)),
        st.builds(PingReq),
    )


def packets(level: Level) -> st.SearchStrategy[Packet]:
    """Every packet, of either direction."""
    return st.one_of(
        midway(level),
        connects(level),
        connacks(level),
        st.builds(SubAck, ids, st.lists(st.sampled_from((0, 1, 2, 0x80)), min_size=1, max_size=5)),
        st.builds(UnsubAck, ids),
        st.builds(PingResp),
        st.builds(Disconnect),
    )


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """`data` cut at these places."""
    at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[start:stop] for start, stop in pairwise(at)]
