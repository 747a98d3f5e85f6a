"""The parent of worker processes (design section 5): binds the ports, and minds the workers that inherit them."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import trio

from gateway import observe
from gateway.settings import Settings, SettingsError
from gateway.transports import tcp
from gateway.workers.worker import Worker

FIRST_DELAY, LONGEST_DELAY = 0.5, 30.0  # seconds before a worker that died is started again; doubled each time
STEADY_SECONDS = 60.0  # a worker that lived so long begins with the first delay again
READY_SECONDS = 60.0  # how long a rolling restart waits for one worker's servers
ENDING_SECONDS = 30.0  # what a worker may take beyond its drain and grace before it is killed
PARENTS = ("gateway.workers", "mqtt.tcp", "mqtt.backlog", "http.listen")  # settings of what the parent holds


class Crew:
    """The parent: see `supervise`."""

    def __init__(self, settings: Settings, command: Sequence[str], sockets: Mapping[str, list[list[socket.socket]]]) -> None:
        self._settings = settings
        self._lot = trio.lowlevel.ParkingLot()
        self.workers = [
            Worker(number, command, {name: each[index] for name, each in sockets.items()}, self._lot.unpark_all)
            for index, number in enumerate(range(1, settings.gateway.workers + 1))
        ]
        self._stopping = False
        self._complete = False  # all workers have listened
        self._again = trio.Event()
        self._minding: trio.Nursery | None = None
        self.refused: RefusedError | None = None

    async def run(self, reload: Callable[[], Settings] | None, task_status: trio.TaskStatus[None]) -> None:
        """Until the last worker has ended. Started when all workers listen, or when they are told to end before."""
        numbers = [signal.SIGTERM, signal.SIGINT]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        with trio.open_signal_receiver(*numbers) as signals:
            async with trio.open_nursery() as minding:
                self._minding = minding
                minding.start_soon(self._mind, signals, reload)
                minding.start_soon(self._roll_when_asked)
                async with trio.open_nursery() as nursery:
                    for worker in self.workers:
                        nursery.start_soon(self._keep, worker)
                    await self._until(lambda: self._stopping or all(worker.listening for worker in self.workers))
                    self._complete = not self._stopping
                    if self.refused is None:
                        task_status.started()
                minding.cancel_scope.cancel()

    async def _keep(self, worker: Worker) -> None:
        """Have a process in this place until the end."""
        delay = FIRST_DELAY
        while not self._stopping:
            end = await worker.live()
            if self._stopping:
                break
            if worker.asked:
                observe.log.info("worker_ended", worker=worker.number, how=str(end))
                delay = FIRST_DELAY
                continue
            if not self._complete and end.code > 0:
                text = end.refused or f"worker {worker.number} ended with {end} before all workers listened; its own lines say why"
                self.refused = self.refused or RefusedError(text, end.code)
                self.stop("hurry")
                break
            if end.lived >= STEADY_SECONDS:
                delay = FIRST_DELAY
            observe.log.error("worker_died", worker=worker.number, how=str(end), error=end.refused, again_in_seconds=delay)
            with trio.move_on_after(delay):
                await worker.wake.wait()
            delay = min(delay * 2, LONGEST_DELAY)

    async def _mind(self, signals: AsyncIterator[int], reload: Callable[[], Settings] | None) -> None:
        """Signals: the first SIGTERM or SIGINT stops, the second hurries; SIGHUP restarts one worker after the other."""
        async for number in signals:
            observe.log.info("signal", name=signal.Signals(number).name)
            if number == signal.SIGHUP and not sys.stderr.isatty():  # on a terminal it means that the terminal is gone
                if _still_good(self._settings, reload):
                    self._again.set()
            else:
                self.stop("hurry" if self._stopping else "stop")

    def stop(self, word: str) -> None:
        """Tell all workers to end, and see to it. word: stop, or hurry."""
        self._stopping = True
        for worker in self.workers:
            worker.tell(word)
        self._lot.unpark_all()
        if self._minding is not None:
            self._minding.start_soon(self._kill_late, self._patience(0 if word == "hurry" else self._settings.gateway.drain_seconds))

    async def _roll_when_asked(self) -> None:
        """What is asked for during a rolling restart is one more after it."""
        while True:
            await self._again.wait()
            self._again = trio.Event()
            await self._roll()

    async def _roll(self) -> None:
        """Restart one worker after the other, each when the last one is ready; give it up when one is not."""
        for worker in self.workers:
            if not self._stopping and not await self._restart(worker):
                cure = "see its log; the workers behind it go on as they were"
                observe.log.error("rolling_restart_given_up", worker=worker.number, cure=cure)
                return
        observe.log.info("rolling_restart_done")

    async def _restart(self, worker: Worker) -> bool:
        """Whether its next process is ready."""
        observe.log.info("worker_restarting", worker=worker.number)
        before = worker.life
        worker.tell("stop")
        with trio.move_on_after(self._patience(self._settings.gateway.drain_seconds)) as patience:
            await self._until(lambda: worker.life > before or self._stopping)
        if patience.cancelled_caught:
            worker.kill()
            await self._until(lambda: worker.life > before or self._stopping)
        with trio.move_on_after(READY_SECONDS):
            await self._until(lambda: worker.ready or not worker.running or self._stopping)
        return worker.ready or self._stopping

    def _patience(self, drain: float) -> float:
        return drain + self._settings.gateway.shutdown_grace_seconds + ENDING_SECONDS

    async def _kill_late(self, seconds: float) -> None:
        await trio.sleep(seconds)
        for worker in self.workers:
            worker.kill()

    async def _until(self, reached: Callable[[], bool]) -> None:
        while not reached():
            await self._lot.park()


class RefusedError(Exception):
    """A worker refused to start, or the ports can not be had. The text names the thing and the cure."""

    def __init__(self, text: str, code: int = 1) -> None:
        super().__init__(text)
        self.code = code


async def supervise(
    settings: Settings,
    command: Sequence[str],
    reload: Callable[[], Settings] | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run `settings.gateway.workers` processes of `command` until SIGTERM or SIGINT, and start anew the ones that die.

    reload: reads the settings again, before a rolling restart. Raises RefusedError when a port is not free or a worker can not start.
    """
    with bound(settings) as sockets:
        crew = Crew(settings, command, sockets)
        await crew.run(reload, task_status)
        if crew.refused is not None:
            raise crew.refused


