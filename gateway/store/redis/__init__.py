"""The shared store: Redis, for any number of nodes (docs/decisions/0007-redis-store.md)."""
