"""One connection of the remoting protocol: requests and answers matched by number, requests of the peer answered, writes coalesced.

Whether a lost request was carried out is not known (design section 3, point 3); who asks decides what follows from that.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from . import codes
from .acl import Signer
from .frames import ANSWER, ONE_WAY, Decoder, Frame, FrameError, encode
from .wakeup import Signal

SILENCE = 5.0  # seconds without any byte while an answer is due: the peer is taken for frozen
PATIENCE = 15.0  # seconds for an answer; then the connection is given up (design section 3, point 3)
_SWEEP = 0.5  # seconds
_READ = 128 * 1024  # bytes
_TOP = 1 << 31


class Lost(Exception):
    """No answer will come: the connection ended or the time is over. The request may have been carried out or not."""


Answered = Callable[[Frame | Lost], None]


class _Pending:
    __slots__ = ("answered", "asked_at", "held_until")

    def __init__(self, answered: Answered, asked_at: float, held_until: float) -> None:
        self.answered = answered
        self.asked_at = asked_at
        self.held_until = held_until  # 0: the answer is due at once; else the peer may hold the request so long


class Connection:
    """Lives as long as `run`. `asked` is called for each request of the peer; it returns (code, remark, body) of the answer, or None."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        address: str,
        signer: Signer | None,
        asked: Callable[[Frame], tuple[int, str, bytes] | None],
        heard: Callable[[], None],
    ) -> None:
        self.address = address
        self.closed = False
        self.retired = False  # the peer said GO_AWAY: no new requests
        self.unanswered = 0  # requests that were lost with it
        self.silent = False  # an answer is overdue and nothing at all comes
        self.changed: Callable[[], None] = lambda: None
        self._stream = stream
        self._signer = signer
        self._asked = asked
        self._heard = heard
        self._decoder = Decoder()
        self._pending: dict[int, _Pending] = {}
        self._opaque = 0
        self._out: list[bytes] = []
        self._wake = Signal()
        self._scope = trio.CancelScope()
        self._reason = "closed by this side"
        self._heard_at = 0.0

    # -- asking

    def call(self, code: int, fields: dict[str, str], body: bytes, answered: Answered, hold: float = 0.0) -> int:
        """Send a request; `answered` is called once, with the answer or Lost. hold: seconds the peer may keep the request (long polling).
        The number returned is for `forget`."""
        if self.closed:
            raise Lost(f"{self.address}: {self._reason}")
        self._opaque = opaque = (self._opaque + 1) % _TOP
        now = trio.current_time()
        self._pending[opaque] = _Pending(answered, now, now + hold + PATIENCE if hold else 0.0)
        self._write(code, opaque, 0, fields, body)
        return opaque

    def forget(self, opaque: int) -> None:
        """Nobody waits for this answer any more."""
        self._pending.pop(opaque, None)

    async def request(self, code: int, fields: dict[str, str], body: bytes = b"", hold: float = 0.0) -> Frame:
        """The answer, whatever its code. Raises Lost."""
        task = trio.lowlevel.current_task()
        result: Frame | Lost | None = None

        def answered(outcome: Frame | Lost) -> None:
            nonlocal result
            result = outcome
            trio.lowlevel.reschedule(task)

        opaque = self.call(code, fields, body, answered, hold)

        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self.forget(opaque)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        if isinstance(result, Frame):
            return result
        raise result if result is not None else Lost(self.address)

    def tell(self, code: int, fields: dict[str, str], body: bytes = b"") -> None:
        """A one-way request: no answer."""
        if not self.closed:
            self._opaque = (self._opaque + 1) % _TOP
            self._write(code, self._opaque, ONE_WAY, fields, body)

    def _write(self, code: int, opaque: int, flag: int, fields: dict[str, str], body: bytes) -> None:
        if self._signer is not None and not flag & ANSWER:
            self._signer.sign(fields, body)
        out = self._out
        if not out:
            self._wake.set()
        out.append(encode(code, opaque, flag, fields, len(body)))
        if body:
            out.append(body)

    # -- living

    async def run(self) -> str:
        """Serve until the connection ends; why it ended. Everything still unanswered is Lost then."""
        self._heard_at = trio.current_time()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._send)
                    nursery.start_soon(self._sweep)
                    await self._receive()
        finally:
            self.closed = True
            lost = Lost(f"{self.address}: {self._reason}")
            pending, self._pending = self._pending, {}
            self.unanswered = len(pending)
            for each in pending.values():
                each.answered(lost)
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(self._stream)
            self.changed()
        return self._reason

    def close(self, reason: str) -> None:
        """End `run` soon."""
        if not self.closed:
            self.closed = True
            self._reason = reason
        self._scope.cancel()

    def retire(self) -> None:
        """No new requests; `run` ends when what is under way has been answered."""
        if not self.retired:
            self.retired = True
            self.changed()

    async def _receive(self) -> None:
        try:
            while True:
                data = await self._stream.receive_some(_READ)
                if not data:
                    self.close("the peer closed the connection")
                    return
                self._heard_at = trio.current_time()
                if self.silent:
                    self.silent = False
                self._heard()
                for frame in self._decoder.feed(bytes(data)):
                    if frame.flag & ANSWER:
                        self._answer(frame)
                    else:
                        self._serve(frame)
                if self.retired and not self._pending:
                    self.close("the peer asked to go away")
        except FrameError as error:
            self.close(f"not understood: {error}")
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.close(f"{error.__cause__ or error}")

    def _answer(self, frame: Frame) -> None:
        if frame.code == codes.GO_AWAY:
            self.retire()
        pending = self._pending.pop(frame.opaque, None)
        if pending is not None:
            pending.answered(frame)

    def _serve(self, frame: Frame) -> None:
        reply = self._asked(frame)
        if reply is None or frame.flag & ONE_WAY:
            return
        code, remark, body = reply
        if not self._out:
            self._wake.set()
        self._out.append(encode(code, frame.opaque, ANSWER, {}, len(body), remark))
        self._out.append(body)

    async def _send(self) -> None:
        try:
            while True:
                await self._wake.wait()
                while self._out:
                    data = b"".join(self._out)
                    self._out.clear()
                    await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            self.close(f"{error.__cause__ or error}")

    async def _sweep(self) -> None:
        """Notice a peer that does not answer. A held request that it dropped (as it does when its send buffer is full) only ends itself."""
        now = trio.current_time()
        while True:
            before = now
            await trio.sleep(_SWEEP)
            now = trio.current_time()
            if now - before > 4 * _SWEEP:
                continue  # it was this process that stood still: answers may be there unread
            oldest = now
            overdue: list[int] = []
            for opaque, pending in self._pending.items():
                if pending.held_until:
                    if now >= pending.held_until:
                        overdue.append(opaque)
                elif pending.asked_at < oldest:
                    oldest = pending.asked_at
            for opaque in overdue:
                self._pending.pop(opaque).answered(Lost(f"{self.address}: a held request was not answered"))
            if now - oldest >= PATIENCE:
                self.close(f"no answer for {PATIENCE:.0f} s")
            elif not self.silent and now - max(oldest, self._heard_at) >= SILENCE and oldest < now:
                self.silent = True
                self.changed()
