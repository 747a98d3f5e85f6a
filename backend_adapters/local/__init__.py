"""The embedded backend `local:`: a durable message log in one SQLite file, with RocketMQ's semantics (design section 1)."""

from backend_adapters.local.backend import LocalBackend

__all__ = ["LocalBackend"]
