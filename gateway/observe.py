"""What the gateway says about itself: the closed catalogue of facts, their counters, their log lines, and the buckets behind curves.

A fact is one value from which the log line, the counter and the metric's help text all derive (design section 3, 10). Log lines go to
stderr: key=value on a terminal, one JSON object a line elsewhere. Payloads and secrets never get there: fields with such names are masked
and bytes are shown by their length only.
"""

from __future__ import annotations

import sys
import time
from array import array
from collections.abc import Callable, MutableMapping
from enum import Enum, unique
from typing import Any

import structlog

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}
_MASKED_WORDS = ("password", "secret", "token", "payload", "signature", "credential", "authorization")
_MASK = "***"
_LONGEST_VALUE = 500  # characters; a topic name may have 65,535
_MOST_REASONS = 64  # different reasons counted for one fact; reasons are enums, so more would be a mistake of ours


@unique
class Fact(Enum):
    """Everything that can happen and is counted: (event name, level of its log line, what it means and what follows)."""

    CONNECTED = ("connected", "info", "A device was accepted.")
    DISCONNECTED = ("disconnected", "info", "A device's connection ended, for whatever reason.")
    CONNECTION_REFUSED = ("connection_refused", "warning", "A CONNECT was refused; the reason says why.")
    PROTOCOL_ERROR = ("protocol_error", "warning", "A device broke the MQTT standard; its connection was closed.")
    INTERNAL_ERROR = ("internal_error", "error", "A fault of the gateway itself; please report it with its traceback.")
    KEEP_ALIVE_TIMEOUT = ("keep_alive_timeout", "info", "A device was silent for one and a half keep-alive periods and was disconnected.")
    TAKEN_OVER = ("taken_over", "info", "A newer connection with the same Client ID took the session.")
    SEND_TIMEOUT = ("send_timeout", "warning", "A connection took no bytes for too long and was closed.")
    SLOW_CONSUMER_CLOSED = ("slow_consumer_closed", "warning", "A clean session could not keep up with its messages and was closed.")
    MESSAGE_DROPPED = ("message_dropped", "warning", "A message was given up; the reason says why.")
    MESSAGE_UNROUTABLE = ("message_unroutable", "warning", "A message from the backend can not become a PUBLISH; it is skipped.")
    QOS0_DROPPED = ("qos0_dropped", "warning", "A QoS 0 message was dropped because a bound was reached.")
    MAILBOX_FULL = ("mailbox_full", "warning", "A device's outbound queue reached its bound.")
    PAYLOAD_TOO_LARGE = ("payload_too_large", "warning", "A PUBLISH over limits.payload_bytes was acknowledged and dropped.")
    PUBLISH_REFUSED = ("publish_refused", "warning", "A PUBLISH was not allowed; its connection was closed.")
    SUBSCRIPTION_REFUSED = ("subscription_refused", "warning", "A topic filter got 0x80 in the SUBACK.")
    UPLINK_REFUSED = ("uplink_refused", "error", "The backend will never store this message; it was acknowledged or its link closed.")
    WILL_PUBLISHED = ("will_published", "info", "A connection ended impolitely and its will was handed to the backend.")
    RETAINED_REFUSED = ("retained_refused", "warning", "limits.retained_count is reached; a new retained message was not kept.")
    OFFLINE_STORED = ("offline_stored", "debug", "A message was kept for a session that has no connection or is behind.")
    OFFLINE_OVERFLOW = ("offline_overflow", "warning", "limits.offline_count was passed; the oldest offline messages were removed.")
    OFFLINE_EXPIRED = ("offline_expired", "info", "Offline messages older than limits.offline_seconds were removed.")
    OFFLINE_REQUESTED = ("offline_requested", "debug", "A device asked for its offline messages.")
    OFFLINE_REQUEST_IGNORED = (
        "offline_request_ignored",
        "warning",
        "A request for offline messages was acknowledged and ignored; the reason says why.",
    )
    SESSION_EXPIRED = ("session_expired", "info", "A session without a connection was older than limits.session_seconds and was removed.")
    OUTBOX_OVERFLOW = ("outbox_overflow", "error", "limits.outbox_count was passed; the oldest lifecycle events were lost.")
    HANDED_OVER = ("handed_over", "debug", "A message was handed over to the node that has its receivers.")
    NODE_LOST = ("node_lost", "warning", "A node was declared dead, or this one was; what it had is divided among those that live.")
    BACKEND_UNAVAILABLE = ("backend_unavailable", "error", "A server of the backend does not answer; it is tried again.")
    BACKEND_RECOVERED = ("backend_recovered", "info", "A server of the backend answers again.")
    BACKEND_RETRY = ("backend_retry", "warning", "A batch was not stored or its outcome is unknown; it is sent again.")
    OFFSET_GAP = ("offset_gap", "warning", "A queue goes on at another offset than expected: messages were removed before they were read.")
    CONSUMER_REFUSED = ("consumer_refused", "error", "A broker does not let a consumer group read a topic; the cure says what to do.")
    TOPIC_MISSING = ("topic_missing", "error", "A bridged topic does not exist in the backend; create it or set bridge.create_topics.")
    EVENT_TOPIC_MISSING = (
        "event_topic_missing",
        "warning",
        "A group has no event topic GID_xxx_MQTT, so its lifecycle events are not sent.",
    )
    STORE_FAILED = ("store_failed", "error", "An operation of the store failed.")
    ACCEPT_FAILED = ("accept_failed", "error", "A connection could not be accepted; the error says why.")
    QUOTA_REACHED = ("quota_reached", "warning", "A quota of the instance (connections, subscriptions, TPS) is reached.")

    event: str
    level: str
    severity: int
    meaning: str
    index: int

    def __init__(self, event: str, level: str, meaning: str) -> None:
        self.event = event
        self.level = level
        self.severity = LEVELS[level]
        self.meaning = meaning
        self.index = len(type(self).__members__)


