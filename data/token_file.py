"""Flat token ids on disk, in one file or in shards: writing them in order, reading them by position.

    <side>.bin                                 up to SHARD ids
    <side>-00000.bin  <side>-00001.bin  ...    more: SHARD ids each, but for the last

Whoever reads knows nothing of shards: positions are those in all of the ids.
"""

import mmap
import re
import zlib
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from data.disk import rename, reopened, sync_file

SHARD = 1_000_000_000  # ids of a file
IN_MEMORY = 64 << 20  # bytes: smaller files are simply loaded
MAX_OPEN = 256  # shards open at a time: each takes a file descriptor, of which a process commonly has 1,024
SCAN = 1 << 18  # bytes checked at a time: they stay in the processor's cache


class TokenFile:
    """Ids in one file, or in shards of equal length but for the last, read by their position in all of it.

    Large files are memory-mapped, and the pages of a read are released before the next one: pages once read count as
    memory of this process (up to 2 MB around every window), so training would soon hold whole files. It costs 25 us a
    file. Raises ValueError where the shards are not of equal length."""

    def __init__(self, paths: Path | Sequence[Path], dtype: type[np.unsignedinteger]):
        self.paths = [paths] if isinstance(paths, Path) else list(paths)
        self.dtype = np.dtype(dtype)
        lengths = [path.stat().st_size // self.dtype.itemsize for path in self.paths]
        if len(lengths) > 1 and (set(lengths[:-1]) != {lengths[0]} or not 0 < lengths[-1] <= lengths[0]):
            raise ValueError(f"{self.paths[0].name} and the other shards have not the same number of ids each")
        self.size, self._shard = sum(lengths), lengths[0]  # in ids
        self._open: OrderedDict[int, np.ndarray] = OrderedDict()  # of shards, the one that was read last at the end
        self._maps: dict[int, mmap.mmap] = {}  # of those that are large
        self._read: set[int] = set()  # shards that were read since pages were released
        self._ids_of(0)

    def __len__(self) -> int:
        return self.size

    def array(self) -> np.ndarray:
        """All ids, (tokens,). Of one file: in memory when small, a memory map otherwise; to be called for every read.
        Of several shards: a copy in memory, for what needs all ids at once."""
        return self.slice(0, self.size)

    def slice(self, start: int, end: int) -> np.ndarray:
        """The ids of the positions from `start` up to `end`, (end - start,): a copy where they lie in several
        shards."""
        self._release()
        if len(self.paths) == 1:
            return self._ids_of(0)[start:end]
        pieces, end = [np.zeros(0, self.dtype)], min(end, self.size)
        while start < end:
            nth, first = divmod(start, self._shard)
            pieces.append(self._ids_of(nth)[first : first + end - start])
            start += len(pieces[-1])
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def take(self, positions: np.ndarray) -> np.ndarray:
        """The ids at `positions`, of their shape."""
        self._release()
        if len(self.paths) == 1:
            return self._ids_of(0)[positions]
        shards, within = (part.ravel() for part in np.divmod(positions, self._shard))
        shards, ids = shards.astype(np.uint16), np.empty(positions.size, self.dtype)
        by_shard = np.argsort(shards, kind="stable")  # a radix sort, for 16 bits
        for part in np.split(by_shard, np.flatnonzero(np.diff(shards[by_shard])) + 1):
            if len(part):
                ids[part] = self._ids_of(int(shards[part[0]]))[within[part]]
        return ids.reshape(positions.shape)

    def has(self, id_: int) -> bool:
        """Whether the id occurs."""
        return any(bool((ids == id_).any()) for path in self.paths for ids in _scan(path, self.dtype))

    def _ids_of(self, nth: int) -> np.ndarray:
        """The ids of a shard, which is opened where it is not."""
        self._read.add(nth)
        if nth not in self._open:
            if len(self._open) == MAX_OPEN:
                closed, _ = self._open.popitem(last=False)
                self._maps.pop(closed, None)
            path = self.paths[nth]
            if path.stat().st_size <= IN_MEMORY:
                self._open[nth] = np.fromfile(path, self.dtype)
            else:
                with open(path, "rb") as file:
                    self._maps[nth] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._open[nth] = np.frombuffer(self._maps[nth], self.dtype)
        self._open.move_to_end(nth)
        return self._open[nth]

    def _release(self) -> None:
        """Release the pages of all earlier reads."""
        for nth in self._read & self._maps.keys():
            if hasattr(mmap, "MADV_DONTNEED"):
                self._maps[nth].madvise(mmap.MADV_DONTNEED)
        self._read.clear()


class TokenWriter:
    """Writes the ids of one side in order, a new file every SHARD of them. After `count` ids that are there already it
    goes on, and cuts off what is behind them; raises ValueError or OSError where there are fewer."""

    def __init__(self, folder: Path, side: str, itemsize: int, count: int = 0):
        self.folder, self.side = folder, side
        self.count = count  # ids
        nth = max(count - 1, 0) // SHARD
        first, whole = folder / shard_name(side, 0), folder / f"{side}.bin"
        if count <= SHARD and first.exists():
            rename(first, whole)
        for path in folder.glob(f"{side}-*.bin"):
            if path.name > shard_name(side, nth):
                path.unlink()
        for path in (folder / shard_name(side, n) for n in range(nth)):
            if path.stat().st_size != SHARD * itemsize:
                raise ValueError(f"{path.name} has not {SHARD:,} ids")
        path = whole if count <= SHARD else folder / shard_name(side, nth)
        self._file = reopened(path, (count - nth * SHARD) * itemsize) if count else open(path, "wb")

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            if self.count and self.count % SHARD == 0:
                self._begin_shard(self.count // SHARD)
            fitting = ids[: SHARD - self.count % SHARD]
            self._file.write(fitting.tobytes())
            self.count, ids = self.count + len(fitting), ids[len(fitting) :]

    def sync(self) -> None:
        """Flush what was written to the disk."""
        sync_file(self._file)

    def close(self) -> None:
        self._file.close()

    def _begin_shard(self, nth: int) -> None:
        self.sync()
        self.close()
        if nth == 1:  # now it is known that there are several
            rename(self.folder / f"{self.side}.bin", self.folder / shard_name(self.side, 0))
        self._file = open(self.folder / shard_name(self.side, nth), "wb")


def shard_name(side: str, nth: int) -> str:
    """The name of a shard's file."""
    return f"{side}-{nth:05d}.bin"


def names_of(side: str, files: Iterable[str]) -> list[str]:
    """The names of the files of a side among `files`: its shards in order, or the one file."""
    shards = [name for name in files if re.fullmatch(rf"{side}-\d{{5}}\.bin", name)]
    return [shard_name(side, nth) for nth in range(len(shards))] or [f"{side}.bin"]


def check_file(path: Path, dtype: np.dtype, limit: int | None, crc: int | None) -> None:
    """Raise ValueError where an id is not below `limit`, or the CRC-32 of the file is not `crc` (None: not checked).
    One pass does both, in 0.7 s a GB."""
    computed = 0
    for ids in _scan(path, dtype):
        if crc is not None:
            computed = zlib.crc32(ids.data, computed)
        if limit is not None and len(ids) and int(ids.max()) >= limit:
            raise ValueError(f"{path.name} holds the id {int(ids.max())}, the vocabulary has {limit}")
    if crc is not None and computed != crc:
        raise ValueError(f"{path.name} has not the checksum that it was written with")


def _scan(path: Path, dtype: np.dtype) -> Iterator[np.ndarray]:
    """The ids of a file in order, a part at a time; each is overwritten by the next."""
    buffer = np.empty(SCAN // dtype.itemsize, dtype)
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(buffer.data):
            yield buffer[: size // dtype.itemsize]
