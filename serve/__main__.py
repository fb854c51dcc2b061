"""Serve runs over HTTP: python -m serve RUN [RUN ...]."""

import dataclasses
import importlib.util
import sys

import tyro

from data.errors import UserError, outlive_readers, run_command
from data.program import command
from engine.run.bundled import bundled
from serve.settings import Settings, read_keys

NEEDED = ("fastapi", "uvicorn")


def main() -> int:
    settings = tyro.cli(Settings, prog=command("serve"), description="Serve runs over HTTP, as OpenAI's API has it.")
    outlive_readers()
    keys = read_keys(settings.api_key_file)
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"the server needs {' and '.join(missing)}: pip install {' '.join(missing)}")
    if not settings.runs:
        settings = dataclasses.replace(settings, runs=(bundled(),))
    from serve.server import serve  # here torch is loaded

    return serve(settings, keys)


if __name__ == "__main__":
    sys.exit(run_command(main))
