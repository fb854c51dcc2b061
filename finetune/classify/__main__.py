"""`python -m finetune.classify`: train a classifier of texts on the one training loop, evaluate it, label with it."""

import sys

from data.errors import run_command


def main() -> int:
    from engine.config.flags import parse
    from finetune.classify.options import ClassifyConfig

    config, explicit = parse(sys.argv[1:], ClassifyConfig)
    from engine.session import run  # torch loads only now
    from finetune.classify import labeller
    from finetune.classify.task import Classification

    if config.run.predict is not None:
        return labeller.predict(config, explicit)
    return run(Classification(), config, explicit)


if __name__ == "__main__":
    sys.exit(run_command(main))
