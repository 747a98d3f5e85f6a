"""The pure small parts: answers judged, requests signed, ids, the servers' loose JSON, routes, URLs (design sections 3 and 6)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend_adapters.rocketmq_remoting import RocketMQ, codes
from backend_adapters.rocketmq_remoting.acl import Signer
from backend_adapters.rocketmq_remoting.client import parse_url
from backend_adapters.rocketmq_remoting.codes import Verdict, judge
from backend_adapters.rocketmq_remoting.ids import UniqueIds
from backend_adapters.rocketmq_remoting.loose_json import loads, queue_offsets
from backend_adapters.rocketmq_remoting.routes import parse_route
from gateway.ports import Queue, Refusal


@pytest.mark.parametrize(
    ("code", "remark", "verdict"),
    [
        (0, "", Verdict.STORED),
        (1, "UNKNOWN_ERROR", Verdict.UNKNOWN),
        (1, "java.lang.RuntimeException: message body size exceeded", Verdict.REFUSED),
        (1, "org.apache.rocketmq.acl.common.AclException: No default permission", Verdict.REFUSED),
        (1, "broker unable to service, until 2030", Verdict.NOT_HERE),
        (2, "[REJECTREQUEST]system busy", Verdict.NOT_STORED),
        (10, "", Verdict.UNKNOWN),
        (11, "", Verdict.UNKNOWN),
        (12, "", Verdict.UNKNOWN),
        (13, "the message is illegal, maybe msg body or properties length not matched", Verdict.REFUSED),
        (14, "service not available now", Verdict.NOT_HERE),
        (16, "the broker[10.0.0.1] sending message is forbidden", Verdict.NOT_HERE),
        (16, "Sending message to topic[x] is forbidden.", Verdict.REFUSED),
        (17, "topic[x] not exist", Verdict.STALE_ROUTE),
        (29, "request queueId[9] is illegal", Verdict.STALE_ROUTE),
        (29, "The specified topic contains illegal characters", Verdict.REFUSED),
        (215, "", Verdict.NOT_STORED),
        (1500, "please go away", Verdict.NOT_STORED),
        (9999, "", Verdict.UNKNOWN),
    ],
)
def test_what_an_answer_to_a_batch_means(code: int, remark: str, verdict: Verdict) -> None:
    assert judge(code, remark)[0] is verdict


def test_a_refusal_says_whether_it_is_the_size() -> None:
    assert judge(13, "msg body length limit 4194304B")[1] is Refusal.TOO_LARGE
    assert judge(1, "message body size exceeded")[1] is Refusal.TOO_LARGE
    assert judge(16, "no permission")[1] is Refusal.NOT_PERMITTED
    assert judge(29, "bad topic")[1] is Refusal.INVALID


def test_a_request_is_signed_over_its_values_in_the_order_of_their_names() -> None:
    fields = {"topic": "t", "b": "2", "Signature": "old"}
    Signer("AK", "SK", "token").sign(fields, b"\0body")
    expected = hmac.new(b"SK", b"AK" + b"token" + b"2" + b"t" + b"\0body", hashlib.sha1).digest()
    assert fields == {"topic": "t", "b": "2", "AccessKey": "AK", "SecurityToken": "token", "Signature": base64.b64encode(expected).decode()}


def test_a_signer_shows_no_secret() -> None:
    assert "SK" not in repr(Signer("AK", "SK"))


def test_ids_grow_strictly_whatever_the_clock_does() -> None:
    now = [time.time()]
    ids = UniqueIds(b"\x0a\0\0\1", lambda: now[0])
    made = [ids.new() for _ in range(70_000)]
    now[0] -= 3600
    made += [ids.new() for _ in range(10)]
    now[0] += 3601
    made += [ids.new() for _ in range(10)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    assert all(re.fullmatch("0A000001[0-9A-F]{24}", id) for id in made)


def test_an_ids_time_is_the_ms_of_the_local_month_and_the_next_month_has_another_random_part() -> None:
    now = [time.mktime((2026, 12, 31, 23, 59, 59, 0, 0, -1)) + 0.9]
    ids = UniqueIds(b"\x7f\0\0\1", lambda: now[0])
    old = ids.new()
    assert int(old[20:28], 16) == 31 * 86_400_000 - 100
    now[0] += 0.2
    new = ids.new()
    assert int(new[20:28], 16) == 100
    assert new[12:20] != old[12:20]
    assert new[:12] == old[:12]


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=10
    )
)
def test_strict_json_is_read_as_it_is(value: object) -> None:
    assert loads(json.dumps(value).encode()) == value


def test_numbers_as_names_are_read_but_not_inside_strings() -> None:
    data = b'{"brokerAddrs":{0:"1.2.3.4:10911", 1 :"x,1:{2:3"},"a":{-1:[{5:6}]},"n":12}'
    assert loads(data) == {"brokerAddrs": {"0": "1.2.3.4:10911", "1": "x,1:{2:3"}, "a": {"-1": [{"5": 6}]}, "n": 12}


@given(st.binary(max_size=60))
def test_garbage_is_a_value_error(data: bytes) -> None:
    for read in (loads, queue_offsets):
        try:
            read(data)
        except ValueError:
            pass


def test_offsets_to_reset_are_read_in_both_forms() -> None:
    java = b'{"offsetTable":{{"brokerName":"a","queueId":0,"topic":"t"}:12,{"brokerName":"b","queueId":3,"topic":"t"}:0}}'
    other = (
        b'{"offsetTable":[{"brokerName":"a","queueId":0,"topic":"t","offset":12},{"brokerName":"b","queueId":3,"topic":"t","offset":0}]}'
    )
    expected = [("t", "a", 0, 12), ("t", "b", 3, 0)]
    assert queue_offsets(java) == expected
    assert queue_offsets(other) == expected


def test_a_route_tells_what_is_writable_and_readable() -> None:
    body = json.dumps(
        {
            "brokerDatas": [{"brokerName": name, "brokerAddrs": {"0": f"{name}:1", "1": f"{name}:2"}} for name in ("b", "a", "c")],
            "queueDatas": [
                {"brokerName": "b", "perm": 6, "readQueueNums": 1, "writeQueueNums": 2},
                {"brokerName": "a", "perm": 4, "readQueueNums": 2, "writeQueueNums": 2},
                {"brokerName": "c", "perm": 2, "readQueueNums": 2, "writeQueueNums": 1},
                {"brokerName": "gone", "perm": 6, "readQueueNums": 2, "writeQueueNums": 1},
            ],
        }
    ).encode()
    route = parse_route("t", body)
    assert route.writable == (Queue("t", "b", 0), Queue("t", "b", 1), Queue("t", "c", 0))
    assert route.readable == (Queue("t", "a", 0), Queue("t", "a", 1), Queue("t", "b", 0))
    assert route.addresses["a"] == {0: "a:1", 1: "a:2"}


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"brokerDatas":1}', b'{"brokerDatas":[],"queueDatas":[{}]}', b'{"brokerDatas":[{}]}']
)
def test_a_route_of_another_shape_is_a_value_error(body: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the text is for people
        parse_route("t", body)


def test_urls() -> None:
    assert parse_url("rocketmq://a:9876") == (["a:9876"], "")
    assert parse_url("rocketmq://a:9876;b:1/NS") == (["a:9876", "b:1"], "NS")
    assert parse_url("rocketmq://[::1]:9876") == (["[::1]:9876"], "")
    for bad in ("redis://a:1", "rocketmq://", "rocketmq://a", "rocketmq://a:b", "rocketmq://a:0", "rocketmq://a:9876;"):
        with pytest.raises(ValueError, match=r"backend\.url"):
            parse_url(bad)
    with pytest.raises(ValueError, match="belong together"):
        RocketMQ.open("rocketmq://a:1", "AK", "")


def test_names_in_a_namespace() -> None:
    wire = RocketMQ._wire_in
    assert wire("", "t") == "t"
    assert wire("NS", "t") == "NS%t"
    assert wire("NS", "%RETRY%g") == "%RETRY%NS%g"
    assert codes.VERSION > 475  # of 5.3.1: newer clients are told to go away politely
