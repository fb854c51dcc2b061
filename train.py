"""Train (or evaluate) any model on any text: `python train.py --help`."""

import sys

from data.errors import outlive_readers, run_command


def main() -> int:
    from engine.config.flags import parse

    config, given = parse(sys.argv[1:])
    if not config.eval_only:
        outlive_readers()
    from engine.runtime import Interrupted  # torch loads only now, after --help and the flags' own mistakes
    from engine.session import run

    try:
        return run(config, given)
    except Interrupted as stopped:
        return 128 + stopped.signum


if __name__ == "__main__":
    sys.exit(run_command(main))
