"""Download MVTec AD, verify it and unpack it.

    python main.py download --data_path mvtec_ad --accept_license
    python main.py download --data_path mvtec_ad --accept_license --archive mvtec.tar.xz

Repeat the command to resume an interrupted download. Nothing is unpacked before the archive's
sha256 was verified, and a class is moved to its place only when all classes are unpacked. A class
that is there already is left as it is; check compares its counts with those published. The disk
must hold the archive, 4.9 GiB, and what is unpacked, which is a little more.
"""

import hashlib
import shutil
import tarfile
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.request import Request, urlopen

from tqdm import tqdm

from datasets.mvtec import CLASS_NAMES
from utils.settings import option
from utils.system.errors import UserError
from utils.system.files import make_folder

PAGE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"
LICENSE = f"""MVTec AD, copyright 2019 MVTec Software GmbH, licensed under CC BY-NC-SA 4.0:
not for commercial use, to be named as the source, shared under the same licence only.
{PAGE}
https://creativecommons.org/licenses/by-nc-sa/4.0/"""

URL = (
    "https://www.mydrive.ch/shares/150996/b52ecdcbf521176e9db9c731f2304b27/"
    "download/420938113-1629960298/mvtec_anomaly_detection.tar.xz"
)
SHA256 = "cf4313b13603bec67abb49ca959488f7eedce2a9f7795ec54446c649ac98cd3d"
# the server's Content-Length: 4.9 GiB, as MVTec's page says
ARCHIVE_SIZE = 5_264_982_680
PART = "mvtec_anomaly_detection.tar.xz.part"
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 2**18  # bytes; a connection that stalls loses less than this
PARTIAL_CONTENT = 206  # status of an answer that begins where the request says


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to download, and where to."""

    data_path: Path = option(
        None, "folder for the classes; made if need be", Path, "PATH", required=True
    )
    accept_license: bool = option(
        False, "accept the licence of MVTec AD, CC BY-NC-SA 4.0: not for commercial use"
    )
    url: str = option(URL, "another address of the same file", metavar="URL")
    archive: Path | None = option(
        None, "the file, downloaded by hand; it is left where it is", Path, "FILE"
    )


def run(settings: Settings) -> None:
    """Put MVTec AD into data_path, unless it is there already."""
    print(LICENSE)
    data_path, archive = settings.data_path, settings.archive
    if all((data_path / name).exists() for name in CLASS_NAMES):
        print(f"{data_path} holds all {len(CLASS_NAMES)} classes: nothing to download")
        return
    if not settings.accept_license:
        raise UserError(f"the licence of MVTec AD ({PAGE}) must be accepted: give --accept_license")
    make_folder(data_path, "--data_path")
    if archive is None:
        part = data_path / PART
        fetch(settings.url, part)
        verify(part, settings.url)
        unpack(part, data_path)
        part.unlink()
    elif archive.is_file():
        verify(archive)
        unpack(archive, data_path)
    else:
        raise UserError(f"no file {archive}; --archive takes the one from {PAGE}")
    print(f"{data_path} holds all {len(CLASS_NAMES)} classes")


def fetch(url: str, path: Path) -> None:
    """Append to path the bytes of url that it lacks."""
    if not url.startswith(("https://", "http://")):
        raise UserError(f"--url {url} is no web address; it must start with https:// or http://")
    offset = path.stat().st_size if path.exists() else 0
    if offset >= ARCHIVE_SIZE:
        return
    request = Request(url, headers={"Range": f"bytes={offset}-"})  # noqa: S310 (checked above)
    try:
        with urlopen(request, timeout=TIMEOUT) as response, path.open("ab") as file:  # noqa: S310
            if response.status != PARTIAL_CONTENT:  # the server sends the whole file
                offset = file.truncate(0)
            total = offset + int(response.headers.get("Content-Length", 0))
            shown = {"desc": "download", "total": total, "initial": offset, "disable": None}
            with tqdm.wrapattr(response, "read", **shown) as body:
                shutil.copyfileobj(body, file, CHUNK)
            if file.tell() < total:
                raise ConnectionError(f"it ended after {file.tell()} of {total} bytes")
    except (OSError, HTTPException) as error:
        raise UserError(
            f"cannot download {url} ({error}); what has arrived is kept: repeat the command to go "
            f"on, give another address of the file with --url, or get it by hand from {PAGE} and "
            "give it with --archive"
        ) from error


def verify(archive: Path, url: str | None = None) -> None:
    """Refuse an archive that is not MVTec AD's; delete it if it was downloaded from a url."""
    print(f"verifying {archive}", flush=True)
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SHA256:
        if url:
            archive.unlink()
        raise UserError(
            f"{url or archive} is not the archive of MVTec AD: expected sha256 {SHA256}, found "
            f"{found}; {'it was deleted; ' if url else ''}give another address with --url, or a "
            f"file from {PAGE} with --archive"
        )


def unpack(archive: Path, data_path: Path) -> None:
    """Unpack the archive into a temporary folder, then move what data_path lacks to its place."""
    size = archive.stat().st_size
    try:
        with TemporaryDirectory(prefix=".unpack_", dir=data_path) as folder:
            with (
                archive.open("rb") as file,
                tqdm.wrapattr(file, "read", size, desc="unpack", disable=None) as wrapped,
                # as a stream: seeking back in a compressed file is slow
                tarfile.open(fileobj=wrapped, mode="r|*") as tar,
            ):
                tar.extractall(folder, filter="data")
            for path in Path(folder).iterdir():
                if not (data_path / path.name).exists():
                    path.rename(data_path / path.name)
    except OSError as error:
        raise UserError(
            f"cannot unpack {archive} in {data_path}: {error.strerror or error}; make room or "
            "choose another --data_path; what was downloaded is kept"
        ) from error
