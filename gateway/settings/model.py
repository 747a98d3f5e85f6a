"""The sections of the settings with their names, defaults and ranges (design section 9, contract section 11)."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.settings.values import (
    BACKENDS,
    STORES,
    address,
    check_backend_url,
    check_group,
    check_instance,
    check_listen,
    check_node_id,
    check_optional_topic,
    check_store_url,
    check_topic,
    check_topic_filter,
    check_word,
    fault,
    give_password,
    has_login,
    split_url,
    take_password,
)

KIB, MIB, GIB = 1024, 1024**2, 1024**3
DAY = 86400

Listen = Annotated[str, AfterValidator(check_listen)]
Group = Annotated[str, AfterValidator(check_group)]
Topic = Annotated[str, AfterValidator(check_topic)]
Word = Annotated[str, AfterValidator(check_word)]
Filter = Annotated[str, AfterValidator(check_topic_filter)]
Count = Annotated[int, Field(ge=1)]
Quota = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Gateway(Section):
    instance: Annotated[str, AfterValidator(check_instance)] = "default"
    node_id: Annotated[str, AfterValidator(check_node_id), Field(max_length=64)] = Field(default_factory=socket.gethostname)
    workers: Count = 1
    data_dir: Path = Path("data")
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_json: bool | None = None  # None: JSON unless stderr is a terminal
    shutdown_grace_seconds: Annotated[float, Field(ge=0)] = 5.0
    drain_per_second: Quota = 1000  # 0: all at once
    drain_seconds: Annotated[float, Field(ge=0)] = 60.0

    @model_validator(mode="before")
    @classmethod
    def _empty_node_id_is_the_host_name(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("node_id") == "":
            return {key: value for key, value in data.items() if key != "node_id"}
        return data


class Mqtt(Section):
    tcp: Annotated[Listen, Field(min_length=1)] = "0.0.0.0:1883"
    backlog: Count = 1024


class Http(Section):
    listen: Listen = "127.0.0.1:8090"  # empty: off


def _with_file(data: Any, name: str) -> Any:
    """`data` with the secret `name` out of the file that `<name>_file` names."""
    if not isinstance(data, dict) or not data.get(f"{name}_file"):
        return data
    if data.get(name):
        raise fault(f"{name} and {name}_file are both given", "Give one of them.")
    path = Path(str(data[f"{name}_file"]))
    try:
        secret = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise fault(f"{name}_file {path} can not be read ({reason})", "Check the path and that this user may read it.") from None
    return {**data, name: secret}


class _WithSecret(Section):
    secret_key: SecretStr = SecretStr("")
    secret_key_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_secret_file(cls, data: Any) -> Any:
        return _with_file(data, "secret_key")

    def secret(self) -> str:
        """The secret key in the clear, for signing."""
        return self.secret_key.get_secret_value()


class Backend(_WithSecret):
    url: Annotated[str, AfterValidator(check_backend_url)] = "local:"
    access_key: str = ""
    create_queues: Annotated[int, Field(ge=1, le=128)] = 8

    def servers(self) -> list[tuple[str, int]]:
        """The name servers of a `rocketmq://` url; empty for `local:`."""
        scheme, place, _ = split_url(self.url, BACKENDS)
        return [address(server) for server in place[2:].split(";")] if scheme == "rocketmq" else []


class Store(Section):
    """url: holds no password; one that was given in it is in `password`."""

    url: Annotated[str, AfterValidator(check_store_url)] = "sqlite:"
    password: SecretStr = SecretStr("")
    password_file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _password_of_url_or_file(cls, data: Any) -> Any:
        data = _with_file(data, "password")
        if not isinstance(data, dict) or not isinstance(data.get("url"), str):
            return data
        url, password = take_password(data["url"])
        if password and data.get("password"):
            raise fault("the url holds a password, and there is another one beside it", "Give one of them.")
        if not password and not data.get("password") and has_login(url):
            # some programs take it for a user, others for a password: so it is not told either
            raise fault(
                "the url holds a name without a password before the @", "Write user:password@, :password@, or give store.password too."
            )
        return {**data, "url": url, "password": password} if password else data

    @property
    def shared(self) -> bool:
        """Other nodes may use it too."""
        return not self.url.startswith("sqlite:")

    def secret(self) -> str:
        """The password in the clear, "" without one."""
        return self.password.get_secret_value()

    def url_with_password(self) -> str:
        """For the store alone: it is in the clear."""
        return give_password(self.url, self.secret())


class Bridge(Section):
    topics: list[Topic] = ["demo"]
    uplink_tag: Word = "MQTT2MQ"
    p2p_tag: Word = "MQTTP2P"
    downlink_tag: Word = "MQ2MQTT"
    default_topic: Annotated[str, AfterValidator(check_optional_topic)] = ""
    create_topics: bool = True


class Naming(Section):
    mode: Literal["strict", "any"] = "strict"
    groups: list[Group] = []
    default_group: Group = "GID_default"


class Auth(Section):
    anonymous: bool = False


class Account(_WithSecret):
    access_key: Word
    groups: list[Group] = []
    publish: list[Filter] = ["#"]
    subscribe: list[Filter] = ["#"]

    @model_validator(mode="after")
    def _has_secret(self) -> Account:
        if not self.secret():
            raise fault(f"account {self.access_key!r} has no secret key", "Give secret_key or secret_key_file (not empty).")
        return self


class Limits(Section):
    # the upper bounds of the lengths keep a message's properties below RocketMQ's 32,767 bytes, at 4 bytes a character
    topic_length: Annotated[int, Field(ge=1, le=1024)] = 64
    client_id_length: Annotated[int, Field(ge=1, le=1024)] = 64
    payload_bytes: Annotated[int, Field(ge=0, le=268_435_455)] = 64 * KIB  # a packet's greatest remaining length (MQTT table 2.4)
    packet_bytes: Annotated[int, Field(ge=64, le=268_435_460)] = MIB
    subscriptions_per_client: Count = 30
    offline_count: Count = 1_000_000
    offline_seconds: Count = 3 * DAY
    session_seconds: Quota = 30 * DAY  # 0: never
    retained_count: Quota = 100_000
    outbox_count: Count = 100_000
    connections: Quota = 0  # the three quotas of the instance; 0: off
    subscriptions: Quota = 0
    tps: Quota = 0
    inflight: Annotated[int, Field(ge=1, le=65535)] = 100
    mailbox_count: Count = 1000
    mailbox_bytes: Count = 4 * MIB
    unstored_count: Count = 100
    unstored_bytes: Count = MIB
    backlog_count: Count = 50_000
    backlog_bytes: Count = 64 * MIB
    batch_count: Annotated[int, Field(ge=1, le=10_000)] = 512
    batch_bytes: Annotated[int, Field(ge=4096, le=64 * MIB)] = MIB
    unresolved_count: Count = 10_000
    unresolved_bytes: Count = 64 * MIB
    push_timeout_seconds: Seconds = 5.0
    connect_timeout_seconds: Seconds = 10.0
    offline_batch: Count = 30
    offline_interval_seconds: Seconds = 1.0
    pull_count: Count = 30
    pull_per_second: Count = 5
    embedded_retention_seconds: Count = 3 * DAY
    embedded_retention_bytes: Count = GIB
    write_buffer_bytes: Count = 8 * MIB
    send_timeout_seconds: Seconds = 20.0
    takeover_seconds: Seconds = 2.0


class Cluster(Section):
    beat_seconds: Annotated[float, Field(gt=0)] = 3.0
    patience_seconds: Annotated[float, Field(gt=0)] = 10.0


class Offline(Section):
    order: Literal["live_first", "strict"] = "live_first"
    first_batch: Literal["at_once", "after_first_period"] = "at_once"
    first_period_seconds: Seconds = 60.0


class Embedded(NamedTuple):
    """Where an embedded store or log lies. synchronous: full or normal, as SQLite means it."""

    path: Path
    synchronous: str


class Settings(BaseSettings):
    """All settings. `Settings()` is the defaults and reads nothing; `settings_sources.load` reads file, environment and command line."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, validate_default=True, hide_input_in_errors=True)

    gateway: Gateway = Gateway()
    mqtt: Mqtt = Mqtt()
    http: Http = Http()
    backend: Backend = Backend()
    store: Store = Store()
    bridge: Bridge = Bridge()
    naming: Naming = Naming()
    auth: Auth = Auth()
    accounts: list[Account] = []
    limits: Limits = Limits()
    cluster: Cluster = Cluster()
    offline: Offline = Offline()

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **__: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)

    def embedded_store(self) -> Embedded | None:
        """For a `sqlite:` store, else None; the default path is data_dir/store.db."""
        scheme, place, options = split_url(self.store.url, STORES)
        if scheme != "sqlite":
            return None
        return Embedded(Path(place) if place else self.gateway.data_dir / "store.db", options.get("synchronous", "full"))

    def embedded_backend(self) -> Embedded | None:
        """For a `local:` backend, else None; the default path is data_dir/backend.db."""
        scheme, place, options = split_url(self.backend.url, BACKENDS)
        if scheme != "local":
            return None
        return Embedded(Path(place) if place else self.gateway.data_dir / "backend.db", options.get("synchronous", "full"))
