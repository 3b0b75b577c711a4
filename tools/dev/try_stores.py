"""Runs the lines of docs/SCALE.md for Qdrant and LanceDB, and compares the neighbours with alnumpy's.

    python tools/dev/try_stores.py gallery.db

It needs the extra ``parquet``, qdrant-client and lancedb. Qdrant runs within the process instead of as a server. Exit
code 1 if a query's neighbours differ.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np

from alnumpy.exporting import export
from alnumpy.gallery import Gallery
from try_pgvector import agree, some

PAGE = Path(__file__).parents[2] / "docs" / "SCALE.md"
READ = {  # by the name on the page: the packages, and the paths and distances in what its last line returns
    "Qdrant": ("qdrant_client", lambda found: [(point.payload["path"], point.score) for point in found]),
    "LanceDB": ("lancedb", lambda found: [(row["path"], row["_distance"] ** 0.5) for row in found]),
}


def lines(page: str, store: str) -> list[str]:
    """The page's Python for a store: the block of code below the line that begins with its name."""
    found = re.search(rf"^{store}\b[^\n]*:\n\n```python\n(.*?)\n```$", page, re.M | re.S)
    if found is None:
        raise ValueError(f"{PAGE.name} has no lines for {store}")
    return found[1].splitlines()


def searcher(store: str, module: str, dimension: int) -> Callable[[np.ndarray], Any]:
    """Loads ``pictures.parquet`` as the page says; returns its last line, which searches, as a function."""
    *load, search = lines(PAGE.read_text(), store)
    names: dict[str, Any] = {name: import_module(name) for name in ("itertools", "pyarrow.parquet", module)}
    names["pyarrow"] = import_module("pyarrow")
    if store == "Qdrant":
        names |= vars(import_module("qdrant_client.models"))
    text = "\n".join(load).replace('"localhost"', '":memory:"').replace("1280", str(dimension))
    exec(text, names)
    return lambda query: eval(search, names | {"query": query})


def main() -> int:
    """Exit code 0 if all neighbours are the same."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("gallery")
    parser.add_argument("--queries", type=int, default=20)
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as folder, Gallery(args.gallery) as gallery:
        rows, _ = export(args.gallery, Path(folder, "pictures.parquet"), "parquet")
        os.chdir(folder)
        chosen = some(gallery, args.queries)
        for store, (module, read) in READ.items():
            search, same = searcher(store, module, gallery.dimension), 0
            for name, vector in chosen:
                ours = [(match.path, match.distance) for match in gallery.search(vector, 10)[0]]
                if agree(ours, read(search(vector))):
                    same += 1
                else:
                    print(f"{store}: different: {name}", file=sys.stderr)
            version = metadata.version(module.replace("_", "-"))
            print(f"{store} {version}: {rows} rows, {same} of {len(chosen)} queries find the same 10 neighbours")
            wrong += len(chosen) - same
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
