"""The server: waitress, with walls before the body of a request is received, and an end to slow clients.

waitress receives whole requests in one thread, at next to no cost for each connection, and hands them to a few others.
Added here: a request that will not be answered is refused before its body is received; bodies wait while others use up
the room; and clients that are too slow are disconnected.
"""

from __future__ import annotations

import json
import logging
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask
from waitress.utilities import Error

from ..errors import AlnumpyError
from .app import HEADERS
from .asking import MAX_UPLOAD
from .walls import EVERY_ADDRESS, Walls

THREADS = 32  # most of them wait while a few decode, so that a thumbnail does not wait for uploads
CONNECTIONS = 200
BODIES = 4 * MAX_UPLOAD  # bytes of all bodies that are being received or answered; the large ones are on disk
HEADER = 32 * 1024  # bytes of all headers of a request
IDLE = 30  # seconds that a connection may be silent
PATIENCE = 120  # seconds that a request may take to arrive, and an answer to leave
LINGER = 5  # seconds for which the rest of a request is thrown away before a connection is closed


class Request(HTTPRequestParser):
    """A request as it arrives. One that will not be answered ends with its headers."""

    def __init__(self, channel: Channel):
        super().__init__(channel.adj)
        self.channel = channel
        self.seen = False  # whether its headers have been looked at

    def received(self, data: bytes) -> int:
        """Takes in bytes that have arrived; returns how many of them belong to the request."""
        consumed: int = super().received(data)
        if self.headers_finished and not self.seen and not self.empty and self.error is None:
            self.seen = True
            if self.chunked:
                self._end(411, "send the length of the body: the header Content-Length")
            elif self.content_length and (refusal := self.channel.walls.refusal(self.headers, self.channel.addr[0])):
                self._end(*refusal)
        return consumed

    def _end(self, code: int, reason: str) -> None:
        self.error = Error(reason)
        self.error.code, self.error.reason = code, "Refused"
        self.expect_continue = False
        self.completed = True


class Answer(ErrorTask):
    """A refusal by the server itself, in the application's form."""

    def execute(self) -> None:
        """Sends it."""
        error = self.request.error
        self.status = f"{error.code} {error.reason}"
        body = (json.dumps({"error": error.body}) + "\n").encode()
        self.response_headers += [*HEADERS.items(), ("Content-Type", "application/json")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class Channel(HTTPChannel):
    """A connection."""

    error_task_class = Answer
    close_when_flushed: bool

    def __init__(self, server: Server, *arguments: Any, **options: Any):
        self.walls = server.walls
        self.parser_class = lambda adjustments: Request(self)
        self.since = time.monotonic()  # when the request began to arrive, or the answer to leave
        self.room = 0  # bytes that its body may take
        self.ending = False  # whether no further request is answered
        super().__init__(server, *arguments, **options)

    def readable(self) -> bool:
        """Whether to receive more: the body of a request only once there is room for it."""
        return bool(super().readable()) and self._has_room()

    def _has_room(self) -> bool:
        need = self.request.content_length if self.request is not None else 0
        if need > self.room:
            others = sum(channel.room for channel in self.server.active_channels.values() if channel is not self)
            if others and others + need > BODIES:
                self.last_activity, self.since = (
                    time.time(),
                    time.monotonic(),
                )  # the client did not cause the wait
                return False
            self.room = need
        return True

    def received(self, data: bytes) -> bool:
        """Takes in bytes that have arrived."""
        if self.ending:
            return False
        if self.request is None:
            self.since = time.monotonic()
        return bool(super().received(data))

    def handle_write(self) -> None:
        """Sends waiting bytes. The connection is closed only after the other side has taken the last answer.

        If a connection is closed while bytes still arrive, it is reset, and the answer may be lost.
        """
        last, self.close_when_flushed = self.close_when_flushed, False
        super().handle_write()
        if last and self.total_outbufs_len:
            self.close_when_flushed = True
        elif last and self.connected:
            self.ending, self.since = True, time.monotonic()
            with suppress(OSError):  # the other side has closed the connection
                self.socket.shutdown(socket.SHUT_WR)

    def service(self) -> None:
        """Answers a request, in another thread."""
        super().service()
        self.room = 0
        self.since = time.monotonic()


class Server(TcpWSGIServer):
    """Listens, and answers with an application. Raises AlnumpyError if it cannot listen."""

    channel_class = Channel

    def __init__(self, application: Callable[..., Any], walls: Walls, port: int):
        self.walls = walls
        try:
            adjustments = Adjustments(
                host=walls.host,
                port=port,
                threads=THREADS,
                connection_limit=CONNECTIONS,
                channel_timeout=IDLE,
                cleanup_interval=5,
                max_request_header_size=HEADER,
                max_request_body_size=MAX_UPLOAD + 1,  # waitress refuses bodies of this size and more
                ident="alnumpy",
                server_name="alnumpy",
                clear_untrusted_proxy_headers=True,
                asyncore_use_poll=hasattr(select, "poll"),
            )
            super().__init__(application, adj=adjustments, map={})
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise AlnumpyError(
                f"cannot listen on {walls.host}, port {port}: {reason}; try another --port or --host"
            ) from None

    def maintenance(self, now: float) -> None:
        """Closes connections that are silent or too slow."""
        super().maintenance(now)
        for channel in self.active_channels.values():
            patience = LINGER if channel.ending else PATIENCE
            if not channel.requests and time.monotonic() - channel.since > patience:
                channel.will_close = True

    def run(self) -> None:
        """Serves until a signal raises an exception."""
        wasyncore.loop(timeout=1, map=self._map, use_poll=self.adj.asyncore_use_poll)

    def address(self) -> str:
        """The address by which others reach it."""
        host = own_address(self.family) if self.walls.host in EVERY_ADDRESS else self.walls.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.effective_port}/"


def own_address(family: int) -> str:
    """This computer's address in its network, or its name; nothing is sent to find it."""
    nobody = "2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1"  # for documentation: RFC 3849, RFC 5737
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((nobody, 9))  # the system chooses a route, which begins at our address
        except OSError:
            return f"{socket.gethostname()}.local"
        return str(probe.getsockname()[0])


def quiet(tell: Callable[[object], None]) -> None:
    """Passes on waitress's log, one line per record, without its warnings."""

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            tell(f"{record.getMessage()}{f': {error}' if error else ''}")

    for name in ("waitress", "waitress.queue"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [Lines(logging.ERROR)], False
