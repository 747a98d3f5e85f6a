"""What a running gateway offers beside MQTT: HTTP for operators, and the control socket for commands on the same machine."""

from gateway.api.control import serve_control
from gateway.api.errors import ListenError
from gateway.api.http import serve_http

__all__ = ["ListenError", "serve_control", "serve_http"]
