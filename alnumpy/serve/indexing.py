"""An index that runs beside the page, in a thread of low priority, and its messages."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from threading import Lock, Thread
from typing import Any

from ..errors import AlnumpyError
from ..gallery import Gallery
from ..scan import Still

NICE = 10


class Indexing:
    """Brings a gallery up to date with folders: once, or again and again.

    ``tell`` is called with each fault, once as long as it lasts, and ``surprised`` with unexpected errors.
    """

    def __init__(
        self,
        open_gallery: Callable[[], Gallery],
        folders: list[str],
        seconds: int | None,
        tell: Callable[[object], None],
        surprised: Callable[[Exception], None],
    ):
        self._open = open_gallery
        self._folders = folders  # if empty, the folders that were indexed before
        self._seconds = seconds
        self._tell = tell
        self._surprised = surprised
        self._told: set[str] = set()
        self._lock = Lock()
        self._state: dict[str, Any] = {"running": False, "done": 0, "total": 0, "looks": 0, "failed": 0, "fault": None}

    def start(self) -> None:
        """Starts the thread. It ends with the process; the next index finds what it has not stored by then."""
        self._set(running=True)
        Thread(target=self._run, name="index", daemon=True).start()

    def state(self) -> dict[str, Any]:
        """Whether it runs, how many of how many pictures are done in this look, and the failures."""
        with self._lock:
            return dict(self._state)

    def _set(self, **fields: Any) -> None:
        with self._lock:
            self._state |= fields

    def _run(self) -> None:
        if sys.platform == "linux":  # only Linux has priorities of threads
            os.nice(NICE)
        still = Still()
        while True:
            self._set(running=True, done=0, total=0)
            self._look(still)
            self._set(running=False, looks=self.state()["looks"] + 1)
            if self._seconds is None:
                return
            still.look_again()
            time.sleep(self._seconds)

    def _look(self, still: Still) -> None:
        try:
            with self._open() as gallery:
                report = gallery.index(
                    self._folders or None,
                    progress=lambda done, total: self._set(done=done, total=total),
                    ready=still if self._seconds else None,
                )
            faults = [f"{path}: {reason}" for path, reason in report.failed]
            self._set(failed=len(faults), fault=None)
        except (AlnumpyError, OSError, MemoryError) as error:  # for example while another process writes
            faults = [str(error)]
            self._set(fault=str(error))
        except Exception as error:
            faults = []
            self._set(fault="a fault of alnumpy; see what alnumpy serve has printed")
            self._surprised(error)
        for fault in faults:
            if fault not in self._told:
                self._tell(fault)
        self._told = set(faults)
