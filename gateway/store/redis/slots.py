"""A Redis Cluster: which server has which slot, and what to do when that has changed."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from redis.exceptions import AskError, MovedError, NoScriptError, ResponseError

from gateway.store.redis import errors
from gateway.store.redis.errors import Failure
from gateway.store.redis.wire import Request, Wire

SLOTS = 16_384
MOVES = 5  # times that one request may follow its slot
_ASKING = ("ASKING",)

Host = tuple[str, int]


def slot_of(key: str) -> int:
    """By the hash tag, the part between the first braces, if it has one."""
    start = key.find("{")
    end = key.find("}", start + 1) if start >= 0 else -1
    return crc_hqx((key[start + 1 : end] if end > start + 1 else key).encode(), 0) % SLOTS


class Sharded:
    """One connection to each master that is needed. As `Servers`."""

    def __init__(self, name: str, hosts: Sequence[Host], options: Mapping[str, Any]) -> None:
        self.name = name
        self._hosts = hosts
        self._options = options
        self._owners: list[Host | None] = [None] * SLOTS
        self._wires: dict[Host, Wire] = {}
        self._known = False

    def connect(self) -> None:
        """Learn the slots, unless they are known. Raises Failure."""
        if self._known:
            return
        failure: Failure | None = None
        for host in dict.fromkeys([*self._wires, *self._hosts]):
            try:
                self._learn(host)
            except Failure as error:
                failure = error
                if error.fatal:
                    break
            else:
                return
        assert failure is not None
        raise failure

    def _learn(self, host: Host) -> None:
        wire = self._wire(host)
        wire.connect(any_role=True)
        failure = wire.send([("CLUSTER", "SLOTS")])
        reply = failure or wire.receive(1)[0]
        if isinstance(reply, Failure):
            raise reply
        if isinstance(reply, ResponseError):
            raise errors.refused(self.name, reply) or Failure(
                f"store {self.name}: {host[0]}:{host[1]} is no part of a Redis Cluster ({reply})",
                "correct store.url, or use redis://",
                fatal=True,
            )
        owners: list[Host | None] = [None] * SLOTS
        for first, last, (name, port, *_), *_replicas in reply:
            owner = ((name or b"").decode() or host[0], int(port))
            owners[first : last + 1] = [owner] * (last + 1 - first)
        self._owners = owners
        self._known = True
        for gone in set(self._wires) - set(owners):
            self._wires.pop(gone).close()

    def _wire(self, host: Host) -> Wire:
        if host not in self._wires:
            self._wires[host] = Wire(f"{self.name} ({host[0]}:{host[1]})", partial(_same, host), self._options)
        return self._wires[host]

    def exchange(self, requests: Sequence[Request]) -> list[Any]:
        """As `Servers.exchange`. What found its slot elsewhere was not executed, and follows it, in its order."""
        replies: list[Any] = [None] * len(requests)
        todo = {n: self._owner(request.key) for n, request in enumerate(requests)}
        asking: set[int] = set()
        for _ in range(MOVES):
            self._pass(requests, todo, asking, replies)
            moved = {n: replies[n] for n in todo if isinstance(replies[n], AskError)}  # a MovedError is one too
            asking = {n for n, error in moved.items() if not isinstance(error, MovedError)}
            todo = {n: (error.host or self._hosts[0][0], error.port) for n, error in moved.items()}
            if not todo:
                break
            for n in todo.keys() - asking:
                self._owners[moved[n].slot_id] = todo[n]
                self._known = False  # the next batch learns them all anew
        return [self._judged(reply) for reply in replies]

    def _owner(self, key: str | None) -> Host:
        owner = self._owners[slot_of(key) if key is not None else 0]
        return owner or next((one for one in self._owners if one is not None), self._hosts[0])

    def _pass(self, requests: Sequence[Request], todo: Mapping[int, Host], asking: set[int], replies: list[Any]) -> None:
        """Send each to its host, and wait for all replies."""
        groups: dict[Host, list[int]] = {}
        for n, host in todo.items():
            groups.setdefault(host, []).append(n)
        sent: list[tuple[Wire, list[int], Failure | None]] = []
        for host, group in groups.items():
            wire = self._wire(host)
            commands = [one for n in group for one in ([_ASKING, requests[n].args] if n in asking else [requests[n].args])]
            try:
                wire.connect()
                failure = wire.send(commands)
            except Failure as error:
                failure = error
            sent.append((wire, group, failure))
        for wire, group, failure in sent:
            if failure is None:
                self._take(wire, requests, group, asking, replies)
                continue
            self._known = False
            for n in group:
                replies[n] = failure

    def _take(self, wire: Wire, requests: Sequence[Request], group: list[int], asking: set[int], replies: list[Any]) -> None:
        came = iter(wire.receive(len(group) + sum(n in asking for n in group)))
        for n in group:
            if n in asking:
                next(came)
            replies[n] = next(came)
            if isinstance(replies[n], Failure):
                self._known = False
        missing = [n for n in group if isinstance(replies[n], NoScriptError)]
        if missing:
            for n, reply in zip(missing, wire.load_again([requests[n] for n in missing]), strict=True):
                replies[n] = reply

    def _judged(self, reply: Any) -> Any:
        if not isinstance(reply, ResponseError):
            return reply
        if isinstance(reply, AskError):
            return errors.refused(self.name, ResponseError("TRYAGAIN"))
        failure = errors.not_now(self.name, reply)
        if failure is not None:
            self._known = False
        return failure or reply

    def samples(self) -> list[str | None]:
        """A key of each master."""
        first = {owner: slot for slot, owner in reversed(list(enumerate(self._owners))) if owner is not None}
        keys = {slot: f"{{{n}}}" for n in reversed(range(SLOTS * 16)) if (slot := slot_of(f"{{{n}}}")) in first.values()}
        return [keys.get(slot) for slot in sorted(first.values())]

    def guard(self, key: str) -> tuple[str, ...]:
        """A key of the same slot that never exists. While a slot moves, a server lets a script begin if all its keys are there, and would
        stop it half-way at one that isn't and was not told. This one isn't, ever, so that no script begins: TRYAGAIN."""
        return (f"{key[: key.find('}') + 1]}:none",)

    def interrupt(self) -> None:
        for wire in list(self._wires.values()):
            wire.interrupt()

    def close(self) -> None:
        self._known = False
        for wire in self._wires.values():
            wire.close()


def _same(host: Host) -> Host:
    return host
