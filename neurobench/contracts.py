"""The abstract bases that plugins implement. Each says what it is given, what it must return, and what it may not do.

A component's parameters are the keyword-only arguments of its constructor, each annotated with ``int``, ``float``,
``str`` or ``bool`` and given a default; ``hybrid[layout=MMAA]`` on the command line sets one. The resolved values are
part of the identity of every result.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn

from neurobench.evidence import Evidence
from neurobench.records import (
    BackboneSpec,
    Cohort,
    DatasetCard,
    Listing,
    RawRecording,
    Recording,
    RecordingFile,
    RetrievalWindow,
    SignalKind,
    SignalSpec,
    TokenTable,
    UnitTable,
    WindowTable,
)
from neurobench.resources import Needs
from neurobench.visible import FromVisible, VisibleGrid

if TYPE_CHECKING:
    # Only a report draws: nobody else should wait for matplotlib.
    from matplotlib.figure import Figure as MplFigure

__all__ = [
    "COVARIATES",
    "PARAMETERS_PER_PASS",
    "Backbone",
    "Baseline",
    "Component",
    "Dataset",
    "Drawing",
    "EvokedTask",
    "Figure",
    "MaskingStrategy",
    "Metric",
    "ReconstructionTask",
    "RetrievalTask",
    "SensorEmbedding",
    "SubjectTask",
    "Task",
    "TokenBackbone",
    "WindowTask",
    "feedforward_width",
    "patch_basis",
]

PARAMETERS_PER_PASS = 12
"""Parameters of one pass (along units or along time), in multiples of width²: what a transformer block with a
feed-forward ratio of 4 has. Every backbone meets it within 10 % through its feed-forward width, never its width."""

COVARIATES = ("age", "sex", "site", "mean_fd", "duration_s")
"""Columns that the covariates baseline may use, less the target itself."""


class Component:
    """What every plugin class has: a name, a one-line description, its parameters and known exceptions.

    Attributes
    ----------
    name
        Name on the command line; also the file name and the suffix of the entry point.
    summary
        One line for `neurobench list`.
    reference
        DOI or other source of the mechanism.
    score_version
        Raised by the author when results change for the same input.
    superseded_by
        Name of the component to use instead.
    expected_failures
        Contract checks that this component is known to fail, each with the reason. A check listed here that passes
        is an error too.
    check_with
        Parameters that the contract checks build the component with, where its defaults alone do not do.
    resources
        Of a backbone, mask or baseline: what a step that runs it needs beyond a core, in the words of Dask's worker
        resources, such as ``{"GPU": 1, "MEMORY": 16e9}`` (bytes). It decides where steps run, and is part of no
        identity; users can say otherwise with ``--resources``.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    reference: ClassVar[str] = ""
    score_version: ClassVar[int] = 1
    superseded_by: ClassVar[str] = ""
    expected_failures: ClassVar[Mapping[str, str]] = {}
    check_with: ClassVar[Mapping[str, Any]] = {}
    resources: ClassVar[Needs] = {}

    @classmethod
    def component_parameters(cls) -> dict[str, inspect.Parameter]:
        """Return the parameters a user may set: the keyword-only arguments of the constructor.

        (Not ``parameters``, which is torch's word for weights.)
        """
        signature = inspect.signature(cls.__init__, eval_str=True)
        return {n: p for n, p in signature.parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @classmethod
    def unavailable(cls) -> str:
        """Return why this component cannot be used on this machine, or an empty string."""
        return ""

    @classmethod
    def named_files(cls, parameters: Mapping[str, Any]) -> Mapping[str, Sequence[Path]]:
        """Return, by parameter, the files it names whose content decides what the component does.

        Their content takes the place of the path in every label, identity and record: a file that is moved is the same
        one, and one that is overwritten is another. Of a backbone these are weights that somebody trained elsewhere:
        its results are marked, as nobody here knows who is in them.

        Raises
        ------
        NeurobenchError
            If there is no such file.
        """
        return {}


# ---------------------------------------------------------------- backbone


class Backbone(nn.Module, Component, ABC):
    """Maps signal to tokens. Masks, decoder, pooling, optimiser and schedule are not its business.

    The constructor is ``__init__(self, spec, *, parameter=default, …)``. Hidden values are replaced by zeros before
    the backbone is called, so that it cannot see them; a check proves it.
    """

    budgeted: ClassVar[bool] = True
    """False only for backbones that come in the size that somebody gave them: exempt from the common parameter budget,
    and not ranked beside those that keep it."""

    drops_hidden: ClassVar[bool] = False
    """Whether hidden tokens are left out when the visible ones are computed, as MAE does: visible tokens are what they
    would be if the hidden ones were not in the table. A :class:`TokenBackbone` has no more to do than to say so."""

    signals: ClassVar[tuple[SignalKind, ...]] = ("parcels", "sensors", "volume")
    """Kinds of signal it can be used on; others are refused before any work starts."""

    uses_connectivity: ClassVar[bool] = False
    """Whether it wants to know which units go together: ``self.connectivity`` is then a buffer of (n_units, n_units)
    float, the mean Fisher's z of correlations over the people that it is pretrained on, rows and columns by
    ``table.unit``; zero on the diagonal and for pairs that nobody has, zeros throughout until the runner fills it in.
    It travels with the weights, and the untrained network of a fold has that of the fold's training subjects too."""

    connectivity: torch.Tensor

    share_of_batch: float = 1.0
    """Which fraction of a training batch :meth:`forward` is given, where memory or several processes ask for parts:
    whatever a backbone adds to the gradient of the loss beside its tokens has to count by it."""

    def __init__(self, spec: BackboneSpec) -> None:
        super().__init__()
        self.spec = spec
        if self.uses_connectivity:
            self.register_buffer("connectivity", torch.zeros(spec.n_units, spec.n_units))

    @classmethod
    def drops(cls, parameters: Mapping[str, Any]) -> bool:
        """Return whether hidden tokens are left out with these parameters: always, or by ``visible_only``."""
        return cls.drops_hidden or bool(parameters.get("visible_only", False))

    @classmethod
    def impossible(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return why this backbone cannot be built with these sizes and parameters, or an empty string."""
        return ""

    @classmethod
    def keeps_budget(cls, parameters: Mapping[str, Any]) -> bool:
        """Return whether the common parameter budget holds with these parameters."""
        return cls.budgeted

    @classmethod
    def remark(cls, spec: BackboneSpec, parameters: Mapping[str, Any]) -> str:
        """Return what a reader should know of this backbone with these sizes and parameters, or an empty string."""
        return ""

    @abstractmethod
    def forward(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Map signal to tokens.

        Parameters
        ----------
        signal
            (batch, units, patches, features) float, zeros where hidden or not valid.
        hidden
            (batch, units, patches) bool, True = hidden; never True where not valid.
        table
            The token table: unit, group, position, orientation, type, valid.

        Returns
        -------
        tokens
            (batch, units, patches, width).
        """

    def importance(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor | None:
        """Return how much the tokens of every unit draw on every unit, by the backbone's own weights.

        Parameters
        ----------
        signal, hidden, table
            As for :meth:`forward`.

        Returns
        -------
        importance
            (batch, units, units), output unit × input unit: shares from 0 that sum to 1 a row, input patches summed
            up, the mean over the output's valid patches; a row of zeros for a unit without any (where hidden tokens are
            left out: without a visible one). None: this backbone cannot say (occlusion can all the same).
        """
        return None

    def routing(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor | None:
        """Return which experts work on the tokens of every unit, for a backbone that is a mixture of them.

        Parameters
        ----------
        signal, hidden, table
            As for :meth:`forward`.

        Returns
        -------
        shares
            (batch, units, experts): gates from 0 that sum to 1 a row, the mean over the unit's valid patches; experts
            of several layers one layer after the other; a row of zeros for a unit without a valid patch (where hidden
            tokens are left out: without a visible one). None: there are no experts.
        """
        return None

    def with_prompts(self, n_tokens: int) -> Sequence[nn.Parameter]:
        """Add learned tokens that every token may draw on, and return what is to be trained of them.

        They come after pretraining, into a backbone that is frozen: nothing else of it may change, and tokens have the
        shape that they had. A :class:`TokenBackbone` has this already; any other backbone without it is refused where
        prompts are asked for.

        Parameters
        ----------
        n_tokens
            How many.
        """
        raise NotImplementedError(f"{self.name} takes no prompts")

    @classmethod
    def takes_prompts(cls) -> bool:
        """Return whether :meth:`with_prompts` is there."""
        return cls.with_prompts is not Backbone.with_prompts


def patch_basis(n_features: int, width: int) -> torch.Tensor:
    """Return (width, n_features): where the embedding of a patch and the decoder start, one the other's inverse.

    The rows of a discrete cosine transform, lowest frequencies first where the width is smaller than the patch, turned
    at random (always the same way). Copying a neighbour's waveform is then a matter of mixing tokens; from two random
    matrices a network first has to learn that they belong together, which takes hundreds of steps on MEG.
    """
    kept = min(n_features, width)
    k, t = torch.arange(kept)[:, None], torch.arange(n_features)[None] + 0.5
    cosines = torch.cos(torch.pi * k * t / n_features) * (2 / n_features) ** 0.5
    cosines[0] /= 2**0.5
    turn = nn.init.orthogonal_(torch.empty(width, kept), generator=torch.Generator().manual_seed(0))
    basis: torch.Tensor = turn @ cosines
    return basis


class SensorEmbedding(nn.Module):
    """What a sensor measures: its type, and a linear map of its orientation; nothing is added where either is unknown.

    What a vector points along is the type's to say (:class:`~neurobench.records.UnitTable`). Built only where units
    have several types or an orientation, so that everywhere else no weight comes and no draw of one moves.

    Parameters
    ----------
    spec
        Sizes.
    width
        Of the embedding.
    """

    def __init__(self, spec: BackboneSpec, width: int) -> None:
        super().__init__()
        self.type_embedding = nn.Embedding(spec.n_types, width) if spec.n_types > 1 else None
        self.orientation = nn.Linear(3, width, bias=False) if spec.oriented else None
        if self.type_embedding is not None:
            nn.init.normal_(self.type_embedding.weight, std=0.02)

    @classmethod
    def of(cls, spec: BackboneSpec, width: int) -> SensorEmbedding | None:
        """Return the embedding, or None where units are all of one type and none has an orientation."""
        return cls(spec, width) if spec.n_types > 1 or spec.oriented else None

    def forward(self, table: TokenTable) -> torch.Tensor:
        """Return (batch, units, width)."""
        embedded = table.position.new_zeros(())
        if self.type_embedding is not None:
            known = (table.type >= 0)[..., None]
            embedded = embedded + self.type_embedding(table.type.clamp(min=0)) * known
        if self.orientation is not None:
            embedded = embedded + self.orientation(table.orientation)
        return embedded


class TokenBackbone(Backbone):
    """A backbone that only says how tokens mix; embedding is done for it, the same for all.

    A token's embedding is the sum of its value (or a learned vector where hidden), its unit, its group, its
    position, its time and, for sensors, its type and orientation (:class:`SensorEmbedding`). Units get a strong
    identity (s.d. .2): with .02 a model on real BOLD learns almost nothing in a thousand steps.

    With ``drops_hidden = True`` in a class, or ``visible_only``, :meth:`mix` is given visible tokens only, on the
    smallest grid that holds them, and hidden places get their tokens from what comes out of it, by one light attention
    whose parameters count. Patches that are neighbours on that grid need not be so in time: what a place means is in
    its embedding and in ``table``.

    With prompts (:meth:`with_prompts`) :meth:`mix` is given a few units more, the last ones, and what it makes of them
    is dropped. They are no unit of the table: ``table.unit`` and ``table.type`` are −1 there, the group 0, the position
    the mean of the window's units, without an orientation, and they are valid in every patch in which the window has a
    valid token. A :meth:`mix` that looks units up has to treat −1 as something that belongs everywhere; a check holds
    it to that.

    Parameters
    ----------
    spec
        Sizes.
    visible_only
        For a backbone that leaves it to its user: its constructor has a parameter of that name and hands it on.
    """

    UNIT_STD = 0.2

    def __init__(self, spec: BackboneSpec, visible_only: bool = False) -> None:
        super().__init__(spec)
        w = spec.width
        self.value = nn.Linear(spec.n_features, w)
        self.value.weight.data.copy_(patch_basis(spec.n_features, w))
        nn.init.zeros_(self.value.bias)
        self.hidden_token = nn.Parameter(torch.randn(w) * 0.02)
        self.unit_embedding = nn.Embedding(spec.n_units, w)
        self.group_embedding = nn.Embedding(spec.n_groups, w)
        self.position = nn.Linear(3, w)
        self.time_embedding = nn.Parameter(torch.randn(spec.n_patches, w) * 0.02)
        nn.init.normal_(self.unit_embedding.weight, std=self.UNIT_STD)
        nn.init.normal_(self.group_embedding.weight, std=0.02)
        self.sensor = SensorEmbedding.of(spec, w)
        self.norm = nn.LayerNorm(w)
        self.from_visible = FromVisible(w, spec.n_layers) if visible_only or self.drops_hidden else None
        self.prompts: nn.Parameter | None
        self.register_parameter("prompts", None)

    def with_prompts(self, n_tokens: int) -> tuple[nn.Parameter]:
        """Add ``n_tokens`` learned tokens, each in all patches, drawn by torch's generator as units are."""
        drawn = torch.randn(n_tokens, self.spec.width) * self.UNIT_STD
        self.prompts = nn.Parameter(drawn.to(self.hidden_token.device))
        return (self.prompts,)

    def embed(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return (batch, units, patches, width) embeddings; zeros where a token is not valid."""
        value = torch.where(hidden[..., None], self.hidden_token, self.value(signal))
        unit = self.unit_embedding(table.unit) + self.group_embedding(table.group) + self.position(table.position)
        if self.sensor is not None:
            unit = unit + self.sensor(table)
        tokens = value + unit[:, :, None] + self.time_embedding[: signal.shape[2]]
        embedded: torch.Tensor = tokens * table.valid[..., None]
        return embedded

    def forward(self, signal: torch.Tensor, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Embed, mix (all tokens, or the visible ones and from them the hidden), normalise."""
        tokens = self.embed(signal, hidden, table)
        if self.from_visible is None:
            mixed = self._mix_beside_prompts(tokens, table)
        else:
            grid = VisibleGrid.of(hidden, table)
            mixed = self.from_visible(tokens, self._mix_beside_prompts(grid.gather(tokens), grid.table), hidden, grid)
        normed: torch.Tensor = self.norm(mixed)
        return normed

    def _mix_beside_prompts(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix tokens, the prompts among them if there are any; what becomes of the prompts is dropped."""
        if self.prompts is None:
            return self.mix(tokens, table)
        n_units = tokens.shape[1]
        table = _with_prompts(table, len(self.prompts))
        # Like all tokens, zeros where they are not valid.
        learned = self.prompts[None, :, None] * table.valid[:, n_units:, :, None]
        return self.mix(torch.cat([tokens, learned.to(tokens.dtype)], 1), table)[:, :n_units]

    def taking_part(self, hidden: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Return (batch, units, patches) which tokens are mixed: the valid ones, or the visible ones of them."""
        return table.valid if self.from_visible is None else table.valid & ~hidden

    @abstractmethod
    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix (batch, units, patches, width) tokens along units and along time; same shape out."""


def _with_prompts(table: TokenTable, n_tokens: int) -> TokenTable:
    """Return the table with so many units more that are none of the unit table's."""
    present = table.valid.any(2)[..., None].to(table.position.dtype)
    centre = (table.position * present).sum(1, keepdim=True) / present.sum(1, keepdim=True).clamp(min=1)
    # Not in padding: a prompt there would carry how much of a window is missing into the tokens that are not.
    valid = table.valid.any(1, keepdim=True)
    no_unit = torch.full_like(table.unit[:, :1], -1)

    def joined(own: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        return torch.cat([own, new.expand(-1, n_tokens, *new.shape[2:])], 1)

    return replace(
        table,
        unit=joined(table.unit, no_unit),
        valid=joined(table.valid, valid),
        position=joined(table.position, centre),
        group=joined(table.group, torch.zeros_like(no_unit)),
        orientation=joined(table.orientation, torch.zeros_like(centre)),
        type=joined(table.type, no_unit),
    )


def feedforward_width(width: int, mixer_parameters: int) -> int:
    """Return the hidden width of a feed-forward block that fills one pass up to its parameter budget.

    Parameters
    ----------
    width
        Width of a token.
    mixer_parameters
        Parameters of the rest of the pass, norms among it.

    Returns
    -------
    int
        Hidden width, a multiple of 8, so that the pass has :data:`PARAMETERS_PER_PASS` · width² parameters.
    """
    left = PARAMETERS_PER_PASS * width**2 - mixer_parameters
    hidden = max(0, round(left / (2 * width + 1) / 8) * 8)
    if hidden == 0:
        raise ValueError(
            f"a mixer of {mixer_parameters} parameters at width {width} leaves no room for a feed-forward block "
            f"in the budget of {PARAMETERS_PER_PASS} × width² = {PARAMETERS_PER_PASS * width**2}"
        )
    return hidden


# ---------------------------------------------------------------- masking strategy


class MaskingStrategy(Component, ABC):
    """Says which tokens are hidden. Sees the token table and its generator, nothing else."""

    budgeted: bool = True
    """False only for strategies that are exempt from the common budget (``none``, ``random_grid``,
    ``roi[budget=released]``): of a class, or set by its constructor. All that they hide is scored; rows that they
    pretrained are marked and never ranked or compared."""

    pretrains: ClassVar[bool] = True
    """False for ``none``: no pretraining at all."""

    hides: ClassVar[Literal["units", "times", "tokens"]] = "tokens"
    """What every element is made of: whole ``units`` (all patches of a window), whole ``times`` (a patch of all units),
    or ``tokens``, no such promise. The first two leave a grid of visible tokens, which a backbone that leaves hidden
    ones out needs to be pretrained; a check holds a strategy to it."""

    rank_trivial_on: tuple[SignalKind, ...] = ()
    """Kinds of signal on which linear interpolation between neighbours makes the pretext near-empty: results are
    printed as a reference and left out of the headline. Of a class, or set by its constructor."""

    def impossible(self, units: UnitTable) -> str:
        """Return why this strategy cannot work on these units, or an empty string."""
        return ""

    def remark(self, units: UnitTable) -> str:
        """Return what a reader should know of this strategy on these units, or an empty string."""
        return ""

    @abstractmethod
    def elements(self, window: WindowTable, n_hidden: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
        """Yield whole elements (regions, tubes, blocks, spans) in the order in which they are to be hidden.

        Parameters
        ----------
        window
            Token table of one window.
        n_hidden
            Number of valid tokens that will be scored. The caller stops once that many are hidden; the last element
            is hidden whole. (Of a strategy that is exempt from the budget all elements are hidden and scored.)
        rng
            The only source of chance.

        Yields
        ------
        NDArray
            Flat indices into (units × patches), C order. Tokens that are not valid or already hidden are ignored.
        """


# ---------------------------------------------------------------- dataset


class Dataset(Component, ABC):
    """Reads what users of a release have on disk. Filtering, resampling, windows and scaling are the core's."""

    card: DatasetCard
    signal: SignalKind
    modality: Literal["fmri", "meg"]
    twin_subjects: int = 0
    """Subjects of the simulated twin; 0 where there is none."""

    default_grid: ClassVar[bool] = False
    """Whether a run that names no dataset takes this one."""

    @property
    @abstractmethod
    def spec(self) -> SignalSpec:
        """Default windows, patches, band and scaling."""

    @abstractmethod
    def list_recordings(self, root: Path) -> Listing:
        """Find participants and recordings under ``root`` without reading any signal.

        Everything that is wrong is collected as findings; only an unusable folder raises.

        Raises
        ------
        DataError
            If nothing under ``root`` can be used, naming the layouts that were looked for.
        """

    @abstractmethod
    def read(self, file: RecordingFile) -> RawRecording:
        """Read one recording.

        Raises
        ------
        DataError
            If the file cannot be read or is not what it says; the recording is then left out, with the reason.
        """

    def simulate(
        self, root: Path, *, n_subjects: int, seed: int, variant: Literal["default", "null", "confounded"]
    ) -> None:
        """Write the simulated twin into ``root``, in the same file formats as the release.

        The same arguments write the same bytes. ``null`` sets every effect to zero; ``confounded`` ties the diagnosis
        to the site. The true effects are written to ``true_effects.json``.
        """
        raise NotImplementedError(f"{self.name} has no simulated twin")


# ---------------------------------------------------------------- task


@dataclass(frozen=True)
class Metric:
    """One number that a task reports.

    Parameters
    ----------
    name, unit
        Such as ``mae`` and ``years``; the unit is empty for a pure number.
    higher_is_better
        Direction.
    chance
        Value of a predictor that knows nothing; NaN where it has to be computed (MAE of the training mean).
    best
        Value of a perfect prediction.
    """

    name: str
    unit: str
    higher_is_better: bool
    chance: float
    best: float


class Task(Component, ABC):
    """What a representation is scored on."""

    needs: ClassVar[Literal["features", "reconstruction"]]
    """What a row must provide to be scored on this task."""

    default: ClassVar[bool] = True
    """Whether a run that names no task is scored on it, where it needs no parameter and the cohort allows it."""

    frozen_only: ClassVar[bool] = False
    """Whether nothing is trained on its labels, so that only frozen features can be scored on it."""

    metrics: tuple[Metric, ...]
    """Metrics; the first is the headline."""

    @abstractmethod
    def refuses(self, cohort: Cohort) -> str:
        """Return why this cohort cannot be scored on this task, or an empty string."""


class SubjectTask(Task):
    """Predict one value a subject from features, by the common probe.

    Attributes
    ----------
    kind
        ``regression`` or ``classification`` (two classes).
    column
        Column of the participants table.
    examples
        Values of the column as participants tables hold them, such as ``("R", "L")``: contract checks make people of
        them. Not needed for numbers of any size, nor for columns that every dataset has (age, sex, site, diagnosis).
    """

    needs = "features"
    kind: Literal["regression", "classification"]
    column: str
    examples: ClassVar[Sequence[Any]] = ()

    @abstractmethod
    def target(self, participants: pd.DataFrame) -> pd.Series[float]:
        """Return the target as float, indexed by participant; 0 and 1 for two classes; NaN where missing."""

    @property
    def classes(self) -> tuple[str, str]:
        """Names of class 0 and class 1; two empty strings for a regression."""
        return "", ""


class ReconstructionTask(Task):
    """Fill hidden tokens of held-out subjects, under one common set of evaluation masks."""

    needs = "reconstruction"

    @property
    @abstractmethod
    def evaluation_masks(self) -> tuple[str, ...]:
        """Masking strategies to evaluate under, the same for every row."""

    @property
    @abstractmethod
    def ratio(self) -> float:
        """Fraction of valid tokens that is scored."""


class EvokedTask(Task):
    """Hide every epoch around the events of held-out subjects piece by piece, and average what is filled in.

    Attributes
    ----------
    MIN_EPOCHS
        Epochs below which an average is mostly noise: such responses are left out and counted.
    """

    needs = "reconstruction"
    MIN_EPOCHS: ClassVar[int] = 10

    @property
    @abstractmethod
    def tile(self) -> Literal["units", "time"]:
        """What is hidden together: ``units``: half of the sites for the whole epoch; ``time``: one patch of all units.

        Either way every sample of an epoch is hidden, and so predicted, exactly once.
        """

    @property
    @abstractmethod
    def span_s(self) -> tuple[float, float]:
        """First and last sample of an epoch in seconds from its event; both included."""

    @property
    @abstractmethod
    def max_epochs(self) -> int:
        """Evenly spaced epochs that are averaged at most, a subject, state and condition."""

    @abstractmethod
    def peak_window_s(self, state: str, condition: str) -> tuple[float, float]:
        """Return where the peak of a response is looked for, in seconds from the event; both ends included."""


class WindowTask(Task):
    """Tell windows of recordings apart, two classes or more, by the common probe; folds are over subjects all the same.

    Every window is a row of its own: backbones embed it, and baselines see it as if it were a subject's only recording.
    """

    needs = "features"

    @property
    @abstractmethod
    def max_windows(self) -> int:
        """Evenly spaced windows at most, a subject and class."""

    @abstractmethod
    def label(self, recording: Recording) -> str:
        """Return the class of a recording's windows; empty: it is not used."""


class RetrievalTask(Task):
    """Find what a held-out subject's window belongs to among the entries of a gallery, by similarity alone.

    An entry is the mean of all gallery windows with one label. Nothing is fitted to labels, so that it works for people
    whom nobody has seen: features are standardised by the windows of the fold's training subjects and compared by the
    cosine, the same for every backbone and baseline.

    Attributes
    ----------
    gallery_from
        ``test``: the gallery of a fold is made of windows of its held-out subjects, and every label is of one subject.
        ``train``: it is made of windows of its training subjects, and subjects share labels.
    MIN_GAP_PATCHES
        Patches that lie at least between query and gallery windows of one recording: the band-pass spreads every
        sample by about a patch. The core refuses anything closer.
    """

    needs = "features"
    default = False
    frozen_only = True
    gallery_from: ClassVar[Literal["test", "train"]]
    MIN_GAP_PATCHES: ClassVar[int] = 2

    @property
    @abstractmethod
    def max_gallery(self) -> int:
        """Entries of a gallery at most, up to 150; which ones is drawn once for all rows."""

    @abstractmethod
    def windows(self, cohort: Cohort) -> Sequence[RetrievalWindow]:
        """Return the windows that are looked for and those that galleries are made of.

        ``cohort`` is whole: what is held out changes from fold to fold. No signal may be read.
        """

    def embeddings(self, labels: Sequence[str]) -> NDArray[np.float64] | None:
        """Return (labels, dimensions) what labels are like; None: an entry is the mean of its windows.

        Only where galleries are not made of held-out people. Windows are then mapped to it by a ridge that is fitted on
        the training subjects' windows of the fold.
        """
        return None

    def remark(self, cohort: Cohort) -> str:
        """Return what a reader has to know of these windows, such as how far apart they are, or an empty string."""
        return ""


# ---------------------------------------------------------------- baseline


class Baseline(Component, ABC):
    """Recordings to one feature row a subject, without pretraining; scored by the same probe as every backbone."""

    modalities: ClassVar[tuple[str, ...]] = ("fmri", "meg")
    """Modalities it applies to; ``meg`` means sensors."""

    depends_on_task: ClassVar[bool] = False
    """Whether features differ from task to task (covariates leave out the target). Only such a baseline is given
    columns of the participants table: features that serve every task must not hold somebody's target."""

    probe: ClassVar[Literal["linear", "kernel"]] = "linear"
    """``kernel``: scored by the common probe on a Gaussian kernel of its features, whatever a run asks for."""

    @abstractmethod
    def fit(self, cohort: Cohort) -> None:
        """Learn from the training subjects.

        ``cohort`` holds the training subjects only. Their participants table has no column, or for a baseline that
        ``depends_on_task`` those of :data:`COVARIATES` that are not the target.
        """

    @abstractmethod
    def transform(self, cohort: Cohort) -> NDArray[np.float64]:
        """Return (subjects, features), rows in the order of ``cohort.subjects``; zero columns are allowed.

        A feature that a subject's recordings do not have (a missing unit) is NaN: the probe fills in the training mean.
        """


# ---------------------------------------------------------------- figure


@dataclass(frozen=True, eq=False)
class Drawing:
    """One picture of a report.

    Parameters
    ----------
    name
        Slug, unique among the drawings of a cohort, such as ``age-predicted``.
    title, caption
        What it is, and what one sees: axes with units, how many subjects, what intervals are.
    alt
        What somebody who cannot see it has to know of it.
    figure
        Drawn with matplotlib; the report saves and closes it.
    section
        ``task:LABEL``, ``reconstruction``, ``evoked``, ``comparison``, ``pretraining`` or ``interpretation``: where it
        is put.
    """

    name: str
    title: str
    caption: str
    alt: str
    figure: MplFigure
    section: str


class Figure(Component, ABC):
    """Draws pictures of a cohort for a report, from what a run left on disk; computes no score of its own."""

    @abstractmethod
    def draw(self, evidence: Evidence) -> Iterator[Drawing]:
        """Yield drawings; none where the evidence does not hold what they need.

        Figures are made without pyplot's state (``matplotlib.figure.Figure``), legible at 680 px wide, and in colours
        that people with a colour vision deficiency can tell apart.
        """
