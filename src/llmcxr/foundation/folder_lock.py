"""Who works in a folder: one process at a time, of all machines that see the folder.

The system's lock ends with its process, but some file systems of networks do not have it, or have it for each machine
alone. So the
holder also says who it is in a file, which it touches every few seconds as long as it lives.
"""

from __future__ import annotations

import json
import os
import platform
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from llmcxr.foundation.artifacts import cannot_write
from llmcxr.foundation.errors import UserError

_BEAT = 5.0  # seconds between two signs of life
_SILENCE = 30.0  # seconds without one after which a holder on another machine is taken for gone


class FolderLock:
    """Hold `folder` with the files `lock` and `owner.json` in `records`, a folder that is there."""

    def __init__(self, folder: Path, records: Path) -> None:
        self.folder, self.files = folder, (records / "lock", records / "owner.json")
        self._lock, self._owner = FileLock(self.files[0], timeout=0, fallback_to_soft=False), self.files[1]
        self._gone = threading.Event()

    def acquire(self) -> None:
        """`UserError` where another process holds the folder. One that is gone, however it ended, holds nothing.

        Whether a holder on another machine lives takes half a minute to see.
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise self._taken(self._read()) from error
        except (OSError, NotImplementedError):  # a file system without locks: what the owner says has to do
            pass
        try:
            self._claim()
        except BaseException:
            self._lock.release()
            raise
        self._gone.clear()
        threading.Thread(target=self._beat, daemon=True).start()

    def release(self) -> None:
        """Let others in."""
        self._gone.set()
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    def _claim(self) -> None:
        """Make the file of the owner, which only one can."""
        own = psutil.Process()
        me = {"host": platform.node(), "process": own.pid, "started": own.create_time()}
        while True:
            try:
                with open(self._owner, "x", encoding="utf-8") as file:
                    json.dump(me, file)
                return
            except FileExistsError:
                if _lives(other := self._read(), self._owner):
                    raise self._taken(other) from None
                self._owner.unlink(missing_ok=True)
            except OSError as error:
                self._owner.unlink(missing_ok=True)
                raise cannot_write(self._owner, error) from error

    def _read(self) -> dict[str, Any]:
        try:
            owner = json.loads(self._owner.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # just made, just removed, or cut off
            return {}
        return owner if isinstance(owner, dict) else {}

    def _taken(self, owner: dict[str, Any]) -> UserError:
        return UserError(
            f"another run works in {self.folder} (process {owner.get('process', '?')} on {owner.get('host', '?')}). "
            "Wait for it, "
            "end it, or give this one another `name`."
        )

    def _beat(self) -> None:
        while not self._gone.wait(_BEAT):
            with suppress(OSError):
                os.utime(self._owner)


def _lives(owner: dict[str, Any], file: Path) -> bool:
    """Whether the process that wrote `owner` in `file` still works."""
    if owner.get("host") == platform.node():
        try:
            return abs(psutil.Process(owner["process"]).create_time() - owner["started"]) < 1  # numbers are used again
        except (psutil.Error, KeyError, TypeError, ValueError):
            return False
    print(
        f"looking whether process {owner.get('process')} on {owner.get('host')} still works in {file.parent.parent} ..."
    )
    first, end = _touched(file), time.monotonic() + _SILENCE
    while time.monotonic() < end:
        time.sleep(_BEAT / 5)
        if (now := _touched(file)) != first:
            return now is not None
    return False


def _touched(file: Path) -> int | None:
    """Time of the last sign of life. Opened for it: clients of network file systems look again only then."""
    try:
        with open(file, "rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns
    except OSError:
        return None
