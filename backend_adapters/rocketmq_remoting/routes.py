"""Where topics are: asks the name servers, remembers, asks again every 30 s and on errors (design section 3, point 3).

A name server forgets a broker that is gone at once. Its queues are kept here for an hour, down, since which queue a key belongs to must not
depend on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from gateway import observe
from gateway.ports import BackendError, Queue, Refusal

from . import codes
from .acl import Signer
from .connection import Lost
from .endpoints import Asked, Broker, Endpoint, guarded
from .frames import Frame
from .loose_json import loads

REFRESH = 30.0  # seconds
FORGET = 3600.0  # seconds after which the queues of a vanished broker are given up
_UNRESOLVED_REFRESH = 1.0  # seconds, while a watched topic has no route
_GAP = 0.5  # seconds between two refreshes at least
_UNUSED = 60.0  # seconds
_TIMEOUT = 3.0  # seconds for one name server


@dataclass(slots=True)
class Route:
    """Queues are sorted. They include those of brokers that are gone at the moment. vanished: broker -> when it was seen last."""

    writable: tuple[Queue, ...]
    readable: tuple[Queue, ...]
    addresses: dict[str, dict[int, str]]
    vanished: dict[str, float] = field(default_factory=dict)


Watcher = Callable[["Route | None"], None]


class Routes:
    """The name servers, the brokers, and the routes of watched topics. `wire` turns a topic's name into the one on the wire (namespace)."""

    def __init__(
        self, servers: list[str], signer: Signer | None, asked: Asked, heartbeat: Callable[[], bytes], wire: Callable[[str], str]
    ) -> None:
        self._signer = signer
        self._asked = asked
        self._heartbeat = heartbeat
        self._wire = wire
        self.servers = [Endpoint(address, signer, asked, None) for address in servers]
        self.brokers: dict[str, Broker] = {}
        self.known: dict[str, Route] = {}
        self._endpoints: dict[str, Endpoint] = {}
        self._watchers: dict[str, list[Watcher]] = {}
        self._poked = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Serve until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for endpoint in (*self.servers, *self._endpoints.values()):
                nursery.start_soon(guarded, f"endpoint {endpoint.address}", endpoint.run)
            nursery.start_soon(guarded, "routes", self._refresh_for_ever)
            nursery.start_soon(guarded, "brokers", self._review_for_ever)

    # -- watching

    def watch(self, topic: str, watcher: Watcher) -> None:
        """Call `watcher` with the route now, if it is known, and whenever it changes; with None when the topic definitely doesn't exist."""
        self._watchers.setdefault(topic, []).append(watcher)
        route = self.known.get(topic)
        if route is not None:
            watcher(route)
        self.poke()

    def unwatch(self, topic: str, watcher: Watcher) -> None:
        watchers = self._watchers.get(topic, [])
        if watcher in watchers:
            watchers.remove(watcher)
        if not watchers:
            self._watchers.pop(topic, None)

    def poke(self) -> None:
        """Something was not where a route says: ask again soon."""
        self._poked.set()

    def stale(self, queue: Queue) -> None:
        """The queue's broker says that it is not there: ask again, and if the name servers don't know it either, give it up."""
        route = self.known.get(queue.topic)
        if route is not None and queue.broker in route.vanished:
            route.vanished[queue.broker] = trio.current_time() - FORGET
        self.poke()

    async def _refresh_for_ever(self) -> None:
        while True:
            self._poked = trio.Event()
            await self.refresh()
            await trio.sleep(_GAP)
            unresolved = any(topic not in self.known for topic in self._watchers)
            with trio.move_on_after(_UNRESOLVED_REFRESH if unresolved else REFRESH):
                await self._poked.wait()

    async def refresh(self) -> None:
        """Ask for each watched topic."""
        for topic in list(self._watchers):
            try:
                route = await self.find(topic)
            except BackendError as error:
                if error.refusal is Refusal.UNAVAILABLE:
                    if all(server.down for server in self.servers):
                        return  # the next refresh is near
                    continue
                observe.note(observe.Fact.BACKEND_RETRY, reason="route_refused", topic=topic, detail=str(error))
                continue
            for watcher in list(self._watchers.get(topic, ())):
                watcher(route)

    async def _review_for_ever(self) -> None:
        while True:
            await trio.sleep(0.5)
            for broker in self.brokers.values():
                broker.review()

    # -- asking

    async def find(self, topic: str) -> Route | None:
        """Ask the name servers now. None: there is definitely no such topic. Raises BackendError (UNAVAILABLE, NOT_PERMITTED)."""
        fields = {"topic": self._wire(topic), "acceptStandardJsonOnly": "true"}
        complaints: list[str] = []
        missing: Endpoint | None = None
        for server in sorted(self.servers, key=lambda each: each.down):
            try:
                answer = await server.request(codes.GET_ROUTE, dict(fields), timeout=_TIMEOUT)
            except Lost as lost:
                complaints.append(str(lost))
                continue
            if answer.code == codes.SUCCESS:
                return self._learn(topic, answer)
            if answer.code == codes.TOPIC_NOT_EXIST:
                missing = server
            elif answer.code == codes.NO_PERMISSION or "AclException" in answer.remark:
                raise BackendError(
                    Refusal.NOT_PERMITTED, f"name server {server.address} refuses the route of topic {topic}: {answer.remark}"
                )
            else:
                complaints.append(f"{server.address}: code {answer.code}, {answer.remark}")
        if missing is None:
            raise BackendError(Refusal.UNAVAILABLE, f"no name server answers for topic {topic}: {'; '.join(complaints)}. Check backend.url")
        if await self._is_definite(topic, missing):
            self.known.pop(topic, None)
            return None
        if topic in self.known:
            return self._keep(topic)
        raise BackendError(Refusal.UNAVAILABLE, f"no broker is registered at name server {missing.address}. Start the broker")

    async def _is_definite(self, topic: str, server: Endpoint) -> bool:
        """A name server that knows no route does not tell "no such topic" from "its brokers are down": so look whether they are there."""
        try:
            answer = await server.request(codes.GET_CLUSTER_INFO, {}, timeout=_TIMEOUT)
        except Lost:
            return False
        known = self.known.get(topic)
        if answer.code != codes.SUCCESS:  # a proxy, which has no such request
            return known is None
        try:
            alive = set(loads(answer.body)["brokerAddrTable"] or ())
        except (ValueError, KeyError, TypeError):
            return False
        return bool(alive) if known is None else all(name in alive for name in known.addresses)

    async def masters(self) -> dict[str, str]:
        """All brokers' master addresses by name. Raises BackendError (UNAVAILABLE)."""
        complaints: list[str] = []
        for server in sorted(self.servers, key=lambda each: each.down):
            try:
                answer = await server.request(codes.GET_CLUSTER_INFO, {}, timeout=_TIMEOUT)
                if answer.code == codes.SUCCESS:
                    table = loads(answer.body)["brokerAddrTable"]
                    return {name: data["brokerAddrs"]["0"] for name, data in table.items() if "0" in data["brokerAddrs"]}
                complaints.append(f"{server.address}: code {answer.code}, {answer.remark}")
            except Lost as lost:
                complaints.append(str(lost))
            except (ValueError, KeyError, TypeError):
                complaints.append(f"{server.address}: its list of brokers is not understood")
        raise BackendError(Refusal.UNAVAILABLE, f"no name server tells its brokers: {'; '.join(complaints)}. Check backend.url")

    # -- remembering

    def _learn(self, topic: str, answer: Frame) -> Route:
        try:
            fresh = parse_route(topic, answer.body)
        except ValueError as error:
            raise BackendError(Refusal.UNAVAILABLE, f"the route of topic {topic} is not understood: {error}") from error
        return self._remember(topic, fresh)

    def _keep(self, topic: str) -> Route:
        return self._remember(topic, Route((), (), {}))

    def _remember(self, topic: str, fresh: Route) -> Route:
        old = self.known.get(topic)
        now = trio.current_time()
        if old is not None:
            for name, addresses in old.addresses.items():
                seen = old.vanished.get(name, now)
                if name in fresh.addresses or now - seen >= FORGET:
                    continue
                fresh.vanished[name] = seen
                fresh.addresses[name] = addresses
                fresh.writable = tuple(sorted((*fresh.writable, *(queue for queue in old.writable if queue.broker == name))))
                fresh.readable = tuple(sorted((*fresh.readable, *(queue for queue in old.readable if queue.broker == name))))
        self.known[topic] = fresh
        for name, addresses in fresh.addresses.items():
            broker = self.brokers.get(name)
            if broker is None:
                broker = self.brokers[name] = Broker(name)
            if name not in fresh.vanished:
                broker.place(addresses, self.endpoint)
        self._drop_unused()
        return fresh

    def endpoint(self, address: str) -> Endpoint:
        """The one for this address; it is begun when it is new."""
        endpoint = self._endpoints.get(address)
        if endpoint is None:
            endpoint = self._endpoints[address] = Endpoint(address, self._signer, self._asked, self._heartbeat)
            if self._nursery is not None:
                self._nursery.start_soon(guarded, f"endpoint {address}", endpoint.run)
        endpoint.wanted_at = trio.current_time()
        return endpoint

    @property
    def endpoints(self) -> list[Endpoint]:
        """The brokers' ones."""
        return list(self._endpoints.values())

    def _drop_unused(self) -> None:
        """Brokers that are in no route any more, and addresses that nobody has had for a minute."""
        names = {name for route in self.known.values() for name in route.addresses}
        for name in [name for name in self.brokers if name not in names]:
            del self.brokers[name]
        used = {address for broker in self.brokers.values() for address in broker.addresses.values()}
        before = trio.current_time() - _UNUSED
        for address, endpoint in list(self._endpoints.items()):
            if address not in used and endpoint.wanted_at < before:
                del self._endpoints[address]
                endpoint.stop()


def parse_route(topic: str, body: bytes) -> Route:
    """Send to writeQueueNums where the permission has W, read readQueueNums where it has R (design section 6). Raises ValueError."""
    try:
        value = loads(body)
        addresses = {
            str(each["brokerName"]): {int(id): str(address) for id, address in each["brokerAddrs"].items()} for each in value["brokerDatas"]
        }
        writable: list[Queue] = []
        readable: list[Queue] = []
        for each in value["queueDatas"]:
            name, permission = str(each["brokerName"]), int(each["perm"])
            if name not in addresses:
                continue
            if permission & codes.PERMISSION_WRITE:
                writable += [Queue(topic, name, id) for id in range(int(each["writeQueueNums"]))]
            if permission & codes.PERMISSION_READ:
                readable += [Queue(topic, name, id) for id in range(int(each["readQueueNums"]))]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it has not the members it should have") from error
    return Route(tuple(sorted(writable)), tuple(sorted(readable)), addresses)
