"""From decoded pixels of any kind to 8-bit RGB: grey, palettes, transparency, 16 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

from .errors import ImageError


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as 8-bit RGB. Raises ImageError where its brightness is not defined."""
    mode = image.mode
    if mode.startswith("I"):
        return Image.fromarray(_high_byte(image)).convert("RGB")
    if mode == "F":
        raise ImageError("floating-point pixels have no defined brightness; convert the picture to 8 bits")
    if mode in ("La", "RGBa"):  # premultiplied by alpha
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[mode])
    if image.mode in ("PA", "LA", "RGBA") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        white = Image.new("RGB", rgba.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image if mode == "RGB" else image.convert("RGB")


def _high_byte(image: Image.Image) -> np.ndarray:
    """16-bit grey (Pillow opens some as 32-bit) as uint8: the high byte of each pixel, transparent ones white."""
    pixels = np.asarray(image)
    if pixels.min() < 0 or pixels.max() > 65535:
        raise ImageError("32-bit pixels outside 0..65535 have no defined brightness; convert the picture to 8 bits")
    tags = getattr(image, "tag_v2", {})  # of TIFF: bits a sample, and whether 0 is white
    bits = min(16, tags.get(258, (16,))[0])
    grey = (pixels >> (bits - 8)).astype(np.uint8)
    if tags.get(262) == 0:
        grey = 255 - grey
    if "transparency" in image.info:
        grey[pixels == image.info["transparency"]] = 255
    return grey
