"""Active mode: a device asks for its stored messages itself, and nothing that is stored comes unasked (contract section 6,
docs/offline.md)."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import trio

from gateway import observe
from gateway.ports import Store, StoreError
from gateway.rules.offline import Pace, PullRequest, first_period, parse_request
from gateway.runtime.outbound import stored_entry
from gateway.settings import Settings

if TYPE_CHECKING:
    from gateway.runtime.mailbox import Mailbox
    from gateway.runtime.offline import Offline

RETRY_SECONDS = 1.0


class Asking:
    """A connection to which nothing stored is brought unasked. until: when that ends, if it has not asked for anything by then (monotonic
    seconds); infinite when it has: active mode. storing: live messages on their way into the store."""

    __slots__ = ("answering", "lot", "pace", "requests", "storing", "until")

    def __init__(self, pace: Pace, until: float) -> None:
        self.until = until
        self.pace = pace
        self.requests: deque[PullRequest] = deque()  # taken and not answered; the first one is being answered
        self.answering = False
        self.storing = 0
        self.lot = trio.lowlevel.ParkingLot()


class Pulling:
    """What devices ask for, and until when the gateway waits for that."""

    def __init__(self, offline: Offline, store: Store, settings: Settings) -> None:
        limits = settings.limits
        self._offline = offline
        self._store = store
        self._most = limits.pull_count
        self._per_second = limits.pull_per_second
        self._strict = settings.offline.order == "strict"
        self._waits = settings.offline.first_batch == "after_first_period"
        self._without_keep_alive = settings.offline.first_period_seconds

    # ------------------------------------------------------------ the mode of a connection

    def waits(self, mailbox: Mailbox, keep_alive: int, backlog: bool) -> bool:
        """A device is back: whether its stored messages wait for its first request, or for the end of its first keep-alive period.
        keep_alive: seconds, 0 = none. backlog: there are some."""
        if self._waits:
            until = trio.current_time() + first_period(keep_alive, self._without_keep_alive)
            mailbox.asking = Asking(Pace(self._per_second), until)
            if backlog:
                self.added(mailbox)
        return self._waits

    def decide(self, mailbox: Mailbox, now: float) -> None:
        """Its first period is over without a request: automatic mode. now: monotonic seconds."""
        asking = mailbox.asking
        if asking is not None and now >= asking.until:
            mailbox.asking = None
            self._offline.feed(mailbox)

    def added(self, mailbox: Mailbox) -> None:
        """Something more lies in the store. Strict order: what is live from now on queues behind it there."""
        if self._strict:
            mailbox.divert = True

    # ------------------------------------------------------------ requests

    def request(self, mailbox: Mailbox, payload: bytes) -> None:
        """A PUBLISH to `$SYS/getOfflineMsg`, which is acknowledged whatever becomes of it. The first one ends automatic mode."""
        request = parse_request(payload, self._most)
        if isinstance(request, str):
            self._ignore(mailbox, "invalid", request)
            return
        if not mailbox.persistent:
            return  # nothing waits for a clean session
        asking = mailbox.asking
        if asking is None:
            asking = mailbox.asking = Asking(Pace(self._per_second), math.inf)
        asking.until = math.inf
        if not asking.pace.take(trio.current_time()):
            self._ignore(mailbox, "too_often", "limits.pull_per_second is reached")
        elif len(asking.requests) >= self._per_second:
            self._ignore(mailbox, "unanswered", "the store has not answered the ones before it")
        else:
            observe.count(observe.Fact.OFFLINE_REQUESTED)
            self.added(mailbox)  # until the answer shows that nothing waits
            asking.requests.append(request)
            if not asking.answering:
                asking.answering = True
                self._offline.spawn(self._answer, mailbox, asking)

    def _ignore(self, mailbox: Mailbox, reason: str, problem: str) -> None:
        observe.note(observe.Fact.OFFLINE_REQUEST_IGNORED, reason=reason, client_id=mailbox.client_id, problem=problem)

    async def _answer(self, mailbox: Mailbox, asking: Asking) -> None:
        try:
            while asking.requests and not mailbox.ended:
                try:
                    await self._bring(mailbox, asking)
                except StoreError as error:
                    observe.note(observe.Fact.STORE_FAILED, operation="offline_get", client_id=mailbox.client_id, error=str(error))
                    await trio.sleep(RETRY_SECONDS)
                else:
                    asking.requests.popleft()
        finally:
            asking.answering = False

    async def _bring(self, mailbox: Mailbox, asking: Asking) -> None:
        """Answer the first request, as far as messages wait and the mailbox has room. Raises StoreError; then it is asked again."""
        while not mailbox.ended:
            request = asking.requests[0]
            had = self._offline.had(mailbox)
            most = request.most + len(had)  # what the device has unacknowledged lies in the store as well
            waiting = await self._store.offline_get(mailbox.client_id, most, newest=request.newest)
            had |= self._offline.had(mailbox)
            fresh = [item for item in waiting if item.position not in had]
            now = trio.current_time()
            for item in fresh[: request.most]:
                if not mailbox.add(stored_entry(item, now)):
                    return  # no room: it waits for another request
            if not self._strict or len(waiting) == most or len(fresh) > request.most:
                return
            if not asking.storing:
                mailbox.divert = False  # nothing waits: what is live comes at once again
                return
            if len(fresh) == request.most:
                return
            # what was live while the store was asked is on its way there, and belongs to this answer
            asking.requests[0] = request._replace(most=request.most - len(fresh))
            with trio.move_on_after(RETRY_SECONDS):  # the mailbox may end without a word
                await asking.lot.park()

    # ------------------------------------------------------------ live messages that lie in the store

    def came(self, mailbox: Mailbox, position: int) -> None:
        """A live message was put into the store because its device was not seen: it was connecting, or another node had the message. It is
        brought at once, but in strict order it waits. position: 0 when it was a repeat."""
        if mailbox.asking is not None and position and not self._strict:
            self._offline.spawn(self._fetch, mailbox, position)

    async def _fetch(self, mailbox: Mailbox, position: int) -> None:
        had = self._offline.had(mailbox)
        try:
            waiting = await self._store.offline_get(mailbox.client_id, 1, after=position - 1)
        except StoreError as error:  # then it waits for a request
            observe.note(observe.Fact.STORE_FAILED, operation="offline_get", client_id=mailbox.client_id, error=str(error))
            return
        had |= self._offline.had(mailbox)
        for item in waiting:
            if item.position == position and position not in had:
                mailbox.add(stored_entry(item, trio.current_time()))

    def storing(self, mailbox: Mailbox) -> Asking | None:
        """One is on its way into the store, where it waits for a request; whom to tell when it is there (`stored`)."""
        asking = mailbox.asking
        if asking is not None:
            asking.storing += 1
            self.added(mailbox)
        return asking

    def stored(self, asking: Asking) -> None:
        """It is there."""
        asking.storing -= 1
        if not asking.storing:
            asking.lot.unpark_all()
