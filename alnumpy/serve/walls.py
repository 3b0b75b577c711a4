"""Decides who may ask: by the Host and Origin of a request, its sender, and a token.

By default the server listens on this computer only, and every program on it may ask. A browser is such a program, and
it also sends requests for other pages. So a request must be addressed to a name of this computer (a foreign domain may
resolve to it), and if it names an origin, it must come from the server's own page.

A server that listens to others requires its token from them: in the header ``Authorization: Bearer TOKEN``, or in a
cookie that the page's link sets.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import re
import secrets
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import NamedTuple

from ..errors import AlnumpyError

LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})
NAME_AND_PORT = re.compile(r"(?:\[([0-9a-f:.]+)\]|([^:\[\]]+))(?::\d{1,5})?", re.ASCII)
TOKEN = re.compile(r"[\w-]{20,200}", re.ASCII)
TOKEN_FILE = "serve-token"


class Refusal(NamedTuple):
    """The reason why a request is not answered."""

    status: int
    reason: str


def name_of(host: str) -> str:
    """The name or address in a Host header, without brackets and port; "" for anything that is not one.

    >>> name_of("Localhost:8000"), name_of("[::1]:8000"), name_of("localhost, example.org")
    ('localhost', '::1', '')
    """
    found = NAME_AND_PORT.fullmatch(host.lower())
    name = (found[1] or found[2]) if found else ""
    return name if re.fullmatch(r"[\w.:-]*", name, re.ASCII) else ""


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An IP address, without the IPv6 address that an IPv4 one may be wrapped in; None for a name."""
    with suppress(ValueError):
        address = ipaddress.ip_address(text.partition("%")[0])
        return getattr(address, "ipv4_mapped", None) or address
    return None


def is_local(host: str) -> bool:
    """Whether only this computer reaches a host: ``localhost``, or a loopback address.

    >>> is_local("127.0.0.1"), is_local("192.168.1.5")
    (True, False)
    """
    address = address_of(host)
    return host.lower() == "localhost" or (address is not None and address.is_loopback)


@dataclass(frozen=True)
class Walls:
    """A server's conditions for requests. Without a token it answers only this computer."""

    host: str  # the host that it listens on
    token: str = ""
    cookie: str = "alnumpy"

    def refusal(self, headers: Mapping[str, str], peer: str) -> Refusal | None:
        """Why a request is refused, or None. ``headers``: as in WSGI, without HTTP_; ``peer``: the sender's address."""
        name = name_of(headers.get("HOST", ""))
        if not self._is_ours(name):
            return Refusal(421, f"this server has no such name; ask for it as {self.host} (see docs/SERVE.md)")
        origin = headers.get("ORIGIN")
        if origin is not None and origin.lower() not in (f"http{s}://{headers['HOST'].lower()}" for s in ("", "s")):
            return Refusal(403, "requests of other pages are not answered")
        foreign = headers.get("SEC_FETCH_SITE", "none") not in ("none", "same-origin")
        if foreign and headers.get("SEC_FETCH_MODE") != "navigate":
            return Refusal(403, "requests of other pages are not answered")
        if self.token and not self._from_here(name, peer) and not self._has_token(headers):
            how = "open the link that alnumpy serve has printed, or send the header Authorization: Bearer TOKEN"
            return Refusal(401, f"this needs a token: {how}")
        return None

    def is_token(self, text: str) -> bool:
        """Whether a text is the token, in a time that does not depend on it."""
        return bool(self.token) and hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    def _is_ours(self, name: str) -> bool:
        """Whether a name is one of this server's: unlike a domain, an address cannot be made to lead here."""
        if name in LOCAL_NAMES or name == self.host.lower():
            return True
        if not self.token or not name:
            return False
        own = socket.gethostname().lower().split(".")[0]
        if name in (own, f"{own}.local"):
            return True
        return self.host in EVERY_ADDRESS and address_of(name) is not None

    def _from_here(self, name: str, peer: str) -> bool:
        """Whether a request comes from this computer and is addressed to a local name."""
        return (name in LOCAL_NAMES and is_local(peer)) or peer == self.host

    def _has_token(self, headers: Mapping[str, str]) -> bool:
        scheme, _, token = headers.get("AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(token.strip()):
            return True
        with suppress(CookieError):
            found = SimpleCookie(headers.get("COOKIE", "")).get(self.cookie)
            return found is not None and self.is_token(found.value)
        return False


def read_token(folder: Path) -> str:
    """The token that is kept in a folder, made at the first call; only its owner can read it. Raises AlnumpyError."""
    path = folder / TOKEN_FILE
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with suppress(FileExistsError), open(path, "x", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
            file.write(secrets.token_urlsafe(24) + "\n")
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise AlnumpyError(f"{path}: the token cannot be read: {getattr(error, 'strerror', error)}") from None
    if not TOKEN.fullmatch(text):
        raise AlnumpyError(f"{path}: not a token of 20 letters or more; remove the file to get a new one")
    return text
