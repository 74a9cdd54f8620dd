"""The download command with a server on this machine and small archives."""

import hashlib
import shutil
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from utils.commands import download

CLASS_NAMES = ("bolt", "weave")


class Handler(BaseHTTPRequestHandler):
    """Serves server.body; server.mode says what goes wrong: a status, "cut" or "no range"."""

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers["Range"]))
        if isinstance(server.mode, int):
            self.send_error(server.mode)
            return
        start = 0 if server.mode == "no range" else int(self.headers["Range"][6:-1])
        body = server.body[start:]
        self.send_response(200 if server.mode == "no range" else 206)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:1000] if server.mode == "cut" else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def archive(drawn_tree, tmp_path):
    path = tmp_path / "by_hand.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for name in CLASS_NAMES:
            tar.add(drawn_tree / name, name)
        tar.addfile(tarfile.TarInfo("license.txt"))
    return path


@pytest.fixture
def server(monkeypatch, archive):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.mode, server.requests = archive.read_bytes(), "", []
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def command(server, data, monkeypatch, run):
    """Run the command on a small release."""
    url = f"http://127.0.0.1:{server.server_port}/archive"
    monkeypatch.setattr(download, "CLASS_NAMES", CLASS_NAMES)
    monkeypatch.setattr(download, "SHA256", hashlib.sha256(server.body).hexdigest())
    monkeypatch.setattr(download, "ARCHIVE_SIZE", len(server.body))
    words = ["download", "--data_path", data, "--accept_license"]

    def command(*options):
        return run(*words, *(options or ["--url", url]))

    return command


def assert_complete(done, data):
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{data} holds all 2 classes" in done.stdout
    assert sorted(path.name for path in data.iterdir()) == ["bolt", "license.txt", "weave"]
    assert len(list(data.rglob("*.png"))) == 2 * (5 + 2 + 6 + 6)


def assert_refused(done, *messages):
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert [message for message in messages if message not in line] == []


def test_classes_are_downloaded_once(command, server, data):
    assert_complete(command(), data)
    done = command()
    assert_complete(done, data)
    assert "nothing to download" in done.stdout
    assert server.requests == [("/archive", "bytes=0-")]


@pytest.mark.parametrize(
    ("mode", "part", "requested"),
    [
        ("", slice(2000), ["bytes=2000-"]),
        ("no range", slice(2000), ["bytes=2000-"]),  # the server sends the whole file
        ("", slice(None), []),
    ],
)
def test_download_is_resumed(command, server, data, mode, part, requested):
    data.mkdir()
    (data / download.PART).write_bytes(server.body[part])
    server.mode = mode
    assert_complete(command(), data)
    assert [wanted for _, wanted in server.requests] == requested


@pytest.mark.parametrize(("mode", "message"), [("cut", "it ended after 1000 of"), (404, "404")])
def test_failed_download_is_one_line_and_keeps_what_has_arrived(
    command, server, data, mode, message
):
    server.mode = mode
    done = command()
    assert_refused(done, "cannot download http://", message, "repeat", "--url", "--archive")
    assert [path.stat().st_size for path in data.iterdir()] == [1000] * (mode == "cut")


def test_disk_that_fills_while_unpacking_is_one_line(command, data, archive, monkeypatch):
    def fail(self, folder, filter):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", fail)
    done = command("--archive", archive)
    assert_refused(done, f"cannot unpack {archive} in {data}: No space left on device; make room")
    assert list(data.iterdir()) == []


def test_wrong_file_is_deleted_before_anything_is_unpacked(command, server, data):
    server.body = b"<html>moved</html>"
    found = hashlib.sha256(server.body).hexdigest()
    assert_refused(command(), "/archive is not the archive of MVTec AD", f"found {found}; it was")
    assert list(data.iterdir()) == []


def test_archive_by_hand_is_verified_and_kept(command, server, data, archive):
    assert_complete(command("--archive", archive), data)
    shutil.rmtree(data)
    archive.write_bytes(b"something else")
    assert_refused(command("--archive", archive), "by_hand.tar.xz is not the archive of MVTec AD")
    assert archive.exists()
    assert list(data.iterdir()) == []
    assert server.requests == []


def test_class_that_is_there_is_left_alone(command, archive, tree):
    shutil.rmtree(tree / "weave")
    mine = tree / "bolt/mine.txt"
    mine.write_text("mine")
    assert_complete(command("--archive", archive), tree)
    assert mine.exists()


def test_licence_is_shown_and_must_be_accepted(command, run, server, data):
    done = run("download", "--data_path", data)
    assert_refused(done, "must be accepted: give --accept_license")
    assert "CC BY-NC-SA 4.0:\nnot for commercial use" in done.stdout
    assert (server.requests, data.exists()) == ([], False)
