"""What a fleet leaves in Redis: subscriptions of devices that are away, and messages that wait. Filled in through the store itself, then
measured on a gateway that begins with it."""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Awaitable, Callable

import trio

from gateway.ports import Claim, Claimed, OfflineMessage, Release, Waiting
from gateway.ports.cluster import Entry
from gateway.runtime.awaiting import call
from gateway.store.redis.store import RedisStore
from tests.bench.links import Address
from tests.kit.wire import connect_bytes

SESSIONS, MESSAGES = 2000, 100  # that wait, and how many messages for each
PAYLOAD = 100
CHUNK = 1000
_CONNACK, _PUBLISH = 0x20, 0x30


def fill_index(url: str, instance: str, parent: str, many: int) -> None:
    """`many` subscriptions of devices that are away: half of them `<parent>/cmd/<id>/#`, half `<parent>/get/<id>`."""

    async def fill(store: RedisStore) -> None:
        assert store.cluster is not None
        for begin in range(0, many, CHUNK):
            entries = [(_filter(parent, number), Entry(f"GID_BENCH@@@away{number:07}", "", 1, 1)) for number in range(begin, begin + CHUNK)]
            await call(lambda done, entries=entries: store.cluster.index(parent, entries, [], done))

    trio.run(_with_store, url, instance, fill)


def _filter(parent: str, number: int) -> str:
    return f"{parent}/cmd/{number:07}/#" if number % 2 else f"{parent}/get/{number:07}"


def client_ids() -> list[str]:
    return [f"GID_BENCH@@@waits{number:05}" for number in range(SESSIONS)]


def fill_queues(url: str, instance: str) -> None:
    """Stored sessions for which messages wait, the same ones for all."""

    async def fill(store: RedisStore) -> None:
        for client_id in client_ids():
            claim = Claim(client_id, "before", "c" * 32, "127.0.0.1:1", True, None, store.clock(), (f"{client_id}1", f"{client_id}2"))
            claimed = await store.claim(claim)
            assert isinstance(claimed, Claimed)
            ids = (f"{client_id}3", f"{client_id}4")
            await store.release(Release(client_id, claimed.epoch, claim.channel_id, "before", True, "", store.clock(), ids))
        for number in range(MESSAGES):
            message = OfflineMessage(f"{number:032X}", "waiting", bytes(PAYLOAD), store.clock())
            waiting = [Waiting(client_id, message, 1) for client_id in client_ids()]
            for begin in range(0, SESSIONS, CHUNK):
                await call(lambda done, part=waiting[begin : begin + CHUNK]: store.offline_put(part, done))

    trio.run(_with_store, url, instance, fill)


async def _with_store(url: str, instance: str, fill: Callable[[RedisStore], Awaitable[None]]) -> None:
    store = RedisStore(url, instance=instance)
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: store.run(task_status=task_status))
        await fill(store)
        nursery.cancel_scope.cancel()


def drain(address: Address, seconds: float = 120.0) -> dict[str, float]:
    """All sessions come back at once and acknowledge what comes: deliveries a second, from the first CONNECT to the last message."""
    selector = selectors.DefaultSelector()
    began = time.monotonic()
    for client_id in client_ids():
        link = socket.create_connection(address)
        link.sendall(connect_bytes(client_id, False, 0, None, None, None, 4))
        link.setblocking(False)
        selector.register(link, selectors.EVENT_READ, bytearray())
    count, last = 0, began
    while count < SESSIONS * MESSAGES and time.monotonic() - began < seconds:
        for key, _ in selector.select(1.0):
            assert isinstance(key.fileobj, socket.socket)
            key.data.extend(key.fileobj.recv(1 << 16))
            acks = _take(key.data)
            if acks:
                key.fileobj.sendall(acks)
                count += len(acks) // 4
                last = time.monotonic()
    for key in list(selector.get_map().values()):
        assert isinstance(key.fileobj, socket.socket)
        key.fileobj.close()
    selector.close()
    return {"rate": count / (last - began), "missing": SESSIONS * MESSAGES - count, "repeats": 0}


def _take(data: bytearray) -> bytes:
    """The PUBACKs of the whole QoS 1 PUBLISHes in `data`, which are removed; lengths below 16,384 bytes."""
    acks = bytearray()
    at = 0
    while len(data) - at >= 4:
        size, head = data[at + 1], 2
        if size & 0x80:
            size, head = (size & 0x7F) | data[at + 2] << 7, 3
        if len(data) - at < head + size:
            break
        if data[at] & 0xF0 == _PUBLISH:
            place = at + head + 2 + int.from_bytes(data[at + head : at + head + 2], "big")
            acks += b"\x40\x02" + data[place : place + 2]
        else:
            assert data[at] == _CONNACK
        at += head + size
    del data[:at]
    return bytes(acks)