_counts: list[int] = [0] * len(Fact)
_by_reason: list[dict[str, int]] = [{} for _ in Fact]
_tokens: list[float] = []
_filled_at: list[float] = []
_suppressed: list[int] = []
_burst = 1
_threshold = LEVELS["info"]

log: Any = structlog.get_logger("gateway")
"""Logger for cold lines outside the catalogue: start-up and shutdown only."""


def count(fact: Fact, n: int = 1, reason: Enum | str | None = None) -> None:
    """Count without a log line; for hot paths. reason: also counted on its own."""
    _counts[fact.index] += n
    if reason is not None:
        _count_reason(fact, reason, n)


def note(fact: Fact, n: int = 1, /, **fields: object) -> None:
    """Count the fact `n` times and log one line with `fields`, at most one a second for each fact beyond the burst.

    The next line after suppressed ones carries `suppressed=<how many>`. A field `reason` is also counted on its own; `exc_info=True` (or an
    exception) adds the traceback.
    """
    index = fact.index
    _counts[index] += n
    reason = fields.get("reason")
    if isinstance(reason, (str, Enum)):
        _count_reason(fact, reason, n)
    if fact.severity < _threshold:
        return
    now = time.monotonic()
    tokens = min(float(_burst), _tokens[index] + now - _filled_at[index])
    _filled_at[index] = now
    if tokens < 1:
        _tokens[index] = tokens
        _suppressed[index] += 1
        return
    _tokens[index] = tokens - 1
    if _suppressed[index]:
        fields["suppressed"] = _suppressed[index]
        _suppressed[index] = 0
    getattr(log, fact.level)(fact.event, **fields)


def counters() -> dict[str, int]:
    """How often each fact happened since the start, by event name; facts that never happened too."""
    return {fact.event: _counts[fact.index] for fact in Fact}


def reasons() -> dict[tuple[str, str], int]:
    """How often, by (event name, reason), for the facts that have reasons."""
    return {(fact.event, reason): n for fact in Fact for reason, n in _by_reason[fact.index].items()}


