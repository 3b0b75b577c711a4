"""The answers of ``alnumpy serve``, its walls and its thumbnails, without a server."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sqlite3
import stat
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from galleries import noise
from PIL import Image

from alnumpy import Gallery, GalleryError, dates, results

pytest.importorskip("flask")
pytest.importorskip("waitress")
pytest.importorskip("segno")
from alnumpy.serve import app, asking, catalog, grouping, indexing, thumbnails, walls

HOME = walls.Walls("127.0.0.1")
OPEN = walls.Walls("0.0.0.0", "0123456789-0123456789", "alnumpy-8000")


def sha(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def library(tmp_path, embedder):
    """A folder of pictures, their gallery, and a service: a, a copy of it, b in a folder below, c rotated by EXIF."""
    root = tmp_path / "pictures"
    (root / "below").mkdir(parents=True)
    noise(root / "a.png", 1)
    (root / "copy.png").write_bytes((root / "a.png").read_bytes())
    noise(root / "below" / "b.png", 2, (40, 30))
    exif = Image.Exif()
    exif[0x8769] = {dates.ORIGINAL: "2023:05:06 07:08:09"}
    exif[0x0112] = 6
    exif[0x8825] = {1: "N"}
    noise(root / "c.jpg", 3, (600, 450), exif=exif, comment=b"secret")
    for month, name in enumerate(("a.png", "copy.png", "below/b.png", "c.jpg"), 1):
        at = time.mktime((2024, month, 15, 12, 0, 0, 0, 0, -1))
        os.utime(root / name, (at, at))
    with Gallery(tmp_path / "gallery.db", embedder, "a") as gallery:
        gallery.index([root])
    return root


@pytest.fixture
def service(library, tmp_path, embedder):
    cache = thumbnails.Cache(tmp_path / "cache" / "thumbnails.db", 1_000_000)
    with Gallery(tmp_path / "gallery.db", embedder) as gallery, closing(catalog.Catalog(gallery.path)) as pictures:
        told = []
        made = app.Service(gallery, pictures, thumbnails.Thumbnails(cache, gallery.max_pixels), HOME, None, told.append)
        yield made
        cache.close()
    assert told == []


@pytest.fixture
def client(service):
    return app.create_app(service).test_client()


def get(client, address, status=200, **options):
    response = client.get(address, **options)
    assert response.status_code == status, response.data
    return response.get_json()


def post(client, address, data, status=200, **options):
    response = client.post(address, data=data, **options)
    assert response.status_code == status, response.data
    return response.get_json()


def found(answer):
    """The names that a search finds, nearest first."""
    ((query,),) = [answer]
    assert [row["rank"] for row in query["results"]] == list(range(1, len(query["results"]) + 1))
    return [os.path.basename(row["path"]) for row in query["results"]]


# Searching


def test_a_search_answers_like_the_command(client, service, library):
    """Results have an ID, a size and a date as well."""
    for name in ("a.png", "c.jpg"):
        answer = post(client, "/search", (library / name).read_bytes())
        printed = json.loads(results.search_json([("picture", service.gallery.search(library / name)[0])]))
        assert len(answer) == len(printed) == 1
        for ours, theirs in zip(answer[0]["results"], printed[0]["results"], strict=True):
            assert {key: ours[key] for key in theirs} == theirs
            assert ours["id"] == sha(Path(ours["path"]).read_bytes())
        assert answer[0]["results"][0]["distance"] == 0
    row = next(row for row in answer[0]["results"] if row["path"].endswith("c.jpg"))
    assert (row["width"], row["height"], row["date"]) == (450, 600, "2023-05-06T07:08:09")
    assert row["bytes"] == (library / "c.jpg").stat().st_size


def test_a_picture_that_is_not_in_the_gallery(client, service):
    data = io.BytesIO()
    Image.new("RGB", (20, 20), "red").save(data, "PNG")
    answer = post(client, "/search?k=2", data.getvalue(), content_type="application/x-www-form-urlencoded")
    expected = service.gallery.search(Image.new("RGB", (20, 20), "red"), 2)[0]
    assert [(r["path"], r["distance"], r["same"]) for r in answer[0]["results"]] == [
        (m.path, float(f"{m.distance:.7g}"), False) for m in expected
    ]
    in_base64 = {"picture": "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()}
    assert post(client, "/search?k=2", json.dumps(in_base64), content_type="application/json") == answer


def test_a_result_can_be_the_next_query(client, library):
    data = (library / "a.png").read_bytes()
    answer = get(client, f"/search?like={sha(data)}")
    assert answer[0]["results"] == post(client, "/search", data)[0]["results"]
    assert (answer[0]["query"], answer[0]["id"]) == (str(library / "a.png"), sha(data))
    assert [row["same"] for row in answer[0]["results"]] == [True, True, False, False]
    (library / "a.png").unlink()  # the stored embedding still finds pictures
    assert found(get(client, f"/search?like={sha(data)}"))[0] == "copy.png"


def test_filters_are_those_of_the_command(client, library):
    like = f"/search?like={sha((library / 'a.png').read_bytes())}"
    assert found(get(client, like + "&k=1")) == ["a.png"]
    assert set(found(get(client, like + "&skip-same=1&k=2"))) == {"b.png", "c.jpg"}
    assert found(get(client, f"{like}&in={library}/below")) == ["b.png"]
    assert set(found(get(client, f"{like}&in={library}/below&in={library}/copy.png"))) == {"b.png", "copy.png"}
    assert set(found(get(client, like + "&until=2024-02"))) == {"a.png", "copy.png", "c.jpg"}
    assert set(found(get(client, like + "&since=2024-03&until="))) == {"b.png"}
    assert set(found(get(client, like + "&max-distance=0"))) == {"a.png", "copy.png"}
    unlike = sha((library / "c.jpg").read_bytes())
    assert set(found(get(client, f"{like}&not={unlike}"))) <= {"a.png", "copy.png", "b.png"}


def test_a_region_is_searched_for_as_by_the_command(client, service, library):
    part = Image.open(library / "below" / "b.png").crop((4, 5, 24, 25))
    expected = [(m.path, float(f"{m.distance:.7g}")) for m in service.gallery.search(part)[0]]
    data = (library / "below" / "b.png").read_bytes()
    for answer in (
        post(client, "/search?region=4,5,20,20", data),
        get(client, f"/search?like={sha(data)}&region=4,5,20,20"),
    ):
        assert [(row["path"], row["distance"]) for row in answer[0]["results"]] == expected
    assert "no part of it lies in the region" in post(client, "/search?region=40,0,1,1", data, 422)["error"]
    noise(library / "below" / "b.png", 9)
    assert "changed since" in get(client, f"/search?like={sha(data)}&region=4,5,20,20", 404)["error"]


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        ("/search", "say which picture"),
        ("/search?like=a.png", "must be an ID"),
        ("/search?like={id}&like={id}", "given 2 times"),
        ("/search?like={id}&k=0", "from 1 to 500"),
        ("/search?like={id}&k=501", "from 1 to 500"),
        ("/search?like={id}&k=%D9%A1", "whole number"),
        ("/search?like={id}&in=pictures", "absolute path"),
        ("/search?like={id}&in=/a%00b", "absolute path"),
        ("/search?like={id}" + "&in=/a" * 21, "given 21 times"),
        ("/search?like={id}&since=yesterday", "must be a date"),
        ("/search?like={id}&max-distance=nan", "at least 0"),
        ("/search?like={id}&skip-same=yes", "0 or 1"),
        ("/search?like={id}&region=1,2,0,4", "X,Y,WIDTH,HEIGHT"),
        ("/search?like={id}&limit=3", "unknown parameter 'limit'"),
        ("/duplicates?like=some", "exact, near, similar"),
        ("/duplicates?threshold=-1", "at least 0"),
        ("/pictures?skip=-1", "whole number"),
        ("/stats?k=1", "unknown parameter"),
    ],
)
def test_wrong_parameters_are_named(client, library, address, fault):
    address = address.replace("{id}", sha((library / "a.png").read_bytes()))
    assert fault in get(client, address, 400)["error"]


def test_wrong_bodies_are_named(client, monkeypatch):
    assert "send the bytes" in post(client, "/search", b"", 400)["error"]
    assert "not a picture" in post(client, "/embed", b"hello", 422)["error"]
    assert "--data-binary" in post(client, "/search", {"file": (io.BytesIO(b"x"), "x.png")}, 415)["error"]
    for wrong in (b"", b"{", b"[]", b'{"picture": 1}', b'{"picture": "abc"}', b'"picture"', b"[" * 100_000):
        assert "base64" in post(client, "/search", wrong, 400, content_type="application/json")["error"]
    monkeypatch.setattr(asking, "MAX_UPLOAD", 10)
    assert "MB" in post(client, "/search", b"x" * 11, 413)["error"]
    monkeypatch.setattr(asking, "MAX_TEXT", 5)
    assert "MB" in post(client, "/search", b"x" * 6, 413, content_type="application/json")["error"]


def test_an_unknown_id_is_not_found(client):
    for address in ("/search?like={}", "/thumbnails/{}", "/pictures/{}"):
        assert get(client, address.format("0" * 64), 404)["error"]
    known = client.get("/pictures").get_json()[0]["id"]
    assert get(client, f"/search?like={known}&not={'0' * 64}", 404)["error"]


def test_embed(client, service, library):
    vector = post(client, "/embed", (library / "c.jpg").read_bytes())["embedding"]
    np.testing.assert_array_equal(np.float32(vector), service.gallery.embed(str(library / "c.jpg"))[0])


# Contents of the gallery


def test_stats_are_those_of_the_command(client, service, library, tmp_path, embedder):
    (library / "bad.png").write_text("hello")
    with Gallery(tmp_path / "gallery.db", embedder, "a") as gallery:
        gallery.index()
    answer = get(client, "/stats")
    assert answer["pictures"] == 4
    assert answer["folders"] == [str(library)]
    assert [row["path"] for row in answer["failed"]] == [str(library / "bad.png")]
    assert {key: answer[key] for key in service.gallery.stats()} == json.loads(json.dumps(service.gallery.stats()))
    assert get(client, "/state") == {"pictures": 4, "levels": None, "indexing": None}


def test_pages_of_the_gallery(client, library, monkeypatch):
    names = [os.path.basename(row["path"]) for row in get(client, "/pictures")]
    assert names == ["c.jpg", "b.png", "copy.png", "a.png"]
    assert [os.path.basename(row["path"]) for row in get(client, "/pictures?since=2024-02")] == ["b.png", "copy.png"]
    monkeypatch.setattr(app, "PAGE", 3)
    assert [os.path.basename(row["path"]) for row in get(client, "/pictures?skip=3")] == ["a.png"]
    assert get(client, "/folders")["folders"] == [str(library), str(library / "below")]


def test_names_that_are_not_text(client, library, tmp_path, embedder):
    name = os.fsencode(library) + b"/\xff<b>.png"
    noise(tmp_path / "d.png", 7)
    os.rename(tmp_path / "d.png", name)
    with Gallery(tmp_path / "gallery.db", embedder, "a") as gallery:
        gallery.index()
    rows = [row for row in get(client, "/pictures") if "path_base64" in row]
    assert [base64.b64decode(row["path_base64"]) for row in rows] == [name]
    answer = get(client, f"/search?like={rows[0]['id']}&k=1")
    assert base64.b64decode(answer[0]["results"][0]["path_base64"]) == name
    assert client.get(f"/thumbnails/{rows[0]['id']}").status_code == 200


def test_a_gallery_whose_paths_are_relative(client, library, tmp_path, embedder):
    before = get(client, "/pictures"), get(client, "/folders")
    Gallery(tmp_path / "gallery.db", embedder, "a", relative=True).close()
    assert (get(client, "/pictures"), get(client, "/folders")) == before
    assert [os.path.basename(row["path"]) for row in get(client, f"/pictures?in={library}/below")] == ["b.png"]
    like = f"/search?like={sha((library / 'below' / 'b.png').read_bytes())}"
    assert found(get(client, f"{like}&in={library}/below")) == ["b.png"]


def test_duplicates_are_those_of_the_gallery(client, service, library):
    deadline = time.monotonic() + 60
    while (answer := get(client, "/duplicates?like=exact"))["working"]:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    expected = json.loads(results.groups_json(service.gallery.groups("exact")))
    assert len(expected) == answer["total"] == 1
    for ours, theirs in zip(answer["groups"][0], expected[0], strict=True):
        assert {key: ours[key] for key in theirs} == theirs
    assert [member["kept"] for member in answer["groups"][0]] == [True, False]
    assert get(client, "/duplicates?like=exact&skip=1")["groups"] == []


def test_failed_groupings_give_the_reason(service):
    grouped = grouping.Grouping(service.gallery, service.tell)
    grouped.ask("near", False)  # this network was not measured
    while (answer := grouped.ask("near", False)).working:
        time.sleep(0.01)
    assert "has not been measured" in answer.fault
    assert grouped.ask("near", True).working


# Pictures


def test_pictures_are_shown_small_upright_and_without_metadata(client, library):
    id = sha((library / "c.jpg").read_bytes())
    for kind, size in (("thumbnails", (300, 400)), ("pictures", (450, 600))):
        response = client.get(f"/{kind}/{id}")
        assert (response.status_code, response.mimetype) == (200, "image/jpeg")
        assert "immutable" in response.headers["Cache-Control"]
        image = Image.open(io.BytesIO(response.data))
        assert image.size == size
        assert not {"exif", "comment", "icc_profile"} & set(image.info)
        assert b"secret" not in response.data


def test_a_comment_is_not_passed_on():
    data = io.BytesIO()
    Image.new("P", (30, 20)).save(data, "GIF", comment=b"secret")
    assert b"secret" in data.getvalue()
    small = thumbnails.smaller(data, "a.gif", 10, 1000)
    assert Image.open(io.BytesIO(small)).size == (10, 7)
    assert b"secret" not in small


def test_a_file_with_other_content_is_not_shown(client, service, library, tmp_path):
    """Neither another picture, nor a link to somebody else's file, nor a pipe, which would block, is shown."""
    data = (library / "below" / "b.png").read_bytes()
    path = library / "below" / "b.png"
    noise(tmp_path / "private.png", 5)

    def fifo():
        os.mkfifo(path)

    for replace in (lambda: noise(path, 6), lambda: path.symlink_to(tmp_path / "private.png"), fifo, lambda: None):
        path.unlink()
        replace()
        assert get(client, f"/thumbnails/{sha(data)}", 404)
        if not os.path.lexists(path):
            path.touch()
    path.write_bytes(data)
    assert client.get(f"/thumbnails/{sha(data)}").status_code == 200
    path.unlink()
    assert client.get(f"/thumbnails/{sha(data)}").status_code == 200  # the kept thumbnail is served
    with thumbnails.opened(os.devnull, sha(b"")) as file:
        assert file is None  # a device may have no end
    for address in (f"/thumbnails/{path}", "/thumbnails/../../etc/passwd", "/pictures/%2e%2e%2fgallery.db", "/page.py"):
        assert client.get(address).status_code == 404


