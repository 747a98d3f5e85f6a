"""Reads one queue: long polling from its position, filtered by tags, given to the listener, committed (design sections 4 and 6)."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from backend_adapters.offsets import OffsetTracker
from gateway import observe
from gateway.ports import Queue, Received, Start

from . import codes
from .connection import Lost
from .endpoints import Broker
from .frames import Frame
from .loose_json import loads
from .messages import decode_messages
from .wakeup import Signal

if TYPE_CHECKING:
    from .consumer import Subscription

HOLD = 15.0  # seconds a broker keeps a pull when there is nothing (design section 6)
PULL_MESSAGES = "512"  # brokers give 32 by default, whatever is asked for beyond
_SYSTEM_FLAG = str(2 | 4)  # it may be held; it brings its own subscription
_PAUSE_FIRST, _PAUSE_MOST = 0.05, 3.0  # seconds


class Refused(Exception):
    """An answer with another code than expected."""

    def __init__(self, answer: Frame) -> None:
        super().__init__(f"code {answer.code}: {answer.remark}")
        self.code = answer.code


class Reader:
    """One assigned queue. late: it appeared after the first assignment, so it begins at its first offset."""

    def __init__(self, queue: Queue, subscription: Subscription, broker: Broker, late: bool) -> None:
        self.queue = queue
        self.broker = broker
        self.tracker: OffsetTracker | None = None
        self.committed = -1
        self.assigned = trio.Event()
        self.leaving = False  # its queue is no longer ours
        self.began_at = time.time_ns() // 1_000_000
        self.pulled_at = 0
        self._scope = trio.CancelScope()
        self._subscription = subscription
        self._late = late
        self._end = 0  # the queue's end when it was assigned: what lies before is a repeat, perhaps
        self._pulling: trio.CancelScope | None = None
        self._jump: int | None = None
        self._room = Signal()
        self._committing = False
        self._pause = 0.0

    # -- living

    async def run(self) -> None:
        """Until `stop`."""
        if self.leaving:
            return
        self._scope = trio.CancelScope()
        with self._scope:
            if self.tracker is not None:  # begun again after a fault
                self._track(self.tracker.resolved)
            else:
                position = await self._begin()
                self._track(position)
                self._subscription.listener.assigned(self.queue, position)
                self.assigned.set()
            await self._read()

    def stop(self) -> None:
        """The queue is no longer ours."""
        self.leaving = True
        self._scope.cancel()

    def _track(self, position: int) -> None:
        self.tracker = OffsetTracker(position, changed=self._tracked, bounds=self._subscription.unresolved)

    def _tracked(self) -> None:
        if self.tracker is not None and not self.tracker.full:
            self._room.set()

    def interrupt(self) -> None:
        """The tags have changed: give up a pull under way and read again from the position."""
        if self._pulling is not None:
            self._pulling.cancel()

    def jump(self, offset: int) -> None:
        """An operator has reset the group's offset."""
        self._jump = offset
        self.interrupt()
        self._room.set()

    async def _wait(self, reason: str, **fields: object) -> None:
        """A growing pause after a failure."""
        queue = self.queue
        observe.note(observe.Fact.BACKEND_RETRY, reason=reason, topic=queue.topic, broker=queue.broker, queue=queue.id, **fields)
        self._pause = min(max(self._pause * 2, _PAUSE_FIRST), _PAUSE_MOST)
        await trio.sleep(self._pause)

    # -- where to begin

    async def _begin(self) -> int:
        while True:
            try:
                position = await self._position()
                self._pause = 0.0
                return position
            except Lost as lost:
                await self._wait("position_unknown", detail=str(lost))
            except Refused as refused:
                self._subscription.complain(refused.code, str(refused))
                await self._wait("position_refused", detail=str(refused))

    async def _position(self) -> int:
        """The committed offset, or what `start` says. Raises Lost, Refused."""
        subscription = self._subscription
        self._end = await self._offset(codes.GET_MAX_OFFSET)
        start = Start.FIRST if self._late else subscription.start
        if subscription.group is not None:
            answer = await self._ask(
                codes.QUERY_CONSUMER_OFFSET,
                {"consumerGroup": subscription.wire_group, "setZeroIfNotFound": "false"},
                (codes.QUERY_NOT_FOUND,),
            )
            if answer.code == codes.SUCCESS:
                committed = int(answer.fields["offset"])
                if committed > 0 or start is Start.FIRST or await self._was_committed():
                    self._settle(committed)
                    return committed
        if start is Start.FIRST:
            return await self._offset(codes.GET_MIN_OFFSET)
        if start is Start.LAST:
            return self._end
        return await self._offset(codes.SEARCH_OFFSET_BY_TIMESTAMP, {"timestamp": str(int(start))})

    async def _was_committed(self) -> bool:
        """4.x brokers answer 0 also for a group that never committed on a young topic; their table of all offsets tells."""
        endpoint = self.broker.reader
        if endpoint is None:
            raise Lost(f"broker {self.queue.broker} has no address")
        answer = await endpoint.request(codes.GET_ALL_CONSUMER_OFFSET, {"bname": self.queue.broker})
        if answer.code != codes.SUCCESS:
            return True
        try:
            table = loads(answer.body)["offsetTable"]
            return str(self.queue.id) in table.get(f"{self._subscription.wire_topic}@{self._subscription.wire_group}", {})
        except (ValueError, KeyError, TypeError, AttributeError):
            return True

    async def _offset(self, code: int, more: dict[str, str] | None = None) -> int:
        answer = await self._ask(code, more or {})
        try:
            return int(answer.fields["offset"])
        except (KeyError, ValueError):
            raise Lost(f"broker {self.queue.broker} answers no offset") from None

    async def _ask(self, code: int, fields: dict[str, str], allowed: tuple[int, ...] = ()) -> Frame:
        endpoint = self.broker.reader
        if endpoint is None:
            raise Lost(f"broker {self.queue.broker} has no address")
        queue = self.queue
        fields = {"topic": self._subscription.wire_topic, "queueId": str(queue.id), "bname": queue.broker, **fields}
        answer = await endpoint.request(code, fields)
        if answer.code != codes.SUCCESS and answer.code not in allowed:
            raise Refused(answer)
        return answer

    async def end(self) -> int:
        """The queue's max offset now. Raises Lost, Refused."""
        return await self._offset(codes.GET_MAX_OFFSET)

    # -- reading

    async def _read(self) -> None:
        subscription = self._subscription
        while True:
            tracker = self.tracker
            assert tracker is not None
            if self._jump is not None:
                self._move(self._jump, "reset_by_operator")
                self._jump = None
                continue
            if tracker.full:
                await self._room.wait()
                continue
            tags = subscription.tags
            answer: Frame | Lost | None = None
            with trio.CancelScope() as self._pulling:
                answer = await self._pull(tracker.position)
            self._pulling = None
            if answer is None or tags is not subscription.tags or self._jump is not None:
                continue  # what an older filter did not match must not be jumped over
            if isinstance(answer, Lost):
                await self._wait("pull_unanswered", detail=str(answer))
            else:
                await self._take(answer, tags)

    async def _pull(self, position: int) -> Frame | Lost:
        endpoint = self.broker.reader
        if endpoint is None:
            return Lost(f"broker {self.queue.broker} has no address")
        connection = None
        with trio.move_on_after(_PAUSE_MOST):
            connection = await endpoint.connected()
        if connection is None:
            return Lost(f"{endpoint.address}: {endpoint.reason}")
        subscription = self._subscription
        fields = {
            "consumerGroup": subscription.wire_group,
            "topic": subscription.wire_topic,
            "queueId": str(self.queue.id),
            "queueOffset": str(position),
            "maxMsgNums": PULL_MESSAGES,
            "sysFlag": _SYSTEM_FLAG,
            "commitOffset": "0",
            "suspendTimeoutMillis": str(int(HOLD * 1000)),
            "subscription": subscription.expression,
            "subVersion": str(subscription.version),
            "expressionType": "TAG",
            "bname": self.queue.broker,
        }
        try:
            return await connection.request(codes.PULL_MESSAGE, fields, hold=HOLD)
        except Lost as lost:
            return lost

    async def _take(self, answer: Frame, tags: frozenset[str] | None) -> None:
        """What a pull has brought."""
        code = answer.code
        self.pulled_at = time.time_ns() // 1_000_000
        tracker = self.tracker
        assert tracker is not None
        if code in (codes.SUCCESS, codes.PULL_NOT_FOUND, codes.PULL_RETRY_IMMEDIATELY, codes.PULL_OFFSET_MOVED):
            self._subscription.complain(0, "")
            try:
                following = int(answer.fields["nextBeginOffset"])
            except (KeyError, ValueError):
                await self._wait("pull_not_understood")
                return
            if code == codes.SUCCESS:
                await self._give(tracker, answer.body, following, tags)
            elif code == codes.PULL_OFFSET_MOVED or following < tracker.position:
                self._move(following, "reset_by_operator" if answer.remark == "OFFSET_RESET" else "offset_moved")
            elif following > tracker.position:
                tracker.advance(following)
            elif code == codes.PULL_RETRY_IMMEDIATELY:
                await trio.sleep(_PAUSE_FIRST)
            self._pause = 0.0
            return
        if code == codes.GO_AWAY:
            await trio.sleep(_PAUSE_FIRST)
            return
        if code in (codes.TOPIC_NOT_EXIST, codes.INVALID_PARAMETER):
            self._subscription.stale(self.queue)
        self._subscription.complain(code, f"code {code}: {answer.remark}")
        await self._wait("pull_refused", detail=f"code {code}: {answer.remark}")

    async def _give(self, tracker: OffsetTracker, body: bytes, following: int, tags: frozenset[str] | None) -> None:
        stored, whole = decode_messages(body)
        if not whole:
            observe.note(observe.Fact.MESSAGE_UNROUTABLE, reason="undecodable", topic=self.queue.topic, queue=self.queue.id, next=following)
        queue, end, settled, position = self.queue, self._end, tracker.settled, tracker.position
        batch: list[Received] = []
        for offset, tag, content, properties, id, stored_at, born_at, fault in stored:
            if offset < position or (tags is not None and tag not in tags):  # the broker compares hashes only
                continue
            if fault:
                observe.note(
                    observe.Fact.MESSAGE_UNROUTABLE,
                    reason="undecodable",
                    id=id,
                    topic=queue.topic,
                    queue=queue.id,
                    offset=offset,
                    detail=fault,
                )
                continue
            batch.append(Received(queue, offset, tag, content, properties, id, stored_at, born_at, offset < end, settled))
        if batch:
            self._subscription.received += len(batch)
            tracker.receive(batch)
            await self._listen(batch)
        if stored:
            following = max(following, stored[-1].offset + 1)
        tracker.advance(following)

    async def _listen(self, batch: list[Received]) -> None:
        """A fault of the listener gets a second chance, and then does not stop the queue."""
        for _ in range(2):
            try:
                await self._subscription.listener.received(batch)
                return
            except Exception:  # noqa: BLE001  logged with its traceback
                observe.note(observe.Fact.INTERNAL_ERROR, where="received", topic=self.queue.topic, exc_info=True)
            await trio.sleep(1)

    def _move(self, offset: int, reason: str) -> None:
        """Go on elsewhere than expected."""
        queue, tracker = self.queue, self.tracker
        assert tracker is not None
        observe.note(
            observe.Fact.OFFSET_GAP,
            reason=reason,
            topic=queue.topic,
            broker=queue.broker,
            queue=queue.id,
            expected=tracker.position,
            offset=offset,
        )
        if offset >= tracker.position and reason == "offset_moved":
            tracker.advance(offset)
            return
        # an operator wants messages again; else the broker has lost its end, and what comes at these offsets is new
        self._end = max(self._end, tracker.position) if reason == "reset_by_operator" else offset
        self._track(offset)

    # -- committing

    def commit(self, now: float) -> None:
        """Commit what was resolved 2 s ago, if that is news. now: monotonic seconds."""
        if self.tracker is None or self._committing:
            return
        offset = self.tracker.committable(now)
        endpoint = self.broker.master or self.broker.reader
        if offset == self.committed or endpoint is None or endpoint.connection is None:
            return

        def answered(answer: Frame | Lost) -> None:
            self._committing = False
            if isinstance(answer, Frame) and answer.code == codes.SUCCESS:
                self._settle(offset)

        self._committing = True
        try:
            endpoint.connection.call(codes.UPDATE_CONSUMER_OFFSET, self._commit_fields(offset), b"", answered)
        except Lost:
            self._committing = False

    async def commit_last(self) -> None:
        """Commit all that is resolved, and wait for the answer. Raises Lost, Refused."""
        endpoint = self.broker.master or self.broker.reader
        if self.tracker is None or endpoint is None:
            return
        offset = self.tracker.resolved
        answer = await endpoint.request(codes.UPDATE_CONSUMER_OFFSET, self._commit_fields(offset))
        if answer.code != codes.SUCCESS:
            raise Refused(answer)
        self._settle(offset)

    def _settle(self, offset: int) -> None:
        """The broker has this offset."""
        self.committed = offset
        self._subscription.committed_on.add(self.queue.broker)

    def _commit_fields(self, offset: int) -> dict[str, str]:
        return {
            "consumerGroup": self._subscription.wire_group,
            "topic": self._subscription.wire_topic,
            "queueId": str(self.queue.id),
            "commitOffset": str(offset),
            "bname": self.queue.broker,
        }

    def state(self) -> dict[str, object]:
        """What `mqadmin consumerStatus` shows of a queue."""
        tracker = self.tracker
        return {
            "commitOffset": max(0, self.committed),
            "cachedMsgMinOffset": tracker.resolved if tracker else 0,
            "cachedMsgMaxOffset": tracker.position if tracker else 0,
            "cachedMsgCount": tracker.unresolved if tracker else 0,
            "cachedMsgSizeInMiB": tracker.unresolved_bytes >> 20 if tracker else 0,
            "locked": False,
            "droped": False,
            "lastPullTimestamp": self.pulled_at,
            "lastConsumeTimestamp": self.pulled_at,
        }
