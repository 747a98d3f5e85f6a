"""The instance's TPS quota (contract section 11): a token bucket that all links and the downlink share. Off unless set."""

from __future__ import annotations

import trio

from gateway.rules.limits import Bucket

TICK_SECONDS = 0.001


class Rate:
    """At most `per_second` messages, with a burst of one second. 0 = no limit."""

    __slots__ = ("_bucket", "_burst", "limited")

    def __init__(self, per_second: int, now: float) -> None:
        self.limited = per_second > 0
        self._burst = float(per_second)
        self._bucket = Bucket(per_second, self._burst, now)

    def take(self) -> bool:
        """One message that may be dropped: False when it must be."""
        return self._bucket.take(trio.current_time())

    async def wait(self, messages: int = 1) -> None:
        """`messages` that must not be dropped: wait until the quota has room for them."""
        left = float(messages)
        while left > 0:
            some = min(left, self._burst)
            while not self._bucket.take(trio.current_time(), some):
                # not less than a tick: a rounding error would be waited for without end
                await trio.sleep(max(TICK_SECONDS, self._bucket.wait(trio.current_time(), some)))
            left -= some
