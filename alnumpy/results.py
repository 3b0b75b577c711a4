"""Results as text, JSON and CSV, to be printed or sent.

Names of files are bytes, and need not be text. In text output ``printable`` shows such bytes. JSON has a second field,
``path_base64`` beside ``path``, with all bytes of a name that is not UTF-8; ``path`` then has U+FFFD for bytes that are
not text. CSV has the bytes themselves in its column ``path``, and the same second field as its last column.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np

from .errors import printable

if TYPE_CHECKING:
    from .embedder import Embedded
    from .gallery import Match, Picture
    from .groups import Member

    Found = Sequence[tuple[str, Sequence[Match]]]  # each query's path and its results


class HasError(Protocol):
    """A picture that has no embedding."""

    @property
    def path(self) -> str: ...
    @property
    def error(self) -> str | None: ...


def csv_line(values: Sequence[object]) -> bytes:
    """A line of CSV. The writer must end it with CR LF itself, since only then it quotes CR and LF in a name."""
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return os.fsencode(line.getvalue().removesuffix("\r\n") + "\n")


def _bytes(name: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # a file of labels may hold letters that this locale lacks
        return name.encode("utf-8", "surrogateescape")


def in_base64(name: str) -> str:
    """All bytes of a name that is not UTF-8, in any locale; "" for a name that is."""
    data = _bytes(name)
    try:
        data.decode()
    except UnicodeDecodeError:
        return base64.b64encode(data).decode()
    return ""


def named(key: str, name: str) -> dict[str, str]:
    """A name as fields of a JSON object, from which it can be restored exactly."""
    text = _bytes(name).decode("utf-8", "replace")
    return {key: text, f"{key}_base64": encoded} if (encoded := in_base64(name)) else {key: text}


def all_named(key: str, names: Iterable[str]) -> dict[str, list[Any]]:
    """Names as fields of a JSON object: a list, and a second one if some are not text, with null for the others."""
    fields = [named("name", name) for name in names]
    lists: dict[str, list[Any]] = {key: [field["name"] for field in fields]}
    if any(len(field) > 1 for field in fields):
        lists[f"{key}_base64"] = [field.get("name_base64") for field in fields]
    return lists


def null_paths(paths: Iterable[str]) -> Iterator[bytes]:
    """Paths as ``xargs -0`` reads them, each followed by a NUL."""
    for path in paths:
        yield os.fsencode(path) + b"\0"


# Embeddings


def shortest(embedding: np.ndarray | None) -> list[float]:
    """Python floats that print with the fewest digits that give back the same float32."""
    assert embedding is not None
    return [float(str(value)) for value in embedding]


def embedding_json(row: Embedded) -> bytes:
    """A picture's path and embedding as a JSON object on one line."""
    return json.dumps(named("path", row.path) | {"embedding": shortest(row.embedding)}).encode()


