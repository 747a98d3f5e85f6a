"""Single values of the settings: what each kind of text must look like, and how to say so when it does not."""

from __future__ import annotations

import re
from typing import NamedTuple
from urllib.parse import parse_qsl, quote, unquote

from pydantic_core import PydanticCustomError

_GROUP = re.compile(r"GID_[A-Za-z0-9_-]{3,28}")  # contract section 1: 7 to 32 characters in all
_TOPIC = re.compile(r"[A-Za-z0-9_%|-]{1,127}")  # what RocketMQ accepts as a topic name
_INSTANCE = re.compile(r"[A-Za-z0-9_-]{1,32}")  # it becomes part of a consumer group's name
_WORD = re.compile(r"[!-{}~]{1,127}")  # visible ASCII without "|", which separates tags and the parts of a user name
BACKENDS = ("local", "rocketmq")
REDIS = ("redis", "rediss", "redis+sentinel", "rediss+sentinel", "redis+cluster", "rediss+cluster")
STORES = ("sqlite", *REDIS)
_SYNCHRONOUS = ("full", "normal")


class Problem(NamedTuple):
    """key: dotted, e.g. `limits.topic_length`."""

    key: str
    problem: str
    cure: str

    def __str__(self) -> str:
        return f"{self.key}: {self.problem}. {self.cure}" if self.key else f"{self.problem}. {self.cure}"


class SettingsError(Exception):
    """The operator's mistakes, each with its key and its cure; no secret is in the text."""

    def __init__(self, problems: list[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = problems


def address(text: str) -> tuple[str, int]:
    """`host:port` or `[v6]:port` as (host, port). Raises ValueError."""
    host, separator, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(text)
    if not separator or not host or not port.isascii() or not port.isdigit() or not 0 <= int(port) <= 65535:
        raise ValueError(text)
    return host, int(port)


def fault(problem: str, cure: str) -> PydanticCustomError:
    return PydanticCustomError("gateway", "{problem}", {"problem": problem, "cure": cure})


def check_listen(text: str) -> str:
    if text:
        try:
            address(text)
        except ValueError:
            raise fault(f"{text!r} is no address", 'Write "host:port", for example "0.0.0.0:1883" or "[::]:1883".') from None
    return text


def check_group(text: str) -> str:
    if not _GROUP.fullmatch(text):
        raise fault(
            f"{text!r} is no Group ID", 'Write "GID_" and then letters, digits, "_" or "-", 7 to 32 characters in all, e.g. "GID_demo".'
        )
    return text


def check_topic(text: str) -> str:
    if not _TOPIC.fullmatch(text):
        raise fault(f"{text!r} is no RocketMQ topic name", 'Use letters, digits, "_", "-", "%" and "|", at most 127 characters.')
    return text


def check_optional_topic(text: str) -> str:
    return check_topic(text) if text else text


def check_word(text: str) -> str:
    if not _WORD.fullmatch(text):
        raise fault(f"{text!r} can not be used here", 'Use visible ASCII characters without blanks and "|", at least one.')
    return text


def check_instance(text: str) -> str:
    if not _INSTANCE.fullmatch(text):
        raise fault(f"{text!r} can not be used here", 'Use letters, digits, "_" and "-", 1 to 32 characters.')
    return text


def check_topic_filter(text: str) -> str:
    levels = text.split("/")
    if not text or any("#" in level and (level != "#" or index != len(levels) - 1) for index, level in enumerate(levels)):
        raise fault(f"{text!r} is no topic filter", '"#" stands alone as the last level; an empty filter matches nothing.')
    if any("+" in level and level != "+" for level in levels):
        raise fault(f"{text!r} is no topic filter", '"+" stands for one whole level.')
    return text


def split_url(url: str, schemes: tuple[str, ...]) -> tuple[str, str, dict[str, str]]:
    scheme, separator, rest = url.partition(":")
    if not separator or scheme not in schemes:
        known = " or ".join(f'"{name}:"' if name in ("local", "sqlite") else f'"{name}://"' for name in schemes)
        raise fault(f"{url.split('@')[-1].partition('?')[0]!r} is of an unknown kind", f"It begins with {known}.")
    place, _, query = rest.partition("?")
    return scheme, place, dict(parse_qsl(query, keep_blank_values=True))


def _check_embedded(options: dict[str, str]) -> None:
    unknown = set(options) - {"synchronous"}
    if unknown:
        raise fault(f"unknown option {sorted(unknown)[0]!r}", 'The only one is "?synchronous=normal" or "?synchronous=full".')
    if options.get("synchronous", "full") not in _SYNCHRONOUS:
        raise fault(f"synchronous={options['synchronous']!r} is unknown", 'Write "full" (safe when the power fails) or "normal" (faster).')


def check_backend_url(url: str) -> str:
    scheme, place, options = split_url(url, BACKENDS)
    if scheme == "local":
        _check_embedded(options)
        return url
    try:
        if not place.startswith("//") or options:
            raise ValueError(url)
        for server in place[2:].split(";"):
            address(server)
    except ValueError:
        raise fault(f"{url!r} names no servers", 'List the name servers: "rocketmq://host:9876;host2:9876".') from None
    return url


def check_node_id(text: str) -> str:
    if "/" in text:  # the cluster appends "/<incarnation>"
        raise fault(f'{text!r} contains "/"', 'Use any other visible ASCII characters but "|".')
    return check_word(text)


def take_password(url: str) -> tuple[str, str]:
    """(the url without its password, the password in the clear or "")."""
    scheme, separator, rest = url.partition("://")
    login, at, servers = rest.rpartition("@")
    user, colon, password = login.partition(":")
    if scheme not in REDIS or not at or not colon:
        return url, ""
    return f"{scheme}{separator}{user + at if user else ''}{servers}", unquote(password)


def give_password(url: str, password: str) -> str:
    """The reverse of `take_password`."""
    scheme, separator, rest = url.partition("://")
    if not password:
        return url
    user, _, servers = rest.rpartition("@")
    return f"{scheme}{separator}{user}:{quote(password, safe='')}@{servers}"


def has_login(url: str) -> bool:
    """Whether a Redis url has something before its "@"."""
    scheme, _, rest = url.partition("://")
    return scheme in REDIS and bool(rest.rpartition("@")[0])


def check_store_url(url: str) -> str:
    """Scheme and servers; the rest is the adapter's affair. No text of the url is told that might be a password."""
    scheme, place, options = split_url(url, STORES)
    if scheme == "sqlite":
        _check_embedded(options)
        return url
    if any("password" in name for name in options):
        raise fault("the url holds a password among its options", "Give it as store.password or store.password_file.")
    servers, _, path = place.removeprefix("//").rpartition("@")[2].partition("/")
    form = f"{scheme}://host:port"
    try:
        if not place.startswith("//"):
            raise ValueError(scheme)
        names = servers.split(",")
        for name in names:
            address(name if re.search(r":\d+$", name) and not name.endswith("]") else f"{name}:6379")
    except ValueError:
        raise fault(f"the {scheme} url names no servers", f'Write "{form}", or several separated by commas.') from None
    if "+" not in scheme and len(names) > 1:
        raise fault(f"{scheme}:// names one server, but there are {len(names)}", f"Use {scheme}+sentinel:// or {scheme}+cluster://.")
    if scheme.endswith("+sentinel") and not path.partition("/")[0]:
        raise fault("the url does not say which service the sentinels watch", f'Write "{form}/SERVICE", e.g. .../mymaster.')
    return url
