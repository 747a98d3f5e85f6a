"""The nodes of the instance in Redis: members, their leases and heirs, and what is kept about each node (design section 5).

Slot `{nodes}`: `members`, HASH node -> "<beats> <lost> <heir>" (one that lives has "serving", or nothing, in the last place), and
`incarnation`, the last number given; one for all node ids, so that no
counter outlives the nodes that it was for and no node's name ever comes again. Slot `{n:<node>}`: `open`, STRING, the bytes in the inbox,
there only while the inbox takes parcels; `inbox` (`inbox.py`); `filters`, SET of "<parent>\\0<filter>", and `parents`, SET: where the
node is (or was about to be) written in the indexes of parents, so that `leave` can strike it out. A member owns these keys; they also
expire, for the case that Redis loses the member and not them.

Steps that die half-way are safe: an inbox is open before its member can be seen; a node is marked lost before its inbox is closed, and who
becomes the next heir closes it again; a member is removed last of all.
"""

from __future__ import annotations

from typing import NamedTuple

from gateway.ports.cluster import Member
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.keys import Keys

KEPT_SECONDS = 30 * 24 * 3600  # far longer than offline messages: what is in an inbox is owed until somebody has cared for it


class NodeKeys(NamedTuple):
    """What is kept about one node."""

    open: str
    inbox: str
    filters: str
    parents: str


def node_keys(keys: Keys, node: str) -> NodeKeys:
    tag = f"n:{node}"
    return NodeKeys(keys.tagged(tag, "open"), keys.tagged(tag, "inbox"), keys.tagged(tag, "filters"), keys.tagged(tag, "parents"))


def members_key(keys: Keys) -> str:
    return keys.tagged("nodes", "members")


def join(keys: Keys, node_id: str) -> Steps[str]:
    """A new node's name."""
    (number,) = checked((yield [Command(("INCR", keys.tagged("nodes", "incarnation")))]))
    node = f"{node_id}/{number}"
    yield from open_inbox(keys, node)
    checked((yield [Command(("HSET", members_key(keys), node, "0 0 "))]))
    return node


def open_inbox(keys: Keys, node: str) -> Steps[None]:
    checked((yield [Command(("SET", node_keys(keys, node).open, 0, "EX", KEPT_SECONDS))]))


def beat(keys: Keys, node: str, serving: bool) -> Steps[bool]:
    """False as well when the inbox is not open: nobody could hand this node anything."""
    raised = Call("cluster_beat", (members_key(keys),), (node, "serving" if serving else ""))
    alive, kept = checked((yield [raised, Call("cluster_keep", node_keys(keys, node), (KEPT_SECONDS,))]))
    return bool(alive == 1 and kept == 1)


def members(keys: Keys) -> Steps[list[Member]]:
    (flat,) = checked((yield [Command(("HGETALL", members_key(keys)))]))
    found = []
    for node, packed in zip(flat[::2], flat[1::2], strict=True):
        beats, lost, more = packed.decode().split(" ", 2)
        found.append(
            Member(node.decode(), int(beats), True, more) if lost == "1" else Member(node.decode(), int(beats), False, "", bool(more))
        )
    return found


def declare_lost(keys: Keys, node: str, beats: int, heir: str) -> Steps[bool]:
    if not (yield from mark_lost(keys, node, beats, heir)):
        return False
    yield from close_inbox(keys, node)
    return True


def mark_lost(keys: Keys, node: str, beats: int, heir: str) -> Steps[bool]:
    (marked,) = checked((yield [Call("cluster_lose", (members_key(keys),), (node, beats, heir))]))
    return bool(marked == 1)


def close_inbox(keys: Keys, node: str) -> Steps[None]:
    """Nothing is taken any more; what is in it stays."""
    checked((yield [Command(("DEL", node_keys(keys, node).open))]))


def remove(keys: Keys, node: str) -> Steps[None]:
    """The last step of leaving."""
    _, inbox, filters, parents = node_keys(keys, node)
    checked((yield [Command(("UNLINK", inbox, filters, parents))]))
    checked((yield [Command(("HDEL", members_key(keys), node))]))
