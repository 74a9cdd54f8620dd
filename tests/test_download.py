"""The download command against a server on this machine and small archives."""

import hashlib
import io
import shutil
import sys
import tarfile
import threading
import time
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request

import pytest

import main
from utils.commands import download
from utils.commands.check import Counts

COUNTS = {name: Counts(5, 2, 6) for name in ("bolt", "weave")}


class Handler(BaseHTTPRequestHandler):
    """Serves server.body in the way of server.mode."""

    def do_GET(self):
        server, body = self.server, self.server.body
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        mode = server.modes.pop(0) if server.modes else ""
        start = int(wanted[6:-1]) if wanted and "no range" not in str(mode) else 0
        if isinstance(mode, int):
            self.send_error(mode)
        elif mode == "redirect":
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
            self.end_headers()
        elif start >= len(body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(body)}")
            self.end_headers()
        else:
            self.send_body(body, start, mode)

    def send_body(self, body, start, mode):
        self.send_response(206 if start else 200)
        if start:
            first = start + 1 if mode == "another part" else start
            self.send_header("Content-Range", f"bytes {first}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if mode in ("cut", "no range, cut", "stall"):
            self.wfile.write(body[start : start + 1000])
            self.wfile.flush()
            if mode == "stall":
                self.server.release.wait(10)
            return
        self.wfile.write(body[start:])

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch, archive):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download.fetch, "__defaults__", (0.3, 0.0))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.body, server.modes, server.requests = archive.read_bytes(), [], []
    server.release = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/archive"
    threading.Thread(target=server.serve_forever, args=(0.01,)).start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def archive(drawn_tree, tmp_path):
    path = tmp_path / "by_hand.tar.xz"
    with tarfile.open(path, "w:xz", preset=0) as tar:
        for name in COUNTS:
            tar.add(drawn_tree / name, name)
        tar.addfile(tarfile.TarInfo("license.txt"))
    return path


def make_release(url, body):
    digest = hashlib.sha256(body).hexdigest()
    return download.Release(url, digest, len(body), 10**6, COUNTS)


@pytest.fixture
def release(server):
    return make_release(server.url, server.body)


@pytest.fixture
def data(tmp_path):
    return tmp_path / "data"


@pytest.fixture
def part(data):
    data.mkdir()
    return data / download.PART


def assert_complete(data):
    assert sorted(path.name for path in data.iterdir()) == ["bolt", "license.txt", "weave"]
    assert download.find_complete(data, COUNTS) == ["bolt", "weave"]


def assert_empty(data, *kept):
    assert sorted(path.name for path in data.iterdir()) == sorted(kept)


def test_a_download_is_unpacked_and_not_kept(server, release, data):
    download.install(data, release)
    assert_complete(data)
    assert server.requests == [("/archive", None)]


@pytest.mark.parametrize("mode", ["cut", "stall"])
def test_a_broken_connection_is_resumed(server, release, data, mode):
    server.modes = [mode]
    download.install(data, release)
    assert_complete(data)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=1000-"]


def test_a_server_that_fails_at_times_is_asked_again(server, release, data):
    server.modes = [503, 429]
    download.install(data, release)
    assert_complete(data)
    assert len(server.requests) == 3


def test_attempts_that_bring_something_are_not_limited(server, release, data):
    server.modes = ["cut"] * (download.ATTEMPTS + 3)
    assert len(server.body) > 1000 * len(server.modes)
    download.install(data, release)
    assert_complete(data)


def test_a_server_that_starts_anew_each_time_is_left(server, release, data):
    server.modes = ["no range, cut"] * 99
    with pytest.raises(OSError, match="it ended after 1000 of"):
        download.install(data, release)
    assert_empty(data, download.PART)
    assert len(server.requests) == download.ATTEMPTS + 1


def test_a_part_of_an_earlier_run_is_continued(server, release, data, part):
    part.write_bytes(server.body[:2000])
    download.install(data, release)
    assert_complete(data)
    assert server.requests == [("/archive", "bytes=2000-")]


@pytest.mark.parametrize("mode", ["no range", "another part"])
def test_a_server_without_ranges_starts_again(server, release, data, part, mode):
    part.write_bytes(b"x" * 2000)
    server.modes = [mode]
    download.install(data, release)
    assert_complete(data)


def test_a_finished_part_is_not_downloaded(server, release, data, part):
    part.write_bytes(server.body)
    download.install(data, release)
    assert_complete(data)
    assert server.requests == []


