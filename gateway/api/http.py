"""The HTTP listener: `/healthz`, `/readyz`, `/metrics`. Starlette on Hypercorn's trio worker."""

from __future__ import annotations

import errno
import socket
from typing import Any

import hypercorn.logging
import trio
from hypercorn.config import Config
from hypercorn.trio import serve
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gateway import observe
from gateway.api.errors import ListenError
from gateway.api.metrics import CONTENT_TYPE, Metrics, Views
from gateway.ports import Health
from gateway.settings import Settings, address

HEALTH_SECONDS = 5.0  # each server answers within 3 s by its port's promise; more is a fault of ours and must not hang a probe
READ_SECONDS = 30.0  # a client that stops in the middle of a request
RESTART_SECONDS = 1.0


def application(views: Views) -> Starlette:
    """The routes, as an ASGI application."""
    metrics = Metrics(views)

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(_: Request) -> Response:
        with trio.move_on_after(HEALTH_SECONDS):
            servers = await views.health()
            ready = all(server.ok for server in servers)
            return JSONResponse({"ready": ready, "servers": [as_json(server) for server in servers]}, 200 if ready else 503)
        return JSONResponse({"ready": False, "servers": []}, 503)

    async def scrape(_: Request) -> Response:
        return Response(metrics.render(), headers={"content-type": CONTENT_TYPE})

    routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/metrics", scrape)]
    return Starlette(routes=routes, exception_handlers={Exception: _internal_error})


def as_json(server: Health) -> dict[str, object]:
    """One server's state as `/readyz` and `check --json` show it."""
    return {"name": server.name, "ok": server.ok, "detail": server.detail, "cure": server.cure}


async def serve_http(
    settings: Settings,
    views: Views,
    inherited: socket.socket | None = None,
    *,
    task_status: trio.TaskStatus[tuple[str, int] | None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; at once over when `http.listen` is empty. inherited: a socket that listens already, for that setting; it is
    closed. Started with the bound (host, port).

    Raises ListenError when the address can't be had.
    """
    if not settings.http.listen:
        task_status.started(None)
        return
    with inherited or _listen(settings.http.listen) as listener:
        task_status.started(listener.getsockname()[:2])
        while True:
            try:
                await serve(application(views), _config(listener))  # type: ignore[arg-type]
            except Exception:  # noqa: BLE001 - logged with its traceback
                # a fault in one request must end neither the gateway nor its HTTP side
                observe.note(observe.Fact.INTERNAL_ERROR, part="http", exc_info=True)
            await trio.sleep(RESTART_SECONDS)


def _config(listener: socket.socket) -> Config:
    config = Config()
    # a duplicate, since the server closes what it is given
    config.bind = [f"fd://{listener.dup().detach()}"]
    config.errorlog = config.accesslog = None
    config.logger_class = _Log
    config.read_timeout = READ_SECONDS  # type: ignore[assignment]
    config.graceful_timeout = 1.0
    config.include_server_header = False
    return config


def _listen(text: str) -> socket.socket:
    host, port = address(text)
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(place)
            listener.listen(128)
            listener.setblocking(False)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        cure = "Stop what uses it or choose another one." if error.errno == errno.EADDRINUSE else "Choose an address of this machine."
        raise ListenError(f"http.listen: can not listen on {text} ({error.strerror}). {cure}") from None
    return listener


async def _internal_error(request: Request, error: Exception) -> Response:
    observe.note(observe.Fact.INTERNAL_ERROR, part="http", path=request.url.path, exc_info=error)
    return PlainTextResponse("internal error\n", 500)


class _Log(hypercorn.logging.Logger):
    """What the server has to say beyond each request goes to our log."""

    async def critical(self, message: str, *args: Any, **kwargs: Any) -> None:
        observe.log.error("http_server", message=message % args if args else message)

    async def error(self, message: str, *args: Any, **kwargs: Any) -> None:
        observe.log.error("http_server", message=message % args if args else message)

    async def warning(self, message: str, *args: Any, **kwargs: Any) -> None:
        observe.log.warning("http_server", message=message % args if args else message)

    async def exception(self, message: str, *args: Any, **kwargs: Any) -> None:
        observe.note(observe.Fact.INTERNAL_ERROR, part="http", exc_info=True)
