"""Train (or evaluate) any model on any text: `python train.py --help`."""

import sys

from data.errors import run_command


def main() -> int:
    from engine.config.flags import parse

    config, explicit = parse(sys.argv[1:])
    from engine.pretraining import Pretraining  # torch loads only now, after --help and the flags' own mistakes
    from engine.session import run

    return run(Pretraining(), config, explicit)


if __name__ == "__main__":
    sys.exit(run_command(main))
