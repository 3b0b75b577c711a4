"""Groups of pictures that look alike, found in a thread, since that takes long in a large gallery."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock, Thread
from typing import NamedTuple

from ..errors import AlnumpyError
from ..gallery import Gallery
from ..groups import Member


class Answer(NamedTuple):
    """What is known about groups of one kind at present."""

    groups: list[list[Member]]
    working: bool  # whether they are being looked for
    fault: str | None = None


class Grouping:
    """Finds groups, one kind at a time, and keeps the last of each kind."""

    def __init__(self, gallery: Gallery, surprised: Callable[[Exception], None]):
        self._gallery = gallery
        self._surprised = surprised  # is called with unexpected errors
        self._lock = Lock()
        self._found: dict[str | float, Answer] = {}
        self._working: str | float | None = None

    def ask(self, like: str | float, anew: bool) -> Answer:
        """The groups of a kind, as in ``Gallery.groups``; they are looked for the first time, and with ``anew``."""
        with self._lock:
            found = self._found.get(like)
            if (found is None or anew) and self._working is None:
                self._working = like
                Thread(target=self._look, args=(like,), name="groups", daemon=True).start()
            groups, _, fault = found or Answer([], False)
            return Answer(groups, self._working == like or found is None, fault)

    def _look(self, like: str | float) -> None:
        answer = Answer([], False, "the groups could not be found; see what alnumpy serve has printed")
        try:
            answer = Answer(self._gallery.groups(like), False)
        except (AlnumpyError, MemoryError) as error:
            answer = Answer([], False, str(error) or "out of memory")
        except Exception as error:
            self._surprised(error)
        finally:
            with self._lock:
                if len(self._found) > 20:  # every distance is a kind
                    self._found.clear()
                self._found[like] = answer
                self._working = None
