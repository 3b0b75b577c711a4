"""The two baselines on drawn pictures."""

from __future__ import annotations

import sys
import zipfile

import numpy as np
import pytest
from test_datasets import encoded, landmark_files

import baselines


def test_colour_histogram():
    picture = np.zeros((4, 8, 3), np.uint8)
    picture[:, :2] = (255, 31, 32)  # a quarter, in cell (7, 0, 1)
    histogram = baselines.colour_histogram(np.stack([picture, picture[:, ::-1], 255 - picture]))
    assert (histogram.shape, histogram.dtype) == ((3, 512), np.float32)
    assert dict(enumerate(histogram[0].tolist())) == dict.fromkeys(range(512), 0) | {
        7 * 64 + 0 * 8 + 1: 0.5,
        0: pytest.approx(0.75**0.5),
    }
    np.testing.assert_array_equal(histogram[0], histogram[1])  # where the colours are does not matter
    assert histogram[0] @ histogram[2] == 0


def test_difference_hash():
    ramp = np.broadcast_to(np.arange(0, 180, 5, dtype=np.uint8)[None, :, None], (32, 36, 3))
    left_half = ramp.copy()
    left_half[:, 18:] = 90  # begins in the middle of the fifth of nine pixels
    hashes = baselines.difference_hash(np.stack([ramp, ramp[:, ::-1], left_half, left_half // 2]))
    assert (hashes.shape, hashes.dtype) == ((4, 64), np.float32)
    assert hashes.sum(1).tolist() == [64, 0, 40, 40]
    assert (hashes[2].reshape(8, 8) == [1, 1, 1, 1, 1, 0, 0, 0]).all()
    assert ((hashes[0] - hashes[2]) ** 2).sum() == 24  # bits
    np.testing.assert_array_equal(hashes[2], hashes[3])  # half as bright, the same hash


def test_command(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for i, colour in enumerate(("red", "red", "blue", "blue")):
            archive.writestr(f"test/{colour}/{i}.png", encoded(colour))
    monkeypatch.setattr(sys, "argv", ["baselines.py", str(tmp_path / "d.zip"), "--split", "test", "--size", "16"])
    baselines.main()
    first, _, histogram, hash = capsys.readouterr().out.splitlines()
    assert first == "4 pictures of 2 classes at 16 pixels, each a query against the rest"
    # Flat pictures have one hash: all tie, and rank by position. Red finds red first; blue, after two red ones, third.
    assert histogram.split()[-5:] == ["1.0000", "0.3333", "1.0000", "1.0000", "1.0000"]
    assert hash.split()[-5:-2] == ["0.5000", "0.3333", f"{(1 + 1 / 3) / 2:.4f}"]
    monkeypatch.setattr(sys, "argv", ["baselines.py", str(tmp_path / "d.zip"), "--split", "val"])
    with pytest.raises(SystemExit, match=r"baselines.py: .*d.zip: no pictures below val"):
        baselines.main()


def test_landmarks(tmp_path, monkeypatch, capsys):
    with zipfile.ZipFile(tmp_path / "d.zip", "w") as archive:
        for name, data in (landmark_files() | {"jpg/blue.png": encoded("blue")}).items():
            archive.writestr(name, data)
    monkeypatch.setattr(sys, "argv", ["baselines.py", str(tmp_path / "d.zip"), "--landmarks", "--size", "16"])
    baselines.main()
    out, err = capsys.readouterr()
    first, histogram, hash = out.splitlines()
    assert first == "3 pictures at 16 pixels, 1 boxes in them are queries, none left out"
    assert "baselines.py: all_souls_10: " in err
    # The box is blue: it finds the wrong picture, then the half blue one and the white one. One cannot be read.
    assert histogram.endswith(f"official mAP {((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 3:.4f}")
    assert hash.endswith(f"official mAP {2 / 3:.4f}")  # no brightness rises: all tie, and the wrong one ranks last
