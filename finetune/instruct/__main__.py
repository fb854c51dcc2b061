"""`python -m finetune.instruct`: train a model to answer instructions on the one training loop, and evaluate it."""

import sys

from data.errors import run_command


def main() -> int:
    from engine.config.flags import parse
    from finetune.instruct.options import InstructConfig

    config, explicit = parse(sys.argv[1:], InstructConfig)
    from engine.session import run  # torch loads only now
    from finetune.instruct.preference_task import Preferences
    from finetune.instruct.reward.task import Rewards
    from finetune.instruct.task import Instructions

    task = Preferences if config.tuning.dpo else Rewards if config.tuning.grpo else Instructions
    return run(task(), config, explicit)


if __name__ == "__main__":
    sys.exit(run_command(main))
