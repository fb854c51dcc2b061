"""The experiments of docs/articles/21-looking-inside.md."""

from docs.experiments import Experiment, Picture

LENS = (
    "python train.py --model transformer --steps 400 --out run\n"
    "python -m explain run --text alexandra --what lens --out lens"
)
NEURONS = (
    "python train.py --model gru --steps 1500 --out run\n"
    "python -m explain run --data names --what neurons --out neurons"
)
LABELS = "python -m finetune.classify --steps 400 --no-baseline --out labels"
RESTS = f"{LABELS}\npython -m explain labels --text Kowalski --what saliency --out rests"
LONGER = LABELS.replace("400", "1000")
TURN = "python -m explain labels --what adversarial --max-changes 2 --out turned"
GROUPS = f"{LABELS}\npython -m explain labels --what groups --out groups"
TURNED, GROUP = r"^  1  .*  (\d\.\d+) \(", r"  \d+  (\d\.\d+)  \d\.\d+ to"

EXPERIMENTS = [
    Experiment("inside-lens-first", LENS, r"^layer 1: loss (\S+)", 2.6, 3.2, unit="nats a token"),
    Experiment("inside-lens-last", LENS, r"^layer 4: loss (\S+)", 2.1, 2.5, unit="nats a token"),
    Experiment(
        "inside-neurons", NEURONS, r"explains:\n\s+\S+\s+(\d+)% by", 70, 99, unit="% of the first unit's variance",
        digits=0,
    ),
    Experiment("inside-rests", RESTS, r"with probability (\S+);", 0.9, 1.0, unit="for Polish"),
    Experiment("inside-turned", f"{LONGER}\n{TURN}", TURNED, 0.92, 1.0, unit="of the right answers turned by 1"),
    Experiment(
        "inside-defended", f"{LONGER} --augment 0.2\n{TURN}", TURNED, 0.7, 0.97,
        unit="of the right answers turned by 1",
    ),
    Experiment(
        "inside-lowest", GROUPS, r"interval of 95%:\n\s+\S+\s+\d+\s+(\S+)", 0.3, 0.7, unit="of the texts right"
    ),
    Experiment("inside-highest", GROUPS, GROUP, 0.85, 1.0, unit="of the texts right"),
]  # fmt: skip
PICTURES = [
    Picture(
        "looking_inside",
        of=("inside-lens-first", "inside-neurons", "inside-turned", "inside-defended", "inside-lowest"),
    )
]  # fmt: skip
