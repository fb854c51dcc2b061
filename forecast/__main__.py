"""`python -m forecast RUN`: go on with the series that a run was trained on, or with another one."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from data.disk import replace_file
from data.errors import UserError, run_command
from data.program import command

MOST_AHEAD, MOST_SAMPLES, MOST_WINDOWS = 10_000, 10_000, 10_000
WINDOWS = 50  # of a backtest


def main() -> int:
    parser = argparse.ArgumentParser(
        prog=command("forecast"), description="Go on with a series of numbers, with quantiles of what may come."
    )
    parser.add_argument("run", help="the run directory, of a training with --kind series")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="go on with other series: CSV files, or -")
    parser.add_argument("--column", metavar="NAMES", help="the columns, with commas between them (default: all)")
    parser.add_argument("--ahead", type=int, default=24, metavar="N", help="how many steps (default: 24)")
    parser.add_argument("--samples", type=int, default=100, metavar="N", help="paths that are drawn (default: 100)")
    parser.add_argument("--quantiles", default="0.1,0.5,0.9", help="which are shown (default: 0.1,0.5,0.9)")
    parser.add_argument(
        "--backtest", type=int, nargs="?", const=WINDOWS, metavar="N",
        help=f"forecast N windows of the last tenth instead, which is known (default: {WINDOWS})",
    )  # fmt: skip
    parser.add_argument(
        "--season", type=int, metavar="N", help="with --backtest: steps of a season (default: the best)"
    )
    parser.add_argument("--plot", metavar="FILE.png", help="draw it; of --backtest the last window")
    parser.add_argument("--json", metavar="FILE.json", help="write all numbers into this file")
    parser.add_argument("--seed", type=int, default=1, help="same seed, same paths (default: 1)")
    parser.add_argument("--checkpoint", choices=("best", "last"), default="best", help="which weights")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    args = parser.parse_args()
    levels = check(args)
    from forecast.subject import load

    subject = load(args.run, args.data, args.column, args.checkpoint, args.device, args.backtest is not None)
    if args.backtest is None:
        from forecast.ahead import as_table, look_ahead

        found = forecasts = look_ahead(subject, args.ahead, args.samples, levels, args.seed)
    else:
        from forecast.backtest import as_table, backtest

        found = backtest(subject, args.backtest, args.ahead, args.samples, levels, args.season, args.seed)
        forecasts = [each["last"] for each in found]
    print("\n\n".join(map(as_table, found)))
    write(args, found, subject.series, forecasts)
    return 0


def check(args: argparse.Namespace) -> list[float]:
    """The levels of the quantiles, in order. Raises UserError for what cannot be."""
    most = {"ahead": MOST_AHEAD, "samples": MOST_SAMPLES, "backtest": MOST_WINDOWS, "season": 2**31, "seed": 2**63 - 1}
    for name, limit in most.items():
        value, least = getattr(args, name), int(name != "seed")
        if value is not None and not least <= value <= limit:
            raise UserError(f"--{name} is {value}; it has to be from {least} to {limit:,}")
    if args.season is not None and args.backtest is None:
        raise UserError("--season goes with --backtest, whose naive forecasts have one")
    if args.plot is not None and not args.plot.lower().endswith(".png"):
        raise UserError(f"--plot writes a PNG, and {args.plot} is no name of one")
    try:
        levels = sorted({float(level) for level in args.quantiles.split(",")})
    except ValueError:
        levels = []
    if not levels or not all(0 < level < 1 for level in levels):
        raise UserError(f"--quantiles {args.quantiles} is no list of numbers between 0 and 1, as in 0.1,0.5,0.9")
    return levels


def write(args: argparse.Namespace, found: list[Any], series: list[Any], forecasts: list[Any]) -> None:
    """Write the files that were asked for."""
    path = args.json
    try:
        if args.json is not None:
            replace_file(Path(args.json), (json.dumps({"run": args.run, "series": found}, indent=1) + "\n").encode())
        if path := args.plot:
            from forecast.picture import draw

            draw(Path(path), series, forecasts, args.ahead)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from error


if __name__ == "__main__":
    sys.exit(run_command(main))
