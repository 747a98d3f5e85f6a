"""What a broker's settings mean for acknowledged messages."""

from __future__ import annotations

import pytest

from gateway.tools.brokers import judge


@pytest.mark.parametrize(
    ("told", "texts"),
    [
        ({"flushDiskType": "ASYNC_FLUSH"}, ["survives the death of the broker; with its machine the last 10 s may be lost"]),
        ({"flushDiskType": "SYNC_FLUSH"}, ["survives the death of the broker and of its machine"]),
        ({"flushDiskType": "ASYNC_FLUSH", "transientStorePoolEnable": "true"}, ["ATTENTION: the death of the broker's process"]),
        ({"brokerRole": "ASYNC_MASTER"}, ["no slave is waited for, so a lost disk"]),
        ({"brokerRole": "SYNC_MASTER", "inSyncReplicas": "1"}, ["counts the master alone, so no slave is waited for"]),
        ({"brokerRole": "SYNC_MASTER", "inSyncReplicas": "2"}, ["1 slaves have what is acknowledged"]),
        ({"brokerRole": "SYNC_MASTER"}, ["one slave has what is acknowledged"]),
        ({"brokerRole": "ASYNC_MASTER", "enableControllerMode": "true"}, ["brokers elect their master"]),
        ({"fileReservedTime": "48"}, ["kept for 48 h"]),
    ],
)
def test_each_setting_has_its_meaning(told: dict[str, str], texts: list[str]) -> None:
    row = judge("broker a keeps", told)
    assert row.ok
    for text in texts:
        assert text in row.detail


def test_a_broker_that_does_not_tell() -> None:
    row = judge("broker a keeps", {})
    assert row.ok
    assert "administrator" in row.detail
