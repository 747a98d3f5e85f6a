"""The commands' bodies: what each does with its arguments, and what it prints."""

from __future__ import annotations

import base64
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, NamedTuple

import trio
from rich.console import Console
from rich.markup import escape

from gateway.mqtt.packets import Publish
from gateway.mqtt.topics import split_parent
from gateway.rules import envelope
from gateway.rules.names import is_group
from gateway.rules.presence import event_topic
from gateway.settings import Settings
from gateway.tools.device import connected
from gateway.tools.events import TYPES, Filter, events
from gateway.tools.identity import Identity, identify
from gateway.tools.output import clock, emit, emit_json, harmless, payload_fields, readable, start_time
from gateway.tools.running import ToolError


class Who(NamedTuple):
    """As whom a device command connects; "" for what the settings say."""

    server: str
    account: str
    group: str
    client_id: str

    def identity(self, settings: Settings, role: str) -> Identity:
        return identify(settings, server=self.server, account=self.account, group=self.group, client_id=self.client_id, role=role)


class Note(NamedTuple):
    """What a server app says about its message. tag None: the one for devices."""

    subtopic: str
    p2p: str
    qos: int
    retain: bool
    keep: bool
    show_as: str
    tag: str | None

    def properties(self) -> dict[str, str]:
        """As contract section 5 has them. Raises ToolError."""
        if self.subtopic and self.p2p:
            raise ToolError("--subtopic and --p2p exclude each other: a P2P message has no subtopic.")
        second = envelope.P2P + self.p2p if self.p2p else self.subtopic
        properties = {envelope.QOS: str(self.qos)}
        if second:
            properties[envelope.SECOND_TOPIC] = second if second.startswith("/") else "/" + second
        if self.retain:
            properties[envelope.RETAIN] = "true"
        if self.p2p:
            properties[envelope.CLEAN_SESSION] = "false" if self.keep else "true"
        if self.show_as:
            properties[envelope.REAL_TOPIC] = self.show_as
        return properties


async def check(settings: Settings, as_json: bool) -> int:
    """Print each finding; 1 when one is bad."""
    from gateway import app
    from gateway.api.http import as_json as health_json
    from gateway.tools.check import check as findings

    console = Console(soft_wrap=True, highlight=False)
    good = True
    async for health in findings(settings, app.build_store, app.build_backend, app.report_store):
        good = good and health.ok
        if as_json:
            emit_json(health_json(health))
        else:
            state = "[green]ok    [/]" if health.ok else "[red]FAILED[/]"
            text = f"{health.detail}. {health.cure}" if health.cure else health.detail
            console.print(f"{state} {escape(harmless(health.name))}: {escape(harmless(text))}")
    return 0 if good else 1


async def device_pub(settings: Settings, who: Who, topic: str, payload: bytes, qos: int, retain: bool, as_json: bool) -> int:
    """Publish once."""
    identity = who.identity(settings, "pub")
    async with connected(identity.host, identity.port, identity.connect(clean=True)) as device:
        await device.publish(topic, payload, qos, retain)
    if as_json:
        emit_json({"topic": topic, "clientId": identity.client_id, "qos": qos, "bytes": len(payload), "acknowledged": qos > 0})
    return 0


async def device_sub(settings: Settings, who: Who, filters: list[str], qos: int, keep: bool, count: int, as_json: bool) -> int:
    """Print what comes until `count` messages came."""
    if keep and not who.client_id:
        raise ToolError("--keep: a persistent session needs --client-id, or nobody could come back to it.")
    identity = who.identity(settings, "sub")
    send, receive = trio.open_memory_channel[Publish](1000)
    connect = identity.connect(clean=not keep)
    async with connected(identity.host, identity.port, connect, send.send) as device:
        await device.subscribe(filters, qos)
        print(f"subscribed as {harmless(identity.client_id)}", file=sys.stderr, flush=True)
        seen = 0
        async for message in receive:
            _print_publish(message, as_json)
            seen += 1
            if seen == count:
                break
    return 0


