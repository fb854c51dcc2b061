"""`python -m finetune.instruct`: train a model to answer instructions on the one training loop, and evaluate it."""

import dataclasses
import sys

from data.errors import run_command


def main() -> int:
    from engine.flags import parse
    from finetune.instruct.options import InstructConfig, check, defaults

    config, given = parse(sys.argv[1:], InstructConfig, "python -m finetune.instruct", defaults)
    if config.init == "scratch":
        config = dataclasses.replace(config, init=None)
    check(config, given)
    from engine.runtime import Interrupted  # torch loads only now
    from finetune.instruct import session
    from finetune.instruct.evaluation import evaluate_run

    if config.eval_only:
        return evaluate_run(config, given)
    try:
        return session.resume_run(config, given) if config.resume else session.start_run(config, given)
    except Interrupted as stopped:
        return 128 + stopped.signum


if __name__ == "__main__":
    sys.exit(run_command(main))
