"""Sources of text: data sets by name, paths, standard input, and the one-time download."""

import errno
import glob
import hashlib
import http.client
import os
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from data import packed
from data.disk import patiently
from data.errors import UserError, nearest
from data.source_notes import noted

DOWNLOAD_TIMEOUT = 30  # seconds without a byte
SPOOL_PREFIX = "charlm-stdin-"


@dataclass(frozen=True)
class Remote:
    """A public file: downloaded on first use, or taken from `$CHARLM_DATA` under `file`."""

    file: str
    url: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Text:
    """A resolved source: its short name, its files in reading order, and the default kind they are read as."""

    name: str
    files: tuple[Path, ...]
    kind: str = "stream"
    folder: Path | None = None  # set when the files were found in a folder, by walking it or by a pattern
    temporary: bool = field(default=False, compare=False)  # a spooled standard input, to delete after use
    separator: str | None = None  # what stands between its documents, where the data set has any
    val: "Text | None" = None  # its own validation text, where the data set has one
    val_fraction: float | None = None  # the part of it for validation, where the data set says
    unit: str = "character"  # what its bits are counted by: character or byte

    def with_val(self, name: str, val: "Text") -> "Text":
        """The same text under another name and with its validation text."""
        return replace(self, name=name, val=val)


REMOTES = {
    "names32k": Remote(
        "names.txt",
        "https://raw.githubusercontent.com/karpathy/makemore/master/names.txt",
        228_145,
        "0a30b5557f192f32ab962680889aac5f6fda0f4cecf40a6d0b5694f58ea8cc4d",
    ),
    "shakespeare": Remote(
        "shakespeare.txt",
        "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
        1_115_394,
        "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
    ),
}
# The data sets by name, with the kind of text that each is read as; the last seven are in data/published.py.
DATA_SETS = {
    "names": "lines", "names32k": "lines", "shakespeare": "stream", "stdlib": "stream", "hours": "series",
    **dict.fromkeys(("text8", "enwik8", "ptb-char", "tinystories", "openwebtext", "fineweb-sample"), "stream"),
}  # fmt: skip
TOKENIZERS = {"enwik8": "byte"}  # of the data sets for which it is not char
_NOT_STDLIB = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3"}


def cache_folder() -> Path:
    """The folder of downloads and prepared texts: `$CHARLM_CACHE`, else `$XDG_CACHE_HOME/charlm`, else
    `~/.cache/charlm`. Raises UserError where there is no home folder."""
    if folder := os.environ.get("CHARLM_CACHE"):
        return Path(folder)
    xdg = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(xdg):  # a relative one is to be ignored, says the XDG Base Directory Specification
        return Path(xdg, "charlm")
    try:
        if os.environ.get("HOME") == "":  # Python takes the root folder for it
            raise RuntimeError("$HOME is empty")
        return Path.home() / ".cache" / "charlm"
    except RuntimeError as error:
        raise UserError(
            "this user has no home folder to keep prepared texts in; name a folder for them in $CHARLM_CACHE"
        ) from error


def cache_subfolder(name: str) -> Path:
    """A folder of the cache, created where missing. Raises UserError when it cannot be written."""
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        raise UserError(
            f"cannot write to the cache {folder} ({error.strerror}); name another folder in $CHARLM_CACHE"
        ) from error
    return folder


def data_set(data: str) -> str | None:
    """The data set that `--data` names, whole or a part of it as in text8:test; None where it is something else."""
    name = data.partition(":")[0]
    return name if name in DATA_SETS and (name == data or not is_there(data)) else None


def data_folder() -> Path | None:
    """The folder of files that the user brings, `$CHARLM_DATA`; None where it is not set."""
    folder = os.environ.get("CHARLM_DATA")
    return Path(folder) if folder else None


def resolve(data: str) -> Text:
    """The text that `--data` names: a source by name, a file, a folder, a pattern, or `-`. Raises UserError when there
    is none."""
    if data == "names":
        return Text("names", (Path(__file__).parent / "names.txt",), "lines")
    if data in REMOTES:
        return Text(data, (remote_file(data, REMOTES[data]),), DATA_SETS[data])
    if data == "stdlib":
        return Text(data, _standard_library(), "stream")
    if data == "-":
        return Text("stdin", (_spool_standard_input(),), temporary=True)
    path = path_of(data)
    if path is not None and not path.exists() and _is_pattern(data):
        return _matching(data, path)
    if path is None or not path.exists():
        begin = data[:200]
        named = repr(begin) if len(begin.splitlines()) > 1 else f"'{begin}'"
        raise UserError(
            f"no such file, folder or data set: {named}; by name there are: {', '.join(DATA_SETS)}."
            f"{nearest(begin, DATA_SETS)}"
        )
    if path.is_dir():
        files = tuple(_walk(path))
        if not files:
            raise UserError(f"the folder {data} holds no files; --data takes a file or a folder of files")
        return Text(path.resolve().name or "root", files, folder=path)
    if not path.is_file():
        raise UserError(f"{data} is neither a file nor a folder; to read from a pipe use --data -")
    return Text(packed.unpacked_name(path).stem, (path,))


