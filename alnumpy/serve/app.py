"""The page and the HTTP interface: requests and their answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import resources
from threading import BoundedSemaphore
from typing import Any

import numpy as np
from flask import Flask, Response, redirect, request
from werkzeug.exceptions import HTTPException

from .. import images, likeness, results
from ..errors import AlnumpyError, ImageError
from ..gallery import Gallery
from . import asking
from .asking import Ended, end, known, number, one, several
from .catalog import Catalog, Shown
from .grouping import Grouping
from .indexing import Indexing
from .thumbnails import LARGE, SMALL, Thumbnails, opened
from .walls import Walls

DECODING = 2  # uploads and pictures with a region held in memory at once; others wait
MOST = 500  # most results of a search
PAGE = 60  # most pictures of the gallery, or groups, in one answer
YEAR = 365 * 86400  # seconds
FILTERS = ("in", "since", "until")
SEARCH = ("k", *FILTERS, "max-distance", "skip-same", "not", "region")

STATIC = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass
class Service:
    """Everything that requests are answered from."""

    gallery: Gallery
    catalog: Catalog
    thumbnails: Thumbnails
    walls: Walls
    indexing: Indexing | None
    tell: Callable[[Exception], None]  # reports unexpected errors
    decoding: BoundedSemaphore = field(default_factory=lambda: BoundedSemaphore(DECODING))

    def __post_init__(self) -> None:
        self.grouping = Grouping(self.gallery, self.tell)

    # Searching

    def search_like(self) -> Response:
        """``GET /search?like=ID``."""
        known("like", *SEARCH)
        id = one("like", asking.content, "")
        if not id:
            end(400, "say which picture: /search?like=ID, or POST a picture")
        return self._search(id, None)

    def search_picture(self) -> Response:
        """``POST /search``, with a picture."""
        known(*SEARCH)
        with self.decoding:
            data = asking.body()
            return self._search(hashlib.sha256(data).hexdigest(), data)

    def _search(self, id: str, data: bytes | None) -> Response:
        """The pictures most like a content; its bytes are given if they came with the request."""
        k = one("k", number(1, MOST), 10)
        skip_same = one("skip-same", asking.flag, False)
        options = filters() | {"max_distance": one("max-distance", asking.distance, None)}
        unlike = [self._embedding(other) for other in several("not", asking.content)]
        options["unlike"] = np.array(unlike, np.float32).reshape(-1, self.gallery.dimension)
        region = one("region", asking.region, None)
        copies = self.catalog.copies(id)
        if data is None and not copies:
            end(404, f"no picture of the gallery has the ID {id}")
        query: Any
        if region is not None:
            query, own = [self._part(id, data, copies, region)], ""
        elif copies:  # use the stored embedding, found by the hash of its content
            query, own = self._embedding(id), id
        else:
            query, own = [data], ""
        extra = len(copies) if own and skip_same else 0
        (matches,) = self.gallery.search(query, k + extra, **options)
        shown = self.catalog.of(match.path for match in matches)
        matches = [m._replace(same=shown[m.path].id == own) for m in matches if m.path in shown]
        matches = [match for match in matches if not (skip_same and match.same)][:k]
        missing = {match.path for match in matches if not os.path.lexists(match.path)}
        name = copies[0].path if data is None else "picture"
        details = {path: picture.details() for path, picture in shown.items()}
        details |= {picture.path: picture.details() for picture in copies[:1]}
        return as_json(results.search_json([(name, matches)], missing, details))

    def _part(self, id: str, data: bytes | None, copies: Sequence[Shown], region: tuple[int, int, int, int]) -> Any:
        """A region of a picture."""
        if data is not None:
            return images.read_part(data, region, self.gallery.max_pixels)
        with self.decoding:
            for picture in copies:
                with opened(picture.path, id) as file:
                    if file is not None:
                        return images.read_part(file, region, self.gallery.max_pixels, picture.path)
        end(404, f"{copies[0].path}: missing, or changed since it was indexed")

    def _embedding(self, id: str) -> np.ndarray:
        """The stored embedding of a content. Ends the request if there is none."""
        found = self.catalog.embedding(id, self.gallery.settings)
        if found is None:
            end(404, f"no picture of the gallery has the ID {id}")
        return found

    def embed(self) -> Response:
        """``POST /embed``, with a picture."""
        known()
        with self.decoding:
            (vector,) = self.gallery.embed([asking.body()])
        return as_json(json.dumps({"embedding": results.shortest(vector)}))

    # What the gallery holds

    def stats(self) -> Response:
        """``GET /stats``."""
        known()
        unreadable = self.catalog.unreadable()
        return as_json(results.stats_json(self.gallery.stats(), self.gallery.folders, unreadable))

    def state(self) -> Response:
        """``GET /state``: what the page shows about the gallery and a running index."""
        known()
        indexing = self.indexing.state() if self.indexing else None
        levels = likeness.measured(self.gallery.settings)
        return as_json(json.dumps({"pictures": len(self.catalog), "levels": levels, "indexing": indexing}))

    def folders(self) -> Response:
        """``GET /folders``."""
        known()
        return as_json(json.dumps(results.all_named("folders", self.catalog.folders())))

    def pictures(self) -> Response:
        """``GET /pictures``: a page of the gallery."""
        known("skip", *FILTERS)
        found = self.catalog.newest(**filters(), count=PAGE, skip=one("skip", number(0, 10**9 - 1), 0))
        return as_json(json.dumps([results.named("path", picture.path) | picture.details() for picture in found]))

    def duplicates(self) -> Response:
        """``GET /duplicates``: groups, found in a thread; meanwhile "working" is true."""
        known("like", "threshold", "skip", "anew")
        threshold = one("threshold", asking.distance, None)
        like = one("like", asking.level, "near") if threshold is None else threshold
        answer = self.grouping.ask(like, one("anew", asking.flag, False))
        skip = one("skip", number(0, 10**9 - 1), 0)
        page = answer.groups[skip : skip + PAGE]
        shown = self.catalog.of(member.path for group in page for member in group)
        groups = [
            [results.member_fields(m) | {"id": shown[m.path].id, "kept": m.kept} for m in group if m.path in shown]
            for group in page
        ]
        state = {"working": answer.working, "error": answer.fault, "total": len(answer.groups)}
        return as_json(json.dumps(state | {"groups": groups}))

    # Pictures

    def thumbnail(self, id: str) -> Response:
        """``GET /thumbnails/ID``."""
        return self._picture(id, SMALL)

    def picture(self, id: str) -> Response:
        """``GET /pictures/ID``."""
        return self._picture(id, LARGE)

    def _picture(self, id: str, side: int) -> Response:
        """A content of the gallery as a JPEG."""
        known()
        copies = self.catalog.copies(id) if asking.is_content(id) else ()
        made = self.thumbnails.get(id, side, (picture.path for picture in copies)) if copies else None
        if made is None:
            end(404, "no such picture now")
        response = Response(made, mimetype="image/jpeg")
        response.headers["Cache-Control"] = f"private, max-age={YEAR}, immutable"  # content has its own address
        return response


ROUTES = {
    "GET /search": Service.search_like,
    "POST /search": Service.search_picture,
    "POST /embed": Service.embed,
    "GET /stats": Service.stats,
    "GET /state": Service.state,
    "GET /folders": Service.folders,
    "GET /pictures": Service.pictures,
    "GET /pictures/<id>": Service.picture,
    "GET /thumbnails/<id>": Service.thumbnail,
    "GET /duplicates": Service.duplicates,
}


def create_app(service: Service) -> Flask:
    """The application, for any WSGI server."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = asking.MAX_UPLOAD
    app.before_request(lambda: guard(service.walls))
    app.after_request(harden)
    app.register_error_handler(Ended, refuse)
    app.register_error_handler(HTTPException, refuse_by_framework)
    for error in (AlnumpyError, MemoryError):
        app.register_error_handler(error, explain)
    app.register_error_handler(Exception, lambda error: surprise(service, error))
    for route, method in ROUTES.items():
        verb, address = route.split()
        app.add_url_rule(address, method.__name__, method.__get__(service), methods=[verb])
    for address, (name, kind) in STATIC.items():
        app.add_url_rule(address, name, static(name, kind))
    return app


