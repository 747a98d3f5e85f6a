"""What the settings of a RocketMQ broker mean for the messages that the gateway has acknowledged (docs/guarantees.md)."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.ports import Health


def judge(name: str, told: Mapping[str, str]) -> Health:
    """told: its settings; empty when the broker does not tell them."""
    if not told:
        return Health(name, True, "it does not tell its settings (that takes an administrator's access key)")
    flush, role, hours = told.get("flushDiskType", "?"), told.get("brokerRole", "?"), told.get("fileReservedTime", "?")
    pool = told.get("transientStorePoolEnable") == "true"
    meanings = [_flush(flush, pool), _role(role, told), f"messages are kept for {hours} h, read or not"]
    text = f"flushDiskType {flush}, brokerRole {role}, transientStorePoolEnable {str(pool).lower()}: {'; '.join(meanings)}"
    return Health(name, True, text, "set transientStorePoolEnable=false, unless that is meant" if pool else "")


def _flush(flush: str, pool: bool) -> str:
    if pool:
        return "ATTENTION: the death of the broker's process may lose the last moments of what is acknowledged"
    if flush == "SYNC_FLUSH":
        return "what is acknowledged survives the death of the broker and of its machine"
    return "what is acknowledged survives the death of the broker; with its machine the last 10 s may be lost"


def _role(role: str, told: Mapping[str, str]) -> str:
    if told.get("enableDLegerCommitLog") == "true" or told.get("enableControllerMode") == "true":
        return "brokers elect their master"
    if role != "SYNC_MASTER":
        return "no slave is waited for, so a lost disk loses what was not copied yet"
    copies = told.get("inSyncReplicas")
    if copies is None:  # RocketMQ 4
        return "one slave has what is acknowledged"
    if int(copies) < 2:
        return "inSyncReplicas 1 counts the master alone, so no slave is waited for"
    return f"{int(copies) - 1} slaves have what is acknowledged"
