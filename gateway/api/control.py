"""The control socket: how commands on this machine reach the embedded backend of a running gateway.

A unix socket in `data_dir` for this user alone. The client sends one JSON object on a line, the gateway answers JSON objects, one a line:
`{"do": "send", "topic", "body" (base64), "tag", "properties", "key"}` -> `{"ok": true, "id", "queue", "offset"}`;
`{"do": "tail", "topic", "tags" (list or null), "start"}` -> `{"ok": true}` and then a message a line, until the client closes;
`{"do": "create", "topic"}` -> `{"ok": true, "queues": n}`;
and `{"ok": false, "error"}` for what can't be done. Lines, not HTTP: a reader that stops reading must not hold up a shutdown, and
Hypercorn shields its writes.
"""

from __future__ import annotations

import base64
import json
import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import trio

from gateway import observe
from gateway.api.errors import ListenError
from gateway.api.reading import reading, start_of
from gateway.ports import Backend, BackendError, Message, Properties, Receipt, Received, Refusal
from gateway.settings import Settings

FILE = "control.sock"
LONGEST_REQUEST = 128 << 20  # bytes of a line: the greatest body in base64, with its properties
_TOPIC = re.compile(r"[A-Za-z0-9_%|-]{1,127}")  # what RocketMQ accepts
_LONGEST_PATH = 107  # bytes, of sockaddr_un


def socket_path(settings: Settings) -> Path:
    """Where the control socket of a gateway with these settings is."""
    return settings.gateway.data_dir / FILE


async def serve_control(settings: Settings, backend: Backend, *, task_status: trio.TaskStatus[Path] = trio.TASK_STATUS_IGNORED) -> None:
    """Serve until cancelled. Started with the socket's path. Raises ListenError when it can't be made."""
    path = socket_path(settings)
    with _listen(path) as listener:
        try:
            task_status.started(path)
            wrapped = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))

            async def serve_one(stream: trio.SocketStream) -> None:
                await _serve_client(stream, backend)

            await trio.serve_listeners(serve_one, [wrapped])
        finally:
            path.unlink(missing_ok=True)


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ListenError(f"gateway.data_dir: {path} is too long for a socket. Choose a shorter path.")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _remove_stale(path)
        mask = os.umask(0o177)  # mode 0600 from its first moment
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(16)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ListenError(f"gateway.data_dir: {path} can not be made ({error.strerror}). Choose a folder of this user.") from None
    except ListenError:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """A socket that nobody answers on was left by a gateway that was killed."""
    if not path.is_socket():
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
    raise ListenError(f"gateway.data_dir: another gateway runs in {path.parent}. Stop it or choose another data_dir.")


async def _serve_client(stream: trio.SocketStream, backend: Backend) -> None:
    """One request; no fault of it ends more than its connection."""
    async with stream:
        try:
            await _answer(stream, backend, await _read_request(stream))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return
        except BackendError as error:
            await _try_write(stream, {"ok": False, "error": str(error)})
        except Exception:  # noqa: BLE001 - logged with its traceback
            observe.note(observe.Fact.INTERNAL_ERROR, part="control", exc_info=True)
            await _try_write(stream, {"ok": False, "error": "internal error; the gateway's log has the traceback"})


async def _read_request(stream: trio.SocketStream) -> Mapping[str, Any]:
    line = bytearray()
    while not line.endswith(b"\n"):
        data = await stream.receive_some(1 << 16)
        if not data:
            raise trio.BrokenResourceError
        line += data
        if len(line) > LONGEST_REQUEST:
            raise BackendError(Refusal.INVALID, "the request is too long")
    try:
        request = json.loads(line)
    except ValueError:
        raise BackendError(Refusal.INVALID, "the request is no JSON") from None
    if not isinstance(request, dict):
        raise BackendError(Refusal.INVALID, "the request is no JSON object")
    return request


