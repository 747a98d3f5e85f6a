"""Who listens to a topic, on any node: a cache of the cluster's index, true again after each `look` (design section 5).

Filters are found by their shape: per parent the index knows which shapes there are (`cmd/7/#` has the shape `=/=/#`); a topic and a
shape make one filter. So the cost of a message does not grow with filters that don't match it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from gateway.ports import Cluster, Listed, Look, Wide

FILTERS_MOST = 50_000  # known filters of a parent, with and without listeners; more: the cache begins anew
TOPICS_MOST = 50_000
NOBODY = Listed()  # shared, never changed


class _Book:
    """What is known of one parent."""

    __slots__ = ("listed", "outdated", "shapes", "topics", "version", "wide")

    def __init__(self) -> None:
        self.version = 0
        self.outdated = True  # this node has changed the index since
        self.shapes: list[tuple[str, ...]] = []
        self.listed: dict[str, Listed] = {}
        self.topics: dict[str, list[str]] = {}  # the filters that can match it
        self.wide = Wide(False, 0)

    def filters(self, topic: str) -> list[str]:
        found = self.topics.get(topic)
        if found is None:
            if len(self.topics) >= TOPICS_MOST:
                self.topics.clear()
            found = self.topics[topic] = list(filters_of(topic, self.shapes))
        return found

    def unknown(self, topics: Iterable[str]) -> set[str]:
        listed = self.listed
        return {filter for topic in topics for filter in self.filters(topic) if filter not in listed}

    def listeners(self, topic: str) -> list[Listed]:
        listed = self.listed
        return [found for filter in self.filters(topic) if (found := listed[filter]) is not NOBODY]

    def learn(self, look: Look, asked: Iterable[str]) -> None:
        if look.changed is None:
            self.listed.clear()
        else:
            for filter in look.changed:
                self.listed.pop(filter, None)
        if look.shapes is not None:
            self.shapes = [tuple(shape.split("/")) for shape in look.shapes]
            self.topics.clear()
        if len(self.listed) > FILTERS_MOST:
            self.listed.clear()
        for filter in asked:
            self.listed[filter] = look.listed.get(filter, NOBODY)
        self.version = look.version
        self.wide = look.wide


class Directory:
    """By parent topic. Looks are answered in the order in which they were asked."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._books: dict[str, _Book] = {}

    async def look(self, parent: str) -> Wide:
        """What the cluster says of `parent` now. Raises StoreError."""
        book = self._books.setdefault(parent, _Book())
        await self._look(parent, book, set())
        return book.wide

    async def find(self, parent: str, topics: Iterable[str], *, alone: bool = False) -> dict[str, list[Listed]]:
        """By topic, of each filter that matches and has listeners: what was true at some moment after the call began. alone: no other node
        changes the index, so what is known holds. Raises StoreError."""
        topics = set(topics)
        book = self._books.setdefault(parent, _Book())
        if not alone or book.outdated or book.unknown(topics):
            await self._look(parent, book, topics)
        # taken at once: while a batch is delivered, the looks of others forget what has changed
        return {topic: book.listeners(topic) for topic in topics}

    async def _look(self, parent: str, book: _Book, topics: set[str]) -> None:
        while True:
            asked = book.unknown(topics)
            book.outdated = False
            try:
                look = await self._cluster.look(parent, book.version, asked)
            except BaseException:
                book.outdated = True
                raise
            if look.version >= book.version or look.changed is None:  # else another look has told more; or Redis lost its data
                book.learn(look, asked)
            if not book.unknown(topics):
                return

    def outdate(self, parent: str) -> None:
        """This node changes the index of `parent`."""
        self._books.setdefault(parent, _Book()).outdated = True

    def empty(self, parent: str) -> bool:
        """Nobody listens, as far as the last look told."""
        book = self._books.get(parent)
        return book is None or not book.shapes


def filters_of(topic: str, shapes: Iterable[tuple[str, ...]]) -> Iterator[str]:
    """The filters of these shapes that match the topic name (clause 4.7)."""
    levels = topic.split("/")
    many = len(levels)
    for shape in shapes:
        size = len(shape)
        rest = shape[-1] == "#"
        if (many < size - 1 if rest else many != size) or (topic[:1] == "$" and shape[0] != "="):  # [MQTT-4.7.2-1]
            continue
        made = [level if kind == "=" else kind for kind, level in zip(shape, levels, strict=False)]
        if rest:
            made[size - 1 :] = ["#"]
        yield "/".join(made)
