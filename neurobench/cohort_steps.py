"""What all steps of one (cohort, seed) share: people and folds, tokenizers, and the parts of their identities."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pandas as pd
import torch

import neurobench
from neurobench import masking, pretraining, splits, tokens, transfer
from neurobench.cohorts import CohortSource
from neurobench.components import ComponentSpec
from neurobench.config import Grid
from neurobench.contracts import MaskingStrategy, Task
from neurobench.cost import Work
from neurobench.identity import digest
from neurobench.plugins import Registry
from neurobench.records import BackboneSpec, Cohort, Fold
from neurobench.steps import Fetch

__all__ = ["CohortSteps", "once"]

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound="CohortSteps")

_NOTHING = object()


def once(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Have a cohort's steps remember what a method returned: identities share their parts many times over.

    What it returns is not to be changed.
    """

    @functools.wraps(method)
    def remembered(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        key = (method.__name__, *args, *kwargs.items())
        found = self.remembered.get(key, _NOTHING)
        if found is _NOTHING:
            found = self.remembered[key] = method(self, *args, **kwargs)
        return cast(R, found)

    return remembered


@dataclass(frozen=True, eq=False)
class Outside:
    """Another cohort that networks are pretrained on.

    Parameters
    ----------
    cohort
        With the units of the network, see :class:`~neurobench.records.Correspondence`.
    people
        Whom they are pretrained on.
    shared
        Who is in the scored cohort too.
    """

    cohort: Cohort
    people: tuple[str, ...]
    shared: transfer.SharedPeople

    @property
    def n_left_out(self) -> int:
        """How many of the cohort networks are not pretrained on, because they are in the scored one too."""
        return len(self.cohort.subjects) - len(self.people)

    @property
    def n_same_name(self) -> int:
        """How many are pretrained on though somebody scored has their identifier: declared to be other people."""
        return len(set(self.shared.by_name) & set(self.people))


class CohortSteps:
    """A cohort and a seed, its folds, and what the steps of every kind are made with.

    Parameters
    ----------
    cohort, source
        Prepared recordings, and where they come from.
    grid
        What was asked for, resolved.
    registry
        Where components come from.
    seed
        Base seed.
    device
        Where backbones run.
    fetch
        Finds or computes a step that another one needs.
    others
        By label, the cohorts of ``grid.pretrain_on`` that are not this one.

    Raises
    ------
    DataError
        If the cohort cannot be split, or cannot be scored with networks that are pretrained on the others.
    """

    def __init__(
        self,
        cohort: Cohort,
        source: CohortSource,
        grid: Grid,
        registry: Registry,
        seed: int,
        device: torch.device,
        fetch: Fetch,
        others: Mapping[str, Cohort] | None = None,
    ) -> None:
        self.remembered: dict[tuple[Any, ...], Any] = {}
        self.source, self.grid, self.registry = source, grid, registry
        self.seed, self.device, self.fetch = seed, device, fetch
        profile = grid.profile
        self.cohort, self.outside = _met(cohort, grid, others or {})
        known = self.cohort.known_units
        self.folds = splits.make_folds(cohort.participants, profile.n_folds, seed, grid.config.split)
        splits.check_disjoint(self.folds, cohort.participants)
        self.fold_fingerprint = splits.fold_fingerprint(self.folds)
        self.recipe = pretraining.Recipe.for_width(profile.width, profile.batch_size)
        self.n_units = min(len(cohort.units), max(1, profile.n_tokens // cohort.patches_per_window))
        self.chunks = tokens.unit_chunks(cohort.units, self.n_units)
        self.spec = BackboneSpec.of(
            known,
            n_patches=cohort.patches_per_window,
            n_features=cohort.n_features,
            width=profile.width,
            n_layers=profile.n_layers,
        )

    # ------------------------------------------------------------ how much work it is

    @functools.cached_property
    def _pass_size(self) -> float:
        """Nominal size of one window of one chunk of units on its way through a backbone."""
        return float(self.n_units * self.spec.n_patches * self.spec.width * self.spec.n_layers)

    @functools.cached_property
    def _n_values(self) -> float:
        """Numbers in all recordings."""
        return float(sum(r.n_times for r in self.cohort.recordings) * len(self.cohort.units) * self.cohort.n_voxels)

    def _by(self, backbone: ComponentSpec | None) -> str:
        """Return what seconds for work of one size are shared by: a backbone on the tokens of a cohort."""
        return self.cohort.dataset if backbone is None else f"{backbone.label} on {self.cohort.dataset}"

    def _passes(
        self,
        kind: str,
        subjects: Sequence[str],
        backbone: ComponentSpec | None,
        span: tuple[float, float] = (0.0, 1.0),
        times: int = 1,
    ) -> Work:
        """Return the work of passing all evaluation windows of some subjects, in all chunks, ``times`` times."""
        key = (tuple(subjects), span)
        if key not in self._n_windows:
            self._n_windows[key] = len(tokens.evaluation_windows(self.cohort, subjects, span))
        return Work(kind, self._n_windows[key] * len(self.chunks) * times, self._pass_size, self._by(backbone))

    @functools.cached_property
    def _n_windows(self) -> dict[tuple[tuple[str, ...], tuple[float, float]], int]:
        return {}

    # ------------------------------------------------------------ shared pieces

    @functools.cached_property
    def _tokenizers(self) -> dict[int, tokens.Tokenizer]:
        return {}

    @functools.cached_property
    def _masks(self) -> dict[tuple[str, str, str, float], masking.Hidden]:
        """Evaluation masks of the current fold, which every row is scored under."""
        return {}

    def tokenizer(self, fold: Fold) -> tokens.Tokenizer:
        """Return the tokenizer of a fold, its scaler fitted on that fold's training subjects."""
        if fold.index not in self._tokenizers:
            # One fold's scaled signal and masks in memory at a time.
            self._tokenizers.clear()
            self._masks.clear()
            scaler = tokens.Scaler.fit(self.cohort, fold.train, fold.train_span)
            self._tokenizers[fold.index] = tokens.Tokenizer(self.cohort, scaler)
        return self._tokenizers[fold.index]

    def release(self) -> None:
        """Let go of signal; what is asked for again is read again."""
        self._tokenizers.clear()
        self._masks.clear()

    @once
    def component(self, spec: ComponentSpec) -> dict[str, Any]:
        """Return what identifies a component: name, parameters, distribution, version, digest of its source."""
        provenance = self.registry.provenance(spec.kind, spec.name)
        cls = self.registry.get(spec.kind, spec.name)
        return {**spec.identity(), **asdict(provenance), "score_version": cls.score_version}

    def strategy(self, spec: ComponentSpec) -> MaskingStrategy:
        """Build a masking strategy."""
        strategy: MaskingStrategy = self.registry.get("mask", spec.name)(**spec.arguments)
        return strategy

    def task(self, spec: ComponentSpec) -> Task:
        """Build a task."""
        task: Task = self.registry.get("task", spec.name)(**spec.arguments)
        return task

    @functools.cached_property
    def tasks(self) -> tuple[ComponentSpec, ...]:
        """The tasks that this cohort can be scored on."""
        needs = {"reconstruction"} if self.grid.config.split == "within-recording" else {"features", "reconstruction"}
        possible = (t for t in self.grid.tasks if self.task(t).needs in needs)
        return tuple(t for t in possible if not self.refusal(t))

    @once
    def refusal(self, task: ComponentSpec) -> str:
        """Return why a task cannot be scored on this cohort; empty: it can. One that cannot say so cannot be scored."""
        try:
            return self.task(task).refuses(self.cohort)
        except Exception as error:
            return f"it could not tell whether it can be scored, {type(error).__name__}: {' '.join(str(error).split())}"

    @once
    def _fold_identity(self, fold: Fold) -> dict[str, Any]:
        return {
            "cohort": self.cohort.fingerprint,
            "train": digest(list(fold.train)),
            "test": digest(list(fold.test)),
            "spans": [list(fold.train_span), list(fold.test_span)],
            "seed": self.seed,
            "neurobench": neurobench.__version__,
        }

    def _title(self, what: str, fold: Fold | None = None) -> str:
        where = f" · fold {fold.index + 1}/{len(self.folds)}" if fold is not None else ""
        return f"{what} · {self.cohort.dataset} · seed {self.seed}{where}"

    # ------------------------------------------------------------ who belongs together

    def families(self, subjects: Sequence[str]) -> list[str] | None:
        """Return whom inner folds have to keep together; None where nobody has a family."""
        if "family" not in self.cohort.participants:
            return None
        family = self.cohort.participants["family"].loc[list(subjects)]
        return [f"subject {s}" if pd.isna(f) else f"family {f}" for s, f in family.items()]

    def with_family(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return held-out evidence with who belongs together, so that intervals draw families as wholes."""
        if "family" not in self.cohort.participants:
            return table
        family = self.cohort.participants["family"].loc[list(table["participant_id"])]
        return table.assign(family=["" if pd.isna(f) else str(f) for f in family])


def _met(cohort: Cohort, grid: Grid, others: Mapping[str, Cohort]) -> tuple[Cohort, tuple[Outside, ...]]:
    """Return the cohort and the others that networks are pretrained on, all with the units of the first one's network.

    Raises
    ------
    DataError
        If somebody is in two of them, if tokens have different shapes, or if units cannot meet.
    """
    if not grid.pretrain_on:
        return cohort, ()
    everyone = {**others, cohort.dataset: cohort}
    first = everyone[grid.pretrain_on[0].label]

    def met(one: Cohort) -> Cohort:
        transfer.check_alike(one, first)
        return one if one is first else replace(one, seen_as=transfer.correspond(one.units, first.units))

    outside = []
    for spec in grid.pretrain_on:
        if spec.label != cohort.dataset:
            people, shared = transfer.outsiders(everyone[spec.label], cohort, grid.config.shared_people)
            outside.append(Outside(met(everyone[spec.label]), people, shared))
    return met(cohort), tuple(outside)
