"""RocketMQ over its remoting protocol, native to trio: `RocketMQ.open(url, ...)` gives a `Backend`."""

from .client import RocketMQ

__all__ = ["RocketMQ"]
