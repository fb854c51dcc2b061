"""`python -m tune`: search the best flags of a command that trains; imports no torch.

    python -m tune --try lr=1e-4..1e-2:log --try n_layer=1,2,4 -- --data names --steps 500

Behind `--` stand the flags of every run; the first word may be another command: classify, instruct, translate. The same
command again goes on with a search that was stopped.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from data.errors import UserError, flag, outlive_readers, run_command
from data.locks import hold
from data.program import command
from tune import methods, report
from tune.search import Search, search
from tune.space import SYNTAX, Space, parse_space, words
from tune.study import Study

COMMANDS = ("train", "classify", "instruct", "translate")
STUDIES = Path("studies")
DEFAULT_TRIALS = 20  # where there is a range, and no --minutes
# The search says these itself, or they train nothing.
OURS = {"out", "resume", "go_on", "overwrite", "eval_only", "checkpoint", "predict", "translate", "map"}
# Of each command the flags whose every value has a val_loss of its own, and a number that may be compared.
OF_THE_LOSS = {
    "train": {"tokenizer"}, "classify": set(), "translate": {"tokenizer"},
    "instruct": {"tokenizer", "dpo_beta", "kl", "reward"},
}  # fmt: skip
INSTEAD = {
    "train": "--minimize val_bits_per_char", "instruct": "--maximize val_exact_match (of rewards val_reward)",
    "translate": "--maximize val_exact_match",
}  # fmt: skip


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        allow_abbrev=False,
        prog=command("tune"),
        description="Search the best flags of a command that trains, over runs of it.",
        usage=f"%(prog)s [{'|'.join(COMMANDS)}] --try FLAG=VALUES [--try ...] [options] -- [flags of every run]",
        epilog=f"{SYNTAX}. A flag that is on or off: --try bias=on,off. The same command again goes on with a search "
        "that was stopped.",
    )
    made.add_argument(
        "command", nargs="?", default="train", help=f"what is run: {', '.join(COMMANDS)} (default: train)"
    )
    made.add_argument(
        "--try", action="append", default=[], dest="tries", metavar="FLAG=VALUES", help="a flag, and what to try"
    )
    made.add_argument(
        "--method", choices=methods.METHODS,
        help="; ".join(f"{name}: {says}" for name, says in methods.METHODS.items()) + " (default: grid for lists, else "
        "random)",
    )  # fmt: skip
    made.add_argument(
        "--trials", type=int, help=f"how many runs (default: a whole grid; {DEFAULT_TRIALS}; no limit with --minutes)"
    )
    made.add_argument("--minutes", type=float, help="how long all runs may take together")
    made.add_argument("--patience", type=int, help="end after so many runs in a row that were no better than the best")
    goal = made.add_mutually_exclusive_group()
    goal.add_argument(
        "--minimize", metavar="KEY", help="a number of summary.json, or of an evaluation (default: val_loss)"
    )
    goal.add_argument("--maximize", metavar="KEY", help="the same, the largest first, as test.accuracy")
    made.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    made.add_argument("--out", type=Path, help=f"the folder of the search (default: {STUDIES}/COMMAND)")
    return made


def main() -> int:
    argv = sys.argv[1:]
    ours, flags = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    args, others = parser().parse_known_args(ours)
    if others:
        raise UserError(f"the search has no {others[0]}; the flags of every run stand behind --, as in -- --steps 500")
    if args.command not in COMMANDS:
        raise UserError(f"'{args.command}' is no command to search; there are: {', '.join(COMMANDS)}")
    known = _settings_of(args.command)
    space = parse_space(args.tries, {name for name, setting in known.items() if "float" in str(setting.type)})
    plan = _plan(args, space, flags)
    _check_budgets(plan)
    methods.check_method(plan.method, space)
    _check_flags(plan, space)

    folder = args.out or STUDIES / args.command
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, and a search is a folder; name another --out")
    study = Study(folder, space, is_max=args.maximize is not None)
    outlive_readers()
    folder.mkdir(parents=True, exist_ok=True)
    with hold(folder / "lock", f"the search {folder}"):
        study.open(_settings(args, plan))
        return _search(plan, study)


def _search(plan: Search, study: Study) -> int:
    """Search, and report however it ends. Returns the exit code."""
    code = 0
    try:
        search(plan, study)
    except KeyboardInterrupt:
        code = 130
    finally:
        text = report.write(plan, study)
    print(f"\n{text}\nin {study.folder}: report.md, report.png, trials.jsonl", flush=True)
    if code:
        print("stopped; the same command goes on from here", flush=True)
    return code


def _plan(args: argparse.Namespace, space: Space, flags: list[str]) -> Search:
    are_lists = methods.n_points(space) is not None
    method = args.method or ("grid" if are_lists else "random")
    trials = args.trials
    if trials is None and args.minutes is None and method != "grid":
        trials = DEFAULT_TRIALS
    switches = {name for name, setting in _settings_of(args.command).items() if setting.type is bool}
    return Search(
        args.command, flags, switches & space.keys(), method, args.maximize or args.minimize or "val_loss", args.seed,
        trials, args.minutes, args.patience,
    )  # fmt: skip


def _settings(args: argparse.Namespace, plan: Search) -> dict[str, Any]:
    """What makes a search this one: budgets may change."""
    return {
        "command": plan.command, "flags": plan.flags, "try": args.tries, "method": plan.method, "metric": plan.metric,
        "goal": "max" if args.maximize else "min", "seed": plan.seed,
    }  # fmt: skip


def _check_budgets(plan: Search) -> None:
    for name, value in (("trials", plan.trials), ("minutes", plan.minutes), ("patience", plan.patience)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{flag(name)} is {value}; it has to be above 0")


def _config_class(name: str) -> Any:
    """The flags of a command."""
    if name == "classify":
        from finetune.classify.options import ClassifyConfig

        return ClassifyConfig
    if name == "instruct":
        from finetune.instruct.options import InstructConfig

        return InstructConfig
    if name == "translate":
        from finetune.translate.options import TranslateConfig

        return TranslateConfig
    from engine.config.sections import Config

    return Config


def _settings_of(name: str) -> dict[str, Any]:
    from engine.config.settings import all_settings

    return all_settings(_config_class(name))


def _check_flags(plan: Search, space: Space) -> None:
    """Have the command's own parser read the flags of the first trial, and each value beside the others' first. It ends
    this process for a flag or a value that it does not know; a combination that does not go together is a trial that
    fails, but the first, which is a mistake. Raises UserError for that."""
    from engine.config.flags import parse

    given = {word[2:].split("=")[0].replace("-", "_") for word in plan.flags if word.startswith("--")}
    if clash := sorted(OURS & (given | space.keys())):
        raise UserError(f"{flag(clash[0])} is not for a search: it gives every run a folder of its own")
    if twice := sorted(given & space.keys()):
        raise UserError(f"{flag(twice[0])} is tried, and stands behind -- too; leave one out")
    _check_comparable(plan, space)
    if any(word in ("-", "--data=-", "--val-data=-") for word in plan.flags):
        raise UserError("every run reads the data anew, which standard input cannot give: put the text into a file")
    first = {name: values.ends()[0] for name, values in space.items()}
    parse([*plan.flags, *words(first, plan.switches)], _config_class(plan.command))
    for name, values in space.items():
        for value in values.ends()[1:]:
            changed = [*plan.flags, *words(first | {name: value}, plan.switches)]
            try:
                parse(changed, _config_class(plan.command))
            except UserError:
                continue


def _check_comparable(plan: Search, space: Space) -> None:
    """Raise UserError for a flag of which each value has a loss of its own."""
    if plan.command == "train" and (other := sorted({"objective", "mask_rate", "mask_span", "bins"} & space.keys())):
        raise UserError(f"{flag(other[0])} changes what the loss is a loss of: trials could not be compared")
    if plan.metric == "val_loss" and (other := sorted(OF_THE_LOSS[plan.command] & space.keys())):
        raise UserError(
            f"{flag(other[0])} changes what val_loss is a loss of: trials could not be compared by it; name another "
            f"number, as {INSTEAD[plan.command]}"
        )


if __name__ == "__main__":
    sys.exit(run_command(main))
