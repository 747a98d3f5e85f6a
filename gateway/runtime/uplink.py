"""From a device's PUBLISH to a stored backend message: routing, properties, and the acknowledgements in the order of the PUBLISHes
(contract section 5; clauses 3.3.4, 4.3, 4.6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

from gateway import observe
from gateway.mqtt.packets import Publish
from gateway.ports import Backend, BackendError, Message, Properties, Queue, Receipt, Retained, Store, Stored, StoreError, Will
from gateway.rules import envelope
from gateway.settings import Settings

KEEP_ROUTES = 64  # topics a link remembers; a device with more pays the routing again


class TopicPath:
    """Where one client's PUBLISHes to one topic go, with the properties of each (QoS, RETAIN) made once."""

    __slots__ = ("_clean", "_client_id", "_instance", "_properties", "route", "tag", "topic")

    def __init__(self, topic: str, route: envelope.Route, tag: str, client_id: str, clean: bool, instance: str) -> None:
        self.topic = topic
        self.route = route
        self.tag = tag
        self._client_id = client_id
        self._clean = clean
        self._instance = instance
        self._properties: dict[int, Properties] = {}

    def properties(self, qos: int, retain: bool) -> Properties:
        """Shared by all messages of this kind."""
        key = qos * 2 + retain
        found = self._properties.get(key)
        if found is None:
            found = self._properties[key] = envelope.uplink_properties(
                self.route, client_id=self._client_id, qos=qos, clean=self._clean, retain=retain, instance=self._instance
            )
        return found


class Uplink:
    """What all links share on the way up. now: ms since 1970."""

    def __init__(self, backend: Backend, store: Store, settings: Settings, now: Callable[[], int]) -> None:
        bridge = settings.bridge
        self.backend = backend
        self.store = store
        self._bridged = frozenset(bridge.topics)
        self._default_topic = bridge.default_topic
        self._uplink_tag = bridge.uplink_tag
        self._p2p_tag = bridge.p2p_tag
        self._instance = settings.gateway.instance
        self._now = now
        self.stored: dict[Queue, int] = {}  # per queue the offset of the newest message that this node has stored there

    def path(self, topic: str, client_id: str, clean: bool) -> TopicPath | None:
        """None: the first level is no bridged parent topic."""
        route = envelope.route(topic, self._bridged, self._default_topic)
        if route is None:
            return None
        return TopicPath(topic, route, self._p2p_tag if route.p2p else self._uplink_tag, client_id, clean, self._instance)

    def message(self, path: TopicPath, packet: Publish, client_id: str, ordered: bool, id: str = "") -> Message:
        """The backend message of a PUBLISH. id: the UNIQ_KEY of its first attempt."""
        return Message(
            path.route.topic,
            packet.payload,
            path.tag,
            path.properties(packet.qos, packet.retain),
            client_id,
            id or self.backend.new_id(),
            ordered,
        )

    def retained(self, topic: str, payload: bytes, qos: int, id: str) -> Retained | None:
        """What a PUBLISH with RETAIN leaves; None for the empty payload, which removes [MQTT-3.3.1-10]."""
        return Retained(topic, payload, qos, id, self._now()) if payload else None

    def will(self, path: TopicPath, payload: bytes, qos: int, retain: bool, client_id: str) -> Will:
        """The will as the store keeps it."""
        message = self.message(path, Publish(path.topic, payload, qos, retain), client_id, True)
        retained = Retained(path.topic, payload, qos, message.id, 0) if retain else None
        return Will(message, retained)

    def publish_will(self, will: Will, done: Callable[[], None]) -> None:
        """Hand a due will to the backend, and to the retained messages if it says so; `done` when both have it or refused it for good."""
        left = 2 if will.retained else 1

        def one(result: Any) -> None:
            nonlocal left
            if isinstance(result, BackendError):
                observe.note(observe.Fact.UPLINK_REFUSED, reason=result.refusal, topic=will.message.topic, client_id=will.message.key)
            elif isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="retain", error=str(result))
            left -= 1
            if not left:
                done()

        if will.retained is not None:
            keep = will.retained._replace(stored_at=self._now()) if will.retained.payload else None
            self.store.retain(will.retained.topic, keep, one)
        self.backend.submit(will.message, one)
        observe.note(observe.Fact.WILL_PUBLISHED, client_id=will.message.key, topic=will.message.topic)


class Settling(Protocol):
    """What a QoS 2 PUBLISH tells the entry of its packet id (runtime/inlet.py)."""

    stored: bool

    def settle(self, pending: Pending) -> None: ...


