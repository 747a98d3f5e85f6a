"""`serve`: this process is the gateway, or the parent of workers, or one of them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial

import trio

from gateway import app, observe, workers
from gateway.settings import FirstRun, Settings, SettingsError, doubts, make_data_dir, prepare
from gateway.tools.output import emit
from gateway.tools.running import leaves, run
from gateway.tools.welcome import welcome

ASK_SECONDS = 0.5  # how often a worker looks whether its servers answer, until they do


def serve(settings: Settings, *, as_json: bool, reload: Callable[[], Settings] | None = None) -> int:
    """Run the gateway; its exit code. reload: reads the settings again."""
    own = workers.inherited(os.environ)
    if own is not None:
        return _work(settings, own)
    gateway = settings.gateway
    many = gateway.workers > 1
    observe.configure(gateway.log_level, gateway.log_json, node_id=gateway.node_id if many else "")

    async def body() -> int:
        make_data_dir(settings)
        first_run = prepare(settings)
        complete = settings if first_run is None else first_run.settings
        for doubt in doubts(complete):
            observe.log.warning("setting_doubtful", key=doubt.key, problem=doubt.problem, cure=doubt.cure)
        async with trio.open_nursery() as nursery:
            if many:
                await nursery.start(partial(workers.supervise, complete, [sys.executable, *sys.orig_argv[1:]], reload))
            else:
                await nursery.start(partial(app.serve, complete))
            _greet(first_run)
        return 0

    return run(body, as_json=as_json, own_signals=True, expected=(app.StartError, workers.RefusedError))


def _greet(first_run: FirstRun | None) -> None:
    if first_run is not None and (first_run.created or sys.stdout.isatty()):
        emit(welcome(first_run))


def _work(settings: Settings, own: workers.Inherited) -> int:
    """Be a worker. What it can not start for goes to the parent, which tells it once for all."""

    async def body() -> None:
        first_run = prepare(settings)  # the account is the gateway's, not the worker's
        complete = own.adapt(settings if first_run is None else first_run.settings)
        observe.configure(complete.gateway.log_level, complete.gateway.log_json, node_id=complete.gateway.node_id)
        ending = app.Ending.never()
        async with trio.open_nursery() as nursery:
            await nursery.start(ending.on_signals, signal.SIGTERM, signal.SIGINT)
            nursery.start_soon(own.obey, ending)

            async def serve_all(*, task_status: trio.TaskStatus[object]) -> None:
                sockets = app.Sockets(own.sockets["mqtt.tcp"], own.http, app.ACCEPTS_AMONG_WORKERS)
                await app.serve(complete, ending=ending, sockets=sockets, task_status=task_status)
                nursery.cancel_scope.cancel()

            views = await nursery.start(serve_all)
            own.tell("listening")
            while views is not None and not all(health.ok for health in await views.health()):
                await trio.sleep(ASK_SECONDS)
            own.tell("ready")

    try:
        trio.run(body)
    except BaseException as error:
        found = leaves(error)
        if not all(isinstance(leaf, (app.StartError, SettingsError)) for leaf in found):
            raise
        own.tell(f"refused {found[0]}")
        return 1
    return 0
