"""``alnumpy serve`` as a process and as a server: output, sockets, signals, slow and hostile clients."""

from __future__ import annotations

import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from conftest import DIGITS
from test_cli import run

pytest.importorskip("flask")
pytest.importorskip("waitress")
pytest.importorskip("segno")
from alnumpy import cli
from alnumpy.cli import serve
from alnumpy.errors import AlnumpyError
from alnumpy.serve import server, walls

ROOT = Path(__file__).parents[1]
WAIT = 60
# Logs each socket and its use to a file.
AUDIT = """
import sys
log = open(sys.argv.pop(1), "a", buffering=1)
def audit(event, arguments):
    if event.startswith("socket."):
        print(event, *map(repr, arguments[0 if event == "socket.getaddrinfo" else 1:]), file=log)
sys.addaudithook(audit)
from alnumpy.__main__ import run
run()
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Ten pictures and their gallery."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "p").mkdir()
    for digit in DIGITS[::3]:
        shutil.copy(digit, desk / "p")
    assert run("index", "p", "--db", "g.db", cwd=desk)[0] == 0
    return desk


@contextmanager
def serving(desk, *options, program=("-m", "alnumpy"), code=143, **environment):
    """A process that serves, and its address. At the end a signal must stop it properly."""
    variables = os.environ | {"ALNUMPY_CACHE_DIR": str(desk / "cache"), "XDG_DATA_HOME": str(desk / "data")}
    process = subprocess.Popen(
        [sys.executable, *program, "serve", "--port", "0", *options],
        cwd=desk, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables | environment,
    )  # fmt: skip
    try:
        process.printed = []
        while not re.match("http://", line := process.stdout.readline()):
            process.printed.append(line)
            assert line, process.stderr.read()
        yield process, line.strip()
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=WAIT)
        assert (process.returncode, out) == (code, "")
        assert "Traceback" not in err
    finally:
        process.kill()
        process.communicate()


def ask(address, path="", data=None, **headers):
    """The status and the body of an answer."""
    host = address.split("/")[2]
    connection = http.client.HTTPConnection(host, timeout=WAIT)
    connection.request("GET" if data is None else "POST", "/" + path, data, headers)
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response.status, body


def test_programs_get_the_commands_output(desk):
    picture = desk / "p" / DIGITS[0].name
    code, printed, _ = run("search", picture, "--db", "g.db", "--json", "-k", "3", cwd=desk)
    assert code == 0
    with serving(desk, "--db", "g.db") as (_, address):
        assert re.fullmatch(r"http://127.0.0.1:\d+/", address)
        status, body = ask(address, "search?k=3", picture.read_bytes())
        assert status == 200
        for ours, theirs in zip(json.loads(body)[0]["results"], json.loads(printed)[0]["results"], strict=True):
            assert {key: ours[key] for key in theirs} == theirs
        assert b"<title>alnumpy" in ask(address)[1]


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_examples_for_curl(desk):
    """The examples of docs/SERVE.md run one after the other."""
    page = (ROOT / "docs" / "SERVE.md").read_text()
    (block,) = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
    shutil.copy(DIGITS[0], desk / "photo.jpg")
    with serving(desk, "--db", "g.db") as (_, address):
        script = block.replace("http://localhost:8000/", address)
        assert script.count(address) == script.count("curl") > 3
        done = subprocess.run(
            ["sh", "-eu"], input=script, cwd=desk, capture_output=True, text=True, check=False, timeout=WAIT
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert '"distance": 0.0' in done.stdout
        assert '"embedding": [' in done.stdout
        assert '"pictures": 10' in done.stdout
        assert (desk / "thumbnail.jpg").read_bytes().startswith(b"\xff\xd8")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_beside_an_index_and_a_search(desk, tmp_path, number):
    """It ends at once, without waiting for a slow client or for pictures that are being read."""
    for i in range(2000):
        shutil.copy(DIGITS[i % 30], tmp_path / f"{i}.png")
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)\n"
        "from alnumpy.__main__ import run, catch_signals\ncatch_signals()\nrun()"
    )
    variables = os.environ | {"ALNUMPY_CACHE_DIR": str(tmp_path / "cache")}
    command = [sys.executable, "-c", code, "serve", "--db", str(tmp_path / "new.db"), "--port", "0"]
    command += ["--index", str(tmp_path), "--backend", "numpy"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables)
    try:
        address = process.stdout.readline().strip()
        host, port = address.split("/")[2].split(":")
        with socket.create_connection((host, int(port)), timeout=WAIT) as slow:
            slow.sendall(b"POST /search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            while not json.loads(ask(address, "state")[1])["pictures"]:
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=WAIT)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (128 + number, "")
    assert err.splitlines()[1:] == [f"alnumpy: {'interrupted' if number == signal.SIGINT else 'terminated'}"]
    code, out, _ = run("stats", "--db", tmp_path / "new.db", "--json")  # intact and readable
    assert (code, 0 < json.loads(out)["pictures"] <= 2000) == (0, True)


def test_a_missing_gallery_or_folder_is_named(tmp_path):
    code, out, err = run("serve", "--db", tmp_path / "none.db")
    assert (code, out) == (1, "")
    assert "no such gallery" in err
    code, out, err = run("serve", "--db", tmp_path / "none.db", "--index", tmp_path / "nowhere")
    assert (code, out, os.listdir(tmp_path)) == (2, "", [])
    assert "no such folder" in err
    code, _, err = run("serve", "--port", "70000")
    assert (code, "0 to 65535" in err) == (2, True)


def test_a_port_in_use_is_refused(desk):
    with serving(desk, "--db", "g.db") as (_, address):
        port = address.split(":")[2].strip("/")
        code, out, err = run("serve", "--db", "g.db", "--port", port, cwd=desk)
        assert (code, out) == (1, "")
        assert f"cannot listen on 127.0.0.1, port {port}: " in err
        assert "--port" in err


def test_others_need_the_token_that_is_printed(desk):
    """The address is printed as a link and as its QR code."""
    with serving(desk, "--db", "g.db", "--host", "0.0.0.0") as (process, link):
        found = re.fullmatch(r"http://([^/]+):(\d+)/\?token=([\w-]+)", link)
        assert found
        assert "".join(process.printed) == serve.code(link) + "\n"
        here = f"http://127.0.0.1:{found[2]}/"
        assert ask(here, "state")[0] == 200
        assert ask(here, "state", Host="192.168.1.5")[0] == 401
        assert ask(here, "state", Host="192.168.1.5", Authorization=f"Bearer {found[3]}")[0] == 200
        assert ask(here, "state", Host="evil.example", Authorization=f"Bearer {found[3]}")[0] == 421
    token = desk / "data" / "alnumpy" / walls.TOKEN_FILE
    assert token.read_text().strip() == found[3]


def test_the_code_shows_the_link(monkeypatch):
    import segno

    link = "http://192.168.1.5:8000/?token=0123456789-0123456789"
    matrix = [bytes(row) for row in segno.make(link, error="L", micro=False).matrix_iter(border=2)]
    for encoding, width in (("utf-8", 1), ("ascii", 2)):
        monkeypatch.setattr(serve.sys, "stdout", type("Out", (), {"encoding": encoding}))
        lines = serve.code(link).split("\n")
        assert {len(line) for line in lines} == {width * len(matrix)}
        if width == 2:
            assert [bytes(c == " " for c in line[::2]) for line in lines] == matrix
        else:
            upper = [bytes(c in " ▄" for c in line) for line in lines]
            lower = [bytes(c in " ▀" for c in line) for line in lines]
            assert upper == matrix[::2]
            assert lower[: len(matrix) // 2] == matrix[1::2]


def test_it_opens_one_socket_to_this_computer_alone(desk, tmp_path):
    with serving(desk, "--db", "g.db", program=("-c", AUDIT, str(tmp_path / "log"))) as (_, address):
        assert ask(address, "state")[0] == 200
        assert ask(address, "search", DIGITS[0].read_bytes())[0] == 200
    events = [line.partition(" ") for line in (tmp_path / "log").read_text().splitlines()]
    assert [arguments for event, _, arguments in events if event == "socket.bind"] == ["('127.0.0.1', 0)"]
    assert {arguments.split()[0] for event, _, arguments in events if event == "socket.getaddrinfo"} <= {"'127.0.0.1'"}
    assert "socket.__new__" in {event for event, _, _ in events}
    assert not {event for event, _, _ in events} & {"socket.connect", "socket.sendto", "socket.sendmsg"}


# The server in this process


@contextmanager
def listening(application, wall=None):
    """A server in a thread, and its port."""
    made = server.Server(application, wall or walls.Walls("127.0.0.1"), 0)
    stop = threading.Event()

    def loop():
        while not stop.is_set():
            server.wasyncore.loop(timeout=0.05, map=made._map, use_poll=True, count=1)

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield made, made.effective_port
    finally:
        stop.set()
        thread.join()
        made.task_dispatcher.shutdown()
        server.wasyncore.close_all(made._map)


def hello(environ, start_response):
    """An application that answers with the length of the body."""
    length = str(len(environ["wsgi.input"].read())).encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(length)))])
    return [length]


def talk(port, *parts, end=True):
    """The answer to parts sent one after the other, until the server closes or has answered."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as connection:
        for part in parts:
            connection.sendall(part)
        answer = b""
        while data := connection.recv(65536):
            answer += data
            if not end and b"\r\n\r\n" in answer:
                break
        return answer


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (POST + b"Content-Length: 3\r\n\r\nabc", 200),
        (POST + b"Content-Length: 40000000\r\nOrigin: http://evil.example\r\n\r\n", 403),
        (POST.replace(b"localhost", b"evil.example") + b"Content-Length: 40000000\r\n\r\n", 421),
        (POST.replace(b"localhost", b"evil") + b"Expect: 100-continue\r\nContent-Length: 40000000\r\n\r\n", 421),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 411),
        (POST + b"Transfer-Encoding: gzip\r\n\r\n", 501),
        (POST + b"Content-Length: 50000001\r\n\r\n", 413),
        (POST + b"Content-Length: -1\r\n\r\n", 400),
        (POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabc", 400),
        (POST + b"X: " + b"a" * server.HEADER + b"\r\n\r\n", 431),
        (POST + b"X: " + b"a" * server.HEADER, 431),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    ],
)
def test_requests_refused_before_their_body(request_, status):
    with listening(hello) as (_, port):
        answer = talk(port, request_)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == b"%d" % status, answer
    if status != 200:
        assert json.loads(body)["error"]
        assert b"X-Content-Type-Options: nosniff" in head
        assert b"Connection: close" in head


