"""What an error of Redis means for the operator: the store's failures, each with its cure."""

from __future__ import annotations

from redis import exceptions as errors

from gateway.ports import StoreError

_START = "start it, or correct store.url"
_RIGHTS = "set the user name and the password in store.url, and let that user run every command on the keys of the instance"

# The codes with which Redis begins an error that is no fault of the command: what is wrong, and what to do.
_CODES: dict[str, tuple[str, str]] = {
    "OOM": ("its memory is full", "raise maxmemory of Redis, or lower limits.offline_count"),
    "MISCONF": ("it can't write to its disk", "free disk space where Redis runs, see the log of Redis"),
    "READONLY": ("it is a replica and takes no writes", "set store.url to the master, or to its Sentinels"),
    "LOADING": ("it is loading its data", "wait until it is done"),
    "MASTERDOWN": ("its master is away", "see why the master is down"),
    "NOREPLICAS": ("it has too few replicas for min-replicas-to-write", "start the replicas"),
    "CLUSTERDOWN": ("the Redis Cluster is down", "see `redis-cli cluster info` and start the nodes that are missing"),
    "TRYAGAIN": ("its slots are being moved", "wait until the resharding is done"),
    "BUSY": ("it is busy with a script of somebody else", "see `redis-cli script kill`"),
    "UNKILLABLE": ("it is busy with a script", "wait until it ends"),
    "NOSCRIPT": ("it forgets scripts as they are loaded", "see who calls SCRIPT FLUSH"),
    "NOAUTH": ("it wants a password", _RIGHTS),
    "WRONGPASS": ("it refuses the user name or the password", _RIGHTS),
    "NOPERM": ("its user may not do this", _RIGHTS),
}
_CLASSES: tuple[tuple[str, str], ...] = (  # redis-py cuts some codes off and names a class instead
    ("BusyLoadingError", "LOADING"),
    ("ReadOnlyError", "READONLY"),
    ("NoScriptError", "NOSCRIPT"),
    ("OutOfMemoryError", "OOM"),
    ("ClusterDownError", "CLUSTERDOWN"),
    ("TryAgainError", "TRYAGAIN"),
    ("MasterDownError", "MASTERDOWN"),
    ("NoPermissionError", "NOPERM"),
    ("AuthenticationError", "WRONGPASS"),
    ("AuthenticationWrongNumberOfArgsError", "NOAUTH"),
)
_FATAL = ("NOAUTH", "WRONGPASS", "NOPERM")


class Failure(StoreError):
    """cure: the part of the text that says what to do. fatal: waiting does not help."""

    def __init__(self, text: str, cure: str, *, fatal: bool = False) -> None:
        super().__init__(f"{text}; {cure}")
        self.cure = cure
        self.fatal = fatal


def code_of(error: Exception) -> str:
    """The code of a reply that is an error, e.g. "OOM"."""
    names = {one.__name__ for one in type(error).__mro__}
    if "Authentication required" in str(error):
        return "NOAUTH"
    if "user executing the script" in str(error):
        return "NOPERM"
    for name, code in _CLASSES:
        if name in names:
            return code
    return str(error).partition(" ")[0]


def refused(name: str, error: Exception) -> Failure | None:
    """A reply that says why the server at `name` can't do it now; nothing was done. None: the command itself is at fault."""
    code = code_of(error)
    if code not in _CODES:
        return None
    wrong, cure = _CODES[code]
    return Failure(f"store {name}: {wrong}", cure, fatal=code in _FATAL)


def not_now(name: str, error: Exception) -> Failure | None:
    """As `refused`, but for what depends on the command: that its user may not run it is for the caller to judge."""
    return None if code_of(error) == "NOPERM" else refused(name, error)


def unreachable(name: str, error: Exception) -> Failure:
    """No connection could be made; nothing was done."""
    if failure := refused(name, error):
        return failure
    if isinstance(error, errors.TimeoutError | TimeoutError):
        return Failure(f"store {name}: it does not answer", _START)
    if "certificate" in str(error).lower() or "ssl" in str(error).lower():
        return Failure(f"store {name}: TLS failed ({error})", "correct the certificate, or store.url (rediss:, ?ca=PATH)")
    return Failure(f"store {name}: no connection ({error})", _START)


def lost(name: str, error: Exception) -> Failure:
    """The connection failed after commands were sent: whether they were executed is unknown."""
    late = isinstance(error, errors.TimeoutError | TimeoutError)
    what = "it did not answer in time" if late else "the connection was lost"
    return Failure(f"store {name}: {what}, the outcome is unknown", "see whether it runs and how busy it is")
