"""Subscriptions that are younger than messages still on their way through the backend: what was stored before a SUBSCRIBE is not for it.

A message is read back from the backend a few milliseconds after it was acknowledged. A subscription made in between must not get it (nor a
second copy of what it got as a retained message). Known exactly for what this node has stored: by queue and offset.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar

from gateway.mqtt import topics
from gateway.ports import Queue, Subscription

KEEP_SECONDS = 10.0  # by then the messages have come, or the backend is so slow that a repeat is the smaller evil


class Subscribed(Protocol):
    """Who has subscriptions, by filter."""

    subscriptions: dict[str, Subscription]


S = TypeVar("S", bound=Subscribed)


class Young:
    """A new subscription. ends: per queue the offset from which on messages are for it. until: monotonic seconds."""

    __slots__ = ("ends", "until")

    def __init__(self, ends: dict[Queue, int], until: float) -> None:
        self.ends = ends
        self.until = until


class Newcomers(Generic[S]):
    """S: a subscriber. Empty nearly always, and then it costs a fan-out nothing."""

    def __init__(self) -> None:
        self._young: dict[S, dict[str, Young]] = {}

    def __bool__(self) -> bool:
        return bool(self._young)

    def add(self, subscriber: S, filter: str, ends: dict[Queue, int], now: float) -> None:
        """ends: not empty, and kept. now: monotonic seconds."""
        self._young.setdefault(subscriber, {})[filter] = Young(ends, now + KEEP_SECONDS)

    def forget(self, subscriber: S, filter: str) -> None:
        """The subscription is gone."""
        filters = self._young.get(subscriber)
        if filters is not None:
            filters.pop(filter, None)
            if not filters:
                del self._young[subscriber]

    def without(self, targets: Mapping[S, int], topic: str, queue: Queue, offset: int, now: float) -> Mapping[S, int]:
        """`targets` (with their QoS) less those that would get the message of this place only through younger subscriptions."""
        left: dict[S, int] | None = None
        for subscriber in list(self._young):
            filters = self._young[subscriber]
            if subscriber in targets and any(offset < young.ends.get(queue, 0) for young in filters.values()):
                if left is None:
                    left = dict(targets)
                older = self._older(subscriber, filters, topic, queue, offset)
                if older < 0:
                    del left[subscriber]
                else:
                    left[subscriber] = older
            for filter in [each for each, young in filters.items() if _grown(young, queue, offset, now)]:
                self.forget(subscriber, filter)
        return targets if left is None else left

    def _older(self, subscriber: S, filters: Mapping[str, Young], topic: str, queue: Queue, offset: int) -> int:
        """The greatest QoS of the matching subscriptions for which the message is; -1 when there is none."""
        qos = -1
        for each in subscriber.subscriptions.values():
            young = filters.get(each.filter)
            if (young is None or offset >= young.ends.get(queue, 0)) and each.qos > qos and topics.matches(each.filter, topic):
                qos = each.qos
        return qos


def _grown(young: Young, queue: Queue, offset: int, now: float) -> bool:
    """Whether everything older has come."""
    if offset + 1 >= young.ends.get(queue, offset + 2):
        del young.ends[queue]
    return not young.ends or young.until < now