async def _answer(stream: trio.SocketStream, backend: Backend, request: Mapping[str, Any]) -> None:
    match request.get("do"):
        case "send":
            await _write(stream, await _send(backend, request))
        case "tail":
            await _tail(stream, backend, request)
        case "create":
            await _write(stream, {"ok": True, "queues": await create_topic(backend, request.get("topic"))})
        case other:
            raise BackendError(Refusal.INVALID, f"unknown request {other!r}")


async def _send(backend: Backend, request: Mapping[str, Any]) -> dict[str, object]:
    try:
        body = base64.b64decode(request["body"], validate=True)
        topic, tag, key = str(request["topic"]), str(request.get("tag", "")), str(request.get("key", ""))
        properties = {str(name): str(value) for name, value in dict(request.get("properties", {})).items()}
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(Refusal.INVALID, f"a field is missing or wrong: {error}") from None
    await must_exist(backend, topic)
    receipt, id = await send_message(backend, topic, body, tag, properties, key)
    return {"ok": True, "id": id, "queue": f"{receipt.queue.broker}/{receipt.queue.id}", "offset": receipt.offset}


async def send_message(
    backend: Backend, topic: str, body: bytes, tag: str, properties: Mapping[str, str], key: str = ""
) -> tuple[Receipt, str]:
    """Store one message; its place and its id. Raises BackendError, NO_SUCH_TOPIC among them."""
    id = backend.new_id()
    results: list[Receipt | BackendError] = []
    stored = trio.Event()

    def done(result: Receipt | BackendError) -> None:
        results.append(result)
        stored.set()

    await backend.room()
    backend.submit(Message(topic, body, tag, Properties(properties), key or id, id), done)
    await stored.wait()
    if isinstance(results[0], BackendError):
        raise results[0]
    return results[0], id


async def must_exist(backend: Backend, topic: str) -> None:
    """Raises BackendError when the backend has no such topic, or when that can't be known."""
    if await backend.topic(topic) is None:
        raise BackendError(
            Refusal.NO_SUCH_TOPIC, f"the backend has no topic {topic}. Create it with `mqtt-gateway app create-topic {topic}`."
        )


async def create_topic(backend: Backend, topic: object, queues: int = 8) -> int:
    """Create a topic when it isn't there; how many queues it has. Raises BackendError."""
    if not isinstance(topic, str) or not _TOPIC.fullmatch(topic):
        raise BackendError(Refusal.INVALID, f"{topic!r} is no topic name: letters, digits, _, -, % and |, at most 127 characters")
    return len((await backend.create_topic(topic, queues)).queues)


async def _tail(stream: trio.SocketStream, backend: Backend, request: Mapping[str, Any]) -> None:
    try:
        topic, start = str(request["topic"]), start_of(str(request.get("start", "now")))
        tags = None if request.get("tags") is None else frozenset(map(str, request["tags"]))
    except (KeyError, TypeError, ValueError) as error:
        raise BackendError(Refusal.INVALID, f"a field is missing or wrong: {error}") from None
    await must_exist(backend, topic)
    async with reading(backend, topic, tags, start) as batches:
        await _write(stream, {"ok": True})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_closed, stream, nursery.cancel_scope)
            async for messages in batches:
                try:
                    await stream.send_all(b"".join(_line(as_json(message)) for message in messages))
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    break
            nursery.cancel_scope.cancel()


async def _until_closed(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    try:
        while await stream.receive_some(4096):
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    scope.cancel()


def as_json(message: Received) -> dict[str, object]:
    """A message as commands show it; the body in base64."""
    return {
        "topic": message.queue.topic,
        "queue": f"{message.queue.broker}/{message.queue.id}",
        "offset": message.offset,
        "id": message.id,
        "tag": message.tag,
        "stored_at": message.stored_at,
        "born_at": message.born_at,
        "properties": dict(message.properties),
        "body": base64.b64encode(message.body).decode("ascii"),
    }


def _line(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


async def _write(stream: trio.SocketStream, value: Mapping[str, object]) -> None:
    await stream.send_all(_line(value))


async def _try_write(stream: trio.SocketStream, value: Mapping[str, object]) -> None:
    try:
        await _write(stream, value)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
