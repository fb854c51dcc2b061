"""`python -m finetune.instruct`: train a model to answer instructions on the one training loop, and evaluate it."""

import sys

from data.errors import run_command


def main() -> int:
    from engine.config.flags import parse
    from finetune.instruct.options import InstructConfig, check, defaults
    from finetune.options import start_or_resume, without_scratch

    config, given = parse(sys.argv[1:], InstructConfig, "python -m finetune.instruct", defaults)
    config = without_scratch(config)
    check(config, given)
    from finetune.instruct import session  # torch loads only now
    from finetune.instruct.evaluation import evaluate_run

    if config.eval_only:
        return evaluate_run(config, given)
    return start_or_resume(session, config, given)


if __name__ == "__main__":
    sys.exit(run_command(main))
