"""The command line: arguments and exit codes only. What the commands do is in `gateway.app` and `gateway.tools`."""

from __future__ import annotations

import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from gateway.settings import Settings, SettingsError, load
from gateway.tools import commands
from gateway.tools.running import ToolError, complain, quiet, run

app = typer.Typer(
    name="mqtt-gateway",
    help="An open gateway between MQTT devices and Apache RocketMQ.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
device_app = typer.Typer(help="An MQTT device that signs its password.", no_args_is_help=True)
app_app = typer.Typer(help="A server app on the configured backend.", no_args_is_help=True)
app.add_typer(device_app, name="device")
app.add_typer(app_app, name="app")

Config = Annotated[Path | None, typer.Option("--config", "-c", help="Settings file (TOML); deploy/gateway.toml shows all settings.")]
Set = Annotated[list[str] | None, typer.Option("--set", "-s", metavar="SECTION.KEY=VALUE", help="One setting; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="For machines: JSON lines, one object each.")]
Server = Annotated[str, typer.Option("--server", help="host:port of the gateway; default: mqtt.tcp of the settings.")]
AccountOption = Annotated[str, typer.Option("--account", help="AccessKey of the account to sign with.")]
Group = Annotated[str, typer.Option("--group", help="Group ID of the device; default: the account's first one.")]
ClientId = Annotated[str, typer.Option("--client-id", "-i", help="The whole Client ID; default: a random device of the group.")]
From = Annotated[str, typer.Option("--from", help="begin, now, a time (2026-01-31T08:00:00) or so long ago (10m, 2h, 1d).")]
Count = Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many; 0: never.")]
Qos = Annotated[int, typer.Option("--qos", "-q", min=0, max=2)]


def main() -> NoReturn:
    """The console script."""
    quiet()
    try:
        app()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C while Python ends would show a traceback
    raise SystemExit(0)


@app.command()
def serve(
    config: Config = None,
    set_: Set = None,
    workers: Annotated[int | None, typer.Option("--workers", min=1, help="Short for --set gateway.workers=N.")] = None,
    as_json: Json = False,
) -> None:
    """Run the gateway until Ctrl-C or SIGTERM. Without a file: embedded, with an account made at the first run.

    With several workers, SIGHUP restarts one after the other with the settings as they are then.
    """
    extra = {} if workers is None else {"gateway.workers": str(workers)}
    settings = _settings(config, set_, as_json, extra)
    from gateway.tools import serving

    def reload() -> Settings:
        return load(config, _pairs(set_, as_json) | extra)

    raise typer.Exit(serving.serve(settings, as_json=as_json, reload=reload))


@app.command()
def check(config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Try the settings and every server that they name, and say what to do about each failure (exit code 1)."""
    settings = _settings(config, set_, as_json)
    _run(lambda: commands.check(settings, as_json), as_json)


@device_app.command("pub")
def device_pub(
    topic: str,
    message: Annotated[str, typer.Argument(help="The payload; - reads it from stdin.")],
    qos: Qos = 1,
    retain: Annotated[bool, typer.Option("--retain", "-r")] = False,
    client_id: ClientId = "",
    group: Group = "",
    account: AccountOption = "",
    server: Server = "",
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Publish one message as a device, and wait until it is acknowledged."""
    settings = _settings(config, set_, as_json)
    who = commands.Who(server, account, group, client_id)
    _run(lambda: commands.device_pub(settings, who, topic, _payload(message), qos, retain, as_json), as_json)


@device_app.command("sub")
def device_sub(
    filters: Annotated[list[str], typer.Argument(metavar="FILTER...")],
    qos: Qos = 1,
    keep: Annotated[bool, typer.Option("--keep", help="A persistent session (cleanSession = false); needs --client-id.")] = False,
    count: Count = 0,
    client_id: ClientId = "",
    group: Group = "",
    account: AccountOption = "",
    server: Server = "",
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Subscribe as a device and print what comes; P2P messages for its Client ID come too."""
    settings = _settings(config, set_, as_json)
    who = commands.Who(server, account, group, client_id)
    _run(lambda: commands.device_sub(settings, who, filters, qos, keep, count, as_json), as_json, endless=True)


@app_app.command("send")
def app_send(
    topic: str,
    message: Annotated[str, typer.Argument(help="The body; - reads it from stdin.")],
    subtopic: Annotated[str, typer.Option("--subtopic", help="For devices that subscribe TOPIC/x: /x")] = "",
    p2p: Annotated[str, typer.Option("--p2p", metavar="CLIENT_ID", help="For this one device; it needs no subscription.")] = "",
    qos: Qos = 1,
    retain: Annotated[bool, typer.Option("--retain", "-r")] = False,
    keep: Annotated[bool, typer.Option("--keep", help="P2P: keep it for a device that is offline (cleansessionflag = false).")] = False,
    show_as: Annotated[str, typer.Option("--show-as", metavar="TOPIC", help="The topic that the device sees (mqttRealTopic).")] = "",
    tag: Annotated[str | None, typer.Option("--tag", help="Default: bridge.downlink_tag, the one that reaches devices.")] = None,
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Send one message as a server app."""
    settings = _settings(config, set_, as_json)
    body = _payload(message)
    note = commands.Note(subtopic, p2p, qos, retain, keep, show_as, tag)
    _run(lambda: commands.app_send(settings, topic, body, note, as_json), as_json)


@app_app.command("tail")
def app_tail(
    topic: str,
    tag: Annotated[list[str] | None, typer.Option("--tag", help="Only messages with this tag; may be repeated.")] = None,
    start: From = "now",
    count: Count = 0,
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print a backend topic's messages as a server app reads them. Keeps no offsets."""
    settings = _settings(config, set_, as_json)
    _run(lambda: commands.app_tail(settings, topic, tag or [], start, count, as_json), as_json, endless=True)


@app_app.command("create-topic")
def app_create_topic(topic: str, config: Config = None, set_: Set = None, as_json: Json = False) -> None:
    """Create a topic of the backend, e.g. GID_xxx_MQTT to have the lifecycle events of group GID_xxx. Does nothing when it is there."""
    settings = _settings(config, set_, as_json)
    _run(lambda: commands.app_create_topic(settings, topic, as_json), as_json)


@app.command()
def tail(
    group: str,
    client: Annotated[str, typer.Option("--client", help="Only this client: a Client ID or its part behind the group.")] = "",
    type_: Annotated[list[str] | None, typer.Option("--type", help="connect, disconnect or tcpclean; may be repeated.")] = None,
    reason: Annotated[str, typer.Option("--reason", help="Only events with this reason, e.g. keep_alive_timeout.")] = "",
    start: From = "now",
    count: Count = 0,
    config: Config = None,
    set_: Set = None,
    as_json: Json = False,
) -> None:
    """Print the lifecycle events of GROUP: who comes, who goes, and why. Reads topic GROUP_MQTT."""
    settings = _settings(config, set_, as_json)
    _run(lambda: commands.tail(settings, group, client, type_ or [], reason, start, count, as_json), as_json, endless=True)


def _pairs(pairs: list[str] | None, as_json: bool) -> dict[str, str]:
    overrides: dict[str, str] = {}
    for pair in pairs or []:
        key, separator, value = pair.partition("=")
        if not separator:
            complain(ToolError(f"--set {pair}: write section.key=value."), as_json=as_json)
            raise typer.Exit(2)
        overrides[key.strip()] = value
    return overrides


def _settings(config: Path | None, pairs: list[str] | None, as_json: bool, extra: dict[str, str] | None = None) -> Settings:
    overrides = _pairs(pairs, as_json)
    try:
        return load(config, overrides | (extra or {}))
    except SettingsError as error:
        complain(error, as_json=as_json)
        raise typer.Exit(1) from None


def _run(body: Callable[[], Awaitable[int]], as_json: bool, endless: bool = False) -> NoReturn:
    raise typer.Exit(run(body, as_json=as_json, endless=endless))


def _payload(text: str) -> bytes:
    # an argument that is not UTF-8 comes with surrogates: give its bytes back
    return sys.stdin.buffer.read() if text == "-" else text.encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    main()