class Pending:
    """A PUBLISH that is not acknowledged yet; its place in the link's FIFO keeps PUBACK and PUBREC in order [MQTT-4.6.0-2], [MQTT-4.6.0-3].

    Called with the backend's and the store's answer. waits: how many answers are missing. inbound: of a QoS 2 PUBLISH.
    """

    __slots__ = ("_fifo", "answer", "failure", "inbound", "size", "waits")

    def __init__(self, fifo: Fifo, answer: bytes, size: int, waits: int, inbound: Settling | None) -> None:
        self._fifo = fifo
        self.answer = answer
        self.size = size
        self.waits = waits
        self.inbound = inbound
        self.failure: BackendError | StoreError | None = None

    def __call__(self, result: Receipt | BackendError | Any) -> None:
        if type(result) is Receipt:
            self._fifo.stored[result[0]] = result[1]
        elif isinstance(result, (BackendError, StoreError)):
            self.failure = result
        self.waits -= 1
        if not self.waits:
            if self.inbound is not None:
                self.inbound.settle(self)
            self._fifo.settled(self)


class Fifo:
    """A link's PUBLISHes between arrival and acknowledgement. stored: shared by all links, the newest offset per queue. unstored and
    unstored_bytes: what back-pressure looks at (design section
    3.6)."""

    __slots__ = ("_gate", "_inlet", "_pending", "stored", "unstored", "unstored_bytes")

    def __init__(self, inlet: Acknowledging, stored: dict[Queue, int]) -> None:
        self._inlet = inlet
        self.stored = stored
        self._pending: deque[Pending] = deque()
        self._gate: deque[Gated] | None = None
        self.unstored = 0
        self.unstored_bytes = 0

    def add(self, answer: bytes, size: int, inbound: Settling | None = None, waits: int = 1) -> Pending:
        """One more, to be answered with `answer`."""
        pending = Pending(self, answer, size, waits, inbound)
        self._pending.append(pending)
        self.unstored += 1
        self.unstored_bytes += size
        return pending

    def holds(self, inbound: Settling) -> bool:
        """Whether a PUBLISH of that QoS 2 entry waits here for its PUBREC."""
        return any(pending.inbound is inbound for pending in self._pending)

    def answer(self, answer: bytes) -> None:
        """A PUBLISH that needs no backend: answered in its turn."""
        pending = self._pending
        if pending:
            self.add(answer, 0, waits=0)
        else:
            self._inlet.acknowledge(answer, None)

    def settled(self, pending: Pending) -> None:
        """Everything that `pending` waited for has answered: acknowledge what is due."""
        queue = self._pending
        while queue and not queue[0].waits:
            first = queue.popleft()
            self.unstored -= 1
            self.unstored_bytes -= first.size
            if first.failure is not None:
                self._inlet.unstorable(first)
            else:
                self._inlet.acknowledge(first.answer, first)
        self._inlet.settled()

    # -- the gate: what must be in the store before it may go to the backend keeps its order with what follows

    def submit(self, backend: Backend, message: Message, done: Stored) -> None:
        """To the backend, behind everything that waits at the gate."""
        if self._gate:
            self._gate.append(Gated(message, done, True))
        else:
            backend.submit(message, done)

    def submit_after(self, backend: Backend, message: Message, done: Stored) -> Callable[[Any], None]:
        """Like `submit`, but not before the function that is returned is called (with the store's answer)."""
        gate = self._gate
        if gate is None:
            gate = self._gate = deque()
        gated = Gated(message, done, False)
        gate.append(gated)

        def opened(result: Any) -> None:
            gated.open = True
            if isinstance(result, StoreError):
                gated.failure = result
            elif result is None:
                gated.failure = StoreError("another connection has the session by now")
            while gate and gate[0].open:
                first = gate.popleft()
                if first.failure is None:
                    backend.submit(first.message, first.done)
                else:
                    first.done(first.failure)  # type: ignore[arg-type]  # a Pending takes both

        return opened


class Gated:
    """A message at the gate."""

    __slots__ = ("done", "failure", "message", "open")

    def __init__(self, message: Message, done: Stored, open: bool) -> None:
        self.message = message
        self.done = done
        self.open = open
        self.failure: StoreError | None = None


class Acknowledging:
    """What a FIFO tells its inlet."""

    __slots__ = ()

    def acknowledge(self, answer: bytes, pending: Pending | None) -> None:
        """Send the acknowledgement; `pending` is None for one that waited for nothing."""
        raise NotImplementedError

    def unstorable(self, pending: Pending) -> None:
        """It will never be stored: nothing was acknowledged."""
        raise NotImplementedError

    def settled(self) -> None:
        """`unstored` has changed."""
        raise NotImplementedError
