"""Download MVTec AD, verify it and unpack it.

    python main.py download --data_path mvtec_ad --accept_license
    python main.py download --data_path mvtec_ad --accept_license --archive mvtec.tar.xz

Repeat the command to resume an interrupted download. Nothing is unpacked before the archive's
sha256 was verified, and a class is moved to its place only when all classes are complete.
"""

import hashlib
import lzma
import os
import shutil
import tarfile
import time
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from datasets.dataset import load_splits
from datasets.mvtec import COUNTS, Counts
from utils.settings import option
from utils.system.files import make_folder

PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
LICENSE = f"""MVTec AD, copyright 2019 MVTec Software GmbH, licensed under CC BY-NC-SA 4.0:
not for commercial use, to be named as the source, shared under the same licence only.
{PAGE}
https://creativecommons.org/licenses/by-nc-sa/4.0/"""

PART = "mvtec_anomaly_detection.tar.xz.part"
TIMEOUT = 30.0  # seconds without a byte
ATTEMPTS = 5  # in a row that bring nothing new
PAUSE = 3.0  # seconds between two attempts
CHUNK = 2**20
# request timeout and too many requests; as the server errors, 5xx, they are worth another attempt
RETRIED_STATUS = (408, 429)
RANGE_NOT_SATISFIABLE = 416


class Release(NamedTuple):
    """An archive: where it is, its sha256 and sizes, and the images of each class in it."""

    url: str
    sha256: str
    archive_size: int
    unpacked_size: int
    counts: Mapping[str, Counts]


