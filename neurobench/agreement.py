"""What of a record must agree: with its suite, its identity, its folds, its predictions, and the rows beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from neurobench.bundle_reader import printable
from neurobench.components import Setting
from neurobench.contracts import SubjectTask, Task
from neurobench.errors import ConfigError
from neurobench.identity import digest
from neurobench.objectives import parse_objective
from neurobench.options import PROFILES, load_suite, parse_adaptation
from neurobench.plugin_rules import NAME
from neurobench.reconstruction import FILLERS
from neurobench.records import Fold
from neurobench.results import ComponentRecord, Record

__all__ = [
    "fold_problems",
    "not_as_identified",
    "not_as_named",
    "not_of_suite",
    "not_of_task",
    "of_people",
    "people_problems",
    "same_predictions",
    "unlike",
]

PERSON = ("age", "sex", "site", "family", "mean_fd", "duration_s")
"""Columns of predictions that say something of a person, whatever was predicted."""

MAX_SUBJECTS = 20_000
"""People of one table: a bootstrap over more of them takes more memory than a stranger should have."""


def not_of_suite(record: Record, name: str) -> Iterator[str]:
    """Yield what of a record is not as its suite has it."""
    config, p = load_suite(name), record.protocol
    profile, objective = PROFILES[config.profile], parse_objective(config.objective)
    wanted = {
        "profile": config.profile,
        "split": config.split,
        "adaptation": parse_adaptation(config.adaptation).label,
        "probe": config.probe,
        "ratio": objective.mean_ratio(config.ratio),
        "objective": objective.label,
        "harmonise": config.harmonise,
        "transductive": config.transductive,
        "n_steps": profile.n_steps if config.n_steps is None else config.n_steps,
    }
    if config.split == "subjects":
        wanted["n_folds"] = profile.n_folds if config.folds is None else config.folds
    for what, value in wanted.items():
        if getattr(p, what) != value:
            yield f"is said to be of {name}, which has {what} {value}, not {printable(str(getattr(p, what)))}"
    if config.seeds and p.seed not in config.seeds:
        yield f"is said to be of {name}, which has the seeds {', '.join(map(str, config.seeds))}, not {p.seed}"
    lists = [("dataset", config.datasets, record.dataset), ("backbone", config.backbones, record.backbone)]
    if record.kind == "pretrained":
        lists.append(("mask", config.masks, record.mask))
    for kind, names, component in lists:
        if component is not None and names and component.label not in names:
            yield f"is said to be of {name}, which has no {kind} {printable(component.label)}"


def not_as_named(record: Record) -> Iterator[str]:
    """Yield where a row's name, or a name in it, is not that of its components: names are what a board is read by."""
    backbone, mask, baseline = record.backbone, record.mask, record.baseline
    for component in (backbone, mask, baseline, record.dataset, record.task):
        if component is not None and not NAME.fullmatch(component.name):
            # Letters of other alphabets look like those of a published name.
            yield f"{component.name[:60]!a} is no name of a component: a to z, 0 to 9 and _ are"
    if record.kind in ("baseline", "filler"):
        wrong = backbone is not None or mask is not None or (baseline is None) != (record.kind == "filler")
        wrong |= baseline is not None and record.row != baseline.label
        wrong |= baseline is None and record.row not in FILLERS
    else:
        start = f"{backbone.label if backbone else ''} · " + (
            mask.label if record.kind == "pretrained" and mask else ""
        )
        wrong = backbone is None or not record.row.startswith(start)
        wrong |= record.kind == "pretrained" and (mask is None or record.pretraining is None)
    if wrong:
        yield f"row {printable(record.row)} is not named after what it was made with, or is of another kind"


def not_of_task(record: Record, task: Task) -> Iterator[str]:
    """Yield metrics of a record that are not as its task has them; what it has more than those is not looked at."""
    if record.headline != task.metrics[0].name:
        yield f"its headline is {printable(record.headline)}, and the task's is {task.metrics[0].name}"
    for m in task.metrics:
        said = record.metrics.get(m.name)
        if said is None:
            yield f"{m.name} is missing, a metric of the task"
        elif (said.unit, said.higher_is_better) != (m.unit, m.higher_is_better):
            yield f"{m.name} has another unit or direction than the task gives it"
    if isinstance(task, SubjectTask) and (more := record.metrics.keys() - {m.name for m in task.metrics}):
        yield f"{printable(min(more))} is given, and is no metric of the task"


