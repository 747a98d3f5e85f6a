"""Active mode: what a device asks for by publishing to `$SYS/getOfflineMsg`, and how often it may (contract section 6)."""

from __future__ import annotations

import json
from collections import deque
from typing import NamedTuple


class PullRequest(NamedTuple):
    """At most `most` stored messages, the newest or the oldest first."""

    newest: bool
    most: int


_ORDERS = {"ASC": False, "DESC": True}


def parse_request(payload: bytes, most: int) -> PullRequest | str:
    """The payload `{"pushOrder": "ASC" or "DESC", "maxPushNum": 1..most}`; a greater number counts as `most`, other keys are ignored.
    Or what is wrong with it, without the device's own words."""
    try:
        said = json.loads(payload)
    except (ValueError, RecursionError):
        return "it is no JSON"
    if not isinstance(said, dict):
        return "it is no JSON object"
    order, number = said.get("pushOrder"), said.get("maxPushNum")
    if not isinstance(order, str) or order not in _ORDERS:
        return 'pushOrder is neither "ASC" nor "DESC"'
    if isinstance(number, float) and number.is_integer():
        number = int(number)  # JSON has one kind of number: some libraries write 20 as 20.0
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        return "maxPushNum is no whole number from 1 on"
    return PullRequest(_ORDERS[order], min(number, most))


def first_period(keep_alive: int, without: float) -> float:
    """Seconds of a connection's first keep-alive period, in which a device of active mode sends its first request. keep_alive: as in the
    CONNECT, 0 = none; without: what counts then."""
    return float(keep_alive or without)


class Pace:
    """At most `most` requests are taken within any `seconds` seconds. `now` in seconds on a monotonic clock. (A token bucket would take
    more in the second after a pause.)"""

    __slots__ = ("_most", "_seconds", "_taken")

    def __init__(self, most: int, seconds: float = 1.0) -> None:
        self._most = most
        self._seconds = seconds
        self._taken: deque[float] = deque()

    def take(self, now: float) -> bool:
        """Whether a request that comes at `now` is taken. One that is not does not count."""
        taken = self._taken
        while taken and now - taken[0] >= self._seconds:
            taken.popleft()
        if len(taken) >= self._most:
            return False
        taken.append(now)
        return True
