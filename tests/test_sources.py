"""Where text comes from: data sets by name, checked copies, downloads that fail in every way, standard input."""

import contextlib
import hashlib
import http.server
import json
import pwd
import socket
import tempfile
import threading

import pytest

from data import sources
from data.errors import UserError
from data.prepare import prepare
from tests.helpers import ok, refused


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    """`shelf(content, url)` makes 'shakespeare' a remote file of this content; downloads go to `tmp_path/cache`."""
    monkeypatch.setenv("CHARLM_CACHE", str(tmp_path / "cache"))

    def put(content: bytes, url: str = "http://127.0.0.1:9/play.txt") -> None:
        remote = sources.Remote("play.txt", url, len(content), hashlib.sha256(content).hexdigest())
        monkeypatch.setitem(sources.REMOTES, "shakespeare", remote)

    return put


@pytest.fixture
def serve():
    """`serve(reply)` answers every request with the raw `reply` (bytes, or an iterator of them) and returns a URL."""
    listeners = []

    def start(reply) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def answer() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(4096)
                    try:
                        for piece in [reply] if isinstance(reply, bytes) else reply:
                            connection.sendall(piece)
                    except OSError:
                        pass  # the client has had enough

        threading.Thread(target=answer, daemon=True).start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}/play.txt"

    yield start
    for listener in listeners:
        with contextlib.suppress(OSError):  # not every system lets a listener be shut down
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


PLAY = b"First Citizen:\nBefore we proceed any further, hear me speak.\n" * 20
OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(PLAY)


def test_a_data_set_is_downloaded_once_and_checked(shelf, tmp_path):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "play.txt").write_bytes(PLAY)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Quiet(*a, directory=tmp_path / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        shelf(PLAY, f"http://127.0.0.1:{server.server_port}/play.txt")
        (path,) = sources.resolve("shakespeare").files
        server.shutdown()
    assert path.read_bytes() == PLAY and path.is_relative_to(tmp_path / "cache")
    assert sources.resolve("shakespeare").files == (path,)  # the server is gone: this one is from the cache
    assert len(prepare("shakespeare").train.tokens) == int(len(PLAY) * 0.9)


def test_a_copy_in_the_data_folder_needs_no_network(shelf, tmp_path, monkeypatch):
    shelf(PLAY)
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path))
    (tmp_path / "play.txt").write_bytes(PLAY)
    assert sources.resolve("shakespeare").files == (tmp_path / "play.txt",)


@pytest.mark.parametrize(("content", "message"), [(PLAY[:-1], "1,219 bytes, not 1,220"), (PLAY[::-1], "SHA-256")])
def test_a_wrong_copy_in_the_data_folder_is_refused(shelf, tmp_path, monkeypatch, content, message):
    shelf(PLAY)
    monkeypatch.setenv("CHARLM_DATA", str(tmp_path))
    (tmp_path / "play.txt").write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prepare("shakespeare")
    assert str(tmp_path / "play.txt") in str(error.value)


def test_a_wrong_copy_in_the_cache_is_refused(shelf, tmp_path):
    shelf(PLAY)
    (tmp_path / "cache" / "downloads").mkdir(parents=True)
    (tmp_path / "cache" / "downloads" / "shakespeare.txt").write_bytes(PLAY[::-1])
    with pytest.raises(UserError, match="SHA-256 check.*delete it and try again"):
        prepare("shakespeare")


REPLIES = {
    "too short": OK + PLAY[:100],
    "other content": OK + PLAY[::-1],
    "not found": b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
    "nothing": b"",
    "chunks cut short": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\nFirst",
}


@pytest.mark.parametrize("reply", REPLIES)
def test_a_failed_download_says_what_to_fetch_and_where_to_put_it(shelf, serve, tmp_path, reply):
    url = serve(REPLIES[reply])
    shelf(PLAY, url)
    with pytest.raises(UserError, match="could not download 'shakespeare'") as error:
        prepare("shakespeare")
    assert all(part in str(error.value) for part in (url, "play.txt", "$CHARLM_DATA"))
    assert not list((tmp_path / "cache" / "downloads").iterdir())