def test_a_copy_is_shown_if_one_file_is_missing(client, library):
    data = (library / "a.png").read_bytes()
    (library / "a.png").unlink()
    assert client.get(f"/pictures/{sha(data)}").status_code == 200


def test_thumbnails_are_kept_within_a_limit(tmp_path):
    path = tmp_path / "new" / "thumbnails.db"
    cache = thumbnails.Cache(path, 400_000)
    ids = [sha(b"%d" % i) for i in range(100)]
    for id in ids:
        cache.put(id, 400, id.encode() * 200)
        assert path.stat().st_size <= 400_000
    kept = [id for id in ids if cache.get(id, 400)]
    assert 10 < len(kept) < 40
    assert kept == ids[-len(kept) :]
    assert cache.get(kept[0], 400) == kept[0].encode() * 200
    assert cache.get(kept[0], 1600) is None
    cache.put(ids[0], 400, b"x" * 500_000)
    assert cache.get(ids[0], 400) is None
    assert cache.get(kept[-1], 400)
    cache.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    again = thumbnails.Cache(path, 400_000)
    assert again.get(kept[-1], 400)
    again.close()
    smaller = thumbnails.Cache(path, 100_000)
    assert path.stat().st_size <= 100_000
    assert smaller.get(kept[-1], 400) is None
    smaller.close()


