"""The page: one file that `python -m serve` and --watch show, and what a browser may do with it."""

import base64
import functools
import hashlib
import re
from pathlib import Path


@functools.cache
def html() -> bytes:
    """The page."""
    return Path(__file__).with_name("page.html").read_bytes()


@functools.cache
def policy() -> str:
    """The Content-Security-Policy under which the page's own script and styles run, and nothing else does."""
    hashes = {name: _hash(name) for name in ("script", "style")}
    return (
        f"default-src 'none'; script-src '{hashes['script']}'; style-src '{hashes['style']}'; img-src data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(tag: str) -> str:
    """The hash of what the one element `tag` of the page holds."""
    (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), html(), re.DOTALL)
    return "sha256-" + base64.b64encode(hashlib.sha256(content).digest()).decode()
