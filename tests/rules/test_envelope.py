"""gateway.rules.envelope: the table of contract section 5."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.mqtt import topics
from gateway.mqtt.errors import MqttError
from gateway.rules import envelope
from gateway.rules.envelope import Downlink, Route, Unroutable, downlink, route, uplink_properties

BRIDGED = frozenset({"demo", "other"})


def down(properties: dict[str, str], topic: str = "demo", default_topic: str = "") -> Downlink | Unroutable:
    return downlink(topic, "MQ2MQTT", properties, default_topic=default_topic)


def good(properties: dict[str, str], topic: str = "demo", default_topic: str = "") -> Downlink:
    found = down(properties, topic, default_topic)
    assert isinstance(found, Downlink)
    return found


class TestRoute:
    @pytest.mark.parametrize(
        ("topic", "expected"),
        [
            ("demo", Route("demo", "", None)),
            ("demo/", Route("demo", "/", None)),
            ("demo/a/b", Route("demo", "/a/b", None)),
            ("demo//", Route("demo", "//", None)),
            ("demo/p2p", Route("demo", "/p2p", None)),
            ("demo/p2p/", Route("demo", "/p2p/", None)),
            ("demo/p2p/GID_x@@@1", Route("demo", "/p2p/GID_x@@@1", "GID_x@@@1")),
            ("demo/p2p/a/b", Route("demo", "/p2p/a/b", "a/b")),
            ("demo/x/p2p/a", Route("demo", "/x/p2p/a", None)),
            ("demo/p2pa", Route("demo", "/p2pa", None)),
            ("nowhere", None),
            ("nowhere/demo", None),
            ("/demo", None),
            ("Demo", None),
            ("$SYS/x", None),
        ],
    )
    def test_bridged_parents(self, topic: str, expected: Route | None) -> None:
        assert route(topic, BRIDGED, "") == expected

    @pytest.mark.parametrize(
        ("topic", "expected"),
        [
            ("demo/a", Route("demo", "/a", None)),
            ("home/lamp", Route("catchall", "/home/lamp", None)),
            ("home", Route("catchall", "/home", None)),
            ("/home", Route("catchall", "//home", None)),
            ("catchall/x", Route("catchall", "/catchall/x", None)),
            ("home/p2p/c", Route("catchall", "/home/p2p/c", None)),
            ("p2p/c", Route("catchall", "/p2p/c", "c")),
        ],
    )
    def test_default_topic(self, topic: str, expected: Route) -> None:
        assert route(topic, BRIDGED, "catchall") == expected
        assert route(topic, BRIDGED | {"catchall"}, "catchall") == expected


class TestUplinkProperties:
    def test_all_of_them(self) -> None:
        found = uplink_properties(Route("demo", "/a", None), client_id="GID_x@@@1", qos=2, clean=False, retain=True, instance="i")
        assert found == {
            "mqttSecondTopic": "/a",
            "qoslevel": "2",
            "cleansessionflag": "false",
            "clientId": "GID_x@@@1",
            "mqttGateway": "i",
            "mqttRetain": "true",
        }

    def test_nothing_is_empty(self) -> None:
        found = uplink_properties(Route("demo", "", None), client_id="c", qos=0, clean=True, retain=False, instance="i")
        assert found == {"qoslevel": "0", "cleansessionflag": "true", "clientId": "c", "mqttGateway": "i"}

    def test_the_sum_is_below_the_limit_of_rocketmq(self) -> None:
        longest = "\U0001f4a1" * 1024  # limits.topic_length and limits.client_id_length are 1,024 characters at most
        receiver = longest
        found = uplink_properties(
            Route("demo", f"/{longest}/p2p/{receiver}", receiver), client_id=longest, qos=1, clean=True, retain=True, instance="i"
        )
        assert sum(len(key.encode()) + len(value.encode()) + 2 for key, value in found.items()) < 32_000


class TestDownlink:
    def test_defaults(self) -> None:
        found = good({})
        assert (found.topic, found.shown, found.qos, found.retain, found.p2p) == ("demo", "demo", 1, False, None)
        assert (found.sender_persistent, found.origin, found.sender) == (False, "MQ2MQTT", "")

    @pytest.mark.parametrize(
        ("second", "topic"), [("", "demo"), ("/", "demo/"), ("/a/b", "demo/a/b"), ("a/b", "demo/a/b"), ("//", "demo//")]
    )
    def test_subtopic(self, second: str, topic: str) -> None:
        assert good({"mqttSecondTopic": second}).topic == topic

    @pytest.mark.parametrize(("text", "qos"), [("0", 0), ("1", 1), ("2", 2), ("", 1), ("3", 1), ("-1", 1), ("two", 1), ("١", 1)])
    def test_qos(self, text: str, qos: int) -> None:
        assert good({"qoslevel": text}).qos == qos

    @pytest.mark.parametrize(("text", "persistent"), [("true", False), ("false", True), ("False", True), ("", False), ("no", False)])
    def test_session_kind(self, text: str, persistent: bool) -> None:
        assert good({"cleansessionflag": text}).sender_persistent is persistent

    @pytest.mark.parametrize(("text", "retain"), [("true", True), ("TRUE", True), ("false", False), ("", False), ("1", False)])
    def test_retain(self, text: str, retain: bool) -> None:
        assert good({"mqttRetain": text}).retain is retain

    @pytest.mark.parametrize("second", ["/p2p/GID_x@@@1", "p2p/GID_x@@@1"])
    def test_p2p(self, second: str) -> None:
        found = good({"mqttSecondTopic": second})
        assert (found.p2p, found.shown) == ("GID_x@@@1", "demo/p2p/GID_x@@@1")
        found = good({"mqttSecondTopic": second, "mqttRealTopic": "demo/cmd"})
        assert (found.p2p, found.shown) == ("GID_x@@@1", "demo/cmd")

    def test_p2p_to_a_client_id_with_any_character(self) -> None:
        assert good({"mqttSecondTopic": "/p2p/a/b"}).p2p == "a/b"
        assert good({"mqttSecondTopic": "/p2p/a+b", "mqttRealTopic": "demo/x"}).p2p == "a+b"
        assert down({"mqttSecondTopic": "/p2p/a+b"}) is Unroutable.WILDCARD

    def test_another_topic_is_shown(self) -> None:
        found = good({"mqttSecondTopic": "/a", "mqttRealTopic": "elsewhere/b"})
        assert (found.topic, found.shown) == ("demo/a", "elsewhere/b")
        assert good({"mqttRealTopic": ""}).shown == "demo"

    @pytest.mark.parametrize(
        ("properties", "reason"),
        [
            ({"mqttSecondTopic": "/a/#"}, Unroutable.WILDCARD),
            ({"mqttSecondTopic": "/+"}, Unroutable.WILDCARD),
            ({"mqttSecondTopic": "/a#", "mqttRealTopic": "x"}, Unroutable.WILDCARD),
            ({"mqttRealTopic": "a/+"}, Unroutable.WILDCARD),
            ({"mqttSecondTopic": "/a\x00"}, Unroutable.CONTROL),
            ({"mqttSecondTopic": "/a\x9f"}, Unroutable.CONTROL),
            ({"mqttRealTopic": "\n"}, Unroutable.CONTROL),
            ({"mqttSecondTopic": "/" + "x" * 65535}, Unroutable.TOO_LONG),
            ({"mqttRealTopic": "ü" * 40000}, Unroutable.TOO_LONG),
            ({"mqttSecondTopic": "/p2p/"}, Unroutable.NO_RECEIVER),
        ],
    )
    def test_unroutable(self, properties: dict[str, str], reason: Unroutable) -> None:
        assert down(properties) is reason

    def test_default_topic(self) -> None:
        assert good({"mqttSecondTopic": "/home/lamp"}, "catchall", "catchall").topic == "home/lamp"
        assert good({"mqttSecondTopic": "//home"}, "catchall", "catchall").topic == "/home"
        assert good({"mqttSecondTopic": "home"}, "catchall", "catchall").topic == "home"
        assert down({}, "catchall", "catchall") is Unroutable.EMPTY
        assert down({"mqttSecondTopic": "/"}, "catchall", "catchall") is Unroutable.EMPTY
        assert good({"mqttSecondTopic": "/a"}, "demo", "catchall").topic == "demo/a"
        found = good({"mqttSecondTopic": "/p2p/c"}, "catchall", "catchall")
        assert (found.p2p, found.shown) == ("c", "p2p/c")


TOPIC = st.lists(st.sampled_from(["demo", "p2p", "", "a", "GID_x@@@1", "ü", "catchall"]), min_size=1, max_size=5).map("/".join).filter(bool)


@given(TOPIC, st.sampled_from(["", "catchall"]), st.integers(0, 2), st.booleans(), st.booleans())
def test_what_a_device_sends_comes_back_the_same(topic: str, default_topic: str, qos: int, clean: bool, retain: bool) -> None:
    found = route(topic, BRIDGED, default_topic)
    if found is None:
        return
    properties = uplink_properties(found, client_id="c", qos=qos, clean=clean, retain=retain, instance="i")
    back = downlink(found.topic, "MQTT2MQ", properties, default_topic=default_topic)
    if found.second == "/p2p/":
        assert back is Unroutable.NO_RECEIVER
        return
    assert isinstance(back, Downlink)
    assert (back.topic, back.shown, back.qos, back.retain, back.p2p) == (topic, topic, qos, retain, found.p2p)
    assert (back.sender, back.sender_persistent, back.origin) == ("c", not clean, "MQTT2MQ")


@given(
    st.dictionaries(st.sampled_from([envelope.SECOND_TOPIC, envelope.REAL_TOPIC, envelope.QOS, envelope.RETAIN, "x"]), st.text(max_size=12))
)
def test_whatever_comes_is_publishable_or_has_a_reason(properties: dict[str, str]) -> None:
    found = down(properties)
    if isinstance(found, Downlink):
        try:
            topics.check_name(found.shown)
        except MqttError as error:  # pragma: no cover
            raise AssertionError(found.shown) from error
