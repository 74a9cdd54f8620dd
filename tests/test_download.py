"""The download command with a server on this machine and small archives."""

import hashlib
import io
import shutil
import tarfile
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request

import pytest

from datasets.mvtec import Counts
from utils.commands import download

COUNTS = {name: Counts(5, 2, 6) for name in ("bolt", "weave")}


class Handler(BaseHTTPRequestHandler):
    """Serves server.body; the next of server.modes says what goes wrong."""

    def do_GET(self):
        server, size = self.server, len(self.server.body)
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        mode = server.modes.pop(0) if server.modes else ""
        if isinstance(mode, int):
            self.send_error(mode)
            return
        start = int(wanted[6:-1]) if wanted and "no range" not in mode else 0
        first = start + 1 if mode == "another part" else start
        body = server.body[start:]
        status, headers = 200, {"Content-Length": len(body)}
        if mode == "redirect":
            status, headers, body = 302, {"Location": "/elsewhere"}, b""
        elif start >= size:
            status, headers = 416, {"Content-Range": f"bytes */{size}"}
        elif start:
            status, headers = 206, headers | {"Content-Range": f"bytes {first}-{size - 1}/{size}"}
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body[:1000] if mode in ("cut", "no range, cut", "stall") else body)
        self.wfile.flush()
        if mode == "stall":
            server.release.wait(10)

    def log_message(self, *args):
        pass


@pytest.fixture
def archive(drawn_tree, tmp_path):
    path = tmp_path / "by_hand.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for name in COUNTS:
            tar.add(drawn_tree / name, name)
        tar.addfile(tarfile.TarInfo("license.txt"))
    return path


@pytest.fixture
def server(monkeypatch, archive):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.fetch, "__defaults__", (0.3, 0.0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.modes, server.requests = archive.read_bytes(), [], []
    server.release = threading.Event()
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def make_release(url, body):
    digest = hashlib.sha256(body).hexdigest()
    return download.Release(url, digest, len(body), 10**6, COUNTS)


@pytest.fixture
def release(server):
    return make_release(f"http://127.0.0.1:{server.server_port}/archive", server.body)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def assert_complete(data):
    assert sorted(path.name for path in data.iterdir()) == ["bolt", "license.txt", "weave"]
    assert download.find_complete(data, COUNTS) == ["bolt", "weave"]


def assert_empty(data):
    assert list(data.iterdir()) == []


# downloading


@pytest.mark.parametrize(
    ("part", "modes", "requested"),
    [
        (None, [], [None]),
        (None, ["cut"], [None, "bytes=1000-"]),
        (None, ["stall"], [None, "bytes=1000-"]),
        (None, [503, 429], [None] * 3),
        # more attempts than are allowed without anything new
        (None, ["cut"] * 7, [None, *(f"bytes={i}000-" for i in range(1, 8))]),
        # a part of an earlier run: right, complete, too long
        (slice(2000), [], ["bytes=2000-"]),
        (slice(None), [], []),
        ("too long", [], ["bytes=long-", None]),
        # servers that do not resume as asked
        ("wrong", ["no range"], ["bytes=2000-"]),
        ("wrong", ["another part"], ["bytes=2000-", None]),
    ],
)
def test_download_is_resumed_until_it_is_complete(server, release, data, part, modes, requested):
    body = server.body
    parts = {"too long": body + b"more", "wrong": b"x" * 2000}
    if part is not None:
        (data / download.PART).write_bytes(body[part] if isinstance(part, slice) else parts[part])
    server.modes = modes
    download.install(data, release)
    assert_complete(data)
    long = str(len(body) + 4)
    assert [wanted and wanted.replace(long, "long") for _, wanted in server.requests] == requested


@pytest.mark.parametrize(
    ("modes", "message", "n_requests", "kept"),
    [
        (["no range, cut"] * 99, "it ended after 1000 of", download.ATTEMPTS + 1, 1000),
        (["stall", *[503] * 9], "503", download.ATTEMPTS + 1, 1000),
        ([404], r"404.*--url.*mvtec\.com.*--archive", 1, 0),
    ],
)
def test_server_that_brings_nothing_new_is_given_up(
    server, release, data, modes, message, n_requests, kept
):
    server.modes = modes
    with pytest.raises(ValueError, match=f"cannot download .*{message}"):
        download.install(data, release)
    assert len(server.requests) == n_requests
    assert [path.stat().st_size for path in data.iterdir()] == [kept]
    server.shutdown()
    server.server_close()
    with pytest.raises(ValueError, match=r"cannot download .*--url.*--archive"):
        download.install(data, release)


def test_redirect_is_followed_but_not_away_from_https(server, release, data):
    server.modes = ["redirect"]
    download.install(data, release)
    assert [path for path, _ in server.requests] == ["/archive", "/elsewhere"]
    redirects = download._Redirects()
    request = Request("https://there/a")
    with pytest.raises(ValueError, match="https://there/a redirects from https to http://here/b"):
        redirects.redirect_request(request, None, 302, "", {}, "http://here/b")
    assert redirects.redirect_request(request, None, 302, "", {}, "https://here/b")


@pytest.mark.parametrize("url", ["ftp://there/a", "file:///etc/passwd", "there"])
def test_other_scheme_than_http_is_refused(release, data, url):
    with pytest.raises(ValueError, match=f"--url {url} is no web address"):
        download.install(data, release._replace(url=url))


def test_wrong_file_is_deleted_before_anything_is_unpacked(server, release, data):
    server.body = b"<html>moved</html>"
    found = hashlib.sha256(server.body).hexdigest()
    message = f"expected sha256 {release.sha256}, found {found}; it was deleted; .*--url.*--archive"
    with pytest.raises(ValueError, match=message):
        download.install(data, release)
    assert_empty(data)


# archives


def test_wrong_or_missing_archive_by_hand_is_refused_and_kept(release, data, archive, tmp_path):
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"by_hand\.tar\.xz is not the archive of MVTec AD"):
        download.install(data, release, archive)
    assert archive.exists()
    assert_empty(data)
    with pytest.raises(ValueError, match="no file .*nowhere; --archive takes"):
        download.install(data, release, tmp_path / "nowhere")


