"""Forecasts of series like the bundled hours, with noise that no choice of a default has seen.

python -m bench.forecast [--seeds 101,102,103] [--models gru,transformer]

A seed is of the series and of the training. Prints the backtest of each run, see docs/forecast.md.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from bench.peers import run
from data.errors import run_command
from data.series import hours


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.forecast", description=__doc__.splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--seeds", default="101,102,103", help="with commas between")
    parser.add_argument("--models", default="gru,transformer", help="families, with commas between")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for seed in args.seeds.split(","):
            table = folder / f"hours-{seed}.csv"
            table.write_text(hours.table(int(seed)), encoding="utf-8")
            for model in args.models.split(","):
                print(f"seed {seed}, {model}", flush=True)
                out = str(folder / f"{model}-{seed}")
                text = ["--kind", "series", "--data", str(table), "--column", "load"]
                run(["train.py", *text, "--model", model, "--seed", seed, "--out", out])
                print(run(["-m", "forecast", out, "--backtest", "100"]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