def test_a_damaged_cache_is_begun_anew_and_an_impossible_one_ignored(tmp_path):
    path = tmp_path / "thumbnails.db"
    id = sha(b"")
    path.write_bytes(b"hello" * 1000)
    cache = thumbnails.Cache(path, 400_000)
    cache.put(id, 400, b"jpeg" * 2000)
    assert cache.get(id, 400) == b"jpeg" * 2000
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(path.stat().st_size - 4096))
    with closing(sqlite3.connect(path)) as other:  # so that SQLite reads the pages again
        other.execute("PRAGMA user_version = 1")
    assert cache.get(id, 400) is None
    cache.put(id, 400, b"again")
    assert cache.get(id, 400) == b"again"
    cache.close()
    for none in (None, tmp_path / "thumbnails.db" / "below" / "file.db", tmp_path):
        cache = thumbnails.Cache(none, 400_000)
        cache.put(id, 400, b"jpeg")
        assert cache.get(id, 400) is None
        cache.close()


# Walls

LOCAL = {"HOST": "localhost:8000"}


@pytest.mark.parametrize(
    ("wall", "headers", "peer", "status"),
    [
        (HOME, {}, "127.0.0.1", 421),
        (HOME, {"HOST": "localhost"}, "127.0.0.1", None),
        (HOME, {"HOST": "LOCALHOST:9000"}, "127.0.0.1", None),
        (HOME, {"HOST": "127.0.0.1:8000"}, "127.0.0.1", None),
        (HOME, {"HOST": "[::1]:8000"}, "::1", None),
        (HOME, {"HOST": "evil.example"}, "127.0.0.1", 421),
        (HOME, {"HOST": "localhost.evil.example"}, "127.0.0.1", 421),
        (HOME, {"HOST": "localhost, evil.example"}, "127.0.0.1", 421),
        (HOME, {"HOST": "192.168.1.5:8000"}, "127.0.0.1", 421),
        (HOME, {"HOST": "localhost@evil.example"}, "127.0.0.1", 421),
        (HOME, {"HOST": "localhost:8000:8000"}, "127.0.0.1", 421),
        (HOME, LOCAL | {"ORIGIN": "http://localhost:8000"}, "127.0.0.1", None),
        (HOME, LOCAL | {"ORIGIN": "http://localhost:3000"}, "127.0.0.1", 403),
        (HOME, LOCAL | {"ORIGIN": "https://evil.example"}, "127.0.0.1", 403),
        (HOME, LOCAL | {"ORIGIN": "null"}, "127.0.0.1", 403),
        (HOME, LOCAL | {"ORIGIN": ""}, "127.0.0.1", 403),
        (HOME, LOCAL | {"SEC_FETCH_SITE": "cross-site", "SEC_FETCH_MODE": "no-cors"}, "127.0.0.1", 403),
        (HOME, LOCAL | {"SEC_FETCH_SITE": "same-site"}, "127.0.0.1", 403),
        (HOME, LOCAL | {"SEC_FETCH_SITE": "cross-site", "SEC_FETCH_MODE": "navigate"}, "127.0.0.1", None),
        (HOME, LOCAL | {"SEC_FETCH_SITE": "same-origin"}, "127.0.0.1", None),
        (OPEN, LOCAL, "127.0.0.1", None),
        (OPEN, LOCAL, "::ffff:127.0.0.1", None),
        (OPEN, LOCAL, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000"}, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000"}, "127.0.0.1", 401),
        (OPEN, {"HOST": "evil.example:8000", "AUTHORIZATION": f"Bearer {OPEN.token}"}, "192.168.1.9", 421),
        (OPEN, {"HOST": "192.168.1.5:8000", "AUTHORIZATION": f"Bearer {OPEN.token}"}, "192.168.1.9", None),
        (OPEN, {"HOST": "192.168.1.5:8000", "AUTHORIZATION": f"bearer {OPEN.token}"}, "192.168.1.9", None),
        (OPEN, {"HOST": "192.168.1.5:8000", "AUTHORIZATION": f"Bearer {OPEN.token}x"}, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000", "AUTHORIZATION": "Bearer "}, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000", "AUTHORIZATION": "Bearer \udcff"}, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000", "AUTHORIZATION": f"Basic {OPEN.token}"}, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000", "COOKIE": f"a=b; alnumpy-8000={OPEN.token}"}, "192.168.1.9", None),
        (OPEN, {"HOST": "192.168.1.5:8000", "COOKIE": f"alnumpy-9000={OPEN.token}"}, "192.168.1.9", 401),
        (OPEN, {"HOST": "192.168.1.5:8000", "COOKIE": "alnumpy-8000="}, "192.168.1.9", 401),
        (walls.Walls("192.168.1.5", "t" * 20), {"HOST": "192.168.1.5:8000"}, "192.168.1.5", None),
        (walls.Walls("192.168.1.5", "t" * 20), {"HOST": "192.168.1.6:8000"}, "192.168.1.9", 421),
        (walls.Walls("nas.example", "t" * 20), {"HOST": "NAS.example:8000"}, "192.168.1.9", 401),
    ],
)
def test_walls(wall, headers, peer, status):
    refusal = wall.refusal(headers, peer)
    assert (refusal and refusal.status) == status


