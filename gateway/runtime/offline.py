"""Messages that wait for a session: kept when a device is away or behind, brought in batches when it is back (contract section 6)."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from gateway import observe
from gateway.ports import Phase, Store, StoreError, Waiting
from gateway.runtime.mailbox import Mailbox
from gateway.runtime.outbound import Entry, Outbound, stored_entry, waiting_of
from gateway.runtime.pulling import Pulling
from gateway.settings import Settings

RETRY_SECONDS = 1.0
SHORTEST_SECONDS = 0.005  # between two looks into the store, also when pacing is off and the mailbox is full of live messages


class Watch:
    """A session that is being claimed. touched: something was put for it meanwhile."""

    __slots__ = ("touched",)

    def __init__(self) -> None:
        self.touched = False


class Offline:
    """The one way to the store's waiting messages."""

    def __init__(self, store: Store, settings: Settings) -> None:
        self._store = store
        self._batch = settings.limits.offline_batch
        self._interval = settings.limits.offline_interval_seconds
        self._strict = settings.offline.order == "strict"
        self.pulling = Pulling(self, store, settings)
        self._hurried: set[Mailbox] = set()  # whose backlog the device asked for just now: it comes as fast as it is acknowledged
        self._removing: dict[str, set[int]] = {}  # acknowledged, and perhaps still in the store
        self._feeds: dict[Mailbox, bool] = {}  # whose backlog is being brought; True: look once more before the end
        self._nursery: trio.Nursery | None = None
        self._failed: deque[Callable[[], None]] = deque()
        self._claiming: dict[str, Watch] = {}
        # another node has the connection of a session for which something was put; told with its name and the place
        self.tell: Callable[[str, str, int], None] = lambda _client_id, _node, _position: None
        # whether the node named, not this one, has the session by now; then the connection here is closed
        self.taken: Callable[[str, str | None], bool] = lambda _client_id, _node: False
        self.find: Callable[[str], Mailbox | None] = lambda _client_id: None  # the mailbox of an online client; the router knows

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled: the batches of those that are behind, and what the store could not take."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            while True:
                await trio.sleep(RETRY_SECONDS)
                failed, self._failed = self._failed, deque()
                for again in failed:
                    again()

    def later(self, again: Callable[[], None]) -> None:
        """Do it once more, a moment from now."""
        self._failed.append(again)

    # ------------------------------------------------------------ keeping

    def keep(
        self, client_id: str, entries: Sequence[Entry], then: Callable[[Entry, bool], None] | None = None, owner: Mailbox | None = None
    ) -> None:
        """Store or update the entries; when they are safe their holds are released. Repeated until the store takes them. owner: the mailbox
        that has them, None when that has ended."""
        put = [(entry.packet_id, entry.phase) for entry in entries]
        for entry in entries:
            entry.storing = True

        def done(result: Any) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="offline_put", client_id=client_id, error=str(result))
                self._failed.append(lambda: self._keep_late(client_id, entries, then, owner))
                return
            # nothing more is written to a connection whose session another one has
            tell = None if owner is not None and self.taken(client_id, result[-1].owner) else then
            changed: list[Entry] = []
            kept = False
            for entry, (position, _), before in zip(entries, result, put, strict=True):
                kept = kept or position != 0
                entry.storing = False
                entry.position = position or entry.position
                entry.release()
                if entry.finished and entry.position:
                    self.remove(client_id, entry.position)
                elif position and before != (entry.packet_id, entry.phase):
                    changed.append(entry)  # it was sent meanwhile: its id must be known at the next CONNECT [MQTT-4.4.0-1]
                if tell is not None:
                    tell(entry, bool(position))
            if changed:
                self.keep(client_id, changed, None, owner)
            if kept and result[-1].owner and self.find(client_id) is None:
                self.tell(client_id, result[-1].owner, 0)  # of a connection that was here: it waits for a request in active mode

        observe.count(observe.Fact.OFFLINE_STORED, len(entries))
        self._store.offline_put([waiting_of(client_id, entry) for entry in entries], done)

    def _keep_late(
        self, client_id: str, entries: Sequence[Entry], then: Callable[[Entry, bool], None] | None, owner: Mailbox | None
    ) -> None:
        """Once more. When the device is back on another connection meanwhile, the old packet ids may be in use again: what was not stored
        before becomes a message that was never sent, and that connection looks for it."""
        mailbox = self.find(client_id)
        if mailbox is None or mailbox is owner:
            self.keep(client_id, entries, then, owner)
            return
        for entry in entries:
            if not entry.position:
                entry.packet_id, entry.phase = 0, Phase.WAITING
                continue
            entry.storing = False
            entry.release()  # it lies in the store, with the id of an older connection
            if then is not None:
                then(entry, False)

        def kept(entry: Entry, new: bool) -> None:
            if then is not None:
                then(entry, new)
            self.feed(mailbox)

        late = [entry for entry in entries if not entry.position]
        if late:
            self.keep(client_id, late, kept)

    def keep_absent(self, clients: Sequence[tuple[str, int]], message: Outbound) -> None:
        """Store `message` for clients without a connection, as (client id, QoS). The backend keeps it until that is done."""
        entries = [Entry(message, qos, 0.0) for _, qos in clients]
        waiting = [waiting_of(client_id, entry) for (client_id, _), entry in zip(clients, entries, strict=True)]
        if message.received is not None:
            message.received.hold()
        self._put_absent(waiting, message)

    def _put_absent(self, waiting: list[Waiting], message: Outbound) -> None:
        if self._claiming:
            for item in waiting:
                watch = self._claiming.get(item.client_id)
                if watch is not None:
                    watch.touched = True

        def done(result: Any) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="offline_put", clients=len(waiting), error=str(result))
                self._failed.append(lambda: self._put_absent(waiting, message))
                return
            observe.count(observe.Fact.OFFLINE_STORED, sum(1 for position, _owner in result if position))
            for item, (position, node) in zip(waiting, result, strict=True):
                mailbox = self.find(item.client_id)
                if mailbox is not None and not self.taken(item.client_id, node):  # the device has come meanwhile
                    self.feed(mailbox)
                    self.pulling.came(mailbox, position)
                elif node:
                    self.tell(item.client_id, node, position)
            if message.received is not None:
                message.received.release()

        self._store.offline_put(waiting, done)

    def remove(self, client_id: str, position: int) -> None:
        """The device has it."""
        removing = self._removing.setdefault(client_id, set())
        removing.add(position)

        def done(result: Any) -> None:
            if isinstance(result, StoreError):
                observe.note(observe.Fact.STORE_FAILED, operation="offline_remove", client_id=client_id, error=str(result))
                self._failed.append(lambda: self.remove(client_id, position))
                return
            removing.discard(position)
            if not removing and self._removing.get(client_id) is removing:
                del self._removing[client_id]

        self._store.offline_remove(client_id, [position], done)

    def had(self, mailbox: Mailbox) -> set[int]:
        """Positions of what is on its way to the device, or acknowledged and perhaps still in the store. To be asked before and after the
        store is read: what is removed meanwhile has left the second answer, and what came meanwhile is not in the first."""
        return mailbox.positions() | self._removing.get(mailbox.client_id, set())

    def overflowed(self, mailbox: Mailbox, entry: Entry) -> None:
        """The mailbox has no place for it: it joins the backlog, which is (again) brought in batches, or waits for a request."""
        asking = self.pulling.storing(mailbox)

        def kept(_entry: Entry, _new: bool) -> None:
            if asking is not None:
                self.pulling.stored(asking)
            self.feed(mailbox)

        self.keep(mailbox.client_id, [entry], kept, mailbox)

    # ------------------------------------------------------------ bringing

    def arrived(self, client_id: str, position: int) -> None:
        """Another node has put something for this session: it was live there, so it does not wait for the next batch. position: where it
        lies, 0 when it is left over from a connection."""
        watch = self._claiming.get(client_id)
        if watch is not None:
            watch.touched = True
        mailbox = self.find(client_id)
        if mailbox is not None:
            self.feed(mailbox, hurry=True)
            self.pulling.came(mailbox, position)

    def watch(self, client_id: str) -> Watch:
        """Its session is about to be claimed: what is put from now on may be missing in the backlog that the claim counts."""
        watch = self._claiming[client_id] = Watch()
        return watch

    def unwatch(self, client_id: str, watch: Watch) -> None:
        """It is online, or was refused."""
        if self._claiming.get(client_id) is watch:
            del self._claiming[client_id]

    async def start(self, mailbox: Mailbox, backlog: int, watch: Watch, keep_alive: int) -> None:
        """A device is back and `backlog` messages wait. One batch is brought at once, and live messages queue behind it if it is all there
        is; of a greater backlog the rest follows while live messages go first (strict order: live ones join the backlog). Settings may give
        the device its first period (of `keep_alive` seconds) to ask for them itself."""
        waits = bool(backlog) or watch.touched
        if self.pulling.waits(mailbox, keep_alive, waits) or not waits:
            return
        if backlog <= self._batch:
            mailbox.gather()
            self._feeds[mailbox] = False  # one brings at a time: two would bring the same
            try:
                _, more = await self._bring(mailbox, 0)
            finally:
                again = self._feeds.pop(mailbox)
                mailbox.resume()
            if not more and not again:
                return
        else:
            mailbox.divert = self._strict
        self.feed(mailbox)

    def spawn(self, work: Callable[[Mailbox, Any], Awaitable[None]], mailbox: Mailbox, what: Any) -> None:
        """A task that brings something else to a mailbox. A fault of ours ends it alone."""

        async def run() -> None:
            try:
                await work(mailbox, what)
            except Exception:  # noqa: BLE001 - logged with its traceback; one device can not end the gateway
                observe.note(observe.Fact.INTERNAL_ERROR, where="offline", client_id=mailbox.client_id, exc_info=True)

        if self._nursery is not None and not mailbox.ended:
            self._nursery.start_soon(run)

    def feed(self, mailbox: Mailbox, hurry: bool = False) -> None:
        """Bring what waits in the store, now or once more. hurry: without the interval between batches. Where nothing stored comes unasked,
        only retained messages are brought, in a hurry: a SUBSCRIBE has asked for them."""
        if mailbox.asking is not None:
            self.pulling.added(mailbox)
            if not hurry:
                return
        if hurry:
            self._hurried.add(mailbox)
        if mailbox in self._feeds:
            self._feeds[mailbox] = True
        elif not mailbox.ended and self._nursery is not None:
            self._feeds[mailbox] = False
            self._nursery.start_soon(self._feed, mailbox)

    async def _bring(self, mailbox: Mailbox, after: int) -> tuple[int, bool]:
        """One batch into the mailbox, as far as it has room: the position up to which it went, and whether there may be more."""
        if mailbox.ended:
            return after, False
        had = self.had(mailbox)
        waiting = await self._store.offline_get(mailbox.client_id, self._batch, after=after)
        had |= self.had(mailbox)
        now = trio.current_time()
        for item in waiting:
            known = item.position in had or not (mailbox.asking is None or item.retain)
            if not known and not mailbox.add(stored_entry(item, now)):
                return after, not mailbox.ended
            after = item.position
        return after, len(waiting) == self._batch

    async def _feed(self, mailbox: Mailbox) -> None:
        """Bring the backlog batch by batch: the next when the last one is acknowledged, at most one an interval."""
        lot = trio.lowlevel.ParkingLot()

        def acknowledged() -> None:
            lot.unpark_all()

        mailbox.on_stored_done = acknowledged
        after, more, asking = 0, True, mailbox.asking
        try:
            while (more or self._feeds[mailbox]) and not mailbox.ended and (mailbox.asking is None or mailbox in self._hurried):
                self._feeds[mailbox] = False
                if mailbox.asking is not asking:  # in the other mode the batches may have gone past something
                    after, asking = 0, mailbox.asking
                began = trio.current_time()
                try:
                    after, more = await self._bring(mailbox, after)
                except StoreError as error:
                    observe.note(observe.Fact.STORE_FAILED, operation="offline_get", client_id=mailbox.client_id, error=str(error))
                    await trio.sleep(RETRY_SECONDS)
                    continue
                while not mailbox.ended and any(0 < position <= after for position in mailbox.positions()):
                    with trio.move_on_after(RETRY_SECONDS):  # the mailbox may end without a word
                        await lot.park()
                interval = 0.0 if mailbox in self._hurried else self._interval
                await trio.sleep(max(SHORTEST_SECONDS, began + interval - trio.current_time()))
        except Exception:  # noqa: BLE001 - logged with its traceback; one device can not end the gateway
            observe.note(observe.Fact.INTERNAL_ERROR, where="offline feed", client_id=mailbox.client_id, exc_info=True)
        finally:
            del self._feeds[mailbox]
            self._hurried.discard(mailbox)
            mailbox.on_stored_done = None
            if mailbox.asking is None:
                mailbox.divert = False
