"""One process for one file: the lock that keeps a second gateway off an embedded store."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import IO

from gateway.ports import StoreError


class Lock:
    """Keeps a second gateway off the file: an advisory lock on a file beside it, which the system releases with the process."""

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(path.name + ".lock")
        self._file: IO[str] | None = None

    def take(self) -> None:
        """Raises StoreError when another process holds it."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = open(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")  # noqa: SIM115 - open while locked
        except OSError as error:
            raise StoreError(
                f"store: cannot open {self.path}: {error.strerror}; make its folder writable for the gateway's user"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = file.read(20).strip() or "unknown"
            file.close()
            raise StoreError(
                f"store: {self.path} is held by another gateway (process {holder}); stop that one, or set store.url to another file"
            ) from error
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        if self._file is not None:
            self._file.close()  # the file stays: removing it would let two processes lock two files of one name
            self._file = None
