"""The command `charlm`, with one word for each command of this project; in a checkout python -m charlm."""

import importlib.util
import sys

from data.errors import UserError, nearest, run_command
from data.program import COMMANDS, IS_INSTALLED, PACKAGE, command, module


def help_text() -> str:
    """What `charlm --help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {purpose}" for name, (_, purpose) in COMMANDS.items()]
    return "\n".join(
        [
            f"usage: {PACKAGE} COMMAND ...",
            "",
            *lines,
            "",
            f"{PACKAGE} COMMAND --help says what a command takes, {PACKAGE} --version which version this is.",
        ]
    )


def module_of(name: str) -> str:
    """The module whose `main` is the command of this name."""
    script = COMMANDS[name][0]
    if script.endswith(".py"):
        return module(f"commands.{name}") if IS_INSTALLED else name
    found = module(script.removeprefix("-m "))
    spec = importlib.util.find_spec(found)
    is_package = spec is not None and spec.submodule_search_locations is not None
    return f"{found}.__main__" if is_package else found


def dispatch() -> int:
    """Do what the command line says."""
    match sys.argv[1:]:
        case [] | ["--help"] | ["-h"]:
            print(help_text())
            return 0
        case [name, *rest] if name in COMMANDS:
            sys.argv = [command(name), *rest]
            return run_command(importlib.import_module(module_of(name)).main)  # which knows --version, too
    name = sys.argv[1]
    raise UserError(f"there is no command '{name}'; there are: {', '.join(COMMANDS)}.{nearest(name, COMMANDS)}")


def main() -> int:
    return run_command(dispatch)


if __name__ == "__main__":
    sys.exit(main())
