"""Measures how much colour profiles matter to embeddings.

    python tools/dev/colours.py PICTURES.zip [--inputs 200]

Pictures in sRGB are stored in other colour spaces; each is then embedded as if it were sRGB (ignored) and with its
profile (heeded). Prints L2 distances to the embedding of the original, divided by that of a JPEG of quality 50.
"""

from __future__ import annotations

import argparse
import io
import struct
import sys
import zipfile

import numpy as np
from PIL import Image, ImageCms

import alnumpy
from alnumpy import images, pixels

Point = tuple[float, float, float]

D50 = (0.9642, 1.0, 0.8249)
PRIMARIES = {  # XYZ of red, green and blue under D50
    "sRGB": ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7141)),
    "Display P3": ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),
    "Adobe RGB": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
    "ProPhoto": ((0.7977, 0.2880, 0.0), (0.1352, 0.7119, 0.0), (0.0313, 0.0001, 0.8249)),
}
GAMMA = {"Adobe RGB": 2.2, "ProPhoto": 1.8}
INKS = [  # CIELAB of each combination of cyan, magenta and yellow on coated paper (ISO 12647-2), without and with black
    *[(100, 0, 0), (89, -5, 93), (48, 74, -3), (47, 68, 48), (55, -37, -50), (50, -68, 33), (24, 22, -46), (23, 0, 0)],
    *[(16, 0, 0), (15, 0, 4), (9, 4, 0), (8, 3, 2), (9, -2, -3), (8, -3, 1), (5, 1, -3), (4, 0, 0)],
]


def profile(space: bytes, tags: dict[bytes, bytes], kind: bytes = b"mntr", connection: bytes = b"XYZ ") -> bytes:
    """An ICC profile of version 2 from its tags."""
    tags = {b"desc": text("alnumpy"), b"cprt": b"text\0\0\0\0public domain\0", b"wtpt": xyz(D50), **tags}
    at, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    head = struct.pack(">I4sI", at + len(body), b"\0\0\0\0", 0x02400000) + kind + space + connection
    head += struct.pack(">6H", 2024, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + xyz(D50)[8:] + bytes(48)
    return head + table + body


def text(words: str) -> bytes:
    data = words.encode() + b"\0"
    return b"desc\0\0\0\0" + struct.pack(">I", len(data)) + data + bytes(78)


def xyz(point: Point) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in point))


def curve(gamma: float) -> bytes:
    """A tone curve; 0 stands for sRGB's."""
    if gamma:
        return b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv\0\0\0\0" + struct.pack(">I1024H", 1024, *np.round(y * 65535).astype(int).tolist())


def rgb_profile(name: str) -> bytes:
    tone = curve(GAMMA.get(name, 0))
    return profile(
        b"RGB ",
        {letter + b"XYZ": xyz(point) for letter, point in zip((b"r", b"g", b"b"), PRIMARIES[name], strict=True)}
        | {letter + b"TRC": tone for letter in (b"r", b"g", b"b")},
    )


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": curve(gamma)})


def ink_profile() -> bytes:
    """The inks of offset printing: between the corners of the cube it is linear."""
    corners = [INKS[8 * k + 4 * c + 2 * m + y] for c in (0, 1) for m in (0, 1) for y in (0, 1) for k in (0, 1)]
    table = bytes(round(v) for lightness, a, b in corners for v in (lightness * 2.55, a + 128, b + 128))
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * (i % 4 == 0) for i in range(9)))
    data = b"mft1\0\0\0\0" + bytes([4, 3, 2, 0]) + matrix + 4 * ramp + table + 3 * ramp
    return profile(b"CMYK", {b"A2B0": data}, b"prtr", b"Lab ")


def separated(image: Image.Image) -> Image.Image:
    """A picture as inks, in which black replaces the other three as far as possible."""
    inks = 255 - np.asarray(image)
    black = inks.min(2)
    return Image.frombytes("CMYK", image.size, np.dstack([inks - black[..., None], black]).tobytes())


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", help="a zip of pictures in sRGB")
    parser.add_argument("--inputs", type=int, default=200, help="number of pictures (default: %(default)s)")
    args = parser.parse_args(argv)
    with zipfile.ZipFile(args.pictures) as file:
        names = sorted(name for name in file.namelist() if images.is_picture(name))
        names = names[:: max(1, len(names) // args.inputs)][: args.inputs]
        originals = [Image.open(io.BytesIO(file.read(name))).convert("RGB") for name in names]
    embedder = alnumpy.load()

    def embedded(pictures: list[Image.Image]) -> np.ndarray:
        inputs = [images.preprocess(picture, embedder.preprocessing) for picture in pictures]
        return embedder.forward(np.stack(inputs))

    def apart(pictures: list[Image.Image], others: list[Image.Image]) -> float:
        return float(np.linalg.norm(embedded(pictures) - embedded(others), axis=1).mean())

    def tagged(image: Image.Image, data: bytes | None) -> Image.Image:
        image.info = {"icc_profile": data} if data else {}
        return image

    def compressed(image: Image.Image) -> Image.Image:
        data = io.BytesIO()
        image.save(data, "JPEG", quality=50)
        return Image.open(data).convert("RGB")

    srgb = ImageCms.createProfile("sRGB")
    unit = apart([compressed(image) for image in originals], originals)
    size = np.median([image.size for image in originals], 0).astype(int)
    print(f"{len(originals)} pictures of about {size[0]}x{size[1]} pixels; JPEG of quality 50: {unit:.3f} in L2")
    print("space | ignored | heeded | heeded at full size")
    for name in PRIMARIES:
        data = rgb_profile(name)
        target = ImageCms.ImageCmsProfile(io.BytesIO(data))
        stored = [ImageCms.profileToProfile(image, srgb, target) or image for image in originals]
        ignored = apart([tagged(image.copy(), None) for image in stored], originals)
        heeded = apart([tagged(image.copy(), data) for image in stored], originals)
        whole = apart([pixels.to_srgb(tagged(image.copy(), data)) for image in stored], originals)
        print(f"{name} | {ignored / unit:.2f} | {heeded / unit:.2f} | {whole / unit:.2f}")
    for gamma in (1.0, 1.8, 2.2):
        data, grey = grey_profile(gamma), [image.convert("L") for image in originals]
        heeded_grey = [pixels.to_srgb(tagged(image.copy(), data)) for image in grey]
        print(f"grey, gamma {gamma} | {apart(grey, heeded_grey) / unit:.2f} | |")
    data, inks = ink_profile(), [separated(image) for image in originals]
    shown = [pixels.flatten(tagged(image.copy(), data)) for image in inks]
    print(f"CMYK of offset printing | {apart([image.convert('RGB') for image in inks], shown) / unit:.2f} | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
