"""Small durable notes."""

from __future__ import annotations

from gateway.store.redis.engine import Command, Steps, checked
from gateway.store.redis.instance import Instance


def mark(at: Instance, name: str) -> Steps[str | None]:
    """As `Store.mark`."""
    (reply,) = checked((yield [Command(("HGET", at.keys.marks(), name))]))
    return None if reply is None else reply.decode()


def set_mark(at: Instance, name: str, value: str) -> Steps[None]:
    """As `Store.set_mark`."""
    checked((yield [Command(("HSET", at.keys.marks(), name, value))]))
