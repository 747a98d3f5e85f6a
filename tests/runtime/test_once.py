"""What a clean session was sent once is not sent again."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from gateway.runtime.once import LEAST, SECONDS, Once


async def test_a_repeat_is_known_for_a_minute_and_the_memory_is_bounded(autojump_clock: MockClock) -> None:
    once = Once()
    for number in range(LEAST * 3):
        assert not once.had(f"{number}")
    assert all(once.had(f"{number}") for number in range(LEAST * 3))
    await trio.sleep(SECONDS + 1)
    assert not once.had("new")
    assert once.had("new")
    assert not once.had("0"), "long ago"
