"""gateway.tools on a real RocketMQ: the server app talks to it directly, no gateway runs."""

from __future__ import annotations

import base64
import json
import uuid
from pathlib import Path

import pytest
import trio

from deploy.services import RocketMQ
from gateway import app
from gateway.ports import BackendError
from gateway.settings import Settings, load
from gateway.tools import commands
from gateway.tools.check import check
from gateway.tools.commands import Note
from tests.kit.server import HOST, free_port

pytestmark = pytest.mark.services

FOR_DEVICES = Note(subtopic="/x", p2p="", qos=2, retain=True, keep=False, show_as="", tag=None)


@pytest.fixture
def settings(rocketmq: RocketMQ, tmp_path: Path) -> Settings:
    topic = f"tools_{uuid.uuid4().hex}"
    places = {"gateway.data_dir": str(tmp_path), "mqtt.tcp": f"{HOST}:{free_port()}", "http.listen": ""}
    return load(None, {**places, "backend.url": f"rocketmq://{rocketmq.namesrv}", "bridge.topics": [topic]}, {})


async def test_a_server_app(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    (topic,) = settings.bridge.topics
    body = bytes(range(256))
    with trio.fail_after(60):
        with pytest.RaisesGroup(pytest.RaisesExc(BackendError, match=f"app create-topic {topic}")):
            await commands.app_send(settings, topic, body, FOR_DEVICES, True)
        assert await commands.app_create_topic(settings, topic, True) == 0
        assert await commands.app_send(settings, topic, body, FOR_DEVICES, True) == 0
        assert await commands.app_send(settings, topic, b"", FOR_DEVICES._replace(tag="other"), True) == 0
        assert await commands.app_tail(settings, topic, ["MQ2MQTT"], "begin", 1, True) == 0
    created, sent, _, read = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert created == {"topic": topic, "queues": 8}
    assert (read["id"], read["queue"], read["offset"]) == (sent["id"], sent["queue"], sent["offset"])
    assert base64.b64decode(read["body"]) == body
    assert {name: read["properties"][name] for name in ("mqttSecondTopic", "qoslevel", "mqttRetain")} == {
        "mqttSecondTopic": "/x",
        "qoslevel": "2",
        "mqttRetain": "true",
    }


async def test_check(settings: Settings) -> None:
    (topic,) = settings.bridge.topics
    with trio.fail_after(60):
        found = {one.name: one async for one in check(settings, app.build_store, app.build_backend, app.report_store)}
        assert all(one.ok for one in found.values()), found
        assert any(name.startswith("name server") for name in found)
        (keeps,) = [one for name, one in found.items() if name.startswith("broker ") and name.endswith(" keeps")]
        assert "flushDiskType ASYNC_FLUSH, brokerRole ASYNC_MASTER, transientStorePoolEnable false" in keeps.detail
        bridge = settings.bridge.model_copy(update={"create_topics": False})
        strict = settings.model_copy(update={"bridge": bridge})
        found = {one.name: one async for one in check(strict, app.build_store, app.build_backend, app.report_store)}
    assert not found[f"topic {topic}"].ok
    assert found[f"topic {topic}"].cure