def _print_publish(message: Publish, as_json: bool) -> None:
    if as_json:
        fields = {"topic": message.topic, "qos": message.qos, "retain": message.retain, "dup": message.dup}
        emit_json({**fields, **payload_fields(message.payload)})
    else:
        emit(f"{harmless(message.topic)} {readable(message.payload)}")


async def app_send(settings: Settings, topic: str, body: bytes, note: Note, as_json: bool) -> int:
    """Send once."""
    from gateway import app
    from gateway.tools.server_app import server_app

    properties = note.properties()
    tag = settings.bridge.downlink_tag if note.tag is None else note.tag
    topic, rest = split_parent(topic)
    if rest:
        raise ToolError(f"{topic}{rest}: TOPIC is the backend's; give the rest as --subtopic {rest}")
    async with server_app(settings, app.build_backend) as backend:
        receipt = await backend.send(topic, body, tag, properties, note.p2p or note.subtopic)
    if as_json:
        emit_json(receipt)
    else:
        emit(f"stored {receipt['id']} in {topic} ({receipt['queue']}, offset {receipt['offset']})")
    return 0


async def app_tail(settings: Settings, topic: str, tags: list[str], start: str, count: int, as_json: bool) -> int:
    """Print a topic's messages."""
    from gateway import app
    from gateway.tools.server_app import server_app

    begin = start_time(start)
    async with server_app(settings, app.build_backend) as backend, backend.read(topic, frozenset(tags) or None, begin) as messages:
        return await _print_all(messages, _print_message, count, as_json)


async def app_create_topic(settings: Settings, topic: str, as_json: bool) -> int:
    """Create a topic of the backend."""
    from gateway import app
    from gateway.tools.server_app import server_app

    async with server_app(settings, app.build_backend) as backend:
        queues = await backend.create(topic, settings.backend.create_queues)
    if as_json:
        emit_json({"topic": topic, "queues": queues})
    else:
        emit(f"{topic} has {queues} queues")
    return 0


async def tail(settings: Settings, group: str, client: str, types: list[str], reason: str, start: str, count: int, as_json: bool) -> int:
    """Print a group's lifecycle events."""
    from gateway import app
    from gateway.tools.server_app import server_app

    if not is_group(group):
        raise ToolError(f'{group!r} is no Group ID: "GID_" and then letters, digits, "_" or "-", 7 to 32 characters in all.')
    unknown = [one for one in types if one not in TYPES]
    if unknown:
        raise ToolError(f"--type: {unknown[0]!r} is unknown; there are {', '.join(TYPES)}.")
    wanted, begin = Filter(client, frozenset(types), reason), start_time(start)
    async with (
        server_app(settings, app.build_backend) as backend,
        backend.read(event_topic(group), None, begin) as messages,
        aclosing(events(messages, wanted)) as found,
    ):
        return await _print_all(found, _print_event, count, as_json)


async def _print_all(found: AsyncIterator[dict[str, Any]], show: Any, count: int, as_json: bool) -> int:
    seen = 0
    async for item in found:
        show(item, as_json)
        seen += 1
        if seen == count:
            return 0
    raise ToolError("the gateway has ended, and the stream with it.")


def _print_message(message: dict[str, Any], as_json: bool) -> None:
    body = base64.b64decode(message["body"])
    if as_json:
        emit_json({**message, **payload_fields(body)})
        return
    properties = " ".join(f"{harmless(name)}={harmless(value)}" for name, value in sorted(message["properties"].items()))
    emit(f"{clock(message['stored_at'])} {message['queue']}:{message['offset']} [{harmless(message['tag'])}] {properties} {readable(body)}")


def _print_event(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit_json(event)
        return
    fields = [clock(event["time"]), f"{event['eventType']:<10}", harmless(event["clientId"]), harmless(event["clientIp"])]
    emit(
        " ".join(
            [*fields, f"channel={harmless(event['channelId'])}", *([f"reason={harmless(event['reason'])}"] if event["reason"] else [])]
        )
    )
