"""Data sets in their published formats, from small files in that format."""

from __future__ import annotations

import gzip
import io
import zipfile

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("tqdm")

import datasets
from alnumpy.evaluation import LandmarkQuery

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


def test_a_zip_made_by_macos_has_the_folders_pictures(store):
    """Zips of macOS put the folder's name before all paths, and add files of their own."""
    members = {f"pictures/{name}": data for name, data in class_files().items()}
    members |= {f"__MACOSX/pictures/train/object/cat/._{i}.png": b"\0\5\x16\7" for i in (1, 2, 10)}
    members |= {"pictures/val/object/._dog": b"\0\5\x16\7", "pictures/train/scene/sea/._1.png": b"\0\5\x16\7"}
    images, labels, names = datasets.load_class_folders(store(members), "train", 8)
    assert (names, labels.tolist()) == (["object/cat", "object/dog", "scene/sea"], [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert images.min(axis=(1, 2, 3)).tolist() == [0] * 9


def test_names_in_a_zip_may_begin_at_its_root(tmp_path):
    for number, start in enumerate(("./", "/")):
        with zipfile.ZipFile(tmp_path / f"{number}.zip", "w") as archive:
            for name, data in class_files().items():
                archive.writestr(zipfile.ZipInfo(start + name), data)
        assert len(datasets.load_class_folders(tmp_path / f"{number}.zip", "val", 8)[0]) == 3


def test_splits_are_not_taken_for_classes(store):
    for wrong in ("Train", "training", "some/folder/train"):
        members = {name.replace("train/", f"{wrong}/"): data for name, data in class_files().items()}
        with pytest.raises(ValueError, match=r"seems to be of a split; train/, and test/ or val/, belong at the top"):
            datasets.load_class_folders(store(members), "", 8)


def test_centre_square_is_scaled_as_the_device_does(store):
    from alnumpy.images import Preprocessing, preprocess

    pixels = np.random.default_rng(0).integers(0, 256, (20, 31, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    images, _, _ = datasets.load_class_folders(store({"a/x.png": file.getvalue()}), "", 9)
    device = preprocess(Image.fromarray(pixels), Preprocessing(9, (0, 0, 0), (1, 1, 1)))
    np.testing.assert_allclose(images[0].transpose(2, 0, 1) / 255, device, atol=1e-6)


def test_unreadable_pictures_are_named_and_left_out(store):
    good, labels, names = datasets.load_class_folders(store(class_files()), "train", 8)
    members = class_files() | {f"train/object/dog/bad{i}.jpg": b"nothing" for i in range(7)}
    named = r"data.*: 7 of 16 pictures cannot be read and are left out: train/object/dog/bad0.jpg: .*bad4.*and 2 more"
    with pytest.warns(UserWarning, match=named):
        images, found, classes = datasets.load_class_folders(store(members), "train", 8)
    assert np.array_equal(images, good)
    assert (found.tolist(), classes) == (labels.tolist(), names)


def test_pictures_of_any_folder_without_labels(store):
    members = {"10.png": encoded("red"), "a/b/9.png": encoded("lime"), "2.png": encoded("blue"), "notes.txt": b"no"}
    images = datasets.load_folder(store(members), 4)
    assert images[:, 0, 0].tolist() == [[0, 0, 255], [255, 0, 0], [0, 255, 0]]  # 2, 10, a/b/9


def test_a_fifo_among_the_pictures_is_named(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"a/x.png: not a regular file"):
        datasets.load_class_folders(tmp_path, "", 8)


def test_formats_are_those_of_the_device(store):
    with pytest.raises(ValueError, match=r"no picture can be read: a/x.png: not a picture that can be read \(JPEG"):
        datasets.load_class_folders(store({"a/x.png": encoded("red", format="PPM")}), "", 8)


def test_damaged_metadata_are_ignored(store):
    file = io.BytesIO()
    Image.new("RGB", (12, 8), "red").save(file, "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01")  # cut short
    assert datasets.load_class_folders(store({"a/x.jpg": file.getvalue()}), "", 8)[0][0, 0, 0, 0] > 250


def test_missing_folders_and_misplaced_pictures_are_named(store, tmp_path):
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
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own limit, beyond which it only warns
    with pytest.raises(ValueError, match="exceeds limit"):
        datasets.load_class_folders(source, "train", 8)


def test_a_member_that_would_inflate_to_too_much_is_refused(tmp_path, monkeypatch):
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


def test_mnist(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    images = bytes([0, 0, 8, 3]) + np.array(pixels.shape, ">u4").tobytes() + pixels.tobytes()
    labels = bytes([0, 0, 8, 1, 0, 0, 0, 3, 9, 0, 7])
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(images)
    packed = gzip.compress(labels)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(packed)
    found, classes = datasets.mnist(tmp_path, "test")
    np.testing.assert_array_equal(found, pixels)
    assert classes.tolist() == [9, 0, 7]

    wrong_data = packed[:12] + bytes([packed[12] ^ 255]) + packed[13:]
    for damaged in (packed[:-9], packed[:-8] + bytes(8), wrong_data, labels):
        (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"t10k-labels-idx1-ubyte.gz: damaged, or cut short \("):
            datasets.mnist(tmp_path, "test")
    for wrong, message in (
        (labels[:-1], "ubyte: not an idx file of 1-dimensional bytes, or cut short"),
        (labels[:7] + bytes([2, 9, 0]), "3 test images but 2 labels"),
        (labels[:-1] + bytes([10]), "test labels up to 10, but digits end at 9"),
    ):
        (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(wrong)
        with pytest.raises(ValueError, match=message):
            datasets.mnist(tmp_path, "test")
    with pytest.raises(FileNotFoundError, match=r"neither train-images-idx3-ubyte nor train-images-idx3-ubyte\.gz"):
        datasets.mnist(tmp_path, "train")


def test_svhn(tmp_path):
    from scipy.io import savemat

    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 4), np.uint8)
    content = {"X": pixels, "y": np.array([[1], [10], [9], [2]], np.uint8)}
    savemat(tmp_path / "train_32x32.mat", content, do_compression=True)
    images, labels = datasets.svhn(tmp_path, "train")
    assert (images.dtype, labels.dtype, labels.tolist()) == (np.uint8, np.int64, [1, 0, 9, 2])
    np.testing.assert_array_equal(images, [pixels[..., i] for i in range(4)])

    data = (tmp_path / "train_32x32.mat").read_bytes()
    (tmp_path / "test_32x32.mat").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"test_32x32.mat: not a MATLAB 5 file with X and y"):
        datasets.svhn(tmp_path, "test")
    with pytest.raises(FileNotFoundError):
        datasets.svhn(tmp_path, "extra")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 4))}, r"X must be uint8 .* not float64 \(32, 32, 3, 4\)"),
        ({"X": np.zeros((28, 28, 3, 4), np.uint8)}, r"X must be"),
        ({"y": np.array([[1], [0], [9], [2]])}, r"y must be \(4, 1\) labels from 1 to 10"),
        ({"y": np.array([[1], [3]])}, r"y must be \(4, 1\)"),
    ],
)
def test_svhn_of_another_shape_is_refused(tmp_path, change, message):
    from scipy.io import savemat

    content = {"X": np.zeros((32, 32, 3, 4), np.uint8), "y": np.ones((4, 1), np.uint8)} | change
    savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(ValueError, match=rf"train_32x32.mat: {message}"):
        datasets.svhn(tmp_path, "train")