@pytest.mark.parametrize("mode", ["", "no range"])
def test_the_server_tells_that_a_part_is_finished(server, release, data, part, mode):
    part.write_bytes(server.body)
    server.modes = [mode]
    download.install(data, release._replace(archive_size=1))
    assert_complete(data)
    assert len(server.requests) == 1


def test_a_part_that_is_too_long_is_replaced(server, release, data, part):
    part.write_bytes(server.body + b"more")
    download.install(data, release)
    assert_complete(data)
    assert [wanted is None for _, wanted in server.requests] == [False, True]


def test_a_redirect_is_followed(server, release, data):
    server.modes = ["redirect"]
    download.install(data, release)
    assert_complete(data)
    assert [path for path, _ in server.requests] == ["/archive", "/elsewhere"]


def test_a_redirect_away_from_https_is_refused():
    redirects = download._Redirects()
    request = Request("https://there/a")
    with pytest.raises(ValueError, match="https://there/a redirects from https to http://here/b"):
        redirects.redirect_request(request, None, 302, "", {}, "http://here/b")
    assert redirects.redirect_request(request, None, 302, "", {}, "https://here/b")


def test_a_missing_file_is_refused_at_once(server, release, data):
    server.modes = [404]
    with pytest.raises(OSError, match=r"cannot download .*404.*--url.*mvtec\.com.*--archive"):
        download.install(data, release)
    assert len(server.requests) == 1


def test_a_server_that_is_away_is_given_up(server, release, data):
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=r"cannot download .*refused.*--url.*--archive"):
        download.install(data, release)


def test_a_server_that_stalls_is_given_up(server, release, data):
    server.modes = ["stall", *[503] * 9]
    start = time.perf_counter()
    with pytest.raises(OSError, match="cannot download"):
        download.install(data, release)
    assert time.perf_counter() - start < 5
    assert (data / download.PART).stat().st_size == 1000


@pytest.mark.parametrize("url", ["ftp://there/a", "file:///etc/passwd", "there"])
def test_another_scheme_is_refused(release, data, url):
    with pytest.raises(ValueError, match=f"--url {url} is no web address"):
        download.install(data, release._replace(url=url))


def test_a_wrong_file_is_deleted_before_anything_is_unpacked(server, release, data):
    server.body = b"<html>moved</html>"
    found = hashlib.sha256(server.body).hexdigest()
    message = f"expected sha256 {release.sha256}, found {found}; it was deleted; .*--url.*--archive"
    with pytest.raises(ValueError, match=message):
        download.install(data, release)
    assert_empty(data)


def test_an_archive_by_hand_is_unpacked_and_kept(server, release, data, archive):
    download.install(data, release, archive)
    assert_complete(data)
    assert archive.exists()
    assert server.requests == []


def test_a_wrong_archive_by_hand_is_kept(release, data, archive):
    archive.write_bytes(b"something else")
    with pytest.raises(ValueError, match="by_hand.tar.xz is not the archive of MVTec AD"):
        download.install(data, release, archive)
    assert archive.exists()
    assert_empty(data)


def test_an_archive_that_is_not_there_is_refused(release, data, tmp_path):
    with pytest.raises(FileNotFoundError, match="no file .*nowhere; --archive takes"):
        download.install(data, release, tmp_path / "nowhere")


@pytest.mark.parametrize("by_hand", [False, True])
def test_too_little_space_is_refused_before_the_download(
    server, release, data, archive, monkeypatch, by_hand
):
    needed = 10**6 + (0 if by_hand else len(server.body))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed - 1))
    with pytest.raises(OSError, match="GB free, .* GB are needed; make room"):
        download.install(data, release, archive if by_hand else None)
    assert_empty(data)
    assert server.requests == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(needed))
    download.install(data, release, archive if by_hand else None)
    assert_complete(data)


def member(name, **settings):
    info = tarfile.TarInfo(name)
    for key, value in settings.items():
        setattr(info, key, value)
    return info


