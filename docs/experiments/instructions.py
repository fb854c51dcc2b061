"""The experiments of docs/articles/19-instructions.md."""

from docs.experiments import Experiment, Picture

EXPERIMENTS = [
    Experiment(
        "instruct-strings",
        "python -m finetune.instruct --steps 380",
        r"^all +(0\.\d+|1\.0+)",
        0.1,
        0.6,
        unit="of the answers exactly right",
    )
]
PICTURES = [Picture("instruct_tasks", of=("instruct-strings",))]