def _claim(component: ComponentRecord | None) -> dict[str, Any] | None:
    return None if component is None else component.model_dump(mode="json", exclude={"label"})


def not_as_identified(record: Record, evaluation: Mapping[str, Any], steps: Mapping[str, Any]) -> Iterator[str]:
    """Yield where a record says something else than what its id is the hash of."""
    p = record.protocol
    name, parameters = "frozen", {}
    if record.backbone is not None:
        try:
            said = parse_adaptation(p.adaptation)
        except ConfigError:
            yield f"there is no adaptation {printable(p.adaptation)}"
            said = Setting("frozen")
        if said.label != p.adaptation or said.parameters != p.adaptation_parameters:
            yield "its adaptation is not the one that its parameters are of"
        # Scratch is finetuning of a network that nobody pretrained.
        name, parameters = "finetune" if said.name == "scratch" else said.name, dict(said.parameters)
    if "adaptation" in evaluation and evaluation.get("adaptation_parameters", {}) != parameters:
        yield "the parameters of its adaptation are not those that its id is the hash of"
    everywhere: dict[str, Any] = {
        "seed": p.seed,
        "folds": p.fold_fingerprint,
        "cohort": record.data.fingerprint if record.data else "",
        "harmonise": p.harmonise,
        "row": record.row,
        "adaptation": name,
        "task": _claim(record.task),
    }
    if record.backbone is not None:
        everywhere["probe"] = p.probe
    for what, value in everywhere.items():
        if what in evaluation and digest(evaluation[what]) != digest(value):
            yield f"its {'split' if what == 'folds' else what} is not the one that its id is the hash of"
    if "task" not in evaluation or "seed" not in evaluation:
        yield "its id is the hash of something without a task or a seed"
    trains = record.kind == "pretrained"
    pretraining: dict[str, Any] = {
        "backbone": _claim(record.backbone),
        "mask": _claim(record.mask),
        "n_steps": p.n_steps if trains else 0,
        "n_tokens": p.n_tokens,
        "recipe": p.recipe,
        "ratio": p.ratio if trains else 0.0,
        "objective": parse_objective(p.objective).identity() if trains else None,
    }
    seen = set()
    for step in steps.values():
        own = step["identity"]
        seen |= own.keys()
        wanted = {k: everywhere[k] for k in ("seed", "cohort")}
        if "backbone" in own:
            wanted |= pretraining
            spec = own.get("spec")
            if not isinstance(spec, dict) or (spec.get("width"), spec.get("n_layers")) != (p.width, p.n_layers):
                yield "its backbone was pretrained at another size than it says"
            if not p.transductive and own.get("people") != own.get("train"):
                yield "its backbone was pretrained on more than the training subjects, and it does not say transductive"
        if "baseline" in own:
            wanted["baseline"] = _claim(record.baseline)
        for what, value in wanted.items():
            if what in own and digest(own[what]) != digest(value):
                yield f"its {what} is not the one that its results were made with"
    for kind in ("backbone", "baseline"):
        if getattr(record, kind) is not None and kind not in seen:
            yield f"no step beside it says which {kind} it was made with"
    tested = {s["identity"]["test"] for s in steps.values() if isinstance(s["identity"].get("test"), str)}
    # A network that nobody pretrained is the same in every fold: where it is trained on the task itself, only the
    # evaluation says which the folds are.
    if len(tested) != p.n_folds and (tested or name == "frozen"):
        yield f"has {p.n_folds} folds, and the steps beside it are of {len(tested)}"


def fold_problems(folds: Sequence[Fold], split: str, n_folds: int, n_subjects: int) -> Iterator[str]:
    people = {s for f in folds for s in (*f.train, *f.test)}
    tested = [s for f in folds for s in f.test]
    if len(folds) != n_folds:
        yield f"there are {len(folds)}, and the records say {n_folds}"
    if len(people) != n_subjects:
        yield f"they are of {len(people)} people, and the cohort has {n_subjects}"
    if split != "within-recording" and any(set(f.train) & set(f.test) for f in folds):
        yield "somebody is trained on and tested in one fold"
    if split == "subjects" and set(tested) != people:
        yield f"{len(people - set(tested))} people are never tested"
    for f in folds:
        for who in (f.train, f.test):
            if len(set(who)) != len(who):
                yield f"somebody is twice in fold {f.index}"


