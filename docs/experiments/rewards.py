"""The experiments of docs/articles/20-rewards.md."""

from docs.experiments import Experiment, Picture

START = "python train.py --model gru --steps 300 --out start"
LEARN = "python -m finetune.instruct --init start --grpo --data none --reward alternating"
REWARD, DISTINCT = r"^reward (\d\.\d+)", r" (\d+)% of the answers distinct"

EXPERIMENTS = [
    Experiment("rewards-kl", f"{START}\n{LEARN} --out held", REWARD, 0.85, 1.0, unit="of the answers rewarded"),
    Experiment("rewards-kl-distinct", f"{START}\n{LEARN} --out held", DISTINCT, 90, 100, unit="% distinct", digits=0),
    Experiment(
        "rewards-free", f"{START}\n{LEARN} --kl 0 --out free", REWARD, 0.98, 1.0, unit="of the answers rewarded"
    ),
    Experiment(
        "rewards-free-distinct", f"{START}\n{LEARN} --kl 0 --out free", DISTINCT, 3, 50, unit="% distinct", digits=0
    ),
]
PICTURES = [Picture("rewards", of=("rewards-kl", "rewards-free"))]