SUN397 = {
    "ClassName.txt": b"/a/abbey\n/a/apartment_building/outdoor\n/b/beach\n",
    "Training_02.txt": b"/b/beach/sun_b.jpg\r\n/a/abbey/sun_a.jpg\r\n",
    "Testing_02.txt": b"/a/apartment_building/outdoor/sun_c.jpg\n",
    "a/abbey/sun_a.jpg": encoded("red", format="JPEG"),
    "a/abbey/sun_unlisted.jpg": b"not a picture, in no list",
    "b/beach/sun_b.jpg": encoded("blue", format="JPEG"),
    "a/apartment_building/outdoor/sun_c.jpg": encoded("lime", format="JPEG"),
}


def test_sun397(store):
    source = store(SUN397)
    images, labels, names = datasets.sun397(source, source, "train", 4, partition=2)
    assert names == ["abbey", "apartment_building/outdoor", "beach"]
    assert (labels.dtype, labels.tolist()) == (np.int64, [2, 0])
    assert (images.argmax(3) == np.array([2, 0])[:, None, None]).all()  # blue, then red
    images, labels, _ = datasets.sun397(source, source, "test", 4, partition=2)
    assert (labels.tolist(), images.shape, images[0, 0, 0].argmax()) == ([1], (1, 4, 4, 3), 1)
    with pytest.raises(FileNotFoundError, match=r"Training_01.txt is not there"):
        datasets.sun397(source, source, "train", 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Training_01.txt": b"/a/abbey/sun_z.jpg"}, r"a/abbey/sun_z.jpg of Training_01.txt is not there"),
        ({"Training_01.txt": b"/a/abby/sun_a.jpg"}, r"Training_01.txt: /a/abby/sun_a.jpg is in no folder"),
        ({"Training_01.txt": b"/a/abbey/sun_unlisted.jpg"}, r"no picture can be read: /a/abbey/sun_unlisted.jpg: "),
    ],
)
def test_sun397_names_inconsistent_lists(store, change, message):
    source = store(SUN397 | change)
    with pytest.raises(ValueError, match=message):
        datasets.sun397(source, source, "train", 4)