def test_every_answer_has_the_headers_and_every_address_is_guarded(client, service):
    for address in ("/", "/page.js", "/page.css", "/icon.svg", "/nothing", "/state", "/search", "/thumbnails/x"):
        response = client.get(address)
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert "default-src 'none'" in response.headers["Content-Security-Policy"]
        assert "unsafe" not in response.headers["Content-Security-Policy"]
        assert not any(name.startswith("Access-Control") for name, _ in response.headers)
        for headers, status in (({"Host": "evil.example"}, 421), ({"Origin": "http://evil.example"}, 403)):
            refused = client.get(address, headers=headers)
            assert refused.status_code == status
            assert refused.headers["X-Content-Type-Options"] == "nosniff"
    assert client.post("/embed", data=b"x", headers={"Origin": "http://localhost"}).status_code == 422
    assert client.get("/embed").status_code == 405


def test_the_page_holds_no_script_and_no_style_and_nothing_from_elsewhere(client):
    page = client.get("/").get_data(as_text=True)
    assert "<style" not in page
    assert " style=" not in page
    assert not [word for word in page.split() if word.startswith("on") and "=" in word]
    assert page.count("<script") == 1
    for address in ("/", "/page.js", "/page.css"):
        assert "//" not in client.get(address).get_data(as_text=True).replace("// ", "").replace(
            "http://www.w3.org", ""
        )
    etag = client.get("/page.js").headers["ETag"]
    assert client.get("/page.js", headers={"If-None-Match": etag}).status_code == 304


