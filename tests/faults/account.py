"""What must be true of every message when the dust has settled."""

from __future__ import annotations

from collections import defaultdict

from tests.kit.load import Connect, Receiver
from tests.kit.server_app import AppMessage, collect
from tests.kit.world import Scene


def connector(scene: Scene, client_id: str, clean: bool = False) -> Connect:
    """Signed CONNECTs of one persistent client."""
    return lambda: scene.attempt(client_id, auto_ack=False, clean=clean)


async def stored(scene: Scene, second: str, wanted: set[bytes]) -> list[AppMessage]:
    """The messages of the subtopic in the backend, until everything wanted was seen."""
    reader = await scene.new_app().reader(scene.parent, from_start=True)
    found: list[AppMessage] = []
    while not wanted <= {message.body for message in found}:
        found += await collect(reader, 1, lambda message: message.properties.get("mqttSecondTopic") == second)
    return found


def check_order(each: int, found: list[AppMessage]) -> None:
    """What each sender published, numbers 0 to `each`, is in one queue and in order, after repeats are dropped."""
    seen: dict[str, list[int]] = defaultdict(list)
    queues: dict[str, set[str]] = defaultdict(set)
    for message in sorted(found, key=lambda message: message.place):
        name, _, number = message.body.decode().partition(":")
        queues[name].add(message.place[0])
        if int(number) not in seen[name]:
            seen[name].append(int(number))
    assert all(len(used) == 1 for used in queues.values()), queues
    assert all(numbers == list(range(each)) for numbers in seen.values())


def check_identities(found: list[AppMessage]) -> None:
    """A message that is in the backend more than once carries one UNIQ_KEY."""
    identities: dict[bytes, set[str]] = defaultdict(set)
    for message in found:
        identities[message.body].add(message.id)
    assert {body: ids for body, ids in identities.items() if len(ids) > 1} == {}


def check_once(receiver: Receiver) -> None:
    """Nothing was delivered twice."""
    repeated = {body: times for body, times in receiver.times.items() if times > 1}
    assert not repeated, f"{len(repeated)} delivered more than once, e.g. {dict(list(repeated.items())[:5])}"