def configure(level: str = "info", json: bool | None = None, *, burst: int = 1, node_id: str = "") -> None:
    """Set up the log. level: debug, info, warning or error. json: None = JSON unless stderr is a terminal. burst: how many lines of one
    fact may be written at once, before the limit of one a second begins. node_id: a field of every line, where several processes write to
    one log. Raises KeyError for an unknown level."""
    global _threshold, _burst
    _threshold = LEVELS[level]
    _burst = burst
    _tokens[:] = [float(burst)] * len(Fact)
    _filled_at[:] = [time.monotonic()] * len(Fact)
    _suppressed[:] = [0] * len(Fact)
    if json is None:
        json = not sys.stderr.isatty()
    render: Callable[[Any, str, MutableMapping[str, Any]], str | bytes] = (
        structlog.processors.JSONRenderer(ensure_ascii=False) if json else _render_line
    )
    structlog.configure(
        processors=[
            *([_named(node_id)] if node_id else []),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,  # plain: a formatter with local variables would show payloads
            _mask,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_threshold),
        logger_factory=lambda *_: structlog.WriteLogger(sys.stderr),  # one write a line: processes share a log
        cache_logger_on_first_use=False,
    )


class Curve:
    """A ring of `buckets` numbers, each for `seconds` seconds: what a curve over the last `buckets * seconds` seconds is drawn from.

    `now` is in seconds on any clock that does not run backwards by more than the ring's length.
    """

    __slots__ = ("_numbers", "_values", "buckets", "seconds")

    def __init__(self, buckets: int, seconds: int) -> None:
        self.buckets = buckets
        self.seconds = seconds
        self._values = array("d", bytes(8 * buckets))
        self._numbers = array("q", [-1] * buckets)  # which bucket of all time lies in the slot

    def add(self, now: float, n: float = 1.0) -> None:
        """Add `n` to the current bucket (a curve of sums)."""
        number = int(now // self.seconds)
        slot = number % self.buckets
        if self._numbers[slot] == number:
            self._values[slot] += n
        elif self._numbers[slot] < number:
            self._numbers[slot] = number
            self._values[slot] = n

    def put(self, now: float, value: float) -> None:
        """Make `value` the current bucket's (a curve of levels: the last one counts)."""
        number = int(now // self.seconds)
        slot = number % self.buckets
        if self._numbers[slot] <= number:
            self._numbers[slot] = number
            self._values[slot] = value

    def points(self, now: float) -> list[tuple[int, float | None]]:
        """(start of the bucket in seconds, its value or None if it was never fed), oldest first; the last one is still growing."""
        last = int(now // self.seconds)
        points: list[tuple[int, float | None]] = []
        for number in range(last - self.buckets + 1, last + 1):
            slot = number % self.buckets
            points.append((number * self.seconds, self._values[slot] if self._numbers[slot] == number else None))
        return points


def _count_reason(fact: Fact, reason: Enum | str, n: int) -> None:
    text = str(reason.value) if isinstance(reason, Enum) else reason
    counts = _by_reason[fact.index]
    if text not in counts and len(counts) >= _MOST_REASONS:
        text = "other"
    counts[text] = counts.get(text, 0) + n


def _named(node_id: str) -> Callable[[Any, str, MutableMapping[str, Any]], MutableMapping[str, Any]]:
    def add(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        fields["node_id"] = node_id
        return fields

    return add


def _mask(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in fields.items():
        if any(word in key.lower() for word in _MASKED_WORDS):
            fields[key] = _MASK
        elif isinstance(value, Enum):
            fields[key] = value.value
        elif isinstance(value, (bytes, bytearray, memoryview)):
            fields[key] = f"<{len(value)} bytes>"
        elif isinstance(value, (int, float)) or value is None or key == "exception":
            continue
        else:
            text = value if isinstance(value, str) else str(value)
            fields[key] = text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."
    return fields


def _render_line(_logger: Any, _method: str, fields: MutableMapping[str, Any]) -> str:
    at, level, event = fields.pop("timestamp", ""), fields.pop("level", ""), fields.pop("event", "")
    traceback = fields.pop("exception", None)
    line = " ".join([f"{at} {level:<7} {event}", *(f"{key}={_quoted(value)}" for key, value in fields.items())])
    return line if traceback is None else f"{line}\n{traceback}"


def _quoted(value: object) -> str:
    # what a device sent must not be able to write lines or terminal sequences of its own
    text = str(value)
    return text if text and text.isprintable() and not any(c in text for c in " \"'=") else repr(text)


configure()
