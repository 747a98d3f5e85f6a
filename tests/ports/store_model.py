"""The whole store as plain Python values: what `test_store_model` compares every implementation with."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.ports import Claim, Event, Phase, Queue, Release, Retained, Subscription, Waiting, Will


@dataclass
class Session:
    persistent: bool
    node: str | None = None
    channel_id: str = ""
    client_ip: str = ""
    will: Will | None = None
    left_at: int = 0
    subscriptions: dict[str, Subscription] = field(default_factory=dict)
    inbound: dict[int, tuple[str, bool]] = field(default_factory=dict)
    queue: list[Waiting] = field(default_factory=list)  # by position
    sent: list[int] = field(default_factory=list)  # positions, in the order of their last sending
    remembered: dict[str, tuple[Queue, int]] = field(default_factory=dict)


@dataclass
class Model:
    retention: int
    expiry: int
    offline_count: int
    retained_count: int
    outbox_count: int
    sessions: dict[str, Session] = field(default_factory=dict)
    clocks: dict[str, tuple[int, int, int]] = field(default_factory=dict)  # (time, seq, left at)
    epochs: dict[str, int] = field(default_factory=dict)  # the newest one that was given, also of deleted sessions
    outbox: list[Event | tuple[str, Will]] = field(default_factory=list)
    retained: dict[str, Retained] = field(default_factory=dict)
    marks: dict[str, str] = field(default_factory=dict)

    # -- the registry

    def emit(self, client: str, session: Session, id: str, type: str, now: int, reason: str, node: str) -> None:
        time, seq, left = self.clocks.get(client, (0, 0, 0))
        time, seq = max(now, time + 1), seq + 1
        self.clocks[client] = (time, seq, left)
        self.outbox.append(Event(id, client, type, time, seq, session.channel_id, session.client_ip, reason, node))

    def emit_will(self, client: str, session: Session) -> None:
        if session.will is not None:
            self.outbox.append((client, session.will))

    @staticmethod
    def client_of(item: Event | tuple[str, Will]) -> str:
        return item.client_id if isinstance(item, Event) else item[0]

    def outbox_full(self, claim: Claim) -> bool:
        older = self.sessions.get(claim.client_id)
        owned = older is not None and older.node is not None
        needed = 1 + owned + (owned and older is not None and older.will is not None)
        return len(self.outbox) + needed > self.outbox_count

    def claim(self, claim: Claim, epoch: int) -> bool:
        """Whether the session was present."""
        client = claim.client_id
        older = self.sessions.get(client)
        if older is not None and older.node is not None:
            self.emit(client, older, claim.event_ids[1], "tcpclean", claim.now, "taken_over", older.node)
            self.emit_will(client, older)
        present = older is not None and older.persistent and claim.persistent
        session = older if older is not None and present else Session(claim.persistent)
        session.node, session.channel_id, session.client_ip, session.will = claim.node, claim.channel_id, claim.client_ip, claim.will
        self.sessions[client] = session
        self.epochs[client] = epoch
        self.emit(client, session, claim.event_ids[0], "connect", claim.now, "", claim.node)
        return present

    def owner(self, client: str, epoch: int) -> Session | None:
        session = self.sessions.get(client)
        return session if session is not None and self.epochs[client] == epoch else None

    def release(self, release: Release) -> bool:
        if release.epoch:
            session = self.owner(release.client_id, release.epoch)
        else:
            session = self.sessions.get(release.client_id)
            session = session if session is not None and session.channel_id == release.channel_id else None
        if session is None or session.node is None:
            return False
        if release.polite:
            self.emit(release.client_id, session, release.event_ids[0], "disconnect", release.now, release.reason, release.node)
        self.leave(release.client_id, session, release.event_ids[1], release.now, release.reason, release.node, not release.polite)
        return True

    def leave(self, client: str, session: Session, id: str, now: int, reason: str, node: str, with_will: bool) -> None:
        self.emit(client, session, id, "tcpclean", now, reason, node)
        if with_will:
            self.emit_will(client, session)
        session.node, session.will, session.left_at = None, None, now
        time, seq, _ = self.clocks[client]
        self.clocks[client] = (time, seq, now)
        if not session.persistent:
            del self.sessions[client]

    def abandoned_by(self, client: str) -> None:
        """The operations of a lost node's connection may be fenced off from now on, or not; nothing depends on them."""
        self.epochs[client] = -1

    def owned(self, node: str) -> list[str]:
        return [client for client, session in self.sessions.items() if session.node == node]

    # -- messages that wait

    def waits(self, client: str, key: str) -> bool:
        session = self.sessions[client]
        return key in session.remembered or any(entry.message.id == key for entry in session.queue)

    def sent_so(self, entry: Waiting) -> int:
        """The position of the same message with the same packet id and phase, 0 when there is none."""
        if entry.phase is Phase.WAITING or entry.message.id in self.sessions[entry.client_id].remembered:
            return 0
        same = (entry.message.id, entry.packet_id, entry.phase)
        queue = self.sessions[entry.client_id].queue
        return next((each.position for each in queue if (each.message.id, each.packet_id, each.phase) == same), 0)

    def accepts(self, client: str) -> Session | None:
        session = self.sessions.get(client)
        return session if session is not None and session.persistent else None

    def entry(self, client: str, position: int) -> Waiting | None:
        session = self.sessions.get(client)
        return next((entry for entry in session.queue if entry.position == position), None) if session is not None else None

    def advance(self, entry: Waiting, phase: Phase, packet_id: int) -> None:
        sent = self.sessions[entry.client_id].sent
        if phase is Phase.WAITING or (entry.phase, entry.packet_id) != (phase, packet_id):
            if entry.position in sent:
                sent.remove(entry.position)
            if phase is not Phase.WAITING:
                sent.append(entry.position)
        entry.phase, entry.packet_id = phase, packet_id

    def drop(self, entry: Waiting) -> None:
        session = self.sessions[entry.client_id]
        session.queue.remove(entry)
        if entry.position in session.sent:
            session.sent.remove(entry.position)

    def all_waiting(self) -> list[Waiting]:
        return [entry for session in self.sessions.values() for entry in session.queue]

    def inflight(self, client: str) -> list[Waiting]:
        session = self.sessions[client]
        return [entry for position in session.sent for entry in session.queue if entry.position == position]

    # -- time

    def expire(self, now: int) -> tuple[dict[str, set[str]], int]:
        old = [entry for entry in self.all_waiting() if entry.message.stored_at <= now - self.retention]
        for entry in old:
            self.drop(entry)
        gone = {
            client: set(session.subscriptions)
            for client, session in self.sessions.items()
            if session.node is None and session.left_at <= now - self.expiry
        }
        for client in gone:
            del self.sessions[client]
        for client, (_, _, left) in list(self.clocks.items()):
            if client not in self.sessions and left <= now - self.expiry:
                del self.clocks[client]
        return gone, len(old)
