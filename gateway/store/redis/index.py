"""Who listens below a parent topic, in Redis (design section 5, "finding subscribers").

Slot `{p:<parent>}`: `f:<filter>`, HASH of a filter's listeners, "c<client id>" -> "<qos> <since> <node>" for sessions, "n<node>" -> "" for
nodes; `shapes`, HASH shape -> number of filters that have listeners; `log`, LIST of the last changed filters; `head`, STRING "<version>
<version of the shapes> <wide> <version of wide>"; `pulling`, HASH node -> version of wide. The version grows by one for each entry of the
log, so a version is a place in it. A shape is a filter whose concrete levels are `=`: `cmd/7/#` has the shape `=/=/#`.

A node that listens is noted under its own name before it is written here, and struck out there after it is removed here; a node whose inbox
is closed meanwhile takes back what it wrote, since whoever cares for it may have been through its notes already.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

from gateway.ports import StoreError
from gateway.ports.cluster import Entry, Listed, Look, Wide
from gateway.store.redis.engine import Call, Command, Steps, checked
from gateway.store.redis.keys import Keys
from gateway.store.redis.members import node_keys

LOG_MOST = 10_000  # changes; who is further behind forgets everything it knows
LOG_SECONDS = 24 * 3600  # the log of a parent that nobody uses any more
CALL_MOST = 1000  # changes, or filters asked for, of one script call: about 2 ms of Redis

_NODE = ord("n")

Change = tuple[str, Entry]


class ParentKeys(NamedTuple):
    """filters: the prefix of the hashes."""

    head: str
    shapes: str
    log: str
    pulling: str
    filters: str


@lru_cache(maxsize=1024)
def parent_keys(keys: Keys, parent: str) -> ParentKeys:
    at = keys.tagged(f"p:{parent}", "")
    return ParentKeys(f"{at}head", f"{at}shapes", f"{at}log", f"{at}pulling", f"{at}f:")


def member_of(entry: Entry) -> str:
    return f"c{entry.client_id}" if entry.client_id else f"n{entry.node}"


def shape_of(filter: str) -> str:
    return "/".join([level if level in ("+", "#") else "=" for level in filter.split("/")])


# -- changing it


def change(keys: Keys, parent: str, add: Sequence[Change], remove: Sequence[Change]) -> Steps[Wide]:
    """An entry that is to be added and to be removed is added."""
    if add and remove:
        kept = {(filter, member_of(entry)) for filter, entry in add}
        remove = [one for one in remove if (one[0], member_of(one[1])) not in kept]
    added, removed = _by_node(add), _by_node(remove)
    for node, filters in added.items():
        yield from _note(keys, node, "filters", [_name(parent, filter) for filter in filters])
    wide = yield from _write(keys, parent, add, remove)
    for node, filters in removed.items():
        yield from strike_out(keys, node, [_name(parent, filter) for filter in filters])
    for node, filters in added.items():
        if not (yield from _is_open(keys, node)):
            yield from _write(keys, parent, (), [(filter, Entry("", node)) for filter in filters])
            yield from strike_out(keys, node, [_name(parent, filter) for filter in filters])
            raise _closed(node)
    return wide


def is_long(add: Sequence[Change], remove: Sequence[Change]) -> bool:
    """Whether `change` takes more than one round."""
    return len(add) + len(remove) > CALL_MOST or any(not entry.client_id for changes in (add, remove) for _, entry in changes)


def _write(keys: Keys, parent: str, add: Sequence[Change], remove: Sequence[Change]) -> Steps[Wide]:
    at = parent_keys(keys, parent)
    changes = [(one, False) for one in remove] + [(one, True) for one in add]
    wide = Wide(False, 0)
    for start in range(0, max(1, len(changes)), CALL_MOST):
        hashes: list[str] = []
        args: list[str | int] = [len(at.filters.encode()), LOG_MOST, LOG_SECONDS, 0]
        for (filter, entry), adding in changes[start : start + CALL_MOST]:
            hashes.append(at.filters + filter)
            args.append(member_of(entry))
            if adding:
                args.append(f"{entry.qos} {entry.since} {entry.node}" if entry.client_id else "")
            else:
                args[3] = len(hashes)
            args.append(shape_of(filter))
        (head,) = checked((yield [Call("cluster_index", (at.head, at.shapes, at.log, *hashes), tuple(args))]))
        wide = _head(head)[1]
    return wide


def narrow(keys: Keys, parent: str, version: int) -> Steps[Wide]:
    at = parent_keys(keys, parent)
    (head,) = checked((yield [Command(("GET", at.head))]))
    wide = _head(head)[1]
    if not wide.on or wide.version != version:
        return wide
    (head,) = checked((yield [Call("cluster_narrow", (at.head, at.shapes), (version,))]))
    return _head(head)[1]


def pulled(keys: Keys, parent: str, node: str, version: int) -> Steps[bool]:
    at = parent_keys(keys, parent)
    yield from _note(keys, node, "parents", [parent])
    checked((yield [Command(("HSET", at.pulling, node, version))]))
    if not (yield from _is_open(keys, node)):
        checked((yield [Command(("HDEL", at.pulling, node))]))
        raise _closed(node)
    return True


def pulling(keys: Keys, parent: str) -> Steps[dict[str, int]]:
    (flat,) = checked((yield [Command(("HGETALL", parent_keys(keys, parent).pulling))]))
    return {node.decode(): int(version) for node, version in zip(flat[::2], flat[1::2], strict=True)}


# -- what a node left in it


def drop_pulling(keys: Keys, node: str) -> Steps[None]:
    """Of all parents."""
    noted = node_keys(keys, node).parents
    (parents,) = checked((yield [Command(("SMEMBERS", noted))]))
    if parents:
        checked((yield [Command(("HDEL", parent_keys(keys, parent.decode()).pulling, node)) for parent in parents]))
        checked((yield [Command(("SREM", noted, *parents))]))


def drop_filters(keys: Keys, node: str, most: int = CALL_MOST) -> Steps[int]:
    """Some of the filters that the node listens to; how many, 0 when there is none left."""
    (found,) = checked((yield [Command(("SRANDMEMBER", node_keys(keys, node).filters, most))]))
    names = [name.decode() for name in found]
    by_parent: dict[str, list[Change]] = {}
    for name in names:
        parent, _, filter = name.partition("\0")
        by_parent.setdefault(parent, []).append((filter, Entry("", node)))
    for parent, changes in by_parent.items():
        yield from _write(keys, parent, (), changes)
    yield from strike_out(keys, node, names)
    return len(names)


def _note(keys: Keys, node: str, kind: str, names: Sequence[str]) -> Steps[None]:
    at = node_keys(keys, node)
    for part in _parts(names):
        (noted,) = checked((yield [Call("cluster_note", (at.open, getattr(at, kind)), tuple(part))]))
        if noted != 1:
            raise _closed(node)


def strike_out(keys: Keys, node: str, names: Sequence[str]) -> Steps[None]:
    for part in _parts(names):
        checked((yield [Command(("SREM", node_keys(keys, node).filters, *part))]))


def _is_open(keys: Keys, node: str) -> Steps[bool]:
    (found,) = checked((yield [Command(("EXISTS", node_keys(keys, node).open))]))
    return bool(found == 1)


def _closed(node: str) -> StoreError:
    return StoreError(f"node {node} has no open inbox: it was declared lost or has left; join again")


def _by_node(changes: Iterable[Change]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for filter, entry in changes:
        if not entry.client_id:
            found.setdefault(entry.node, []).append(filter)
    return found


def _name(parent: str, filter: str) -> str:
    return f"{parent}\0{filter}"


def _parts(names: Sequence[str]) -> Iterator[Sequence[str]]:
    return (names[start : start + CALL_MOST] for start in range(0, len(names), CALL_MOST))


# -- reading it


def look(keys: Keys, parent: str, since: int, filters: Sequence[str]) -> Steps[Look]:
    """One round; another one when no filters are asked for and something has changed. What is listed is never older than the version."""
    at = parent_keys(keys, parent)
    if not filters:
        (head,) = checked((yield [Command(("GET", at.head))]))
        version, wide = _head(head)
        if version == since:
            return Look(version, [], None if since else [], wide, {})
    calls: list[Call | Command] = []
    for part in _parts(filters) if filters else [()]:
        calls.append(Call("cluster_look", (at.head, at.shapes, at.log, *[at.filters + filter for filter in part]), (since,)))
    replies = checked((yield calls))
    listed: dict[str, Listed] = {}
    for start, reply in zip(range(0, len(calls) * CALL_MOST, CALL_MOST), replies, strict=True):
        for n, flat in zip(reply[3::2], reply[4::2], strict=True):
            listed[filters[start + n]] = _listed(flat)
    head, changed, shapes = min(replies, key=lambda reply: _head(reply[0])[0])[:3]  # the oldest answer
    version, wide = _head(head)
    return Look(
        version,
        None if changed is None else [filter.decode() for filter in dict.fromkeys(changed)],
        None if shapes is None else [shape.decode() for shape in shapes],
        wide,
        listed,
    )


@lru_cache(maxsize=1024)
def _head(packed: bytes | None) -> tuple[int, Wide]:
    """(version, wide). Most looks find the head of the look before."""
    if packed is None:
        return 0, Wide(False, 0)
    version, _, on, widened = packed.split()
    return int(version), Wide(on == b"1", int(widened))


def _listed(flat: Sequence[bytes]) -> Listed:
    sessions: dict[str, Entry] = {}
    nodes: set[str] = set()
    rest = iter(flat)  # once for each message to a device of a fleet: half the time of slices and `zip`
    for member in rest:
        name, value = member[1:].decode(), next(rest)
        if member[0] == _NODE:
            nodes.add(name)
        else:
            qos, since, node = value.split(b" ", 2)
            sessions[name] = Entry(name, node.decode(), int(qos), int(since))
    return Listed(sessions, nodes)
