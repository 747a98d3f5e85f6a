"""Cross checks: what no single key can tell, contradictions between settings."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.settings.model import Settings
from gateway.settings.values import Problem


def cross_check(settings: Settings) -> list[Problem]:
    """What no single key can tell: contradictions between settings."""
    return [*_check_bridge(settings), *_check_accounts(settings), *_check_sizes(settings), *_check_places(settings)]


def doubts(settings: Settings) -> list[Problem]:
    """What works, but hardly as it is meant: for the log and for `check`."""
    if settings.store.shared and settings.embedded_backend() is not None:
        problem = "the embedded log is this node's alone, though the store can be shared"
        return [Problem("backend.url", problem, "Run one node only, or name a RocketMQ: rocketmq://host:9876.")]
    return []


def _check_bridge(settings: Settings) -> Iterator[Problem]:
    bridge = settings.bridge
    if not bridge.topics and not bridge.default_topic:
        yield Problem("bridge.topics", "no topic is bridged", 'Name at least one RocketMQ topic, e.g. topics = ["demo"].')
    if len(set(bridge.topics)) < len(bridge.topics):
        yield Problem("bridge.topics", "a topic is listed twice", "Remove one of the two.")
    if len({bridge.uplink_tag, bridge.p2p_tag, bridge.downlink_tag}) < 3:
        yield Problem(
            "bridge.uplink_tag", "uplink_tag, p2p_tag and downlink_tag must differ", "Devices' own messages would come back as downlink."
        )


def _check_accounts(settings: Settings) -> Iterator[Problem]:
    owners: dict[str, str] = {}
    keys: set[str] = set()
    for index, account in enumerate(settings.accounts):
        if account.access_key in keys:
            yield Problem(f"accounts[{index}].access_key", f"{account.access_key!r} is used twice", "Every account has its own AccessKey.")
        keys.add(account.access_key)
        for group in account.groups:
            owner = owners.setdefault(group, account.access_key)
            if owner != account.access_key:
                yield Problem(
                    f"accounts[{index}].groups",
                    f"{group} belongs to account {owner!r} already",
                    "A group belongs to one account; a group for all accounts goes into naming.groups.",
                )
            if group in settings.naming.groups:
                yield Problem(f"accounts[{index}].groups", f"{group} is in naming.groups, open to every account", "Remove one of the two.")


def _check_sizes(settings: Settings) -> Iterator[Problem]:
    limits = settings.limits
    if limits.packet_bytes < limits.payload_bytes:
        yield Problem(
            "limits.packet_bytes", f"{limits.packet_bytes} is less than limits.payload_bytes ({limits.payload_bytes})", "Make it greater."
        )


def _check_places(settings: Settings) -> Iterator[Problem]:
    workers, log, store = settings.gateway.workers, settings.embedded_backend(), settings.embedded_store()
    if workers > 1 and store is not None:
        yield Problem(
            "gateway.workers", f"{workers} workers can not share the embedded store", "Set workers = 1, or store.url to a redis:// one."
        )
    if workers > 1 and log is not None and store is None:
        yield Problem(
            "backend.url",
            f"each of the {workers} workers would have an embedded log of its own",
            "Name a RocketMQ, rocketmq://host:9876, or set gateway.workers = 1.",
        )
    if log is not None and store is not None and log.path == store.path:
        yield Problem("store.url", f"store and backend share the file {log.path}", "Give each its own path.")
    port = settings.http.listen.rpartition(":")[2]
    if port and port != "0" and int(port) + workers - 1 > 65535:
        yield Problem("http.listen", f"{workers} workers need the ports from {port} on, up to 65535", "Choose a smaller port.")
