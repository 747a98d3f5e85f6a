"""The settings of a broker that decide what survives which death: the answer to GET_BROKER_CONFIG."""

from __future__ import annotations

WANTED = (
    "flushDiskType",
    "brokerRole",
    "transientStorePoolEnable",
    "fileReservedTime",
    "inSyncReplicas",
    "enableControllerMode",
    "enableDLegerCommitLog",
)


def parse_settings(body: bytes) -> dict[str, str]:
    """Those of `WANTED` that are in it, from lines of `key=value`."""
    lines = (line.partition("=") for line in body.decode("utf-8", "replace").splitlines())
    found = {key.strip(): value.strip() for key, separator, value in lines if separator}
    return {key: found[key] for key in WANTED if key in found}
