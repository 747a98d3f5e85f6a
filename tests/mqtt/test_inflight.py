"""Packet ids (clause 2.3.1)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt.inflight import GREATEST, next_free


def test_ids_go_round_and_skip_those_in_use() -> None:
    assert next_free(0, ()) == 1
    assert next_free(1, {2, 3}) == 4
    assert next_free(65534, ()) == 65535
    assert next_free(65535, ()) == 1
    assert next_free(65535, {1}) == 2
    assert next_free(65534, {65535, 1}) == 2


def test_all_in_use() -> None:
    everything = range(1, GREATEST + 1)
    assert next_free(17, everything) == 0
    assert next_free(17, set(everything) - {17}) == 17
    assert next_free(17, set(everything) - {16}) == 16


@given(st.sets(st.integers(1, 20)), st.integers(0, GREATEST))
def test_an_id_is_free_and_in_range(in_use: set[int], last: int) -> None:
    number = next_free(last, in_use)
    assert 1 <= number <= GREATEST
    assert number not in in_use


class Asked:
    """How often a container was asked."""

    def __init__(self) -> None:
        self.times = 0

    def __contains__(self, _: object) -> bool:
        self.times += 1
        return False


def test_no_scan_when_sparse() -> None:
    asked = Asked()
    next_free(40_000, asked)
    assert asked.times == 1
