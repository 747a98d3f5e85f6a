"""What a clean session was sent at QoS 2: a message comes again when a queue goes to another node or a broker comes back, from the offset
last committed, and must not be sent again [MQTT-4.3.3-1]. A stored session's memory is the store."""

from __future__ import annotations

import trio

SECONDS = 60.0  # how long ago a message that comes again can have come before
LEAST = 100


class Once:
    """Of one connection."""

    __slots__ = ("_had",)

    def __init__(self) -> None:
        self._had: dict[str, float] = {}  # by UNIQ_KEY, monotonic seconds

    def had(self, id: str) -> bool:
        """Whether this one came before; from now on it did."""
        had = self._had
        if id in had:
            return True
        now = had[id] = trio.current_time()
        while len(had) > LEAST:  # the oldest first
            oldest = next(iter(had))
            if now - had[oldest] < SECONDS:
                break
            del had[oldest]
        return False
