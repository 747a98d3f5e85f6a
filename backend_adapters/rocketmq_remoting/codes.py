"""Numbers of the remoting protocol that this client uses, and what an answer to a send means (design sections 3 and 6). Pure."""

from __future__ import annotations

from enum import Enum

from gateway.ports import Refusal

# requests
PULL_MESSAGE = 11
QUERY_CONSUMER_OFFSET = 14
UPDATE_CONSUMER_OFFSET = 15
UPDATE_AND_CREATE_TOPIC = 17
GET_BROKER_CONFIG = 26
SEARCH_OFFSET_BY_TIMESTAMP = 29
GET_MAX_OFFSET = 30
GET_MIN_OFFSET = 31
HEART_BEAT = 34
UNREGISTER_CLIENT = 35
GET_CONSUMER_LIST_BY_GROUP = 38
GET_ALL_CONSUMER_OFFSET = 43
GET_ROUTE = 105
GET_CLUSTER_INFO = 106
SEND_BATCH_MESSAGE = 320

# requests that are born at the broker
CONSUMER_IDS_CHANGED = 40
RESET_OFFSET = 220
CONSUMER_RUNNING_INFO = 307

# answers
SUCCESS = 0
SYSTEM_ERROR = 1
SYSTEM_BUSY = 2
NOT_SUPPORTED = 3
FLUSH_DISK_TIMEOUT = 10
SLAVE_NOT_AVAILABLE = 11
FLUSH_SLAVE_TIMEOUT = 12
MESSAGE_ILLEGAL = 13
SERVICE_NOT_AVAILABLE = 14
NO_PERMISSION = 16
TOPIC_NOT_EXIST = 17
PULL_NOT_FOUND = 19
PULL_RETRY_IMMEDIATELY = 20
PULL_OFFSET_MOVED = 21
QUERY_NOT_FOUND = 22
GROUP_NOT_EXIST = 26
INVALID_PARAMETER = 29
FLOW_CONTROL = 215
NOT_LEADER_FOR_QUEUE = 501
GO_AWAY = 1500

# header values
LANGUAGE = "PYTHON"
LANGUAGE_CODE = 3
VERSION = 479  # 5.3.3: routes in standard JSON (from 4.9.4 on), GO_AWAY is understood (from 5.3.2 on)
PERMISSION_READ = 4
PERMISSION_WRITE = 2
MASTER = 0  # broker id


class Verdict(Enum):
    """What an answer to a batch says."""

    STORED = "stored"
    NOT_STORED = "not_stored"  # surely: it may be sent again, anywhere
    NOT_HERE = "not_here"  # surely not stored, and this broker takes nothing at the moment
    STALE_ROUTE = "stale_route"  # surely not stored: the queue or topic is not where the route says
    UNKNOWN = "unknown"  # it may be stored: the same batch goes to the same queue again
    REFUSED = "refused"  # this message, or one of this batch, never will be stored


_NOT_STORED = frozenset({SYSTEM_BUSY, FLOW_CONTROL, GO_AWAY})
_NOT_HERE = frozenset({SERVICE_NOT_AVAILABLE})
_STALE_ROUTE = frozenset({TOPIC_NOT_EXIST, NOT_LEADER_FOR_QUEUE})


def judge(code: int, remark: str) -> tuple[Verdict, Refusal]:
    """What the answer to SEND_BATCH_MESSAGE means; the refusal matters for REFUSED only.

    Brokers report some distinct outcomes under one code, so their texts decide there; a text not known is judged on the safe side (a
    repeat is allowed, a loss is not).
    """
    if code == SUCCESS:
        return Verdict.STORED, Refusal.INVALID
    if code in _NOT_STORED:
        return Verdict.NOT_STORED, Refusal.INVALID
    if code in _NOT_HERE:
        return Verdict.NOT_HERE, Refusal.INVALID
    if code in _STALE_ROUTE:
        return Verdict.STALE_ROUTE, Refusal.INVALID
    if code == MESSAGE_ILLEGAL:
        sized = any(word in remark for word in ("length", "size", "less", "limit"))
        return Verdict.REFUSED, Refusal.TOO_LARGE if sized else Refusal.INVALID
    if code == NO_PERMISSION:
        if remark.startswith("the broker["):  # read-only for maintenance: nothing is wrong with the message
            return Verdict.NOT_HERE, Refusal.NOT_PERMITTED
        return Verdict.REFUSED, Refusal.NOT_PERMITTED
    if code == INVALID_PARAMETER:
        return (Verdict.STALE_ROUTE if "queueId" in remark else Verdict.REFUSED), Refusal.INVALID
    if code == NOT_SUPPORTED:
        return Verdict.REFUSED, Refusal.INVALID
    if code == SYSTEM_ERROR:
        return _judge_system_error(remark)
    return Verdict.UNKNOWN, Refusal.INVALID


def _judge_system_error(remark: str) -> tuple[Verdict, Refusal]:
    if "size exceeded" in remark:
        return Verdict.REFUSED, Refusal.TOO_LARGE
    if "AclException" in remark or "AuthenticationException" in remark or "AuthorizationException" in remark:
        return Verdict.REFUSED, Refusal.NOT_PERMITTED
    if "unable to service" in remark or "in-sync replicas not enough" in remark or "create mapped file failed" in remark:
        return Verdict.NOT_HERE, Refusal.INVALID
    return Verdict.UNKNOWN, Refusal.INVALID
