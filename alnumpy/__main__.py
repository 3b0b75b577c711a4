"""The program: ``alnumpy``, or ``python -m alnumpy``.

Signals get their handlers before anything large is imported, so this file and the package's ``__init__`` import next to
nothing. Before that, while Python itself starts, a signal has Python's own effect.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from contextlib import suppress
from types import FrameType

from .errors import printable

ENDINGS = {"SIGINT": "interrupted", "SIGTERM": "terminated", "SIGHUP": "hung up"}

_at_work = False  # whether a signal stops the program by an exception


def run() -> None:
    """Runs the command line as a process of its own, which ends with an exit code and at most one line on stderr."""
    global _at_work
    catch_signals()
    try:
        from .cli import main

        _at_work = True
        code = main()
        _at_work = False
    except KeyboardInterrupt as stopped:
        leave(stopped.args[0])
    except Exception as error:
        if "--debug" in sys.argv:
            raise
        say(f"{type(error).__name__}: {error}; --debug shows where")
        code = 1
    gc.freeze()  # the process ends now: collecting the imports' objects would take a tenth of its time
    sys.exit(code)


def catch_signals() -> None:
    """From here on Ctrl-C, SIGTERM and SIGHUP end the process in good order, except those that the caller ignores."""
    for name in ENDINGS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # by nohup, or "&" in scripts
            signal.signal(number, stop)
    sys.unraisablehook = unraisable


def stop(number: int, frame: FrameType | None) -> None:
    """The handler: raises KeyboardInterrupt, so that everything is closed as after an error.

    A second signal ends the process at once; so does one during an import, where C code may swallow an exception.
    """
    global _at_work
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            leave(number)
        frame = frame.f_back
    if not _at_work:
        leave(number)
    _at_work = False
    raise KeyboardInterrupt(number)


def unraisable(ignored: sys.UnraisableHookArgs) -> None:
    """Python calls this for an exception that it cannot raise, as in a destructor. A signal ends the process."""
    if isinstance(ignored.exc_value, KeyboardInterrupt):
        leave(ignored.exc_value.args[0])
    sys.__unraisablehook__(ignored)


def leave(number: int) -> None:
    """Ends the process for a signal, without unwinding: it does not return."""
    if files := sys.modules.get("alnumpy.files"):
        for temporary in files.unfinished:
            with suppress(OSError):
                os.unlink(temporary)
    say(ENDINGS[signal.Signals(number).name])
    os._exit(128 + number)


def say(message: str) -> None:
    """One line on stderr, past its buffer, which a handler may have interrupted."""
    with suppress(OSError, ValueError, AttributeError):  # stderr may be closed
        os.write(sys.stderr.fileno(), f"alnumpy: {printable(message)}\n".encode("utf-8", "backslashreplace"))


if __name__ == "__main__":
    run()