def test_a_request_may_expect_to_continue(monkeypatch):
    body = b"x" * 100_000
    with listening(hello) as (_, port):
        answer = talk(port, POST + b"Expect: 100-continue\r\nContent-Length: 100000\r\n\r\n", body)
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200")
    assert answer.endswith(b"\r\n\r\n100000")


def test_bodies_wait_until_there_is_room(monkeypatch):
    monkeypatch.setattr(server, "BODIES", 1_000_000)
    begun = POST + b"Content-Length: 800000\r\n\r\n"
    with listening(hello) as (made, port), socket.create_connection(("127.0.0.1", port), timeout=WAIT) as first:
        first.sendall(begun + b"x" * 500_000)
        while sum(channel.room for channel in made.active_channels.values()) != 800_000:
            time.sleep(0.01)
        with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as second:
            second.sendall(begun)
            second.setblocking(False)
            sent = 0
            while sent < 800_000 and select.select([], [second], [], 0.3)[1]:
                sent += second.send(b"x" * min(65536, 800_000 - sent))
            assert not select.select([second], [], [], 0.3)[0]  # even if all of it was sent
            assert [channel.room for channel in made.active_channels.values()].count(800_000) == 1
            assert talk(port, POST + b"Content-Length: 3\r\n\r\nabc").endswith(b"\r\n\r\n3")  # other clients are served
            first.sendall(b"x" * 300_000)
            assert first.recv(100).startswith(b"HTTP/1.1 200")
            second.settimeout(WAIT)
            second.sendall(b"x" * (800_000 - sent))
            assert second.recv(100).startswith(b"HTTP/1.1 200")


