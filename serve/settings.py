"""The flags of python -m serve. Imports neither torch nor FastAPI."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from data.errors import UserError

MOST_BODY = 1 << 20  # bytes of a request


@dataclass(frozen=True)
class Settings:
    """Serve runs over HTTP, as OpenAI's API has it."""

    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run directories (default: the small run of names that comes with this program)."""
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 for every network."""
    port: int = 8000
    """The port; 0 for any free one."""
    api_key_file: Path | None = None
    """A file whose lines are keys; a request then needs one of them."""
    cors: tuple[str, ...] = ()
    """Origins whose pages may use this server, as https://example.org (default: none)."""
    max_streams: int = 32
    """Texts of a run that are drawn together."""
    queue: int = 256
    """Texts of a run that may wait; what is more is answered with 429."""
    max_tokens: int = 4096
    """The most new tokens of a text."""
    grace: float = 10.0
    """Seconds that open answers get to end in after SIGTERM or Ctrl-C."""
    threads: int = 1
    """Threads of a run's arithmetic."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    checkpoint: Annotated[str, tyro.conf.arg(help="best or last")] = "best"
    curves: tuple[Path, ...] = ()
    """Folders of runs, as runs, whose loss curves the page shows besides those of the runs that are served."""
    log_json: bool = False
    """Write a line of JSON for each request to standard error, instead of words."""

    def __post_init__(self) -> None:
        for folder in self.curves:
            if not folder.is_dir():
                raise UserError(f"--curves {folder} is no folder")
        for name, least in (("max_streams", 1), ("queue", 0), ("max_tokens", 1), ("grace", 0), ("threads", 1)):
            if getattr(self, name) < least:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}; it may be {least} or more")
        if not 0 <= self.port <= 65535:
            raise UserError(f"--port is {self.port}; it may be 0 to 65535")
        if self.checkpoint not in ("best", "last"):
            raise UserError(f"--checkpoint is {self.checkpoint}; it may be best or last")


def read_keys(path: Path | None) -> list[str]:
    """The keys in a file, a line each. Raises UserError where it has none, or others may read it."""
    if path is None:
        return []
    try:
        keys = [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]
        is_open = os.name == "posix" and path.stat().st_mode & 0o077
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api-key-file {path} cannot be read: {error}") from error
    if not keys:
        raise UserError(f"--api-key-file {path} holds no key")
    if is_open:
        raise UserError(f"--api-key-file {path} may be read by other users; chmod 600 {path}")
    return keys
