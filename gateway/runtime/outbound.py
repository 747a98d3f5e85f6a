"""Messages on their way to devices: the shared message with its encoded packets, and one client's entry for it."""

from __future__ import annotations

from gateway.mqtt import encode
from gateway.ports import OfflineMessage, Phase, Queue, Received, Waiting

ENTRY_BYTES = 200  # what a queued message costs beside its payload


class Outbound:
    """A message on its way to any number of clients; its packets are encoded once. topic: as the device sees it."""

    __slots__ = ("_head1", "_head2", "_packet0", "alone", "id", "payload", "qos", "received", "retain", "stored_at", "topic", "volatile")

    def __init__(
        self,
        topic: str,
        payload: bytes,
        qos: int,
        id: str,
        stored_at: int,
        received: Received | None = None,
        retain: bool = False,
        volatile: bool = False,
    ) -> None:
        self.topic = topic
        self.payload = payload
        self.qos = qos
        self.id = id
        self.stored_at = stored_at
        self.received = received  # held while a persistent session has not answered; None when the message is safe in the store
        self.retain = retain  # the RETAIN flag of the packet, not of the sender's [MQTT-3.3.1-9]
        self.volatile = volatile  # never kept offline (P2P of a clean sender, contract section 5)
        self.alone = False  # only one client is to get it
        self._packet0 = b""
        self._head1 = b""
        self._head2 = b""

    def packet0(self) -> bytes:
        """The whole packet at QoS 0."""
        if not self._packet0:
            self._packet0 = encode.publish_head(self.topic, len(self.payload), 0, self.retain) + self.payload
        return self._packet0

    def packet(self, qos: int, packet_id: int, dup: bool = False) -> bytes:
        """The whole packet at QoS 1 or 2."""
        if dup:
            head = encode.publish_head(self.topic, len(self.payload), qos, self.retain, True)
        elif qos == 1:
            head = self._head1
            if not head:
                head = self._head1 = encode.publish_head(self.topic, len(self.payload), 1, self.retain)
        else:
            head = self._head2
            if not head:
                head = self._head2 = encode.publish_head(self.topic, len(self.payload), 2, self.retain)
        return head + packet_id.to_bytes(2, "big") + self.payload

    def source(self) -> tuple[Queue, int] | None:
        """Where it lies in the backend."""
        return (self.received.queue, self.received.offset) if self.received is not None else None


class Entry:
    """One message in one mailbox. entered: monotonic seconds. position: its place in the offline store, 0 when it isn't there. epoch: of
    the connection that gave it its packet id."""

    __slots__ = ("entered", "epoch", "finished", "holding", "message", "packet_id", "phase", "position", "qos", "storing")

    def __init__(self, message: Outbound, qos: int, entered: float) -> None:
        self.message = message
        self.qos = qos
        self.entered = entered
        self.packet_id = 0
        self.epoch = 0
        self.phase = Phase.WAITING
        self.position = 0
        self.holding = False
        self.storing = False  # on its way to the offline store
        self.finished = False  # acknowledged; if it is being stored, its copy is removed as soon as it is there

    def release(self) -> None:
        """The backend need not keep it for this client any more."""
        if self.holding:
            self.holding = False
            assert self.message.received is not None
            self.message.received.release()


def waiting_of(client_id: str, entry: Entry) -> Waiting:
    """The entry as the store keeps it."""
    message = entry.message
    return Waiting(
        client_id=client_id,
        message=OfflineMessage(message.id, message.topic, message.payload, message.stored_at),
        qos=entry.qos,
        packet_id=entry.packet_id,
        phase=entry.phase,
        position=entry.position,
        source=message.source() if entry.qos == 2 else None,
        retain=message.retain,
        epoch=entry.epoch,
        alone=message.alone,
    )


def stored_entry(item: Waiting, now: float) -> Entry:
    """The store's entry as the mailbox keeps it."""
    message = item.message
    entry = Entry(Outbound(message.topic, message.payload, item.qos, message.id, message.stored_at, retain=item.retain), item.qos, now)
    entry.packet_id = item.packet_id
    entry.phase = item.phase
    entry.position = item.position
    return entry
