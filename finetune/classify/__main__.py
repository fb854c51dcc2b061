"""`python -m finetune.classify`: train a classifier of texts on the one training loop, evaluate it, label with it."""

import sys

from data.errors import run_command


def main() -> int:
    from engine.config.flags import parse
    from finetune.classify.options import ClassifyConfig, check, defaults
    from finetune.options import start_or_resume, without_scratch

    config, given = parse(sys.argv[1:], ClassifyConfig, "python -m finetune.classify", defaults)
    config = without_scratch(config)
    check(config, given)
    from finetune.classify import labeller, session  # torch loads only now

    if config.predict is not None:
        return labeller.predict(config, given)
    if config.eval_only:
        return labeller.evaluate_run(config, given)
    return start_or_resume(session, config, given)


if __name__ == "__main__":
    sys.exit(run_command(main))