@pytest.mark.parametrize(
    "evil",
    [
        member("/tmp/evil_absolute"),
        member("../evil"),
        member("bolt/../../evil"),
        member("bolt/evil", type=tarfile.SYMTYPE, linkname="/etc"),
        member("bolt/evil", type=tarfile.SYMTYPE, linkname="../../evil"),
        member("bolt/evil", type=tarfile.LNKTYPE, linkname="../../evil"),
        member("bolt/evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3),
        member("bolt/evil", type=tarfile.FIFOTYPE),
    ],
    ids=lambda info: f"{info.name}-{info.type.decode()}",
)
def test_a_malicious_archive_is_refused(data, tmp_path, drawn_tree, evil):
    path = tmp_path / "evil.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(drawn_tree / "bolt", "bolt")
        tar.addfile(evil, io.BytesIO())
    before = sorted(tmp_path.rglob("*"))
    release = make_release("", path.read_bytes())
    with pytest.raises(ValueError, match="is not a plain file or folder inside it; nothing of it"):
        download.install(data, release, path)
    assert_empty(data)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, data])


@pytest.mark.parametrize("cut", [0.5, 0.9])
def test_a_damaged_archive_is_refused(data, archive, cut):
    body = archive.read_bytes()
    archive.write_bytes(body[: int(cut * len(body))])
    release = make_release("", archive.read_bytes())
    with pytest.raises(ValueError, match="cannot unpack|unpacks to"):
        download.install(data, release, archive)
    assert_empty(data)


def test_an_archive_with_other_counts_is_refused(release, data, archive):
    release = release._replace(counts={"bolt": Counts(5, 3, 6)})
    message = "by_hand.tar.xz unpacks to a bolt that is not MVTec AD's: it holds 5 training, 2 good"
    with pytest.raises(ValueError, match=message):
        download.install(data, release, archive)
    assert_empty(data)


def test_a_class_without_masks_is_not_complete(tree):
    shutil.rmtree(tree / "bolt" / "ground_truth")
    with pytest.raises(ValueError, match="bolt is there, but not .*it has no masks; move it away"):
        download.find_complete(tree, COUNTS)


def test_a_class_with_a_missing_mask_is_not_complete(tree):
    (tree / "bolt" / "ground_truth" / "crack" / "001_mask.png").unlink()
    with pytest.raises(ValueError, match="mask missing for"):
        download.find_complete(tree, COUNTS)


def test_classes_that_are_there_are_left_alone(release, data, archive, tree):
    shutil.rmtree(tree / "weave")
    marked = tree / "bolt" / "mine.txt"
    marked.write_text("mine")
    download.install(tree, release, archive, download.find_complete(tree, COUNTS))
    assert_complete(tree)
    assert marked.exists()


@pytest.fixture
def command(release, data, monkeypatch, capsys):
    """Run the command on the small release; exit status, stdout and stderr."""
    monkeypatch.setattr(download, "MVTEC_AD", release)

    def command(*arguments):
        words = ["main.py", "download", "--data_path", data, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        try:
            main.main()
        except SystemExit as end:
            return end.code, *capsys.readouterr()
        return 0, *capsys.readouterr()

    return command


def test_the_licence_is_shown_and_must_be_accepted(command, server, data):
    code, out, err = command()
    assert code == 2
    assert "CC BY-NC-SA 4.0" in out
    assert "not for commercial use" in out
    assert len(err.splitlines()) == 1
    assert "is to be accepted: --accept_license" in err
    assert server.requests == []
    assert not data.exists()


def test_a_complete_copy_is_recognised(command, server, data):
    assert command("--accept_license", "--url", server.url)[0] == 0
    assert_complete(data)
    code, out, _ = command("--accept_license", "--url", server.url)
    assert code == 0
    assert "holds all 2 classes: nothing to download" in out
    assert len(server.requests) == 1


def test_url_and_archive_exclude_each_other(command, archive):
    code, _, err = command("--accept_license", "--url", "https://there/a", "--archive", archive)
    assert code == 2
    assert "not allowed with argument --url" in err


def test_the_archive_option_is_taken(command, server, data, archive):
    assert command("--accept_license", "--archive", archive)[0] == 0
    assert_complete(data)
    assert server.requests == []


def test_a_data_path_that_is_a_file_is_refused(command, data):
    data.write_text("a file")
    code, _, err = command("--accept_license")
    assert code == 2
    assert "cannot write in" in err
    assert "choose another --data_path" in err


def test_the_release_is_the_published_one():
    assert download.MVTEC_AD.url.startswith("https://")
    assert len(bytes.fromhex(download.MVTEC_AD.sha256)) == 32
    assert download.MVTEC_AD.unpacked_size > download.MVTEC_AD.archive_size
    assert len(download.MVTEC_AD.counts) == 15
