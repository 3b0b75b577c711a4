"""Data sets in their published formats, from small files made in the format."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from PIL import Image

import datasets

COLOURS = {"object/cat": (200, 0, 0), "object/dog": (0, 200, 0), "scene/sea": (0, 0, 200)}


def encoded(colour, size=(12, 8), format="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


def class_files():
    """Members of a data set: three classes in two splits; in train the red value counts the pictures of a class."""
    members = {"README.txt": b"not a picture", "train/notes.txt": b"nor this"}
    for folder, colour in COLOURS.items():
        for i in (1, 2, 10):
            members[f"train/{folder}/{i}.png"] = encoded((colour[0] + i, *colour[1:]))
        members[f"val/{folder}/0.webp"] = encoded(colour, format="WEBP")
    return members


@pytest.fixture(params=["folder", "zip"])
def store(request, tmp_path):
    """A function that writes members to a folder or to a zip and returns its path."""

    def write(members):
        if request.param == "zip":
            with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, data)
            return tmp_path / "data.zip"
        for name, data in members.items():
            path = tmp_path / "data" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return tmp_path / "data"

    return write


def test_class_folders(store):
    images, labels, names = datasets.load_class_folders(store(class_files()), "train", 8)
    assert names == ["object/cat", "object/dog", "scene/sea"]
    assert (images.shape, images.dtype, labels.dtype) == ((9, 8, 8, 3), np.uint8, np.int64)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    expected = [(r + i, g, b) for r, g, b in COLOURS.values() for i in (1, 2, 10)]  # 2 before 10
    assert images[:, 4, 4].tolist() == [list(colour) for colour in expected]
    assert (images == images[:, :1, :1]).all()


def test_split_is_a_folder_and_not_a_prefix_of_its_name(store):
    members = class_files() | {"validation/object/cat/1.png": encoded("red")}
    images, labels, names = datasets.load_class_folders(store(members), "val", 4, threads=1)
    assert (len(images), labels.tolist(), len(names)) == (3, [0, 1, 2], 3)
    assert datasets.load_class_folders(store(members), "train/object", 4)[2] == ["cat", "dog"]


def test_centre_square_is_scaled_as_the_device_does(store):
    from alnumpy.images import Preprocessing, preprocess

    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    images, _, _ = datasets.load_class_folders(store({"a/x.png": file.getvalue()}), "", 9)
    device = preprocess(Image.fromarray(pixels), Preprocessing(9, (0, 0, 0), (1, 1, 1)))
    np.testing.assert_allclose(images[0].transpose(2, 0, 1) / 255, device, atol=1e-6)


def test_unreadable_pictures_are_named(store):
    members = class_files() | {f"train/scene/sea/bad{i}.jpg": b"nothing" for i in range(7)}
    with pytest.raises(ValueError, match=r"data.*: 7 of 16 pic.*train/scene/sea/bad0.jpg: .*bad4.jpg.*and 2 more"):
        datasets.load_class_folders(store(members), "train", 8)


def test_what_is_not_there_is_named(store, tmp_path):
    source = store(class_files())
    with pytest.raises(ValueError, match="no pictures below test; its folders: train, val"):
        datasets.load_class_folders(source, "test", 8)
    with pytest.raises(ValueError, match=r"train/top.png is in no class folder"):
        datasets.load_class_folders(store(class_files() | {"train/top.png": encoded("red")}), "train", 8)
    (tmp_path / "text").write_text("neither")
    with pytest.raises(ValueError, match="text: neither a folder nor a zip"):
        datasets.load_class_folders(tmp_path / "text", "train", 8)
    with pytest.raises(FileNotFoundError):
        datasets.load_class_folders(tmp_path / "nowhere", "train", 8)


def test_bombs_are_refused(store, monkeypatch):
    source = store({"train/a/x.bmp": encoded("red", (40, 40), "BMP")})  # 4854 bytes, 1600 pixels
    with monkeypatch.context() as patch:
        patch.setattr(datasets.images, "MAX_PIXELS", 1599)
        with pytest.raises(ValueError, match=r"x.bmp: 40x40 pixels, more than the limit of 1599"):
            datasets.load_class_folders(source, "train", 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit, of which it only warns
    with pytest.raises(ValueError, match="exceeds limit"):
        datasets.load_class_folders(source, "train", 8)


def test_a_member_that_would_unpack_to_much_is_not_read(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "data.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/a/x.bmp", encoded("red", (40, 40), "BMP"))
    monkeypatch.setattr(datasets, "MAX_BYTES", 4853)
    with pytest.raises(ValueError, match=r"x.bmp: 4854 bytes, more than the limit of 4853"):
        datasets.load_class_folders(tmp_path / "data.zip", "train", 8)


def test_damaged_member_of_a_zip_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("train/a/x.png", encoded("red"))
    data = (tmp_path / "data.zip").read_bytes()
    (tmp_path / "data.zip").write_bytes(data.replace(b"IDAT", b"IDAX"))
    with pytest.raises(ValueError, match=r"train/a/x.png: damaged or encrypted in the zip"):
        datasets.load_class_folders(tmp_path / "data.zip", "train", 8)