def _is_pattern(name: str) -> bool:
    return any(character in name for character in "*?[")


def _matching(pattern: str, path: Path) -> Text:
    """The files that a pattern of paths matches, and those in the folders that it matches, sorted."""
    matches = [Path(match) for match in glob.glob(str(path), recursive=True)]
    files = {file for match in matches for file in (_walk(match) if match.is_dir() else [match]) if file.is_file()}
    if not files:
        raise UserError(f"no file matches {pattern!r}; * stands for a part of a name, ** for any folders")
    folder = next(parent for parent in path.parents if not _is_pattern(str(parent)))
    return Text(folder.resolve().name or "root", tuple(sorted(files)), folder=folder)


def is_there(data: str) -> bool:
    """Whether `data` names a file or folder that exists."""
    path = path_of(data)
    return path is not None and path.exists()


def path_of(data: str) -> Path | None:
    """The path that `data` names, or None where it is not one (empty, too long, an unknown ~user)."""
    try:
        path = Path(data).expanduser()
        path.exists()
    except (OSError, RuntimeError, ValueError):
        return None
    return path if data else None


def _walk(folder: Path, skip: Collection[str] = ()) -> list[Path]:
    """All files below `folder`, sorted, without hidden ones and those in folders with a name in `skip`."""
    paths = []
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in skip)
        in_folder = [Path(root, name) for name in sorted(files) if not name.startswith(".")]
        paths += [path for path in in_folder if path.is_file()]  # a named pipe would be waited for
    return paths


def _standard_library() -> tuple[Path, ...]:
    files = _walk(Path(sysconfig.get_paths()["stdlib"]), _NOT_STDLIB | {"__pycache__"})
    return tuple(path for path in files if path.suffix == ".py")


def _spool_standard_input() -> Path:
    """Copy standard input to a temporary file: it can be read only once, and a text is read several times."""
    if sys.stdin is None:
        raise UserError("--data - reads standard input, and there is none")
    with tempfile.NamedTemporaryFile(prefix=SPOOL_PREFIX, delete=False) as spool:
        while chunk := sys.stdin.buffer.read(1 << 20):
            spool.write(chunk)
    return Path(spool.name)


def remote_file(name: str, remote: Remote, local_copy: Path | None = None) -> Path:
    """A local copy with the right checksum: in `$CHARLM_DATA`, `local_copy`, in the cache, or downloaded now."""
    folder = data_folder()
    if folder is not None and (folder / remote.file).is_file():
        path = folder / remote.file
        _check(path, remote)
        return path
    if local_copy:
        _check(local_copy, remote)
        return local_copy
    suffix = next((archive for archive in (".zip", ".tar.gz") if remote.file.endswith(archive)), ".txt")
    path = cache_folder() / "downloads" / f"{name}{suffix}"
    if not path.is_file():
        _download(name, remote, path)
    _check(path, remote)
    return path


def _check(path: Path, remote: Remote, way_out: str = "; delete it and try again") -> None:
    size = path.stat().st_size
    if size != remote.size:
        raise UserError(f"{path} has {size:,} bytes, not {remote.size:,}: it is not {remote.url}{way_out}")
    if noted_digest_of(path) != remote.sha256:
        raise UserError(f"{path} fails its SHA-256 check: it is not {remote.url}{way_out}")


def digest_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def noted_digest_of(path: Path) -> str:
    """The same of a file that is there at every start, as it was noted when it was read first."""
    return noted(cache_folder(), path, "sha256", lambda: digest_of(path))


def _download(name: str, remote: Remote, path: Path) -> None:
    """Download to a file beside `path` and rename it when complete; stops at more bytes than `remote.size`."""
    part = cache_subfolder("downloads") / f"{path.name}.{os.getpid()}.part"
    try:
        with urllib.request.urlopen(remote.url, timeout=DOWNLOAD_TIMEOUT) as response, open(part, "wb") as out:
            received = 0
            with tqdm(total=remote.size, unit="B", unit_scale=True, desc=f"downloading {name}", disable=None) as bar:
                while received <= remote.size and (chunk := response.read(1 << 16)):
                    out.write(chunk)
                    received += len(chunk)
                    bar.update(len(chunk))
        _check(part, remote, way_out="")
        patiently(lambda: os.replace(part, path))
    except (
        OSError,
        http.client.HTTPException,
        UserError,
    ) as error:  # URLError, timeouts and a cut connection are all OSErrors
        raise UserError(
            f"could not download '{name}' ({getattr(error, 'reason', None) or error}). Fetch {remote.url} by other "
            f"means, call it {remote.file} and put it into a folder that $CHARLM_DATA names"
        ) from error
    finally:
        part.unlink(missing_ok=True)
