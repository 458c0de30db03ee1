"""What of a record must agree: with its suite, its identity, its folds, its predictions, and the rows beside it."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from neurobench.bundle_reader import printable
from neurobench.components import Setting
from neurobench.contracts import EvokedTask, ReconstructionTask, RetrievalTask, SubjectTask, Task, WindowTask
from neurobench.errors import ConfigError
from neurobench.identity import digest
from neurobench.objectives import parse_objective
from neurobench.options import PROFILES, load_suite, parse_adaptation
from neurobench.plugin_rules import NAME
from neurobench.reconstruction import FILLERS
from neurobench.records import Fold
from neurobench.results import ComponentRecord, Record

__all__ = [
    "contradict",
    "fold_problems",
    "not_as_identified",
    "not_as_named",
    "not_of_suite",
    "not_of_task",
    "odd_predictions",
    "of_people",
    "other_means",
    "people_problems",
    "same_predictions",
    "sides",
    "undue_columns",
    "unlike",
    "unsaid",
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
    elif record.kind == "pretrained":
        on = ",".join(o.dataset for o in record.pretraining.on) if record.pretraining else ""
        objective = parse_objective(record.protocol.objective)
        by = "" if objective.is_default else f" ({objective.label})"
        # To the letter: what stands behind a name is read as a claim.
        wrong = backbone is None or mask is None or record.pretraining is None
        wrong |= record.row != f"{_label(backbone)} · {_label(mask)}{by}{on and f' ← {on}'}"
    else:
        start, _, rest = record.row.partition(f"{_label(backbone)} · ")
        words = r"as given" if record.kind == "given" else r"untrained|scratch"
        wrong = backbone is None or bool(start) or not re.fullmatch(rf"({words})( \(units of [^()]+\))?", rest)
    if wrong:
        yield f"row {printable(record.row)} is not named after what it was made with, or is of another kind"


def _label(component: ComponentRecord | None) -> str:
    return component.label if component is not None else ""


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


STEP_NAMES = {
    "backbone": {"mask", "spec", "n_steps", "n_tokens", "recipe", "ratio", "objective", "seed", "code"},
    "baseline": {"cohort", "train", "test", "seed", "task", "code"},
}
EVALUATION_NAMES = {
    SubjectTask: {"adaptation", "adaptation_parameters", "harmonise", "probe", "folds", "cohort"},
    WindowTask: {"adaptation", "adaptation_parameters", "probe", "folds", "cohort", "windows"},
    RetrievalTask: {"folds", "cohort", "windows"},
    ReconstructionTask: {"row"},
    EvokedTask: {"row"},
}


def unsaid(record: Record, task: Task, evaluation: Mapping[str, Any], steps: Mapping[str, Any]) -> Iterator[str]:
    """Yield what an identity of this version has to say and does not: what is not there is held to nothing."""
    wanted = next((names for kind, names in EVALUATION_NAMES.items() if isinstance(task, kind)), set())
    if gone := sorted((wanted | {"sources", "task", "seed", "code"}) - evaluation.keys()):
        yield f"its id is the hash of something without {gone[0]}"
    inside = record.pretraining is None or not record.pretraining.on
    for step in steps.values():
        own = step["identity"]
        for kind, names in STEP_NAMES.items():
            more = {"cohort", "people", "train", "test"} if kind == "backbone" and "people" in own else set()
            if kind == "backbone" and record.kind == "pretrained" and inside:
                more = {"cohort", "people", "train", "test"}
            if kind in own and (gone := sorted((names | more) - own.keys())):
                yield f"a step of its {kind} does not say its {gone[0]}"


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
    if split == "subjects" and any(set(f.train) != people - set(f.test) for f in folds):
        yield "somebody is neither trained on nor tested in a fold"


def sides(table: pd.DataFrame, folds: Sequence[Fold], split: str, n_folds: int) -> Iterator[str]:
    """Yield what of folds is not as their split makes them, by what predictions say of people."""
    known = table.drop_duplicates("participant_id").set_index("participant_id")
    tested = [set(f.test) for f in folds]
    if "family" in known:
        family = {s: f for s, f in known["family"].items() if isinstance(f, str) and f}
        for f, test in zip(folds, tested, strict=True):
            both = {family[s] for s in test if s in family} & {
                family[s] for s in f.train if s in family and s not in test
            }
            if both:
                yield f"fold {f.index} trains on relatives of people whom it tests: family {printable(min(both))}"
                return
    elif split == "subjects" and len(people := set().union(*tested)) and n_folds > 1:
        most = -(-len(people) // n_folds)
        if max(map(len, tested)) > most:
            text = f"{max(map(len, tested))} of {len(people)} people"
            yield f"one of {n_folds} folds tests {text}, and a split tests {most} in one at most"
    if split == "site" and "site" in known:
        site = {s: str(of) for s, of in known["site"].items() if isinstance(of, str) and of}
        for f, test in zip(folds, tested, strict=True):
            both = {site[s] for s in test if s in site} & {site[s] for s in f.train if s in site}
            if both:
                yield f"fold {f.index} tests a site that it trains on: {printable(min(both))}"
                return


def other_means(table: pd.DataFrame, folds: Sequence[Fold]) -> Iterator[str]:
    """Yield where the mean of the training targets, which chance and R² are made from, is not that of those people."""
    if "train_mean" not in table or "truth" not in table or table["truth"].dtype != float:
        return
    truth = dict(zip(table["participant_id"], table["truth"], strict=True))
    tested = {s for f in folds for s in f.test}
    for f in folds:
        said = table.loc[table["fold"] == f.index, "train_mean"]
        # Of people who are never tested nobody says the target.
        if not len(said) or not set(f.train) <= tested:
            continue
        own = [truth[s] for s in f.train if s in truth]
        mean = float(np.mean(own)) if own else np.nan
        if not np.allclose(said, mean, rtol=1e-9, atol=1e-9):
            yield (
                f"the mean of the training targets of fold {f.index} is given as {said.iloc[0]:.6g}, and is {mean:.6g}"
            )
            return


def undue_columns(table: pd.DataFrame, needed: Collection[str] | None) -> Iterator[str]:
    """Yield what pseudonymous predictions say of people that no metric needs, or by names that are their own.

    ``needed`` is None where nobody here knows the metrics.
    """
    for column, pattern in (
        ("participant_id", r"s[0-9]+"),
        ("window", r"w[0-9]+"),
        ("site", r"(site[0-9]+)?"),
        ("family", r"(family[0-9]+)?"),
    ):
        if column in table and not all(re.fullmatch(pattern, str(v)) for v in table[column]):
            yield f"asks for pseudonyms: column {column} holds other names"
    if needed is not None and (more := sorted(c for c in PERSON if c in table and c not in {*needed, "family"})):
        yield f"asks for no more of a person than a metric needs: column {more[0]} is none of that"


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


def odd_predictions(
    record: Record, task: Task, table: pd.DataFrame
) -> Iterator[tuple[Literal["warning", "error"], str]]:
    """Yield what no probe predicts."""
    if isinstance(task, WindowTask):
        shares = table[[c for c in map(str, table.columns) if c.startswith("p[")]].to_numpy(float)
        if ((shares < -1e-9) | (shares > 1 + 1e-9)).any():
            yield "error", "a predicted probability is not in 0 to 1"
    if not isinstance(task, SubjectTask):
        return
    truth, predicted = table["truth"].to_numpy(float), table["prediction"].to_numpy(float)
    if task.kind == "classification":
        if not np.isin(truth, (0.0, 1.0)).all():
            yield "error", f"a true class is {truth[~np.isin(truth, (0.0, 1.0))][0]:.4g}: 0 and 1 are classes"
        if ((predicted < 0) | (predicted > 1)).any():
            yield "error", "a predicted probability is not in 0 to 1"
        return
    if record.backbone is None:
        return
    if (n := int((truth == predicted).sum())) > 2:
        yield "warning", f"{n} people are predicted to the last digit: no probe does that"
    if len(np.unique(predicted)) > len(table) / 2 and (np.round(predicted, 3) == predicted).all():
        yield "warning", "its predictions have three decimals at most, and those of a probe have all"


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


def contradict(a: pd.Series[Any], b: pd.Series[Any]) -> bool:
    """Return whether two columns say different things of people whom both have."""
    both = a.index.intersection(b.index)
    a, b = a[both], b[both]
    return not bool(((a == b) | (a.isna() & b.isna())).all())


def same_predictions(table: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Return whether two rows of one task predict the same of everybody, and not the same for everybody.

    The same up to a thousandth of what people differ by: two networks never agree that well, and who adds a little to
    every number of another one does. Sums of squares differ by people more than by networks: those are equal or not.
    """
    keys = [c for c in ("participant_id", "mask", "window", "state", "condition") if c in table]
    names = [c for c in map(str, table.columns) if c in ("prediction", "sse") or c.startswith(("p[", "p_"))]
    if not names or len(table) != len(other) or not {*keys, "fold", *names} <= set(other):
        return False
    here, there = (t.sort_values(keys) for t in (table, other))
    if not all((here[k].to_numpy() == there[k].to_numpy()).all() for k in (*keys, "fold")):
        return False
    a, b = (t[names].to_numpy(float) for t in (here, there))
    if "sse" in names:
        return bool(np.allclose(a, b, rtol=1e-7, atol=0.0) and len(np.unique(a)) > len(here["fold"].unique()))
    folds = here["fold"].to_numpy()
    a, b = (np.concatenate([v[folds == f] - v[folds == f].mean(0) for f in np.unique(folds)]) for v in (a, b))
    spread = float(a.std())
    return bool(spread > 1e-9 and np.abs(a - b).max() < 1e-3 * spread)