MVTEC_AD = Release(
    url=(
        "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
        "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
    ),
    sha256="cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d",
    # the server's Content-Length: 4.9 GiB, as MVTec's page says
    archive_size=5_264_982_680,
    # an estimate: PNG files are compressed already, so xz can have saved only a few percent
    unpacked_size=5_600_000_000,
    counts=COUNTS,
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to download, and where to."""

    data_path: Path = option(
        None, "folder for the classes; made if need be", parse=Path, required=True, metavar="PATH"
    )
    accept_license: bool = option(
        False, "accept the licence of MVTec AD, CC BY-NC-SA 4.0: not for commercial use"
    )
    url: str = option(MVTEC_AD.url, "another address of the same file", metavar="URL")
    archive: Path | None = option(
        None, "the file, downloaded by hand; it is left where it is", parse=Path, metavar="FILE"
    )


def run(settings: Settings) -> None:
    """Put MVTec AD into data_path, unless it is there already.

    Raises:
        ValueError: if the licence is not accepted, or files are not those of MVTec AD.
        OSError: if the download fails, or the disk is full.
    """
    print(LICENSE)
    release = MVTEC_AD._replace(url=settings.url)
    complete = find_complete(settings.data_path, release.counts)
    if len(complete) == len(release.counts):
        print(f"{settings.data_path} holds all {len(complete)} classes: nothing to download")
        return
    if not settings.accept_license:
        raise ValueError(
            f"the licence of MVTec AD ({PAGE}) must be accepted: give --accept_license"
        )
    install(settings.data_path, release, settings.archive, complete)


def find_complete(data_path: Path, counts: Mapping[str, Counts]) -> list[str]:
    """The classes that are in data_path already.

    Raises:
        ValueError: if one of them is not complete.
    """
    names = [name for name in counts if (data_path / name).exists()]
    for name in names:
        difference = describe_difference(data_path, name, counts[name])
        if difference:
            raise ValueError(
                f"{data_path / name} is not MVTec AD's {name} as published: {difference}; "
                "move it away or choose another --data_path"
            )
    return names


def describe_difference(data_path: Path, class_name: str, counts: Counts) -> str | None:
    """How a class differs from a complete one; None if it does not. No image is decoded."""
    try:
        train, test = load_splits(data_path, class_name)
    except (OSError, ValueError) as error:
        return str(error)
    n_defective = sum(sample.label == 1 for sample in test.samples)
    found = Counts(len(train), len(test) - n_defective, n_defective)
    if found != counts:
        return f"it holds {found} instead of {counts}"
    return None if test.has_masks else "it has no masks"


def install(
    data_path: Path,
    release: Release,
    archive: Path | None = None,
    complete: Collection[str] = (),
) -> None:
    """Put the classes into data_path, from the archive or the release's URL.

    Args:
        data_path: folder for the classes.
        release: which must be in the archive.
        archive: file downloaded by hand; None downloads the release.
        complete: classes that are in data_path already; they are left alone.

    Raises:
        FileNotFoundError: if archive does not exist.
        ValueError: if the archive is not the release.
        OSError: if the download fails, or the disk is full.
    """
    make_folder(data_path, "--data_path")
    if archive is None:
        source = _download(data_path, release)
    elif archive.is_file():
        source = archive
        check_space(data_path, release.unpacked_size)
    else:
        raise FileNotFoundError(f"no file {archive}; --archive takes the one from {PAGE}")
    _verify(source, release, by_hand=archive is not None)
    unpack(source, data_path, release.counts, complete)
    if archive is None:
        source.unlink()
    print(f"{data_path} holds all {len(release.counts)} classes, checked against their counts")


def _download(data_path: Path, release: Release) -> Path:
    """The release's archive in data_path; an earlier download is resumed."""
    path = data_path / PART
    size = path.stat().st_size if path.exists() else 0
    check_space(data_path, release.unpacked_size + max(release.archive_size - size, 0))
    if size != release.archive_size:
        fetch(release.url, path)
    return path


def _verify(archive: Path, release: Release, by_hand: bool) -> None:
    """Refuse an archive that is not the release; delete it if it was downloaded."""
    found = file_sha256(archive)
    if found == release.sha256:
        return
    if not by_hand:
        archive.unlink()
    raise ValueError(
        f"{archive if by_hand else release.url} is not the archive of MVTec AD: expected sha256 "
        f"{release.sha256}, found {found}; {'' if by_hand else 'it was deleted; '}"
        f"give another address with --url, or a file from {PAGE} with --archive"
    )


def check_space(folder: Path, needed: int) -> None:
    """Check that the disk of folder has so many bytes free.

    Raises:
        OSError: if it does not.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"{folder} has {free / 1e9:.1f} GB free, {needed / 1e9:.1f} GB are needed; "
            "make room or choose another --data_path"
        )


def fetch(url: str, path: Path, timeout: float = TIMEOUT, pause: float = PAUSE) -> None:
    """Download url to path, after the bytes that path already has.

    Raises:
        ValueError: if url is not a web address, or redirects from https to something else.
        OSError: if the server refuses, or ATTEMPTS in a row bring nothing new.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(f"--url {url} is no web address; it must start with https:// or http://")
    failures = 0
    with path.open("ab") as file:
        largest = file.tell()
        while True:
            try:
                return _receive(url, file, timeout)
            except ConnectionError as error:
                size = file.seek(0, os.SEEK_END)
                # compared with the largest size: a server that always starts again would never end
                failures = 0 if size > largest else failures + 1
                largest = max(largest, size)
                if failures == ATTEMPTS:
                    raise _failure(url, error) from error
            time.sleep(pause)


def _receive(url: str, file: IO[bytes], timeout: float) -> None:
    """Append the bytes that are missing; raise ConnectionError if another attempt is worth it."""
    offset = file.seek(0, os.SEEK_END)
    with _open(url, offset, timeout) as response:
        content_range = response.headers.get("Content-Range", "")
        if offset and not content_range.startswith(f"bytes {offset}-"):
            # the server sends the whole file, another part, or has no bytes after offset
            file.truncate(0)
            if response.status != 200:
                raise ConnectionError(f"the server cannot go on after byte {offset}")
            offset = file.seek(0)
        length = response.headers.get("Content-Length")
        total = None if length is None else offset + int(length)
        with tqdm(
            desc="download",
            initial=offset,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,
        ) as bar:
            while chunk := _read(response):
                file.write(chunk)
                bar.update(len(chunk))
        if total is not None and file.tell() != total:
            raise ConnectionError(f"it ended after {file.tell()} of {total} bytes")


def _read(response: HTTPResponse) -> bytes:
    with _network_errors():
        # read1 returns what has arrived; read would lose it if the rest of the chunk stalls
        return response.read1(CHUNK)


def _open(url: str, offset: int, timeout: float) -> HTTPResponse | HTTPError:
    """The server's answer to a request of the bytes from offset on."""
    # S310 is about schemes other than http and https, which fetch and _Redirects refuse
    request = Request(url, headers={"Range": f"bytes={offset}-"} if offset else {})  # noqa: S310 (see above)
    with _network_errors():
        try:
            return build_opener(_Redirects).open(request, timeout=timeout)
        except HTTPError as error:
            if error.code == RANGE_NOT_SATISFIABLE and offset:
                return error
            if error.code >= 500 or error.code in RETRIED_STATUS:
                raise
            refusal = _failure(url, error)
    raise refusal


@contextmanager
def _network_errors() -> Iterator[None]:
    """Turn errors of the network into ConnectionError, to tell them from errors of the disk."""
    try:
        yield
    except (OSError, HTTPException) as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


class _Redirects(HTTPRedirectHandler):
    """Follows redirects, except from https to anything else."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> Request | None:
        """The request to newurl.

        Raises:
            ValueError: if req is https and newurl is not.
        """
        if req.type == "https" and urlsplit(newurl).scheme != "https":
            raise ValueError(
                f"{req.full_url} redirects from https to {newurl}, which anyone could change on "
                "its way; give another address with --url"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _failure(url: str, error: Exception) -> OSError:
    return OSError(
        f"cannot download {url} ({error}); what has arrived is kept: repeat the command to go on, "
        f"give another address of the file with --url, or get it by hand from {PAGE} and give it "
        "with --archive"
    )


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with _open_with_bar(path, "verify") as file:
        digest = hashlib.sha256()
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def _open_with_bar(path: Path, description: str) -> Iterator[IO[bytes]]:
    """Open a file for reading, with a progress bar over its bytes."""
    size = path.stat().st_size
    with (
        path.open("rb") as file,
        tqdm.wrapattr(file, "read", size, desc=description, disable=None) as wrapped,
    ):
        yield wrapped


def unpack(
    archive: Path, data_path: Path, counts: Mapping[str, Counts], complete: Collection[str] = ()
) -> None:
    """Unpack the classes, except those that are complete already.

    They are unpacked into a temporary folder, and moved to data_path when all are complete.

    Raises:
        ValueError: if the archive is damaged, differs from counts, or contains anything other
            than files and folders within it.
    """
    with TemporaryDirectory(prefix=".unpack_", dir=data_path) as temporary:
        folder = Path(temporary)
        _extract(archive, folder, complete)
        for name in counts.keys() - complete:
            difference = describe_difference(folder, name, counts[name])
            if difference:
                raise ValueError(
                    f"{archive} unpacks to a {name} that is not MVTec AD's: {difference}; "
                    f"get the archive from {PAGE}"
                )
        for path in sorted(folder.iterdir()):
            if not (data_path / path.name).exists():
                path.rename(data_path / path.name)


def _extract(archive: Path, folder: Path, skipped: Collection[str]) -> None:
    try:
        with (
            _open_with_bar(archive, "unpack") as file,
            # as a stream: seeking back in a compressed file is slow
            tarfile.open(fileobj=file, mode="r|*") as tar,
        ):
            for member in tar:
                path = PurePosixPath(member.name)
                # stricter than the filter, which strips a leading / and accepts links within
                plain = member.isfile() or member.isdir()
                if not plain or path.is_absolute() or ".." in path.parts:
                    raise tarfile.TarError(
                        f"{member.name!r} is not a plain file or folder inside it"
                    )
                if path.parts and path.parts[0] not in skipped:
                    tar.extract(member, folder, filter="data")
    except (tarfile.TarError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(
            f"cannot unpack {archive}: {error}; nothing was kept, get the archive from {PAGE}"
        ) from error