def test_a_box_ends_where_the_picture_does():
    picture = np.zeros((20, 30, 3), np.uint8)
    picture[:12, :12] = 200
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    assert (datasets.decode(file.getvalue(), 6, (-5.5, -3, 9, 9)) == 200).all()
    assert not datasets.decode(file.getvalue(), 6, (15, 15, 35, 20.5)).any()


def landmark_files():
    """Oxford's layout and Paris's in one: a query with the prefix, pictures in folders, one of them damaged."""
    picture = Image.new("RGB", (40, 20), "red")
    picture.paste("blue", (20, 0, 40, 20))
    file = io.BytesIO()
    picture.save(file, "PNG")
    return {
        "gt/all_souls_1_query.txt": b"oxc1_all_souls_000013 22.5 4 38.0 18.25\n",
        "gt/all_souls_1_good.txt": b"all_souls_000013\n",
        "gt/all_souls_1_ok.txt": b"all_souls_2\nall_souls_10\n",
        "gt/all_souls_1_junk.txt": b"",
        "jpg/all_souls/all_souls_000013.png": file.getvalue(),
        "jpg/all_souls/all_souls_2.jpg": encoded("white", format="JPEG"),
        "jpg/all_souls/all_souls_10.jpg": encoded("black", format="JPEG")[:100],
        "gt/._all_souls_1_query.txt": b"\0\5\x16\7",  # a companion file of macOS
        "jpg/all_souls/._all_souls_2.jpg": b"\0\5\x16\7",
    }


def test_landmarks(store):
    found = datasets.landmarks(store(landmark_files()), 8)
    assert found.names == ["all_souls_2", "all_souls_000013"]
    assert found.images.shape == (2, 8, 8, 3)
    assert (found.images[0] == 255).all()
    assert found.images[1, 0, [0, -1]].tolist() == [[255, 0, 0], [0, 0, 255]]
    assert found.query_images.tolist() == np.broadcast_to([0, 0, 255], (1, 8, 8, 3)).tolist()  # the box is on blue
    assert list(found.unreadable) == ["all_souls_10"]
    assert found.queries == [
        LandmarkQuery(
            "all_souls_1",
            "all_souls_000013",
            (22.5, 4, 38, 18.25),
            ["all_souls_000013", "all_souls_2", "all_souls_10"],
            [],
        )
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gt/all_souls_1_query.txt": b"all_souls_3 1 2 3 4"}, "all_souls_3, the picture .* all_souls_1: it is not"),
        (
            {"gt/all_souls_1_query.txt": b"all_souls_10 1 2 3 4"},
            "all_souls_10, the picture of .*all_souls_1: (Trunc|trunc)",
        ),
        ({"gt/all_souls_1_query.txt": b"all_souls_2 1 2 3"}, r"all_souls_1_query.txt: not a picture's name and four"),
        ({"gt/all_souls_1_query.txt": b"all_souls_2 50 2 60 9"}, r"all_souls_2.jpg: the query's box cannot be taken"),
        ({"jpg/all_souls_2.jpg": b""}, r"jpg/all_souls/all_souls_2.jpg and jpg/all_souls_2.jpg have the same name"),
    ],
)
def test_landmarks_name_inconsistent_files(store, change, message):
    with pytest.raises(ValueError, match=message):
        datasets.landmarks(store(landmark_files() | change), 8)


def test_landmarks_as_classes_by_name(store):
    members = {f"jpg/all_souls_{i:06}.jpg": encoded((200 + i, 0, 0), format="JPEG") for i in range(7)}
    members |= {f"jpg/magdalen_{i:06}.jpg": encoded((0, 200, 0), format="JPEG") for i in range(3)}
    members |= {"all_souls_1_query.txt": b"oxc1_all_souls_000000 0 0 5 5", "jpg/magdalen_000001.jpg": b"damaged"}
    source = store(members)
    with pytest.warns(UserWarning, match=r"left out: jpg/magdalen_000001.jpg: "):
        images, labels, names = datasets.landmark_classes(source, "train", 4)
    assert names == ["all_souls", "magdalen"]
    assert labels.tolist() == [0] * 6 + [1]  # the fifth and the tenth are held out, the ninth is damaged
    assert images.shape == (7, 4, 4, 3)
    assert (images[-1, :, :, 1] > 190).all()
    images, labels, names = datasets.landmark_classes(source, "test", 4)
    assert (names, labels.tolist()) == (["all_souls", "magdalen"], [0, 1])
    assert abs(int(images[0, 0, 0, 0]) - 204) < 4