def test_without_a_network_the_command_line_says_what_to_fetch_and_where_to_put_it(cli, tmp_path):
    nowhere = {"https_proxy": "http://127.0.0.1:9", "CHARLM_CACHE": str(tmp_path / "cache")}
    ended = cli("-m data.prepare", "--data", "shakespeare", env=nowhere)
    assert ended.code == 2 and ended.err.startswith("error: could not download 'shakespeare' (")
    assert all(part in ended.err for part in (sources.REMOTES["shakespeare"].url, "shakespeare.txt", "$CHARLM_DATA"))


def test_a_download_stops_when_more_comes_than_was_promised(shelf, serve):
    sent = 0

    def endless():
        nonlocal sent
        yield b"HTTP/1.1 200 OK\r\n\r\n"
        while sent < 1 << 27:
            sent += 1 << 16
            yield bytes(1 << 16)

    shelf(PLAY, serve(endless()))
    with pytest.raises(UserError, match="could not download"):
        prepare("shakespeare")
    assert sent < 1 << 26, "no more than what the sockets' buffers take"


def test_a_misspelled_data_set_suggests_the_nearest():
    with pytest.raises(UserError, match="'shakespear'; by name there are: names.*Did you mean 'shakespeare'"):
        prepare("shakespear")


@pytest.mark.parametrize("data", ["", "x" * 300, "~no-such-user/text", "no\nsuch\nfile"])
def test_what_is_no_path_at_all_is_a_readable_mistake(data):
    with pytest.raises(UserError):
        prepare(data)


@pytest.mark.parametrize(
    ("places", "folder"),
    [
        ({"CHARLM_CACHE": "/a", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/a"),
        ({"CHARLM_CACHE": "", "XDG_CACHE_HOME": "/b", "HOME": "/c"}, "/b/charlm"),
        ({"XDG_CACHE_HOME": "", "HOME": "/c"}, "/c/.cache/charlm"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/c"}, "/c/.cache/charlm"),
    ],
)
def test_where_the_cache_is(monkeypatch, places, folder):
    for name in ("CHARLM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in places.items():
        monkeypatch.setenv(name, value)
    assert str(sources.cache_folder()) == folder


def test_a_user_without_a_home_is_told_what_to_name(cli, text, monkeypatch):
    """As in a container that runs under a number that no user has."""

    def nobody(_):
        raise KeyError

    for name in ("CHARLM_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    refused(cli("-m data.prepare", "--data", text), "no home folder", "$CHARLM_CACHE")
    refused(cli("train.py", "--data", text), "no home folder", "$CHARLM_CACHE")
    assert "no home folder" in ok(cli("-m engine.doctor")).out
    monkeypatch.setenv("HOME", "")
    refused(cli("-m data.prepare", "--data", text), "no home folder", "$CHARLM_CACHE")


def test_a_text_in_the_place_of_a_file_takes_one_line(cli):
    told = cli("-m data.prepare", "--data", "to be\nor not\n" * 99)
    refused(told, r"no such file, folder or data set: 'to be\nor not\nto be")
    assert told.err.count("\n") == 1


@pytest.fixture
def spool(tmp_path, monkeypatch):
    """Where commands put their temporary files."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_standard_input_is_a_text_and_leaves_no_file(cli, spool):
    made = cli("-m data.prepare", "--data", "-", stdin=PLAY)
    assert made.code == 0, made.err
    assert f"train: {int(len(PLAY) * 0.9):,} tokens" in made.out
    assert not list(spool.glob("charlm-stdin*"))


def test_a_wrong_second_text_leaves_no_file_of_standard_input(cli, spool):
    made = cli("-m data.prepare", "--data", "-", "--val-data", "gone", stdin=b"text")
    assert made.code == 2 and "no such file" in made.err
    assert not list(spool.glob("charlm-stdin*"))


def test_a_run_is_evaluated_on_standard_input(cli, text):
    assert cli("train.py", "--data", text, "--model", "bigram", "--steps", 1, "--out", "run").code == 0
    ended = cli("train.py", "--eval-only", "--out", "run", "--val-data", "-", stdin=text.read_bytes())
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["val_tokens"] == len(text.read_text()) - 1


def test_an_error_about_standard_input_calls_it_so(cli):
    made = cli("-m data.prepare", "--data", "-")
    assert made.code == 2 and "standard input" in made.err
