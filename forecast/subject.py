"""What is gone on with: a run, its series or other ones, and how their values are written."""

from pathlib import Path
from typing import NamedTuple

from data.errors import UserError, warn
from data.program import command
from data.series.bins import Scale, bins_known
from data.series.columns import Series
from data.series.texts import parts_of, read_series
from engine.run.folder import read_facts
from engine.run.load import load_run
from engine.run.run import Run


class Subject(NamedTuple):
    """A run and the series it goes on with. `borders`: the number of values of each before its test part."""

    run: Run
    series: list[Series]
    borders: list[int]
    scale: Scale


def load(folder: str, data: list[str] | None, column: str | None, which: str, device: str, backtest: bool) -> Subject:
    """The run `folder` with its own series and their scale, or those of other tables, `data`, with the scale of their
    own: of all that is given, or for a `backtest` of what stands before the test part. Raises UserError for a run
    of text, and for tables without these columns."""
    facts = read_facts(Path(folder))
    if facts["config"].get("kind") != "series" or "series" not in facts["data"]:
        raise UserError(
            f"{folder} was trained on text, and not on a series of numbers; --kind series of {command('train')} is"
        )
    kept = Scale.from_json(facts["data"]["series"], str(Path(folder) / "config.json"))
    run = load_run(folder, which, device, of_series=True)
    if bins_known(getattr(run.tokenizer, "alphabet", "")) != kept.bins:
        raise UserError(f"{Path(folder) / 'tokenizer.json'} is not the tokenizer of {kept.bins} bins")
    text = run.config.text
    try:
        series, _, notes = read_series(data or text.data, column or (None if data else text.column), text.encoding)
    except UserError as error:
        hint = "" if data else " (the series of this run; where they have moved, --data says where they are)"
        raise UserError(f"{error}{hint}") from error
    for note in notes:
        warn(note)
    borders = [parts_of(each)[1] for each in series]
    scale = _of_columns(kept, series, folder) if data is None else _own(kept, series, borders, backtest)
    for n, each in enumerate(series):
        if beyond := scale.beyond(each.values, n):
            warn(f"{beyond:,} of {len(each.values):,} values of '{each.name}' are in no bin: the nearest is read")
    return Subject(run, series, borders, scale)


def _own(kept: Scale, series: list[Series], borders: list[int], backtest: bool) -> Scale:
    """The scale of other series than those of the run."""
    for each in series:
        if len(each.values) < 2:
            raise UserError(f"column '{each.name}' has {len(each.values)} values: there is nothing to go on from")
    past = [
        Series(s.name, s.values[:border] if backtest else s.values) for s, border in zip(series, borders, strict=True)
    ]
    return Scale.of(past, kept.bins)


def _of_columns(kept: Scale, series: list[Series], folder: str) -> Scale:
    """The part of a run's scale that these series have."""
    names = [each.name for each in series]
    if names == kept.columns:
        return kept
    if missing := [name for name in names if name not in kept.columns]:
        raise UserError(
            f"{folder} was not trained on column '{missing[0]}', but on {', '.join(kept.columns)[:200]}; --data FILE "
            "takes it as another series"
        )
    places = [_place(name, names[:n].count(name), kept.columns) for n, name in enumerate(names)]
    return Scale(names, [kept.means[i] for i in places], [kept.deviations[i] for i in places], kept.bins)


def _place(name: str, before: int, columns: list[str]) -> int:
    """Where a column of this name stands, after so many others of it: tables may have columns of one name. Of fewer the
    last one."""
    return [place for place, column in enumerate(columns) if column == name][: before + 1][-1]
