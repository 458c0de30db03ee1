"""Does pretraining learn? Held-out R² of every backbone beside the ridge from visible units, on ROI time series.

    python -m benchmarks.pretraining_learns FOLDER [--units 24] [--steps 600] [--backbone transformer,mamba,hybrid]

One fold, `random_tube` at ratio .5, width 64, two layers, the recipe that every run uses. ``--units 24`` keeps 24
regions evenly spaced in index, the setting in which the ridge's figure is known; ``--units 0`` keeps all, and each
training window draws 25 of them at random, as the token cap of the `cpu` profile does.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from neurobench import pretraining, reconstruction, splits, tokens
from neurobench.cohorts import CohortSource
from neurobench.components import parse_component
from neurobench.identity import seed_for
from neurobench.plugins import load_registry
from neurobench.records import BackboneSpec, Cohort
from neurobench.store import Store

WIDTH, N_LAYERS, N_TOKENS, RATIO = 64, 2, 250, 0.5


def load_cohort(folder: Path, n_units: int, store: Store) -> Cohort:
    """Prepare the recordings of a folder, as `neurobench run --dataset parcels` does."""
    registry = load_registry()
    spec = parse_component("dataset", f"parcels[n_units={n_units}]", registry)
    dataset = registry.get("dataset", spec.name)(**spec.parameters)
    return CohortSource(dataset, spec.label, spec.identity(), dataset.spec, folder).load(store)


def measure(
    cohort: Cohort, backbones: list[str], n_steps: int, recipe: pretraining.Recipe, seed: int = 0
) -> list[dict[str, float | str]]:
    """Return one row a predictor: R² on the test subjects of the first of four folds, ratio to the ridge, seconds."""
    registry = load_registry()
    fold = splits.make_folds(cohort.participants, 4, seed, "subjects")[0]
    tokenizer = tokens.Tokenizer(cohort, tokens.Scaler.fit(cohort, fold.train))
    strategy = registry.get("mask", "random_tube")()
    spec = BackboneSpec(
        n_units=len(cohort.units),
        n_groups=len(cohort.units.group_names),
        n_patches=cohort.patches_per_window,
        n_features=cohort.n_features,
        width=WIDTH,
        n_layers=N_LAYERS,
    )
    predictors = dict(reconstruction.fit_fillers(tokenizer, fold.train, ratio=RATIO, seed=seed))
    seconds: dict[str, float] = {}
    for text in backbones:
        component = parse_component("backbone", text, registry)
        net, decoder = pretraining.build(
            registry.get("backbone", component.name), spec, component.parameters, seed_for(seed, "pretrain-init", text)
        )
        windows = tokens.TrainingWindows(tokenizer, fold.train, N_TOKENS, seed)
        history = pretraining.pretrain(
            net, decoder, strategy, windows, recipe=recipe, n_steps=n_steps, ratio=RATIO, seed=seed
        )
        predictors[text] = reconstruction.BackbonePredictor(net, decoder, torch.device("cpu"))
        seconds[text] = history.seconds
    chunks = tokens.unit_chunks(cohort.units, N_TOKENS // cohort.patches_per_window)
    scores = reconstruction.evaluate(
        predictors,
        tokenizer,
        tokens.evaluation_windows(cohort, fold.test),
        chunks,
        {"random_tube": strategy},
        ratio=RATIO,
        seed=seed,
    )
    ridge = float(scores.r2("ridge")[0])
    return [
        {
            "row": p,
            "r2": float(scores.r2(p)[0]),
            "of_ridge": float(scores.r2(p)[0]) / ridge,
            "seconds": seconds.get(p, 0.0),
        }
        for p in predictors
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--units", type=int, default=24)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--backbone", default="transformer,mamba,hybrid")
    parser.add_argument("--learning-rate", type=float, default=None, help="instead of the recipe's")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--json", type=Path, help="write the rows here too")
    given = parser.parse_args()
    recipe = pretraining.Recipe.for_width(WIDTH, given.batch_size)
    if given.learning_rate is not None:
        recipe = replace(recipe, learning_rate=given.learning_rate)
    with tempfile.TemporaryDirectory() as out:
        cohort = load_cohort(given.folder, given.units, Store(Path(out) / "out"))
        rows = measure(cohort, given.backbone.split(","), given.steps, recipe)
    table = Table(title=f"{len(cohort.subjects)} people, {len(cohort.units)} units, {given.steps} steps, {recipe}")
    for name in ("row", "R²", "of the ridge", "seconds"):
        table.add_column(name, justify="left" if name == "row" else "right")
    for r in rows:
        table.add_row(
            str(r["row"]), f"{r['r2']:.3f}", f"{r['of_ridge']:.2f}", f"{r['seconds']:.0f}" if r["seconds"] else ""
        )
    Console(width=120).print(table)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
