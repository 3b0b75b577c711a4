"""Loads a gallery's Parquet file into a real PostgreSQL with pgvector, and compares the neighbours with alnumpy's.

    python tools/dev/try_pgvector.py gallery.db

It needs the extra ``parquet`` and PostgreSQL with pgvector (Debian: postgresql and postgresql-15-pgvector, or pgvector
built from its source), and starts a cluster of its own in a temporary folder, which listens on a socket there only.
As root it runs the server as the user ``postgres``. Exit code 1 if a query's neighbours differ.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from alnumpy.exporting import export
from alnumpy.gallery import Gallery

CLOSE = 1e-4  # distances that differ by less are ties: float32 rounds, and the two programs round in different orders

Found = list[tuple[str, float]]  # paths and distances


@contextmanager
def server(programs: Path) -> Iterator[list[str]]:
    """A running cluster, and the command that talks to it."""
    user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if user:
            shutil.chown(folder, "postgres")
        data = f"{folder}/data"
        run = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
        subprocess.run([*user, programs / "initdb", "-D", data, "-U", "alnumpy", "-A", "trust"], **run)  # type: ignore[call-overload]
        control = [*user, str(programs / "pg_ctl"), "-D", data, "-w", "-l", f"{folder}/log"]
        subprocess.run([*control, "-o", f"-k {folder} -c listen_addresses= -c fsync=off", "start"], **run)  # type: ignore[call-overload]
        try:
            yield [str(programs / "psql"), "-h", folder, "-U", "alnumpy", "-qAtX", "-v", "ON_ERROR_STOP=1", "postgres"]
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], **run)  # type: ignore[call-overload]


def ask(psql: list[str], sql: str) -> list[list[str]]:
    """The rows that SQL gives."""
    result = subprocess.run(psql, input=sql, capture_output=True, text=True, check=False)
    if result.returncode:
        raise SystemExit(f"PostgreSQL: {result.stderr.strip()}")
    return [line.split("|", 1) for line in result.stdout.splitlines()]


def load(psql: list[str], file: Path, dimension: int) -> int:
    """Copies a Parquet file into the table ``pictures``, a part at a time. Returns the number of rows."""
    from pyarrow import parquet

    ask(psql, f"CREATE EXTENSION vector; CREATE TABLE pictures (path text, vector vector({dimension}))")
    copy = [*psql, "-c", "COPY pictures FROM STDIN"]
    count = 0
    with parquet.ParquetFile(file) as pictures, subprocess.Popen(copy, stdin=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        for part in pictures.iter_batches(1024, columns=["path", "vector"]):
            vectors = part["vector"].flatten().to_numpy().reshape(-1, dimension)
            for path, vector in zip(part["path"].to_pylist(), vectors, strict=True):
                name = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r").replace("\t", "\\t")
                process.stdin.write(f"{name}\t{text(vector)}\n")
                count += 1
    if process.returncode:
        raise SystemExit("PostgreSQL: COPY failed")
    return count


def text(vector: np.ndarray) -> str:
    """A vector as pgvector reads it."""
    return str(vector.tolist())


def some(gallery: Gallery, count: int) -> list[tuple[str, np.ndarray]]:
    """Pictures of a gallery by chance, with their embeddings."""
    good = [(row.path, row.embedding) for row in gallery if not (row.embedding is None or row.vanished or row.left_out)]
    return [good[i] for i in np.random.default_rng(0).choice(len(good), min(count, len(good)), replace=False)]


def agree(ours: Found, theirs: Found) -> bool:
    """Whether two searches found the same, but for ties."""
    near = [abs(a - b) <= CLOSE for (_, a), (_, b) in zip(ours, theirs, strict=True)]
    last = ours[-1][1] - CLOSE  # farther ones may be tied with one that was cut off
    sure = [{path for path, distance in found if distance < last} for found in (ours, theirs)]
    names = {path for path, _ in ours}, {path for path, _ in theirs}
    return all(near) and sure[0] <= names[1] and sure[1] <= names[0]


def main() -> int:
    """Exit code 0 if all neighbours are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gallery")
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--neighbours", type=int, default=10)
    parser.add_argument("--programs", type=Path, default=Path("/usr/lib/postgresql/15/bin"), help="initdb and so on")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, server(args.programs) as psql, Gallery(args.gallery) as gallery:
        file = Path(folder, "pictures.parquet")
        rows, damaged = export(args.gallery, file, "parquet")
        start = time.perf_counter()
        loaded = load(psql, file, gallery.dimension)
        seconds = time.perf_counter() - start
        (version,) = ask(psql, "SELECT extversion, current_setting('server_version') FROM pg_extension "
                         "WHERE extname = 'vector'")  # fmt: skip
        print(f"PostgreSQL {version[1]}, pgvector {version[0]}: {loaded} of {rows} rows in {seconds:.1f} s")
        wrong, chosen = 0, some(gallery, args.queries)
        for name, vector in chosen:
            ours = [(match.path, match.distance) for match in gallery.search(vector, args.neighbours)[0]]
            sql = (
                f"SELECT vector <-> '{text(vector)}', path FROM pictures ORDER BY 1, path COLLATE \"C\" "
                f"LIMIT {len(ours)}"
            )
            theirs = [(path, float(distance)) for distance, path in ask(psql, sql)]
            if not agree(ours, theirs):
                wrong += 1
                print(f"different: {name}", file=sys.stderr)
        print(f"{len(chosen) - wrong} of {len(chosen)} queries find the same {args.neighbours} neighbours")
    return 1 if wrong or damaged or loaded != rows else 0


if __name__ == "__main__":
    sys.exit(main())