def test_the_link_exchanges_its_token_for_a_cookie(service):
    service.walls = OPEN
    client = app.create_app(service).test_client()
    far = {"base_url": "http://192.168.1.5:8000", "environ_base": {"REMOTE_ADDR": "192.168.1.9"}}
    assert "token" in get(client, "/", 401, **far)["error"]
    assert client.get("/?token=wrong", **far).status_code == 401
    assert client.get(f"/state?token={OPEN.token}", **far).status_code == 401
    response = client.get(f"/?token={OPEN.token}", **far)
    assert (response.status_code, response.headers["Location"]) == (303, "/")
    cookie = response.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert client.get("/", **far).status_code == 200
    assert get(client, "/state", **far)["pictures"] == 4
    other = client.get(f"/?token={OPEN.token}", headers={"Origin": "http://evil.example"}, **far)
    assert (other.status_code, "Set-Cookie" in other.headers) == (403, False)


def test_the_token_is_kept_in_private(tmp_path):
    token = walls.read_token(tmp_path / "data")
    assert token == walls.read_token(tmp_path / "data")
    assert len(token) >= 32
    path = tmp_path / "data" / walls.TOKEN_FILE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.write_text("short")
    with pytest.raises(walls.AlnumpyError, match="not a token"):
        walls.read_token(tmp_path / "data")
    (tmp_path / "file").touch()
    with pytest.raises(walls.AlnumpyError, match="cannot be read"):
        walls.read_token(tmp_path / "file")


