"""What the first run shows: how to talk to the gateway, ready to copy. The only place that shows a secret, and never the log."""

from __future__ import annotations

import shlex
import sys

from gateway.rules.names import SEPARATOR
from gateway.rules.signing import password_for
from gateway.settings import FirstRun
from gateway.tools.identity import reachable


def welcome(first_run: FirstRun) -> str:
    """The text; its commands work as they are."""
    account, settings = first_run.account, first_run.settings
    group, topic = account.groups[0], settings.bridge.topics[0] if settings.bridge.topics else "demo"
    host, port = reachable(settings.mqtt.tcp)
    name, password = shlex.quote(account.access_key), shlex.quote(password_for(account.secret(), group))

    def client(device: str) -> str:
        return f"-h {host} -p {port} -i {shlex.quote(group + SEPARATOR + device)} -u {name} -P {password} -q 1"

    return f"""
No account is configured, so this gateway has one of its own, in {first_run.path} (its secret key: {account.secret()}).
MQTT is on {host}:{port}. Two devices, in two other terminals:

    mosquitto_sub {client("sub")} -v -t {shlex.quote(topic + "/#")}
    mosquitto_pub {client("pub")} -t {shlex.quote(topic + "/hello")} -m 'hello from a device'

A server app, which reads what devices publish and writes to them:

    {_command()} app tail {topic}
    {_command()} app send {topic} 'hello from a server app' --subtopic /hello
"""


def _command() -> str:
    script = sys.argv[0]
    return f"{shlex.quote(sys.executable)} -m gateway.cli" if script.endswith(".py") else shlex.quote(script)