def filters() -> dict[str, Any]:
    """The filters that searches and pages of the gallery share."""
    dates = {name: one(name, asking.date, "") for name in ("since", "until")}
    return {"folders": several("in", asking.folder), **dates}


def static(name: str, kind: str) -> Any:
    """The function that answers with one of the page's files."""
    data = (resources.files(__package__) / "static" / name).read_bytes()

    def answer() -> Response:
        response = Response(data, content_type=kind)
        response.headers["Cache-Control"] = "no-cache"  # browsers ask again, and get it if it has changed
        response.add_etag()
        conditional: Response = response.make_conditional(request)
        return conditional

    return answer


def guard(walls: Walls) -> Response | None:
    """Refuses what must not be answered, before anything is done. The page's link turns its token into a cookie."""
    headers = {name.removeprefix("HTTP_"): value for name, value in request.environ.items() if name[:5] == "HTTP_"}
    refusal = walls.refusal(headers, request.remote_addr or "")
    if (refusal is None or refusal.status == 401) and request.path == "/":
        token = request.args.get("token", "")
        if walls.is_token(token):
            response: Response = redirect("/", 303)
            response.set_cookie(walls.cookie, token, max_age=YEAR, httponly=True, samesite="Lax")
            return response
    if refusal is not None:
        end(refusal.status, refusal.reason)
    if not request.environ["PATH_INFO"].startswith("/"):  # Flask would answer with a redirection
        end(400, "the target of a request begins with /")
    return None


def harden(response: Response) -> Response:
    """The headers that every answer has."""
    for name, value in HEADERS.items():
        response.headers.setdefault(name, value)
    return response


def as_json(text: str) -> Response:
    return Response(text + "\n", mimetype="application/json")


def refuse(error: Ended) -> tuple[Response, int]:
    """A request that is refused."""
    return as_json(json.dumps({"error": str(error)})), error.status


def refuse_by_framework(error: HTTPException) -> Response:
    """An answer to a request that Flask refuses, with the headers that belong to it."""
    response: Response = error.get_response()
    response.data = json.dumps({"error": error.description}) + "\n"
    response.content_type = "application/json"
    return response


def explain(error: AlnumpyError | MemoryError) -> tuple[Response, int]:
    """A fault of the picture, of the gallery or of the machine."""
    short = isinstance(error, MemoryError)
    status = 503 if short or getattr(error, "transient", False) else 422 if isinstance(error, ImageError) else 500
    return as_json(json.dumps({"error": str(error) or "out of memory; try again later"})), status


def surprise(service: Service, error: Exception) -> tuple[Response, int]:
    """A fault of this program."""
    service.tell(error)
    return as_json(json.dumps({"error": "a fault of alnumpy; see what alnumpy serve has printed"})), 500