# Faults


def test_unexpected_errors_are_reported_in_one_place(service, monkeypatch):
    told = []
    service.tell = told.append
    monkeypatch.setattr(service.catalog, "folders", lambda: 1 / 0)
    answer = get(app.create_app(service).test_client(), "/folders", 500)
    assert "a fault of alnumpy" in answer["error"]
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_an_unexpected_error_in_a_thread_is_reported_and_ends_its_work():
    class Broken:
        def groups(self, like):
            raise ZeroDivisionError(like)

    told = []
    grouped = grouping.Grouping(Broken(), told.append)
    while grouped.ask("near", False).working:
        time.sleep(0.01)
    assert "see what alnumpy serve has printed" in grouped.ask("near", False).fault
    index = indexing.Indexing(lambda: 1 / 0, [], None, pytest.fail, told.append)
    index.start()
    while index.state()["running"]:
        time.sleep(0.01)
    assert "see what alnumpy serve has printed" in index.state()["fault"]
    assert [type(error) for error in told] == [ZeroDivisionError] * 2


@pytest.mark.parametrize(("error", "status"), [(GalleryError("damaged"), 500), (MemoryError(), 503)])
def test_faults_of_the_gallery_and_the_machine(client, service, monkeypatch, error, status):
    def fail():
        raise error

    monkeypatch.setattr(service.catalog, "folders", fail)
    assert get(client, "/folders", status)["error"]


