"""The commands of the articles: what stands in a line, and how it is made short for a test."""

import re
import shlex
from dataclasses import dataclass

from data.errors import UserError

# What makes a command end at once; others are quick as they are.
SHORT = {
    "train.py": "--steps {steps} --batch-size 2 --eval-tokens 200",
    "-m makemore.scratch.train": "--steps {steps} --batch-size 2 --eval-tokens 200",
    "-m makemore.scratch.compare": "--steps {steps} --batch-size 2 --eval-tokens 200",
    "-m makemore.scratch.spirals": "--steps {steps}",
    "-m makemore.scratch.toys": "--steps {steps}",
    "-m makemore.scratch.skipgram": "--epochs 1",
    "-m makemore.scratch.glove": "--epochs 1",
    "-m finetune.classify": "--steps {steps} --batch-size 2",
    "-m finetune.instruct": "--steps {steps} --batch-size 2 --max-answer 2",
    "-m finetune.translate": "--steps {steps} --batch-size 2",
}
TAKES_NO_STEPS = {"ngram", "--counts", "--eval-only", "--predict", "--translate", "--check"}


@dataclass(frozen=True)
class Command:
    """A line that starts Python: with this environment besides, this script ('train.py' or '-m makemore.scratch.train')
    and these arguments."""

    environment: dict[str, str]
    script: str
    arguments: list[str]


def command_of(line: str) -> Command:
    """The command in a line, as in `TRITON_INTERPRET=1 python -m kernels  # comment`. Raises UserError for another."""
    words = shlex.split(line, comments=True)
    environment = {}
    while words and (match := re.fullmatch(r"([A-Z_]+)=(.*)", words[0])):
        environment[match[1]] = match[2]
        del words[0]
    match words:
        case ["python", "-m", module, *arguments]:
            return Command(environment, f"-m {module}", arguments)
        case ["python", script, *arguments] if script.endswith(".py"):
            return Command(environment, script, arguments)
    raise UserError(f"'{line}' is no command of this project: python SCRIPT.py or python -m MODULE")


def shortened(command: Command, steps: int) -> Command:
    """The same, which takes `steps` steps."""
    if TAKES_NO_STEPS & {*command.arguments}:
        return command
    more = SHORT.get(command.script, "").format(steps=steps).split()
    return Command(command.environment, command.script, command.arguments + more)