def test_slow_clients_are_disconnected(monkeypatch):
    """Slow clients are disconnected even if bytes keep arriving."""
    monkeypatch.setattr(server, "PATIENCE", 0.2)
    with listening(hello) as (made, port), socket.create_connection(("127.0.0.1", port), timeout=WAIT) as slow:
        made.adj.cleanup_interval, made.next_channel_cleanup = 0.05, 0
        closed = []
        while not closed:
            with suppress(OSError):
                slow.send(b"GET")
            time.sleep(0.02)
            closed = select.select([slow], [], [], 0)[0]
        assert talk(port, b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.0 200")


def test_an_impossible_address_is_named():
    with pytest.raises(AlnumpyError, match=r"cannot listen on nowhere.invalid, port 1"):
        server.Server(hello, walls.Walls("nowhere.invalid", "t" * 20), 1)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_its_own_address(monkeypatch, family):
    assert re.fullmatch(r"\d+\.\d+\.\d+\.\d+|[0-9a-f:]+|.+\.local", server.own_address(family))

    class Nowhere(socket.socket):
        def connect(self, address):
            raise OSError("Network is unreachable")

    monkeypatch.setattr(server.socket, "socket", Nowhere)
    assert server.own_address(family) == f"{socket.gethostname()}.local"


def test_without_the_extra_it_names_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "waitress" else name)
    assert cli.main(["serve", "--db", str(tmp_path / "g.db")]) == 1
    assert "serve needs waitress: pip install 'alnumpy[serve]'" in capsys.readouterr().err
