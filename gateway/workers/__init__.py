"""Worker processes (design section 5): each is a whole node; all inherit the listening sockets of their parent (no SO_REUSEPORT: a port in
use must be an error)."""

from gateway.workers.crew import RefusedError, supervise
from gateway.workers.inherited import VARIABLE, Inherited, inherited

__all__ = ["VARIABLE", "Inherited", "RefusedError", "inherited", "supervise"]