@pytest.mark.parametrize("by_hand", [False, True])
def test_full_disk_is_reported_before_the_download(
    server, release, data, archive, monkeypatch, by_hand
):
    needed = 10**6 + (0 if by_hand else len(server.body))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed - 1))
    with pytest.raises(ValueError, match=r"GB free, .* GB are needed; make room"):
        download.install(data, release, archive if by_hand else None)
    assert_empty(data)
    assert server.requests == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    download.install(data, release, archive if by_hand else None)
    assert_complete(data)


@pytest.mark.parametrize(
    ("name", "type_", "target"),
    [
        ("/tmp/evil_absolute", tarfile.REGTYPE, ""),
        ("../evil", tarfile.REGTYPE, ""),
        ("bolt/../../evil", tarfile.REGTYPE, ""),
        ("bolt/evil", tarfile.SYMTYPE, "/etc"),
        ("bolt/evil", tarfile.LNKTYPE, "../../evil"),
        ("bolt/evil", tarfile.CHRTYPE, ""),
        ("bolt/evil", tarfile.FIFOTYPE, ""),
    ],
)
def test_malicious_archive_is_refused(data, tmp_path, drawn_tree, name, type_, target):
    path = tmp_path / "evil.tar"
    member = tarfile.TarInfo(name)
    member.type, member.linkname = type_, target
    with tarfile.open(path, "w") as tar:
        tar.add(drawn_tree / "bolt", "bolt")
        tar.addfile(member, io.BytesIO())
    before = sorted(tmp_path.rglob("*"))
    release = make_release("", path.read_bytes())
    with pytest.raises(ValueError, match="is not a plain file or folder inside it; nothing was"):
        download.install(data, release, path)
    assert sorted(tmp_path.rglob("*")) == before


def test_truncated_archive_and_one_with_other_counts_are_refused(release, data, archive):
    other = release._replace(counts={"bolt": Counts(5, 3, 6)})
    message = r"by_hand\.tar\.xz unpacks to a bolt that is not MVTec AD's: it holds 5 training, 2 "
    with pytest.raises(ValueError, match=message):
        download.install(data, other, archive)
    archive.write_bytes(archive.read_bytes()[:10_000])
    truncated = make_release("", archive.read_bytes())
    with pytest.raises(ValueError, match=r"cannot unpack .*by_hand\.tar\.xz: .*; nothing was kept"):
        download.install(data, truncated, archive)
    assert_empty(data)


# classes that are there already


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("ground_truth", "it has no masks"),
        ("ground_truth/crack/001_mask.png", "mask missing for"),
        ("test/good/001.png", "it holds 5 training, 1 good and 6 defective"),
    ],
)
def test_class_that_is_not_complete_is_refused(tree, removed, message):
    path = tree / "bolt" / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    message = f"bolt is not MVTec AD's bolt as published: .*{message}.*; move it away"
    with pytest.raises(ValueError, match=message):
        download.find_complete(tree, COUNTS)


def test_complete_class_is_left_alone(release, archive, tree):
    shutil.rmtree(tree / "weave")
    mine = tree / "bolt/mine.txt"
    mine.write_text("mine")
    download.install(tree, release, archive, download.find_complete(tree, COUNTS))
    assert_complete(tree)
    assert mine.exists()


# the command


@pytest.fixture
def command(release, data, monkeypatch, run):
    """Run the command on the small release."""
    monkeypatch.setattr(download, "MVTEC_AD", release)
    return lambda *arguments: run("download", "--data_path", data, *arguments)


def test_licence_is_shown_and_must_be_accepted(command, server, data):
    done = command()
    assert done.returncode == 2
    assert "CC BY-NC-SA 4.0" in done.stdout
    assert "not for commercial use" in done.stdout
    assert len(done.stderr.splitlines()) == 1
    assert "must be accepted: give --accept_license" in done.stderr
    assert server.requests == []
    assert_empty(data)


def test_url_is_used_and_a_complete_copy_is_recognised(command, server, release, data):
    url = release.url.replace("archive", "mirror")
    assert command("--accept_license", "--url", url).returncode == 0
    assert_complete(data)
    done = command("--accept_license", "--url", url)
    assert done.returncode == 0
    assert "holds all 2 classes: nothing to download" in done.stdout
    assert server.requests == [("/mirror", None)]


def test_archive_is_used_and_excludes_a_url(command, server, data, archive):
    done = command("--accept_license", "--url", "https://there/a", "--archive", archive)
    assert done.returncode == 2
    assert "not allowed with argument --url" in done.stderr
    assert command("--accept_license", "--archive", archive).returncode == 0
    assert_complete(data)
    assert archive.exists()
    assert server.requests == []


def test_release_is_plausible():
    assert download.MVTEC_AD.url.startswith("https://")
    assert len(bytes.fromhex(download.MVTEC_AD.sha256)) == 32
    assert download.MVTEC_AD.unpacked_size > download.MVTEC_AD.archive_size
    assert len(download.MVTEC_AD.counts) == 15
