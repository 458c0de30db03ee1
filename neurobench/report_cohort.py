"""What a report says of a cohort and of the protocol: who is in it, who was left out, and how it was scored."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from neurobench.evidence import Evidence
from neurobench.objectives import Latent, parse_objective
from neurobench.results import Record
from neurobench.tables import TextTable

__all__ = ["facts", "flow", "participants", "protocol", "sites"]


def facts(evidence: Evidence) -> Iterator[tuple[str, str]]:
    """Yield what is known of a cohort as a whole."""
    c, card = evidence.cohort, evidence.cohort["card"]
    yield "dataset", f"{card['title']} ({evidence.dataset})"
    yield (
        "source",
        "SIMULATED" + (f", variant {c['variant']}" if c["variant"] else "") if c["source"] == "simulated" else "real",
    )
    yield "subjects, recordings", f"{c['n_subjects']}, {c['n_recordings']}"
    yield "states", ", ".join(f"{k} × {n}" for k, n in c["states"].items())
    yield "recording length", _spread(c["recording_s"], " s")
    yield "units", f"{c['n_units']} ({c['signal']}); groups: {c['group_source']}"
    yield "sampling", f"{c['sfreq']:.4g} Hz"
    yield "signal", "; ".join(_alike(c["provenance"]))
    yield "revision", card["revision"]
    if card["inclusion"]:
        yield "inclusion", card["inclusion"]
    yield "licence", card["licence"]
    yield "access", card["access"]
    for trap in card["traps"]:
        yield "known trap", trap


def _spread(s: Mapping[str, float], unit: str = "") -> str:
    return f"{s['mean']:.4g} ± {s['sd']:.3g}{unit} ({s['low']:.4g} to {s['high']:.4g})"


_SHARE = re.compile(r"(\d+(?:\.\d+)?)\s?%")


def _alike(lines: Sequence[str]) -> list[str]:
    """Return lines that differ in one percentage only as one line with their range: one a recording is no reading."""
    ranges: dict[str, list[float]] = {}
    for line in lines:
        found = _SHARE.findall(line)
        key = _SHARE.sub("{} %", line) if len(found) == 1 else line
        ranges.setdefault(key, []).extend(float(f) for f in found if len(found) == 1)
    said = []
    for key, values in ranges.items():
        low, high = (min(values), max(values)) if values else (0.0, 0.0)
        said.append(key.replace("{}", f"{low:g}" if low == high else f"{low:g} to {high:g}") if values else key)
    return said


def flow(cohort: Mapping[str, Any], records: Sequence[Record]) -> TextTable:
    """Return who was found, left out with the reason, used, and scored on each task."""
    lost = [f for f in cohort["findings"] if f["level"] == "error"]
    kept = [f for f in cohort["findings"] if f["level"] != "error"]
    hidden = "single cases are not shown; `neurobench data check` lists them on the machine that holds the data"
    rows = [["left out", f["code"], str(f["n"]), f["example"] or hidden] for f in lost]
    if not lost:
        rows.append(["left out", "nobody", "0", "no recording was left out while reading"])
    rows.append(
        ["used", "recordings", str(cohort["n_recordings"]), f"of {cohort['n_subjects']} subjects, in every pretraining"]
    )
    words = {"warning": "used, with a warning", "info": "noted"}
    rows += [[words[f["level"]], f["code"], str(f["n"]), f["example"] or hidden] for f in kept]
    for task in dict.fromkeys(r.task.label for r in records):
        n = max(r.n_subjects for r in records if r.task.label == task)
        without = cohort["n_subjects"] - n
        why = f"{without} without what the task needs (its target, or enough events)" if without > 0 else "everybody"
        rows.append(["scored", task, f"{n} subjects", why])
    return TextTable(["step", "what", "n", "why"], rows)


def sites(cohort: Mapping[str, Any]) -> TextTable | None:
    """Return who comes from where; None where sites are not known."""
    if not cohort["sites"]:
        return None
    names = [n for n in ("age", "mean_fd", "duration_s") if any(n in s for s in cohort["sites"])]
    titles = {"age": "age (years)", "mean_fd": "motion (mm)", "duration_s": "scan length (s)"}
    classes = any("diagnosis" in s for s in cohort["sites"])
    rows = [
        [
            s["site"],
            str(s["n"]),
            *([", ".join(f"{k} {n}" for k, n in s.get("diagnosis", {}).items())] if classes else []),
            *(_spread(s[n]) if n in s else "–" for n in names),
        ]
        for s in cohort["sites"]
    ]
    return TextTable(["site", "n", *(["diagnosis"] if classes else []), *(titles[n] for n in names)], rows)


def participants(cohort: Mapping[str, Any]) -> TextTable:
    """Return every column of the participants table with what is in it."""
    rows = []
    for name, entry in cohort["columns"].items():
        what = _spread(entry) if "mean" in entry else ", ".join(f"{k} {n}" for k, n in entry.get("classes", {}).items())
        rows.append([name, str(entry["n"]), what or "many values"])
    return TextTable(["column", "known", "values"], rows)


def protocol(record: Record) -> Iterator[tuple[str, str]]:
    """Yield how the numbers beside a record were made."""
    p = record.protocol
    objective = parse_objective(p.objective)
    latent = isinstance(objective, Latent)
    yield "suite", p.suite or "none: options of the command line"
    held = {"subjects": "by subject", "site": "one site at a time", "within-recording": "later part of each recording"}
    yield "held out", f"{held[p.split]}, {p.n_folds} folds, split {p.fold_fingerprint[:12]}"
    yield (
        "pretraining",
        ("prediction of hidden tokens as a slow copy sees them, in " if latent else "masked reconstruction of ")
        + (
            "everybody's recordings, the test subjects' among them, without labels (TRANSDUCTIVE)"
            if p.transductive
            else "the training subjects' recordings of each fold"
        )
        + ("" if objective.is_default else f" ({objective.label})"),
    )
    yield (
        "budget",
        f"{p.n_steps} steps of {p.batch_size} windows of at most {p.n_tokens} tokens; "
        f"{p.ratio:.0%} of valid ones scored{', drawn for every window' if objective.draws_ratios else ''}",
    )
    yield "size", f"profile {p.profile}: width {p.width}, {p.n_layers} layers"
    yield "recipe", ", ".join(f"{k} {v}" for k, v in p.recipe.items())
    yield "windows", f"{p.window_s:g} s in patches of {p.patch_s:g} s"
    settings = "".join(f", {k} {v}" for k, v in p.adaptation_parameters.items())
    probes = {"linear": "", "kernel": ", kernel probe", "attentive": ", attentive probe (baselines: the linear one)"}
    yield "adaptation", p.adaptation.partition("[")[0] + settings + probes[p.probe]
    yield "harmonisation", "site, fitted on the training subjects of each fold" if p.harmonise == "site" else "none"
    yield "uncertainty", "95 % intervals of 2,000 bootstraps over subjects; 1,000 permutations within sites"
