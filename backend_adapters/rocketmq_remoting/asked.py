"""Answers what brokers ask of a client: running info, offsets reset by an operator, members of a group changed (design section 6)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable

from gateway import observe

from . import codes
from .consumer import Subscription, expression
from .frames import Frame
from .loose_json import queue_offsets
from .messages import tag_hash


class Clerk:
    """`subscriptions` gives the running ones. client_id: the name in heartbeats."""

    def __init__(self, client_id: str, producer_group: str, subscriptions: Callable[[], Iterable[Subscription]]) -> None:
        self._client_id = client_id
        self._producer_group = producer_group
        self._subscriptions = subscriptions

    def answer(self, request: Frame) -> tuple[int, str, bytes] | None:
        """(code, remark, body), or None where no answer is due."""
        if request.code == codes.CONSUMER_IDS_CHANGED:
            return None  # queues are assigned by the store's live nodes, not by RocketMQ (design section 5)
        if request.code == codes.RESET_OFFSET:
            return self._reset(request)
        if request.code == codes.CONSUMER_RUNNING_INFO:
            return self._running_info(request)
        return codes.NOT_SUPPORTED, f"request {request.code} is not supported by this client", b""

    def _reset(self, request: Frame) -> tuple[int, str, bytes]:
        try:
            rows = queue_offsets(request.body)
        except ValueError as error:
            return codes.SYSTEM_ERROR, str(error), b""
        for subscription in self._subscriptions():
            if subscription.group is not None and subscription.wire_group == request.fields.get("group"):
                for topic, broker, queue_id, offset in rows:
                    if topic == subscription.wire_topic:
                        subscription.reset(broker, queue_id, offset)
        observe.log.info(
            "offsets_reset_by_operator", topic=request.fields.get("topic"), group=request.fields.get("group"), queues=len(rows)
        )
        return codes.SUCCESS, "", b""

    def _running_info(self, request: Frame) -> tuple[int, str, bytes]:
        mine = self._of_group(request.fields.get("consumerGroup", ""))
        if not mine:
            return codes.SYSTEM_ERROR, f"The Consumer Group <{request.fields.get('consumerGroup')}> not exist in this consumer", b""
        began = min((reader.began_at for each in mine for reader in each.readers.values()), default=0)
        info = {
            "properties": {
                "PROP_CONSUME_TYPE": "CONSUME_PASSIVELY",
                "PROP_CLIENT_VERSION": "V5_3_3",
                "PROP_CONSUMER_START_TIMESTAMP": str(began),
                "PROP_CONSUMEORDERLY": "false",
            },
            "subscriptionSet": [_subscription_data(each) for each in mine],
            "statusTable": {},
            "userConsumerInfo": {},
            "mqPopTable": {},
        }
        # a table whose names are objects, as the servers' JSON library writes and reads it
        rows = ",".join(
            json.dumps({"brokerName": queue.broker, "queueId": queue.id, "topic": each.wire_topic}) + ":" + json.dumps(reader.state())
            for each in mine
            for queue, reader in each.readers.items()
        )
        body = json.dumps(info)[:-1] + ',"mqTable":{' + rows + "}}"
        return codes.SUCCESS, "", body.encode()

    def _of_group(self, wire_group: str) -> list[Subscription]:
        return [each for each in self._subscriptions() if each.group is not None and each.wire_group == wire_group]

    def heartbeat(self) -> bytes:
        """The body of HEART_BEAT: every group that reads, with all tags it may read, and the producer group."""
        groups: dict[str, list[dict[str, object]]] = {}
        for each in self._subscriptions():
            if each.group is not None:
                groups.setdefault(each.wire_group, []).append(_subscription_data(each))
        return self._heartbeat([_consumer_data(group, subscriptions) for group, subscriptions in groups.items()])

    def introduction(self, wire_group: str) -> bytes:
        """The body of a HEART_BEAT that only makes `wire_group` known, so that a broker that may create groups does."""
        return self._heartbeat([_consumer_data(wire_group, [])])

    def _heartbeat(self, consumers: list[dict[str, object]]) -> bytes:
        value = {"clientID": self._client_id, "consumerDataSet": consumers, "producerDataSet": [{"groupName": self._producer_group}]}
        return json.dumps(value).encode()


def _consumer_data(wire_group: str, subscriptions: list[dict[str, object]]) -> dict[str, object]:
    return {
        "groupName": wire_group,
        "consumeType": "CONSUME_PASSIVELY",
        "messageModel": "CLUSTERING",
        "consumeFromWhere": "CONSUME_FROM_FIRST_OFFSET",
        "subscriptionDataSet": subscriptions,
        "unitMode": False,
    }


def _subscription_data(subscription: Subscription) -> dict[str, object]:
    tags = sorted(subscription.declared or ())
    return {
        "classFilterMode": False,
        "topic": subscription.wire_topic,
        "subString": expression(subscription.declared),
        "tagsSet": tags,
        "codeSet": [tag_hash(tag) for tag in tags],
        "subVersion": subscription.version,
        "expressionType": "TAG",
    }