# While an index runs


def test_an_index_tells_how_far_it_is_and_its_pictures_appear(service, library, tmp_path, embedder):
    for seed in range(10, 15):
        noise(library / f"{seed}.png", seed)
    (library / "bad.png").write_text("hello")
    told, states, held = [], [], threading.Event()

    def open_gallery():
        return Gallery(tmp_path / "gallery.db", embedder, "a", batch_size=2)

    index = service.indexing = indexing.Indexing(open_gallery, [str(library)], None, told.append, told.append)
    record = index._set

    def slow(**fields):
        record(**fields)
        states.append(index.state())
        if fields.get("done") == 4:
            held.set()

    index._set = slow
    index.start()
    assert held.wait(60)
    while index.state()["running"]:
        time.sleep(0.01)
    assert [(s["done"], s["total"]) for s in states if s["total"]][:3] == [(2, 6), (4, 6), (6, 6)]
    assert index.state() == {"running": False, "done": 6, "total": 6, "looks": 1, "failed": 1, "fault": None}
    assert [str(line).split(":")[0] for line in told] == [str(library / "bad.png")]
    client = app.create_app(service).test_client()
    assert get(client, "/state")["pictures"] == 9
    assert get(client, "/state")["indexing"]["looks"] == 1
    assert found(post(client, "/search?k=1", (library / "12.png").read_bytes())) == ["12.png"]


def test_a_target_without_a_slash_is_refused(client):
    """Such addresses are not redirected."""
    answer = client.get("/", environ_overrides={"PATH_INFO": "folders"})
    assert (answer.status_code, answer.get_json()) == (400, {"error": "the target of a request begins with /"})


def test_a_failing_index_reports_once_and_continues(library, tmp_path, embedder, monkeypatch):
    told, looks = [], []

    def open_gallery():
        looks.append(1)
        if len(looks) < 4:
            raise GalleryError("another alnumpy is writing to it")
        return Gallery(tmp_path / "gallery.db", embedder, "a")

    index = indexing.Indexing(open_gallery, [], 1, told.append, told.append)
    monkeypatch.setattr(indexing.time, "sleep", lambda seconds: time.monotonic() if len(looks) < 4 else 1 / 0)
    lowered = []
    monkeypatch.setattr(indexing.os, "nice", lowered.append, raising=False)  # would lower the tests' own thread
    with pytest.raises(ZeroDivisionError):
        index._run()
    assert lowered == [indexing.NICE] * (sys.platform == "linux")
    assert told == ["another alnumpy is writing to it"]
    assert index.state()["fault"] is None
    assert index.state()["looks"] == 4
