"""``alnumpy index --watch``: looks again and again, since network file systems do not report changes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping

from ..errors import AlnumpyError, printable
from ..gallery import Gallery
from ..scan import Still
from .common import warn

NICE = 10

State = tuple[str | None, str | None, bool, bool]  # a picture's content and error, whether it is missing, or left out


def states(gallery: Gallery) -> dict[str, State]:
    """A gallery's record of each file."""
    return {p.path: (p.hash, p.error, p.vanished, p.left_out) for p in gallery.pictures(embeddings=False)}


def changes(before: Mapping[str, State], after: Mapping[str, State]) -> Iterator[str]:
    """One line per picture that has changed."""
    for path in sorted({*before, *after}):
        then, now = before.get(path), after.get(path)
        if then == now:
            continue
        if now is None:
            what = "removed"
        elif now[2]:
            what = "missing"
        elif now[3]:
            what = "left out"
        elif now[1] is not None:
            what = f"unreadable ({now[1]})"
        else:
            what = "added" if then is None else "back" if (then[2] or then[3]) and then[0] == now[0] else "changed"
        yield f"{printable(what)}\t{printable(path)}"


def watch(
    open_gallery: Callable[[], Gallery], folders: list[str], seconds: int, *, prune: bool, retry: bool, rehash: bool
) -> int:
    """Indexes every ``seconds``, at low priority, until a signal ends the process. Prints one line per change.

    Only the first look tries failed files again, and reads all files again.
    """
    if hasattr(os, "nice"):
        os.nice(NICE)
    still = Still()
    told: set[object] = set()
    known: dict[str, State] | None = None
    while True:
        faults: list[object] = []
        try:
            with open_gallery() as gallery:
                known = states(gallery) if known is None else known
                report = gallery.index(folders or None, prune=prune, retry=retry, rehash=rehash, ready=still)
                retry = rehash = False
                after = states(gallery)
            for line in changes(known, after):
                print(line, flush=True)
            known = after
            faults = [f"{path}: {reason}" for path, reason in report.failed if path not in after]
        except (AlnumpyError, OSError) as error:  # for example while another process writes: the next look may succeed
            faults = [str(error)]
        for fault in faults:
            if fault not in told:
                warn(fault)
        told = set(faults)
        still.look_again()
        time.sleep(seconds)
