"""Peak memory of ``alnumpy index`` for pictures of real sizes, made by code: the table in docs/PERFORMANCE.md.

    python tools/dev/benchmark_memory.py [--only WORDS] [--threads 2]

Each line is a fresh process with the NumPy backend, an empty gallery and files that differ in content but not in
pixels; its peak is the one that the kernel reports for the process (VmHWM).
"""

from __future__ import annotations

import argparse
import io
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Coloured clouds with the noise of a sensor, as compressible as a photo."""
    rng = np.random.default_rng(width)
    coarse = Image.fromarray(rng.integers(0, 256, (40, 53, 3), np.uint8))
    clouds = coarse.resize((width, height), Image.Resampling.BICUBIC)
    noise = Image.fromarray(rng.integers(118, 138, (height // 4, width // 4), np.uint8)).resize((width, height))
    return Image.blend(clouds, noise.convert("RGB"), 0.3).convert(mode)


def encoded(image: Image.Image, format: str, orientation: int = 6, **options: object) -> bytes:
    """A file with EXIF, as a phone that was held upright writes it."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, format, exif=exif, **options)
    return file.getvalue()


def variant(data: bytes, number: int) -> bytes:
    """The same picture in a file of other content."""
    mark = number.to_bytes(4, "big")
    if data.startswith(b"RIFF"):
        data += b"mark" + len(mark).to_bytes(4, "little") + mark
        return data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8:]
    return data + mark


def jpegs(count: int) -> list[tuple[bytes, int]]:
    """``count`` JPEGs of 12 megapixels, and two of 48."""
    sizes = (4032, 3024, count), (8064, 6048, 2)
    return [(encoded(photo(width, height), "JPEG", quality=90), number) for width, height, number in sizes]


WHOLE = ", decoded whole"
CASES: dict[str, Callable[[], list[tuple[bytes, int]]]] = {  # files, and the number of each
    "24 JPEGs of 12 megapixels, 2 of 48": lambda: jpegs(24),
    "200 JPEGs of 12 megapixels, 2 of 48": lambda: jpegs(200),
    "24 JPEGs of 12 megapixels, 2 of 48" + WHOLE: lambda: jpegs(24),
    "200 JPEGs of 12 megapixels, 2 of 48" + WHOLE: lambda: jpegs(200),
    "12 progressive JPEGs of 12 megapixels": lambda: [
        (encoded(photo(4032, 3024), "JPEG", quality=90, progressive=True), 12)
    ],
    "2 JPEGs of 200 megapixels": lambda: [(encoded(photo(16320, 12240), "JPEG", quality=80), 2)],
    "12 PNGs of 12 megapixels": lambda: [(encoded(photo(4032, 3024), "PNG", compress_level=1), 12)],
    "12 PNGs of 12 megapixels with alpha": lambda: [(encoded(photo(4032, 3024, "RGBA"), "PNG", compress_level=1), 12)],
    "12 WebPs of 12 megapixels": lambda: [(encoded(photo(4032, 3024), "WEBP", method=0), 12)],
    "1 WebP of 24 megapixels": lambda: [(encoded(photo(6000, 4000), "WEBP", 1, method=0), 1)],
    "4 WebPs of 24 megapixels with alpha": lambda: [(encoded(photo(6000, 4000, "RGBA"), "WEBP", 1, method=0), 4)],
    "12 TIFFs of 12 megapixels, LZW": lambda: [(encoded(photo(4032, 3024), "TIFF", compression="tiff_lzw"), 12)],
}


CHILD = """
import sys
from alnumpy.cli import main
code = main(sys.argv[1:])
print([line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")][0], file=sys.stderr)
sys.exit(code)
"""


def index(folder: Path, threads: int, *options: str) -> tuple[int, float, str]:
    """Runs ``alnumpy index``: peak in bytes, seconds, and its output."""
    environment = os.environ | {"ALNUMPY_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    command = ["index", str(folder), "--db", str(folder / "g.db"), "--backend", "numpy", *options]
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *command], env=environment, capture_output=True, text=True, check=False
    )
    return int(done.stderr.split()[-1]) * 1024, time.perf_counter() - start, done.stdout.strip()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="WORDS", help="cases whose name has these words")
    parser.add_argument("--threads", type=int, default=2, help="threads of alnumpy index (default: %(default)s)")
    args = parser.parse_args()
    print("| pictures | peak, MB | seconds | failed |\n|---|---|---|---|")
    for name, files in CASES.items():
        if args.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="alnumpy-memory-") as folder:
            for part, (data, count) in enumerate(files()):
                suffix = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"II": "tif"}[data[:2]]
                for number in range(count):
                    Path(folder, f"{part}-{number}.{suffix}").write_bytes(variant(data, number))
            peak, seconds, said = index(Path(folder), args.threads, *["--no-fast-decode"] * name.endswith(WHOLE))
            failed = re.search(r"(\d+) failed", said)
            print(f"| {name} | {peak / 1e6:.0f} | {seconds:.1f} | {failed[1] if failed else said} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
