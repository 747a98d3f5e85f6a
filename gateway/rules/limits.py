"""Limits that need nothing but numbers (contract section 11)."""

from __future__ import annotations

from collections.abc import Container, Iterable

from gateway.mqtt.topics import split_parent
from gateway.rules.envelope import P2P

LONGEST_NAME = 1024  # characters; what the settings allow at most for topics and Client IDs


def topic_fits(topic: str, topic_length: int, client_id_length: int = LONGEST_NAME) -> bool:
    """Whether a topic (or filter) is short enough. A `/p2p/<ClientID>` behind the first level is not counted, but the Client ID has its own
    limit. Lengths in characters."""
    if len(topic) <= topic_length:
        return True
    parent, second = split_parent(topic)
    return second.startswith(P2P) and len(parent) <= topic_length and len(second) - len(P2P) <= client_id_length


def admit_subscriptions(present: Container[str], present_count: int, requested: Iterable[str], limit: int) -> list[bool]:
    """For each requested filter, whether the client may have it. A filter that is present already, or came before in the same request,
    replaces itself and takes no place [MQTT-3.8.4-3]."""
    admitted: list[bool] = []
    new: set[str] = set()
    for wanted in requested:
        known = wanted in present or wanted in new
        if not known and present_count + len(new) < limit:
            new.add(wanted)
            known = True
        admitted.append(known)
    return admitted


class Bucket:
    """A token bucket: `rate` a second, at most `burst` at once. `now` in seconds on a monotonic clock."""

    __slots__ = ("_burst", "_filled_at", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled_at = now

    def take(self, now: float, n: float = 1.0) -> bool:
        """Take `n`; False (and nothing taken) when there are not so many."""
        self._fill(now)
        if self._tokens < n:
            return False
        self._tokens -= n
        return True

    def wait(self, now: float, n: float = 1.0) -> float:
        """Seconds from `now` until `n` can be taken; 0 when they can be at once. n is at most the burst."""
        self._fill(now)
        return max(0.0, (n - self._tokens) / self._rate)

    def _fill(self, now: float) -> None:
        if now > self._filled_at:
            self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
            self._filled_at = now