@contextmanager
def bound(settings: Settings) -> Iterator[dict[str, list[list[socket.socket]]]]:
    """The listening sockets by setting, for each worker. Raises RefusedError."""
    workers, http = settings.gateway.workers, settings.http.listen
    opened: list[socket.socket] = []

    def bind(address: str, backlog: int) -> list[socket.socket]:
        sockets = tcp.bind(address, backlog)
        opened.extend(sockets)
        return sockets

    try:
        shared = bind(settings.mqtt.tcp, settings.mqtt.backlog)
        own = [bind(_moved(http, index), 128)[:1] if http else [] for index in range(workers)]
        yield {"mqtt.tcp": [shared] * workers, "http.listen": own}
    except tcp.TransportError as error:
        raise RefusedError(str(error)) from error
    finally:
        for sock in opened:
            sock.close()


def _moved(address: str, by: int) -> str:
    host, _, port = address.rpartition(":")
    return f"{host}:{int(port) + by if port != '0' else 0}"


def _still_good(settings: Settings, reload: Callable[[], Settings] | None) -> bool:
    """Whether the workers may start anew with what the settings are now."""
    if reload is None:
        return True
    try:
        fresh = reload()
    except SettingsError as error:
        observe.log.error("rolling_restart_refused", error=str(error))
        return False
    changed = [key for key in PARENTS if _value(settings, key) != _value(fresh, key)]
    if changed:
        observe.log.warning("setting_not_taken", keys=", ".join(changed), cure="they take effect when the gateway is started anew")
    return True


def _value(settings: Settings, key: str) -> object:
    section, _, name = key.partition(".")
    return getattr(getattr(settings, section), name)