def write_jsonl(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """One JSON object per line: path and embedding."""
    for row in rows:
        file.write(embedding_json(row) + b"\n")


def write_json(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """One JSON array with an object per line."""
    before = b"[\n"
    for row in rows:
        file.write(before + embedding_json(row))
        before = b",\n"
    file.write(b"[]\n" if before == b"[\n" else b"\n]\n")


def write_csv(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """One line per picture: path, then the components; no header."""
    for row in rows:
        file.write(csv_line([row.path, *shortest(row.embedding)]))


def write_npy(file: IO[bytes], rows: Iterator[Embedded]) -> None:
    """A float32 array (N, D), or (0, 0) if nothing could be embedded."""
    kept = [row.embedding for row in rows if row.embedding is not None]
    np.save(file, np.stack(kept) if kept else np.empty((0, 0), np.float32))


EMBEDDING_WRITERS = {"json": write_json, "jsonl": write_jsonl, "csv": write_csv, "npy": write_npy}


# Search results


def match_text(match: Match, *marks: str) -> str:
    """Distance and path, followed by marks."""
    return "\t".join([f"{match.distance:.4f}", printable(match.path), *filter(None, marks)])


def match_fields(match: Match | Member) -> dict[str, Any]:
    """A result as plain types; the distance has as many digits as a float32 holds."""
    return {"distance": float(f"{match.distance:.7g}")} | named("path", match.path) | {"same": match.same}


def search_json(found: Found, missing: Container[str] = (), more: Mapping[str, Mapping[str, Any]] | None = None) -> str:
    """A list of queries with their results; ``more``: further fields of some of these pictures, by path."""

    def details(path: str) -> Mapping[str, Any]:
        return (more or {}).get(path, {})

    def fields(rank: int, match: Match) -> dict[str, Any]:
        mark = {"missing": True} if match.path in missing else {}
        return {"rank": rank, **match_fields(match), **mark, **details(match.path)}

    ranked = [
        {**named("query", query), **details(query), "results": [fields(i, match) for i, match in enumerate(matches, 1)]}
        for query, matches in found
    ]
    return json.dumps(ranked, indent=1)


def search_csv(found: Found, missing: Container[str] = ()) -> Iterator[bytes]:
    """One line per result, with a header."""
    yield csv_line(["query", "rank", "distance", "path", "same", "missing", "path_base64"])
    for query, matches in found:
        for i, match in enumerate(matches, 1):
            marks = ["yes" * match.same, "yes" * (match.path in missing)]
            yield csv_line([query, i, match_fields(match)["distance"], match.path, *marks, in_base64(match.path)])


# Groups of duplicates

MEMBER_COLUMNS = ("group", "rank", "distance", "path", "same", "width", "height", "bytes", "date", "path_base64")


def member_fields(member: Member) -> dict[str, Any]:
    """A picture of a group as plain types."""
    details = {"width": member.width, "height": member.height, "bytes": member.bytes, "date": member.date}
    return match_fields(member) | details


def groups_text(groups: Iterable[Sequence[Member]]) -> Iterator[str]:
    """One line per picture: distance to the first, path, size, bytes, date; an empty line between groups."""
    for i, group in enumerate(groups):
        if i:
            yield ""
        for j, member in enumerate(group):
            details = f"{member.width}x{member.height}\t{member.bytes}\t{member.date}"
            mark = "\tsame" if member.same and j else ""
            yield f"{member.distance:.4f}\t{printable(member.path)}\t{details}{mark}"


def groups_json(groups: Iterable[Sequence[Member]]) -> str:
    """A list of groups."""
    return json.dumps([[member_fields(member) for member in group] for group in groups], indent=1)


def groups_csv(groups: Iterable[Sequence[Member]]) -> Iterator[bytes]:
    """One line per picture, with a header."""
    yield csv_line(MEMBER_COLUMNS)
    for number, group in enumerate(groups, 1):
        for rank, member in enumerate(group, 1):
            fields = member_fields(member) | {"group": number, "rank": rank, "path": member.path}
            fields |= {"same": "yes" if member.same else "", "path_base64": in_base64(member.path)}
            yield csv_line([fields[column] for column in MEMBER_COLUMNS])


# Pictures of a gallery

PICTURE_COLUMNS = ("path", "bytes", "modified", "width", "height", "added", "sha256", "missing", "error", "path_base64")


def picture_fields(picture: Picture) -> dict[str, Any]:
    """What a gallery knows about a picture as plain types; None for unknown values."""
    known = picture.size >= 0
    modified = datetime.fromtimestamp(picture.mtime_ns / 1e9, timezone.utc) if known else None
    return named("path", picture.path) | {
        "bytes": picture.size if known else None,
        "modified": modified and modified.isoformat(timespec="seconds"),
        "width": picture.width,
        "height": picture.height,
        "added": picture.added,
        "sha256": picture.hash,
        "missing": picture.vanished,
        "error": picture.error,
    }


def pictures_text(pictures: Iterable[Picture]) -> Iterator[str]:
    """One line per picture: its path, followed by a fault if it has one."""
    for picture in pictures:
        mark = "missing" if picture.vanished else picture.error and f"unreadable: {picture.error}"
        yield printable(picture.path) + (f"\t{printable(mark)}" if mark else "")


def pictures_json(pictures: Iterable[Picture]) -> Iterator[str]:
    """A JSON array with one picture per line."""
    before = "[\n"
    for picture in pictures:
        yield before + json.dumps(picture_fields(picture))
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def pictures_csv(pictures: Iterable[Picture]) -> Iterator[bytes]:
    """One line per picture, with a header."""
    yield csv_line(PICTURE_COLUMNS)
    for picture in pictures:
        fields = picture_fields(picture) | {"path": picture.path, "path_base64": in_base64(picture.path)}
        fields["missing"] = "yes" if picture.vanished else ""
        yield csv_line([fields[column] for column in PICTURE_COLUMNS])


def stats_json(stats: Mapping[str, Any], folders: Iterable[str], unreadable: Iterable[HasError]) -> str:
    """What a gallery holds and how it was made, its folders, and the pictures without an embedding."""
    failed = [{**named("path", picture.path), "error": picture.error} for picture in unreadable]
    return json.dumps({**stats, **all_named("folders", folders), "failed": failed}, indent=1)


# Measures


def measures_json(measures: Mapping[str, Any]) -> str:
    """Measures, and the names of pictures that they leave out."""
    fields: dict[str, Any] = {}
    for key, value in measures.items():
        fields |= all_named(key, value) if isinstance(value, (list, tuple)) else {key: value}
    return json.dumps(fields, indent=1)
