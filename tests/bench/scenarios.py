"""The measurements: each is a function (target, plan) -> figures, with the load that it makes and the targets that it is made for.

Figures: rate (messages or deliveries a second), cpu_us (CPU of the target's own process for each), broker_us (RocketMQ's, where it takes
part), load_cores (the generator's), missing, repeats; p50_ms, p99_ms; bytes (for each connection). A missing message is a figure, not an
error: the report shows it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.bench import crew, devices, fanout, reference, stored, uplink
from tests.bench.crew import Figures, Job
from tests.bench.targets import Target

PAYLOAD = 100  # bytes
CLIENTS = 100  # publishers
LISTENERS = 1000  # subscribers of a fan-out, and topics of device to device
IDLE = 10_000  # idle connections
DEVICE_WINDOW = 16  # device to device: messages of one publisher on their way
FAN_BATCH, FAN_AHEAD = 8, 64  # fan-out: messages sent at once, and published but not delivered at most
EVEN = 500.0  # messages a second, evenly spread
APP_RATE = 200.0  # messages a second of the server app


class Plan(NamedTuple):
    """seconds: counted, for throughput; calm_seconds: for latency. warm: seconds of load before. processes: of the generator."""

    seconds: float = 3.0
    calm_seconds: float = 4.0
    warm: float = 0.8
    processes: int = 2


def _shares(items: Sequence[str], count: int) -> list[Sequence[str]]:
    """Equal parts, in order."""
    size = len(items) // count
    return [items[index * size : (index + 1) * size] for index in range(count)]


def _names(kind: str, count: int) -> list[str]:
    return [f"{kind}{number:05}" for number in range(count)]


def _sum(parts: Sequence[Figures], name: str) -> int:
    return sum(part.get(name, 0) for part in parts)


def _throughput(whole: Figures, parts: Sequence[Figures]) -> Figures:
    count = _sum(parts, "count")
    figures: Figures = {"rate": count / whole["seconds"], "load_cores": whole["load_cpu"] / whole["seconds"]}
    figures |= {"missing": _sum(parts, "missing"), "repeats": _sum(parts, "repeats")}
    return {**figures, **_cpu(whole, count)}


def _cpu(whole: Figures, count: int) -> Figures:
    """CPU microseconds a message: of the target's own process, and of the broker behind it."""
    spent = list(whole["cpu"].values())
    figures = {"cpu_us": spent[0] / max(1, count) * 1e6, "cores": spent[0] / whole["seconds"]}
    return figures | ({"broker_us": spent[1] / max(1, count) * 1e6} if len(spent) > 1 else {})


def percentile(values: Sequence[int], percent: float) -> float:
    """The value that `percent` of all do not exceed, in milliseconds; values in nanoseconds. NaN of none."""
    if not values:
        return float("nan")
    return sorted(values)[min(len(values) - 1, int(len(values) * percent / 100))] / 1e6


def _latency(values: Sequence[int], late: Sequence[int]) -> Figures:
    return {"p50_ms": percentile(values, 50), "p99_ms": percentile(values, 99), "late_p99_ms": percentile(late, 99), "samples": len(values)}