def people_problems(table: pd.DataFrame, record: Record, folds: Sequence[Fold] | None) -> Iterator[str]:
    """Yield what is wrong with whose predictions a table holds."""
    people = set(table["participant_id"])
    if len(people) > MAX_SUBJECTS:
        yield f"its predictions are of {len(people)} people, and at most {MAX_SUBJECTS} are scored again"
        return
    if len(people) != record.n_subjects:
        yield f"counts {record.n_subjects} subjects, and its predictions are of {len(people)}"
    keys = [c for c in ("participant_id", "mask", "window", "state", "condition") if c in table]
    if (again := table.duplicated(keys)).any():
        row = table[again].iloc[0]
        what = ", ".join(f"{k} {printable(str(row[k]))}" for k in keys)
        yield f"its predictions hold {what} twice: everybody is tested once"
    if folds is None:
        return
    fold = {s: f.index for f in folds for s in f.test}
    if strangers := sorted(people - fold.keys()):
        yield f"its predictions are of {printable(strangers[0])}, who is tested in no fold"
    elif "fold" in table:
        wrong = table["fold"] != table["participant_id"].map(fold)
        if wrong.any():
            who, there = table["participant_id"][wrong].iloc[0], table["fold"][wrong].iloc[0]
            yield f"its predictions have {printable(who)} in fold {there}, who is tested in fold {fold[who]}"


def unlike(table: pd.DataFrame, other: pd.DataFrame) -> Iterator[str]:
    """Yield what two rows of one task must have in common and have not."""
    keys = [c for c in ("participant_id", "mask", "window", "state", "condition") if c in table]
    if keys != [c for c in ("participant_id", "mask", "window", "state", "condition") if c in other]:
        yield "its predictions are of another kind of task"
        return
    shared = [
        c
        for c in (
            *("fold", "truth", "train_mean", "n", "sst", "sse_best_filler", "guard_sst", "headline", "n_epochs"),
            *("part", "n_gallery"),
        )
        if c in table and c in other
    ]
    said = [{c for c in PERSON if c in t} for t in (table, other)]
    if said[0] != said[1]:
        yield f"its predictions have not the same columns of people ({', '.join(sorted(said[0] ^ said[1]))})"
    shared += sorted(said[0] & said[1])
    both = table[keys + shared].merge(
        other[keys + shared], on=keys, how="outer", suffixes=("", " there"), indicator=True
    )
    # Masks that pretrained somebody are detail, and differ from run to run of one grid.
    apart = both[both["_merge"] != "both"]
    if len(apart) and "mask" not in keys:
        yield f"its predictions are not of the same {keys[-1]}s"
        return
    both = both[both["_merge"] == "both"]
    for column in shared:
        a, b = both[column], both[f"{column} there"]
        alike = (
            np.isclose(a.astype(float), b.astype(float), rtol=1e-9, atol=1e-12, equal_nan=True)
            if a.dtype == float
            else a == b
        )
        if not np.all(alike):
            yield f"its predictions have not the same {column}"


def of_people(table: pd.DataFrame, task: ComponentRecord) -> list[tuple[str, pd.Series[Any]]]:
    """Return what predictions say of each person: what it is, and values by names; the truth of the task among it.

    Of tables with one row a person: what lasted how long is another thing for every window.
    """
    if table["participant_id"].duplicated().any():
        return []
    by_name = table.set_index("participant_id")
    found = [(c, by_name[c]) for c in PERSON if c in table]
    if "truth" in table:
        found.append((f"truth of {task.label}", by_name["truth"]))
        if task.name == "age" and "age" in table:
            found.append(("age", by_name["truth"]))
    return found


def same_predictions(table: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two rows of one task predict the same of everybody, and not the same for everybody."""
    keys = [c for c in ("participant_id", "mask", "window", "state", "condition") if c in table]
    names = [c for c in map(str, table.columns) if c in ("prediction", "sse") or c.startswith(("p[", "p_"))]
    if not names or len(table) != len(other) or not {*keys, *names} <= set(other):
        return False
    a, b = (t.sort_values(keys)[names].to_numpy(float) for t in (table, other))
    return bool((a == b).all() and len(np.unique(a)) > len(table["fold"].unique()))
