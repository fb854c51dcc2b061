"""`python -m finetune.translate`: train an encoder and a decoder on pairs of texts, evaluate them, translate."""

import sys

from data.errors import run_command


def main() -> int:
    from engine.config.flags import parse
    from finetune.translate.options import TranslateConfig

    config, explicit = parse(sys.argv[1:], TranslateConfig)
    from engine.session import run  # torch loads only now
    from finetune.translate import translator
    from finetune.translate.task import Translation

    if config.run.translate is not None:
        return translator.translate(config, explicit)
    return run(Translation(), config, explicit)


if __name__ == "__main__":
    sys.exit(run_command(main))
