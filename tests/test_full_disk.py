"""A disk that is full: one readable message, and nothing that was there is lost."""

import errno
import os
import resource
import shutil
import subprocess
from pathlib import Path

import pytest

from data.build import Builder
from engine.run import checkpoint, folder, report, results
from engine.training.metrics import Metrics
from tests.conftest import NAMES
from tests.helpers import LINES, STREAM, at_call, left, ok, quick, refused, trained
from tests.matrices import matrix

pytestmark = pytest.mark.usefixtures("names", "text")  # names.txt and text.txt stand where the commands run


def limit_file_size() -> None:
    """From here on no file of this process may grow past 2,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))


@pytest.mark.parametrize("nth", [1, 2, 3, 4])
def test_a_save_that_does_not_fit_loses_nothing(cli, tmp_path, nth):
    straight = left(trained(cli, "lstm", **STREAM))
    shutil.rmtree("run")
    with at_call(checkpoint, "save", nth, limit_file_size):
        refused(cli("train.py", *quick("lstm", **STREAM)), "free some space")
    assert not list(Path("run").glob("*.new")), "the space is given back"
    if nth > 2:
        ok(cli("sample.py", "run", "--seed", 1))
    ok(cli("train.py", "--resume", "--out", "run"))
    assert left(tmp_path / "run") == straight


def test_a_text_that_does_not_fit_into_the_cache(cli, tmp_path):
    (tmp_path / "big.txt").write_text("".join(NAMES) * 99)
    flags = quick("bigram", data="big.txt", context=8, steps=1)
    with at_call(Builder, "write", 1, limit_file_size):
        refused(cli("train.py", *flags), "free some space")
    assert not Path("run").exists()
    ok(cli("train.py", *flags))


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS], ids=errno.errorcode.get)
@pytest.mark.parametrize("moment", [(Builder, "write", 1), (Metrics, "write", 2)], ids=["prepare", "train"])
def test_a_disk_that_fails_is_one_message_although_the_error_names_no_file(cli, tmp_path, monkeypatch, moment, number):
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))

    def fail() -> None:
        raise OSError(number, os.strerror(number))

    with at_call(*moment, fail):
        refused(cli("train.py", *quick("bigram", **STREAM)), f"error: {os.strerror(number)}")
    ok(cli("train.py", *quick("bigram", **STREAM), "--overwrite"))


@pytest.fixture
def disk(tmp_path):
    """A disk of 1 MB, and how to fill it."""
    path = tmp_path / "disk"
    path.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], capture_output=True, text=True)
    if mount.returncode:
        pytest.skip(f"cannot mount a small disk here: {mount.stderr.strip()}")
    yield path
    subprocess.run(["umount", path], check=True)


MOMENTS = [
    (folder, "create", 1), (checkpoint, "save", 1), (checkpoint, "save", 2), (checkpoint, "save", 3),
    (Metrics, "write", 2), (report, "samples", 1), (results, "write_summary", 1), (results, "draw_loss", 1),
]  # fmt: skip


@pytest.mark.parametrize("moment", matrix(MOMENTS, MOMENTS[::2]), ids=lambda moment: f"{moment[1]}-{moment[2]}")
def test_a_disk_that_is_full_from_some_moment_on(cli, disk, moment):
    def fill() -> None:
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(bytes(512)):
                    pass
            except OSError:
                pass

    flags = quick("lstm", **LINES, out="disk/run")
    with at_call(*moment, fill):
        refused(cli("train.py", *flags), "free some space")
    os.unlink(disk / "filler")
    if (disk / "run/config.json").exists():
        ok(cli("train.py", "--resume", "--out", "disk/run"))
    else:
        assert not (disk / "run").exists()
        ok(cli("train.py", *flags))
    shutil.rmtree("run", ignore_errors=True)
    assert left(disk / "run") == left(trained(cli, "lstm", **LINES))
