"""Who cares for what, as every node sees it."""

from __future__ import annotations

from collections import Counter

from gateway.ports import Queue
from gateway.runtime.peers import Peers

QUEUES = [Queue("topic", f"broker-{broker}", id) for broker in range(4) for id in range(64)]


def seen_by(node: str, *others: str) -> Peers:
    peers = Peers(node)
    peers.update(node, [node, *others])
    return peers


def test_each_queue_and_each_shard_has_one_owner_and_the_work_is_shared() -> None:
    names = ["a/1", "b/7", "c/2"]
    nodes = [seen_by(name, *(other for other in names if other != name)) for name in names]
    for queue in QUEUES:
        assert sum(node.owns_queue(queue) for node in nodes) == 1
    shards = [node.shards(256) for node in nodes]
    assert sorted(shard for each in shards for shard in each) == list(range(256))
    assert min(Counter(node.node for queue in QUEUES for node in nodes if node.owns_queue(queue)).values()) > len(QUEUES) / 5
    assert min(map(len, shards)) > 256 / 5


def test_only_what_a_dead_node_had_moves() -> None:
    before, after = seen_by("a/1", "b/1", "c/1"), seen_by("a/1", "b/1")
    for queue in QUEUES:
        if before.owns_queue(queue):
            assert after.owns_queue(queue)


def test_a_node_that_starts_again_gets_back_what_it_had() -> None:
    before, after = seen_by("a/1", "b/1"), seen_by("a/2", "b/1")
    assert [before.owns_queue(queue) for queue in QUEUES] == [after.owns_queue(queue) for queue in QUEUES]
    assert before.shards(256) == after.shards(256)


def test_a_node_that_was_declared_dead_owns_nothing() -> None:
    peers = seen_by("a/1", "b/1")
    told = []
    peers.watch(lambda: told.append(peers.live))
    peers.update("a/1", ())
    assert not any(peers.owns_queue(queue) for queue in QUEUES)
    assert not peers.shards(256)
    peers.update("a/2", ["a/2", "b/1"])
    peers.update("a/2", ["b/1", "a/2"])
    assert told == [frozenset(), frozenset({"a/2", "b/1"})], "what is no change is not told"
