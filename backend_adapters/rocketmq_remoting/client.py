"""`rocketmq://`: the `Backend` port on RocketMQ's remoting protocol. Composes; the work is in the other files of this room."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Callable
from typing import Any

import trio

from backend_adapters.offsets import DEFAULT_UNRESOLVED, Unresolved
from gateway.ports import (
    BackendError,
    Capabilities,
    Consumer,
    Health,
    Listener,
    Message,
    Queue,
    Refusal,
    Start,
    Stored,
    TopicInfo,
)

from . import codes
from .acl import Signer
from .asked import Clerk
from .broker_settings import parse_settings
from .connection import Lost
from .consumer import Subscription
from .endpoints import Endpoint
from .ids import UniqueIds, local_address
from .lanes import Limits
from .producer import Producer
from .routes import Route, Routes

SCHEME = "rocketmq://"
READER_GROUP = "TOOLS_CONSUMER"  # every broker has it; for readers that keep no offsets
_CREATED = 15.0  # seconds until a new topic is known to the name servers
_HEALTH = 2.5  # seconds


class RocketMQ:
    """See the port. Made by `open`; nothing is connected before `run`."""

    capabilities = Capabilities(ordered=True, offsets=True, delay=False)

    def __init__(
        self,
        servers: list[str],
        signer: Signer | None,
        *,
        instance: str,
        namespace: str = "",
        backlog: int = 50_000,
        backlog_bytes: int = 64 * 1024 * 1024,
        batch_messages: int = 512,
        batch_bytes: int = 1024 * 1024,
        declared_tags: frozenset[str] = frozenset(),
        reader_group: str = READER_GROUP,
        unresolved: Unresolved = DEFAULT_UNRESOLVED,
    ) -> None:
        self._unresolved = unresolved
        host = local_address()
        producer_group = self._wire_in(namespace, f"PID_{instance}")
        self._namespace = namespace
        self._declared = declared_tags
        self._reader_group = reader_group
        self._ids = UniqueIds(host)
        self._subscriptions: list[Subscription] = []
        client_id = f"{socket.inet_ntoa(host)}@{instance}#{os.getpid()}#{secrets.token_hex(4)}"
        self._client_id = client_id
        self._clerk = Clerk(client_id, producer_group, lambda: self._subscriptions)
        self._routes = Routes(servers, signer, self._clerk.answer, self._clerk.heartbeat, self._wire)
        self._producer = Producer(self._routes, producer_group, self._wire, backlog, backlog_bytes, Limits(batch_messages, batch_bytes))
        self._nursery: trio.Nursery | None = None

    @classmethod
    def open(cls, url: str, access_key: str = "", secret_key: str = "", *, instance: str = "default", **limits: Any) -> RocketMQ:
        """url: `rocketmq://host:9876;host2:9876`, with `/NAMESPACE` behind it if there is one. Keys: "" without access control.
        limits: backlog, backlog_bytes, batch_messages, batch_bytes, namespace, declared_tags (what heartbeats declare besides the tags
        that are read). Raises ValueError that says what is wrong with the URL."""
        servers, namespace = parse_url(url)
        if bool(access_key) != bool(secret_key):
            raise ValueError("backend.access_key and backend.secret_key belong together: set both or none")
        limits.setdefault("namespace", namespace)
        return cls(servers, Signer(access_key, secret_key) if access_key else None, instance=instance, **limits)

    # -- living

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """See the port. Connections outlive what uses them: on cancellation offsets are committed first (deadline 3 s)."""
        lower = trio.CancelScope(shield=True)  # no deadline of its own: it ends with what is above it, which has one

        async def run_lower() -> None:
            with lower:
                await self._routes.run()

        async with trio.open_nursery() as outer:
            outer.start_soon(run_lower)
            try:
                async with trio.open_nursery() as inner:
                    inner.start_soon(self._producer.run)
                    self._nursery = inner
                    task_status.started()
                    await trio.sleep_forever()
            finally:
                self._nursery = None
                lower.cancel()

    # -- sending

    def new_id(self) -> str:
        """See the port."""
        return self._ids.new()

    def submit(self, message: Message, done: Stored) -> None:
        """See the port."""
        self._producer.submit(message, done)

    @property
    def full(self) -> bool:
        """See the port."""
        return self._producer.full

    async def room(self) -> None:
        """See the port."""
        await self._producer.room()

    async def drain(self) -> None:
        """See the port."""
        await self._producer.drain()

    # -- topics

    async def topic(self, name: str) -> TopicInfo | None:
        """See the port."""
        route = await self._routes.find(name)
        return None if route is None else _info(name, route)

    async def create_topic(self, name: str, queues: int = 8) -> TopicInfo:
        """See the port. It is made on the master of each broker."""
        known = await self.topic(name)
        if known is not None:
            return known
        fields = {
            "topic": self._wire(name), "defaultTopic": "TBW102", "readQueueNums": str(queues), "writeQueueNums": str(queues),
            "perm": str(codes.PERMISSION_READ | codes.PERMISSION_WRITE), "topicFilterType": "SINGLE_TAG", "topicSysFlag": "0",
            "order": "false",
        }  # fmt: skip
        masters = await self._routes.masters()
        if not masters:
            raise BackendError(Refusal.UNAVAILABLE, f"topic {name} can not be created: no broker is registered. Start the broker")
        for broker, address in sorted(masters.items()):
            try:
                answer = await self._routes.endpoint(address).request(codes.UPDATE_AND_CREATE_TOPIC, dict(fields), timeout=5)
            except Lost as lost:
                raise BackendError(Refusal.UNAVAILABLE, f"topic {name} can not be created at broker {broker}: {lost}") from lost
            if answer.code != codes.SUCCESS:
                refused = answer.code == codes.NO_PERMISSION or "AclException" in answer.remark
                refusal = Refusal.NOT_PERMITTED if refused else Refusal.INVALID
                text = f"broker {broker} does not create topic {name}: code {answer.code}, {answer.remark}. Let an administrator create it"
                raise BackendError(refusal, text)
        with trio.move_on_after(_CREATED):
            while True:
                route = await self._routes.find(name)
                if route is not None and len({queue.broker for queue in route.writable}) >= len(masters):
                    return _info(name, route)
                await trio.sleep(0.1)
        raise BackendError(
            Refusal.UNAVAILABLE, f"topic {name} was created, but the name servers do not tell its route within {_CREATED:.0f} s"
        )

    # -- reading

    async def commit_end(self, topic: str, group: str) -> None:
        """See the port."""
        route = await self._route(topic)
        wire_topic, wire_group = self._wire(topic), self._wire(group)

        async def commit(queue: Queue) -> None:
            endpoint = self._routes.brokers[queue.broker].reader
            place = {"topic": wire_topic, "queueId": str(queue.id), "bname": queue.broker}
            if endpoint is None:
                raise BackendError(Refusal.UNAVAILABLE, f"broker {queue.broker} of topic {topic} has no address")
            try:
                end = await endpoint.request(codes.HEART_BEAT, {}, self._clerk.introduction(wire_group))
                if end.code == codes.SUCCESS:
                    end = await endpoint.request(codes.GET_MAX_OFFSET, dict(place))
                if end.code == codes.SUCCESS:
                    fields = {**place, "consumerGroup": wire_group, "commitOffset": end.fields["offset"]}
                    end = await endpoint.request(codes.UPDATE_CONSUMER_OFFSET, fields)
            except (Lost, KeyError) as error:
                raise BackendError(
                    Refusal.UNAVAILABLE, f"broker {queue.broker} does not commit the end of topic {topic}: {error}"
                ) from error
            if end.code != codes.SUCCESS:
                refusal = Refusal.NOT_PERMITTED if end.code == codes.NO_PERMISSION else Refusal.UNAVAILABLE
                text = f"broker {queue.broker} does not commit the end of topic {topic} for group {group}: code {end.code}, {end.remark}"
                raise BackendError(refusal, text)

        for queue in route.readable:
            await commit(queue)

    async def members(self, group: str) -> list[str]:
        """See the port. A broker that does not know the group has no members of it."""
        found: set[str] = set()
        for broker, address in sorted((await self._routes.masters()).items()):
            try:
                answer = await self._routes.endpoint(address).request(
                    codes.GET_CONSUMER_LIST_BY_GROUP, {"consumerGroup": self._wire(group)}
                )
            except Lost as lost:
                raise BackendError(Refusal.UNAVAILABLE, f"broker {broker} does not tell who is in group {group}: {lost}") from lost
            if answer.code == codes.SUCCESS and answer.body:
                found.update(json.loads(answer.body).get("consumerIdList") or ())
        return sorted(found - {self._client_id})

    async def consume(
        self,
        topic: str,
        tags: frozenset[str] | None,
        group: str | None,
        listener: Listener,
        *,
        start: Start | int = Start.FIRST,
        owns: Callable[[Queue], bool] | None = None,
    ) -> Consumer:
        """See the port."""
        await self._route(topic)
        if self._nursery is None:
            raise BackendError(Refusal.CLOSED, "the backend is not running")
        wire_group = self._reader_group if group is None else self._wire(group)
        subscription = Subscription(
            self._routes,
            topic,
            tags,
            group,
            listener,
            start,
            owns,
            self._wire(topic),
            wire_group,
            self._declared,
            self._subscription_changed,
            self._unresolved,
        )
        self._subscriptions.append(subscription)
        self._nursery.start_soon(subscription.run)
        self._beat()
        try:
            await subscription.first_assignment()
        except BaseException:
            subscription.end()
            raise
        return subscription

    def _subscription_changed(self, subscription: Subscription) -> None:
        """Its tags are others, or it is closed: tell the brokers."""
        if subscription.closed and subscription in self._subscriptions:
            self._subscriptions.remove(subscription)
            group = subscription.wire_group
            if subscription.group is not None and all(each.wire_group != group for each in self._subscriptions):
                for endpoint in self._routes.endpoints:
                    if endpoint.connection is not None:
                        endpoint.connection.tell(codes.UNREGISTER_CLIENT, {"clientID": self._client_id, "consumerGroup": group})
                return
        self._beat()

    def _beat(self) -> None:
        for endpoint in self._routes.endpoints:
            endpoint.beat()

    # -- watching over it

    async def health(self) -> list[Health]:
        """See the port."""
        rows: list[Health] = []

        async def ask(endpoint: Endpoint, code: int, name: str, cure: str) -> None:
            detail = endpoint.reason or "no answer"
            with trio.move_on_after(_HEALTH):
                try:
                    answer = await endpoint.request(code, {}, self._clerk.heartbeat() if code == codes.HEART_BEAT else b"")
                except Lost as lost:
                    rows.append(Health(name, False, str(lost), cure))
                    return
                refused = answer.code == codes.NO_PERMISSION or "AclException" in answer.remark
                text = f"answers{f', but refuses: {answer.remark}' if refused else ''}"
                rows.append(Health(name, not refused, text, "Check backend.access_key and backend.secret_key" if refused else ""))
                return
            rows.append(Health(name, False, detail, cure))

        async with trio.open_nursery() as nursery:
            for server in self._routes.servers:
                nursery.start_soon(ask, server, codes.GET_CLUSTER_INFO, f"name server {server.address}", "Start it, or correct backend.url")
            for broker in self._routes.brokers.values():
                if broker.master is None:
                    rows.append(Health(f"broker {broker.name}", False, "it has no master", "Start its master"))
                else:
                    name = f"broker {broker.name} at {broker.master.address}"
                    nursery.start_soon(ask, broker.master, codes.HEART_BEAT, name, "Start it; its brokerIP1 must be reachable from here")
        for subscription in self._subscriptions:
            if subscription.complaint:
                name = f"group {subscription.group} on topic {subscription.topic}"
                rows.append(Health(name, False, subscription.complaint, subscription.cure))
        return sorted(rows)

    async def settings_of_brokers(self) -> dict[str, dict[str, str]]:
        """By master ("name at host:port"), what `broker_settings.WANTED` names; empty for a broker that does not tell. Raises
        BackendError (UNAVAILABLE)."""
        found: dict[str, dict[str, str]] = {}
        for broker, address in sorted((await self._routes.masters()).items()):
            try:
                answer = await self._routes.endpoint(address).request(codes.GET_BROKER_CONFIG, {})
            except Lost as lost:
                raise BackendError(Refusal.UNAVAILABLE, f"broker {broker} does not tell its settings: {lost}") from lost
            found[f"{broker} at {address}"] = parse_settings(answer.body) if answer.code == codes.SUCCESS else {}
        return found

    def metrics(self) -> dict[str, float]:
        """See the port."""
        producer = self._producer
        readers = [reader for each in self._subscriptions for reader in each.readers.values()]
        trackers = [reader.tracker for reader in readers if reader.tracker is not None]
        return {
            "backlog": producer.waiting,
            "backlog_bytes": producer.waiting_bytes,
            "backlog_peak": producer.peak,
            "finished": producer.stored,
            "retries": producer.retries,
            "queues": len(readers),
            "received": sum(each.received for each in self._subscriptions),
            "unresolved": sum(tracker.unresolved for tracker in trackers),
            "unresolved_bytes": sum(tracker.unresolved_bytes for tracker in trackers),
            "brokers_down": sum(broker.down for broker in self._routes.brokers.values()),
        }

    # -- names

    async def _route(self, topic: str) -> Route:
        route = await self._routes.find(topic)
        if route is None:
            raise BackendError(
                Refusal.NO_SUCH_TOPIC, f"topic {topic} does not exist. Create it: mqadmin updateTopic -c <cluster> -t {topic}"
            )
        return route

    def _wire(self, name: str) -> str:
        return self._wire_in(self._namespace, name)

    @staticmethod
    def _wire_in(namespace: str, name: str) -> str:
        """`NS%topic`, `%RETRY%NS%group`."""
        if not namespace:
            return name
        for prefix in ("%RETRY%", "%DLQ%"):
            if name.startswith(prefix):
                return f"{prefix}{namespace}%{name.removeprefix(prefix)}"
        return f"{namespace}%{name}"


def parse_url(url: str) -> tuple[list[str], str]:
    """(name servers as host:port, namespace). Raises ValueError."""
    if not url.startswith(SCHEME):
        raise ValueError(f"backend.url must begin with {SCHEME}")
    hosts, _, namespace = url.removeprefix(SCHEME).partition("/")
    servers: list[str] = []
    for server in hosts.replace(",", ";").split(";"):
        host, _, port = server.strip().rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise ValueError(f"backend.url: {server!r} is no host:port, as in {SCHEME}host:9876;host2:9876")
        servers.append(f"{host}:{port}")
    return servers, namespace


def _info(name: str, route: Route) -> TopicInfo:
    return TopicInfo(name, tuple(sorted({*route.writable, *route.readable})))
