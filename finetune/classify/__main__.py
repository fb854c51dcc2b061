"""`python -m finetune.classify`: train a classifier of texts on the one training loop, evaluate it, label with it."""

import dataclasses
import sys

from data.errors import run_command


def main() -> int:
    from engine.flags import parse
    from finetune.classify.options import ClassifyConfig, check, defaults

    config, given = parse(sys.argv[1:], ClassifyConfig, "python -m finetune.classify", defaults)
    if config.init == "scratch":
        config = dataclasses.replace(config, init=None)
    check(config, given)
    from engine.runtime import Interrupted  # torch loads only now
    from finetune.classify import labeller, session

    if config.predict is not None:
        return labeller.predict(config, given)
    if config.eval_only:
        return labeller.evaluate_run(config, given)
    try:
        return session.resume_run(config, given) if config.resume else session.start_run(config, given)
    except Interrupted as stopped:
        return 128 + stopped.signum


if __name__ == "__main__":
    sys.exit(run_command(main))
