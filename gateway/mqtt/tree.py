"""Many topic filters, and which of them match a topic name (clause 4.7), at a cost that filters which don't match have no part in."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class _Node(Generic[K, V]):
    """One level of the filters that share the levels before it.

    here: subscribers of the filter that ends at this level. rest: of the filter that goes on with `#` alone; that has no node of its own.
    plus: the next level `+`. Other next levels: the only one in name and child, more in children (a dict costs as much as two nodes, and
    of a million filters most have one).
    """

    __slots__ = ("child", "children", "here", "name", "plus", "rest")

    def __init__(self) -> None:
        self.name: str | None = None
        self.child: _Node[K, V] | None = None
        self.children: dict[str, _Node[K, V]] | None = None
        self.plus: _Node[K, V] | None = None
        self.here: dict[K, V] | None = None
        self.rest: dict[K, V] | None = None

    def named(self, level: str) -> _Node[K, V] | None:
        """The next level of that very name."""
        if self.children is not None:
            return self.children.get(level)
        return self.child if self.name == level else None

    def down(self, level: str) -> _Node[K, V] | None:
        """The next level of a filter."""
        return self.plus if level == "+" else self.named(level)

    def grow(self, level: str) -> _Node[K, V]:
        """A new next level of a filter."""
        node: _Node[K, V] = _Node()
        if level == "+":
            self.plus = node
        elif self.children is not None:
            self.children[level] = node
        elif self.child is not None and self.name is not None:
            self.children = {self.name: self.child, level: node}
            self.name = self.child = None
        else:
            self.name = level
            self.child = node
        return node

    def cut(self, level: str) -> None:
        """Remove a next level."""
        if level == "+":
            self.plus = None
        elif self.children is None:
            self.name = self.child = None
        else:
            del self.children[level]
            if len(self.children) == 1:
                ((self.name, self.child),) = self.children.items()
                self.children = None

    def empty(self) -> bool:
        return not (self.child or self.children or self.plus or self.here or self.rest)


class Tree(Generic[K, V]):
    """Values by (filter, key): key says who subscribes. Filters are well formed (`topics.check_filter`)."""

    __slots__ = ("_pairs", "_root")

    def __init__(self) -> None:
        self._root: _Node[K, V] = _Node()
        self._pairs = 0

    def __len__(self) -> int:
        """The number of (filter, key) pairs."""
        return self._pairs

    def add(self, filter: str, key: K, value: V) -> bool:
        """True if (filter, key) is new; else its value is replaced [MQTT-3.8.4-3]."""
        levels = filter.split("/")
        rest = levels[-1] == "#"
        if rest:
            levels.pop()
        node = self._root
        for level in levels:
            node = node.down(level) or node.grow(level)
        leaf = node.rest if rest else node.here
        if leaf is None:
            leaf = {}
            if rest:
                node.rest = leaf
            else:
                node.here = leaf
        new = key not in leaf
        leaf[key] = value
        self._pairs += new
        return new

    def remove(self, filter: str, key: K) -> bool:
        """True if (filter, key) was there. Filters are compared character by character [MQTT-3.10.4-1]."""
        levels = filter.split("/")
        rest = levels[-1] == "#"
        if rest:
            levels.pop()
        path = [self._root]
        for level in levels:
            node = path[-1].down(level)
            if node is None:
                return False
            path.append(node)
        last = path[-1]
        leaf = last.rest if rest else last.here
        if leaf is None or key not in leaf:
            return False
        del leaf[key]
        self._pairs -= 1
        if not leaf:
            if rest:
                last.rest = None
            else:
                last.here = None
            for level in reversed(levels):
                if not path.pop().empty():
                    break
                path[-1].cut(level)
        return True

    def match(self, topic: str) -> list[dict[K, V]]:
        """For each filter that matches the topic name its {key: value}, in no particular order; [] for none.

        They are the tree's own dicts: not to be changed, and valid until the next `add` or `remove`.
        """
        found: list[dict[K, V]] = []
        root = self._root
        first, *others = topic.split("/")
        nodes: list[_Node[K, V]] = []
        named = root.named(first)
        if named is not None:
            nodes.append(named)
        if topic[:1] != "$":  # wildcards of the first level don't match these [MQTT-4.7.2-1]
            if root.rest:
                found.append(root.rest)
            if root.plus is not None:
                nodes.append(root.plus)
        for level in others:
            below: list[_Node[K, V]] = []
            for node in nodes:
                if node.rest:
                    found.append(node.rest)
                if node.plus is not None:
                    below.append(node.plus)
                if node.children is not None:
                    child = node.children.get(level)
                    if child is not None:
                        below.append(child)
                elif node.name == level and node.child is not None:
                    below.append(node.child)
            nodes = below
        for node in nodes:
            if node.here:
                found.append(node.here)
            if node.rest:  # `#` stands for no further level too (clause 4.7.1.2)
                found.append(node.rest)
        return found

    def may_match_below(self, parent: str) -> bool:
        """Whether some filter can match a topic name whose first level is `parent`, `#` and `+/...` among them [MQTT-4.7.2-1]."""
        root = self._root
        if root.named(parent) is not None:
            return True
        return parent[:1] != "$" and (root.rest is not None or root.plus is not None)