def uplink_flood(target: Target, plan: Plan, window: int) -> Figures:
    """100 devices publish at QoS 1 with `window` messages in flight each; nobody subscribes."""
    common = {
        "address": target.address,
        "login": target.login,
        "topic": f"{target.parent('up')}/data/1",
        "payload": PAYLOAD,
        "window": window,
    }
    if target.broker is not None:
        return _bare_store(target, plan, CLIENTS * window // reference.QUEUES + bool(CLIENTS * window % reference.QUEUES), 1)
    shares = _shares(_names("u", CLIENTS), plan.processes)
    jobs = [Job(uplink.flood, {**common, "devices": share, "spread": spread}) for spread, share in enumerate(shares)]
    whole, *parts = crew.run(jobs, plan.seconds, plan.warm, target.pids)
    return _throughput(whole, parts)


def _bare_store(target: Target, plan: Plan, batch: int, deep: int) -> Figures:
    arguments = {"address": target.broker, "topic": target.parent("up"), "payload": PAYLOAD, "batch": batch, "deep": deep}
    whole, *parts = crew.run([Job(reference.store, arguments)], plan.seconds, plan.warm, target.pids)
    return _throughput(whole, parts)


def single_store(target: Target, plan: Plan) -> Figures:
    """Bare RocketMQ with one message in a request and 104 requests under way: what a client without batches gets."""
    return _bare_store(target, plan, 1, 13)


def uplink_even(target: Target, plan: Plan) -> Figures:
    """100 devices publish 500 messages a second, evenly spread: the time until the PUBACK."""
    arguments = {"address": target.address, "login": target.login, "devices": _names("e", CLIENTS), "payload": PAYLOAD, "rate": EVEN}
    arguments |= {"total": _total(EVEN, plan), "topics": [f"{target.parent('up')}/data/1"], "spread": 0}
    whole, part = crew.run([Job(uplink.paced, arguments)], plan.calm_seconds, plan.warm, target.pids)
    return {**_latency(part["puback"], part["late"]), "missing": part["missing"], **_cpu(whole, part["count"])}


def fan_out(target: Target, plan: Plan, qos: int) -> Figures:
    """One publisher, 1,000 subscribers of its topic."""
    counts = crew.shared_counts(2 + plan.processes)
    common = {"address": target.address, "login": target.login, "everyone": LISTENERS, "topic": f"{target.parent('fan')}/all/{qos}"}
    common |= {"payload": PAYLOAD, "qos": qos, "batch": FAN_BATCH, "ahead": FAN_AHEAD, "counts": counts}
    jobs = []
    for place, share in enumerate(_shares(_names(f"f{qos}-", LISTENERS), plan.processes)):
        publisher = "" if place else "fan-source"
        jobs.append(Job(fanout.fanout, {**common, "subscribers": share, "publisher": publisher, "place": place, "spread": place}))
    whole, *parts = crew.run(jobs, plan.seconds, plan.warm, target.pids)
    return _throughput(whole, parts)


def _device_topics(target: Target) -> list[str]:
    return [f"{target.parent('dev')}/d/{number:04}" for number in range(LISTENERS)]


def device_flood(target: Target, plan: Plan) -> Figures:
    """100 devices publish to 1,000 topics, each of which another device has subscribed, QoS 1 on both sides."""
    common = {"address": target.address, "login": target.login, "payload": PAYLOAD, "window": DEVICE_WINDOW}
    publishers, subscribers = _shares(_names("p", CLIENTS), plan.processes), _shares(_names("s", LISTENERS), plan.processes)
    topics = _shares(_device_topics(target), plan.processes)
    jobs = []
    for spread, (talkers, listeners, names) in enumerate(zip(publishers, subscribers, topics, strict=True)):
        jobs.append(Job(devices.flood, {**common, "publishers": talkers, "subscribers": listeners, "topics": names, "spread": spread}))
    whole, *parts = crew.run(jobs, plan.seconds, plan.warm, target.pids)
    return _throughput(whole, parts)


def device_even(target: Target, plan: Plan) -> Figures:
    """The same at 500 messages a second, evenly spread: from due to received, end to end. Bare RocketMQ: from due to pulled."""
    if target.broker is not None:
        return _relay(target, plan, EVEN)
    topics, total = _device_topics(target), _total(EVEN, plan)
    common = {"address": target.address, "login": target.login, "topics": topics, "payload": PAYLOAD}
    send = Job(uplink.paced, {**common, "devices": _names("q", CLIENTS), "rate": EVEN, "total": total, "spread": 0})
    receive = Job(devices.listen, {**common, "devices": _names("r", LISTENERS), "expected": total, "spread": 1})
    whole, sent, received = crew.run([send, receive], plan.calm_seconds, plan.warm, target.pids)
    lost = {"missing": received["missing"] + sent["missing"], "repeats": received["repeats"]}
    return {**_latency(received["delay"], sent["late"]), **lost, **_cpu(whole, sent["count"])}


def _total(rate: float, plan: Plan) -> int:
    """Messages due in warm-up and window together."""
    return round((plan.warm + plan.calm_seconds) * rate)


def _relay(target: Target, plan: Plan, rate: float) -> Figures:
    arguments = {
        "address": target.broker,
        "topic": f"bench-{target.run}-bare",
        "payload": PAYLOAD,
        "rate": rate,
        "total": _total(rate, plan),
    }
    whole, part = crew.run([Job(reference.relay, arguments)], plan.calm_seconds, plan.warm, target.pids)
    return {**_latency(part["delay"], part["late"]), "missing": part["missing"], **_cpu(whole, len(part["delay"]))}


def app_even(target: Target, plan: Plan) -> Figures:
    """A server app sends 200 messages a second to 100 devices, one after the other. Bare RocketMQ: from due to pulled."""
    if target.broker is not None:
        return _relay(target, plan, APP_RATE)
    parent, total = target.parent("app"), _total(APP_RATE, plan)
    send = {"address": target.producer, "topic": parent, "payload": PAYLOAD, "devices": CLIENTS, "rate": APP_RATE, "total": total}
    listen = {"address": target.address, "login": target.login, "devices": _names("a", CLIENTS), "payload": PAYLOAD, "spread": 0}
    listen |= {"topics": [f"{parent}/d{number:04}" for number in range(CLIENTS)], "expected": total}
    jobs = [Job(reference.produce, send), Job(devices.listen, listen)]
    whole, sent, received = crew.run(jobs, plan.calm_seconds, plan.warm, target.pids)
    lost = {"missing": received["missing"], "repeats": received["repeats"]}
    return {**_latency(received["delay"], sent["late"]), **lost, **_cpu(whole, sent["count"])}


def idle_memory(target: Target, plan: Plan) -> Figures:
    """10,000 connections, each with one subscription of its own, that do nothing. The target is a fresh one and is stopped."""
    try:
        time.sleep(1)
        before = target.rss()
        shares = _shares(_names("m", IDLE), plan.processes)
        jobs = []
        for spread, share in enumerate(shares):
            topics = [f"{target.parent('mem')}/{name}" for name in share]
            jobs.append(
                Job(devices.idle, {"address": target.address, "login": target.login, "devices": share, "topics": topics, "spread": spread})
            )
        began = time.monotonic()
        whole, *_ = crew.run(jobs, 1.0, 1.0, target.pids, at_end=lambda: {"rss": target.rss()})
        return {"bytes": (whole["rss"] - before) / IDLE, "base_mib": before / 2**20, "seconds": time.monotonic() - began}
    finally:
        target.end()


def stored_subscriptions(target: Target, plan: Plan) -> Figures:
    """Device to device while so many subscriptions of devices that are away are stored. The target is a fresh one and is stopped."""
    try:
        time.sleep(1)
        before = target.rss()
        figures = device_flood(target, plan)
        return {**figures, "grown_mib": (target.rss() - before) / 2**20}
    finally:
        target.end()


def reconnect(target: Target, plan: Plan) -> Figures:
    """2,000 stored sessions with 100 waiting messages each come back at once; pacing is off. The target is a fresh one and is stopped."""
    try:
        return stored.drain(target.address)
    finally:
        target.end()


Measure = Callable[[Target, Plan], Figures]


class Scenario(NamedTuple):
    """name: as on the command line. fresh: every measurement has a target of its own."""

    name: str
    measure: Measure
    targets: tuple[str, ...]
    fresh: bool = False


GATEWAYS = ("gateway-rocketmq", "gateway-local")
SCENARIOS = (
    Scenario("uplink1", lambda t, p: uplink_flood(t, p, 1), (*GATEWAYS, "mosquitto", "rocketmq", "sink")),
    Scenario(
        "uplink16", lambda t, p: uplink_flood(t, p, 16), (*GATEWAYS, "gateway-redis", "gateway-strict", "mosquitto", "rocketmq", "sink")
    ),
    Scenario("single", single_store, ("rocketmq",)),
    Scenario("fanout0", lambda t, p: fan_out(t, p, 0), (*GATEWAYS, "mosquitto", "sink")),
    Scenario("fanout1", lambda t, p: fan_out(t, p, 1), (*GATEWAYS, "mosquitto", "sink")),
    Scenario("devices", device_flood, (*GATEWAYS, "gateway-redis", "mosquitto")),
    Scenario("devices500", device_even, (*GATEWAYS, "mosquitto", "rocketmq")),
    Scenario("uplink500", uplink_even, (*GATEWAYS, "mosquitto")),
    Scenario("app200", app_even, ("gateway-rocketmq", "rocketmq")),
    Scenario("stored", stored_subscriptions, ("fresh-thousand", "fresh-million"), fresh=True),
    Scenario("reconnect", reconnect, ("fresh-waiting",), fresh=True),
    Scenario("memory", idle_memory, ("fresh-gateway", "fresh-mosquitto"), fresh=True),
)
