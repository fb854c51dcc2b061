"""The Dockerfile and compose.yaml, as far as that goes without a container engine: what they copy exists and suffices,
and their commands run."""

import json
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import yaml

from hatch_build import FOLDERS
from tests.conftest import ROOT
from tests.helpers import build

LINES = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", "").splitlines()
STEPS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["charlm"]


def told(instruction: str) -> list[str]:
    """What stands behind an instruction, each time that it is given."""
    return [rest for name, rest in STEPS if name == instruction]


def copied() -> list[tuple[list[str], str]]:
    """What is copied from the checkout, and where to."""
    return [(words[:-1], words[-1]) for words in map(str.split, told("COPY")) if not words[0].startswith("--")]


def test_instructions_are_dockers_and_nothing_runs_as_root():
    known = {"FROM", "WORKDIR", "COPY", "RUN", "ARG", "USER", "VOLUME", "EXPOSE", "HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {name for name, _ in STEPS} <= known
    names = [name for name, _ in STEPS]
    assert "RUN" not in names[names.index("USER") :] and told("USER") == ["charlm"]
    assert "useradd --create-home charlm" in told("RUN")[-1]
    assert told("VOLUME") == ["/runs"] and len(told("FROM")) == 2


@pytest.mark.exhaustive
def test_what_is_copied_makes_the_wheel(wheel, tmp_path):
    for sources, target in copied():
        for source in sources:
            place = tmp_path / "src" / (source if target == "./" else target)
            copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
            place.parent.mkdir(exist_ok=True)
            copy(ROOT / source, place)
    assert {folder for _, folder in copied()} == {"./", "charlm", *FOLDERS}
    assert told("RUN")[0] == "pip wheel --no-deps --wheel-dir /wheels ."
    assert build("wheel", tmp_path / "src", tmp_path).read_bytes() == wheel.read_bytes()


def test_what_is_copied_is_sent_to_the_engine():
    sent = [line[1:] for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line.startswith("!")]
    for source in [source for sources, _ in copied() for source in sources]:
        assert source in sent or (source.endswith(".py") and "*.py" in sent), source


@pytest.mark.parametrize("index", ["", "place"])
def test_torch_comes_from_the_index_that_is_named(index, tmp_path):
    """The commands' words, as a pip reads them that does nothing; the real one takes these flags."""
    (tmp_path / "pip").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    (torch, ours) = (line for line in told("RUN") if line.startswith("pip install"))
    (tmp_path / "charlm-1-py3-none-any.whl").touch()
    ours = ours.replace("/wheels", str(tmp_path))

    def words(line: str) -> list[str]:
        environ = {"PATH": f"{tmp_path}:/bin:/usr/bin", "TORCH_INDEX": index}
        return subprocess.run(["sh", "-c", line], env=environ, capture_output=True, text=True).stdout.splitlines()

    named = ["--index-url", index] if index else []
    assert words(torch) == ["install", "--no-cache-dir", *named, "torch>=2.11"]
    assert words(ours) == ["install", "--no-cache-dir", f"{tmp_path}/charlm-1-py3-none-any.whl[serve]"]
    help_text = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--help"], capture_output=True, text=True
    ).stdout
    assert all(flag in help_text for flag in ("--no-cache-dir", "--index-url"))


@pytest.mark.exhaustive
def test_the_server_of_the_image_starts_is_healthy_and_ends(env, tmp_path):
    words = [*json.loads(told("ENTRYPOINT")[0]), *json.loads(told("CMD")[0])]
    assert words[:2] == ["charlm", "serve"]
    command = [str(env / "bin/charlm"), *words[1:], "--port", "0"]
    server = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stuck = threading.Timer(60, server.kill)
    stuck.start()
    try:
        assert (found := re.match(r"serving names on http://0\.0\.0\.0:(\d+) ", server.stdout.readline()))
        *_, check = re.split(r"CMD ", told("HEALTHCHECK")[0])
        python, *rest = json.loads(check)
        check = [str(env / "bin" / python), *(word.replace("8000", found[1]) for word in rest)]
        assert subprocess.run(check).returncode == 0
        server.send_signal(signal.SIGTERM)
        assert server.wait() == 0 and "no run is named" in server.stderr.read()
        assert subprocess.run(check, capture_output=True).returncode == 1
    finally:
        stuck.cancel()
        server.kill()
        server.wait()


def test_compose_starts_that_image():
    assert (ROOT / COMPOSE["build"]["context"] / "Dockerfile").exists()
    assert [f"{name}=" in line for name in COMPOSE["build"]["args"] for line in told("ARG")] == [True]
    assert COMPOSE["command"] == json.loads(told("CMD")[0])
    assert COMPOSE["volumes"] == ["./runs:/runs:ro"] and COMPOSE["read_only"] is True
    (port,) = COMPOSE["ports"]
    assert port.startswith("127.0.0.1:") and port.endswith(f":{told('EXPOSE')[0]}")


def test_no_index_is_named():
    for name in ("Dockerfile", "compose.yaml", "docs/deploy.md"):
        hosts = re.findall(r"https?://([^/\s:'\"]+)", Path(ROOT, name).read_text("utf-8"))
        assert set(hosts) <= {"127.0.0.1"}, name
