"""Result records: one JSON file a (row, task), with everything needed to believe it or to refuse it.

A record is validated by the model below on writing and on reading; the JSON Schema that ships with the package
(``record.schema.json``) is generated from it. Held-out predictions lie beside as Parquet.
"""

from __future__ import annotations

import functools
import json
import logging
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from neurobench.errors import NeurobenchError, StoreError
from neurobench.evidence import Evidence, read_cohort, read_table, write_arrays, write_table
from neurobench.identity import digest
from neurobench.objectives import parse_objective
from neurobench.parsing import parse_json
from neurobench.records import Fold
from neurobench.runs import partial
from neurobench.store import atomic_write, disk_errors

__all__ = [
    "CONTROLS",
    "OF_THE_RUN",
    "Record",
    "content_hash",
    "environment",
    "load_evidence",
    "load_predictions",
    "load_results",
    "parse_record",
    "read_record",
    "record_text",
    "records_table",
    "schema",
    "write_folds",
    "write_record",
]

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1

CONTROLS = ("baseline", "filler", "untrained")
"""Kinds of rows that a pretrained one has to beat."""

Apart = Literal["parameter budget", "mask budget", "outside weights"]
"""Why a row is not ranked beside the others."""

OFF_BUDGET = 0.02
"""Difference of the scored fraction from the one asked for, from which two masks cannot be compared."""


class Strict(BaseModel):
    """What travels as a file: known fields and no others, and no number that is not finite, or is text."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @classmethod
    def of(cls, plain: Any) -> Self:
        """Return it of plain values.

        Raises
        ------
        ValueError
            If they are none, saying which field is wrong first.
        """
        try:
            return cls.model_validate(plain, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            raise ValueError(f"{'.'.join(map(str, first['loc'])) or 'the file'}: {first['msg']}") from error

    @property
    def as_text(self) -> str:
        """The content of its file."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class ComponentRecord(Strict):
    """A component with all its parameters, and whose code it is."""

    name: str
    label: str = Field(description="name and the parameters that differ from their defaults")
    parameters: dict[str, bool | int | float | str]
    distribution: str
    version: str
    digest: str = Field(description="sha256 of the plugin's own source files")
    score_version: int


class MetricRecord(Strict):
    """One metric with its uncertainty."""

    value: float | None
    low: float | None = Field(default=None, description="lower end of the 95 % interval")
    high: float | None = Field(default=None, description="upper end of the 95 % interval")
    unit: str
    higher_is_better: bool
    chance: float | None = None
    p_value: float | None = Field(default=None, description="against labels permuted within sites")
    above_chance: bool | None = Field(default=None, description="interval above chance and p < .05")


class DataRecord(Strict):
    """The cohort behind the numbers."""

    dataset: str
    title: str
    source: Literal["real", "simulated"]
    variant: str = Field(description="which simulation; empty for real data")
    revision: str
    licence: str
    access: str
    citation: str = Field(default="", description="what the owners of the recordings ask to have cited")
    may_leave: Literal["aggregates", "predictions", "all"]
    fingerprint: str
    signal: str
    n_subjects: int
    n_recordings: int
    n_units: int
    sfreq: float
    provenance: list[str]
    left_out: dict[str, int] = Field(description="reasons for exclusion and how often each")


class ProtocolRecord(Strict):
    """How the numbers were made."""

    profile: str
    split: str
    n_folds: int
    fold_fingerprint: str
    window_s: float
    patch_s: float
    n_tokens: int
    ratio: float = Field(description="fraction of valid tokens that is scored; the mean where the objective draws it")
    objective: str = Field(
        default="reconstruction", description="what pretrainings learn from, with parameters that are not the default"
    )
    adaptation: str = Field(description="how backbones meet a task, such as frozen or prompt[tokens=4]")
    adaptation_parameters: dict[str, bool | int | float | str] = Field(
        default={}, description="of the adaptation, defaults among them"
    )
    width: int
    n_layers: int
    n_steps: int
    batch_size: int
    recipe: dict[str, bool | int | float | str | list[float]]
    transductive: bool = Field(default=False, description="pretrained on the test subjects' recordings too, unlabelled")
    harmonise: Literal["none", "site"] = "none"
    probe: Literal["linear", "kernel", "attentive"] = Field(
        default="linear", description="attentive: of backbones; baselines have no unit tokens and keep the linear one"
    )
    refit_permutations: int = Field(default=0, description="permuted labels with which every probe was fitted anew")
    suite: str = Field(default="", description="NAME@HASH of the suite, with what was changed of it")
    seed: int

    @field_validator("objective")
    @classmethod
    def _is_known(cls, label: str) -> str:
        try:
            written = parse_objective(label).label
        except NeurobenchError as error:
            raise ValueError(error.what) from None
        if written != label:
            raise ValueError(f"{label!r} is written {written!r}")
        return label


class OutsideRecord(Strict):
    """A cohort that a network was pretrained on, where that was not the training subjects of the scored one alone."""

    dataset: str
    fingerprint: str
    n_subjects: int = Field(description="pretrained on; of the scored cohort itself the mean over folds")
    n_left_out: int = Field(description="not pretrained on, because they are in the scored cohort too")
    n_same_name: int = Field(description="with an identifier of the scored cohort, declared to be other people")
    units_by: str = Field(description="how the scored cohort's units meet the network's: name or position")
    distance_mm: float = Field(description="median distance between units that meet")


class PretrainingRecord(Strict):
    """What the pretraining of this row reached, averaged over folds."""

    loss_first: float | None
    loss_last: float | None
    loss_held_out: float | None = Field(
        default=None, description="mean squared error of the same kind of tokens in held-out subjects"
    )
    hidden_fraction: float | None
    scored_fraction: float | None
    r2_own_mask: float | None = Field(description="held-out R² under the mask it was pretrained with")
    r2_best_filler: float | None
    best_filler: str
    learned: bool | None = Field(description="whether it reached the best trivial filler on held-out subjects")
    on: list[OutsideRecord] = Field(default=[], description="empty: the training subjects of the scored cohort")


class TrainingRecord(Strict):
    """What training on the task took, where a backbone is not probed frozen."""

    n_trained: int = Field(ge=0, description="parameters that were trained on the task, the head's among them")
    n_parameters: int = Field(ge=1, description="all parameters, what was added and the head among them")
    share: float = Field(ge=0, le=1, description="n_trained / n_parameters")
    epochs: list[list[int]] = Field(
        description="passes over the training subjects, of every fold (and there of every class, where several are "
        "trained one after the other), as chosen on an inner split of them"
    )


class CostRecord(Strict):
    """What it took; measured, and no part of any identity."""

    n_parameters: int | None
    seconds: float
    peak_memory_mb: float | None = Field(description="of pretraining: of the GPU; on a CPU, of the process")
    device: str
    device_name: str = Field(default="", description="what the maker calls it; of several, all")
    n_threads: int | None = Field(default=None, description="that torch computed with on the CPU")
    gpu_peak_memory_mb: float | None = Field(default=None, description="most memory of the GPU in use at once")
    host_peak_memory_mb: float | None = Field(
        default=None,
        description="largest resident memory of the process that pretrained, libraries included: meanwhile where the "
        "system counts anew, as Linux does, else since the process began",
    )
    tokens_per_s: float | None = Field(default=None, description="valid tokens of training windows a second")
    waiting_share: float | None = Field(
        default=None, ge=0, le=1, description="of the time of pretraining, waiting for data"
    )
    gpu_utilisation: float | None = Field(
        default=None, ge=0, le=1, description="share of the time the GPU computed anything, as its driver says"
    )
    micro_batch: int | None = Field(
        default=None,
        description="windows of a batch at once in pretraining, the fewest of all folds, where memory did not suffice "
        "for all of them; the sums of such parts are rounded otherwise",
    )
    distributed: str = Field(
        default="", description="how several processes computed each pretraining, such as ddp[processes=4]"
    )
    cpu_energy_kwh: float | None = Field(
        default=None, ge=0, description="of pretraining: all the processor used meanwhile, by its counters"
    )
    gpu_energy_kwh: float | None = Field(default=None, ge=0, description="of pretraining, by the GPU's counter")
    energy_note: str = Field(default="", description="why energy that was asked for is not known")


class Record(Strict):
    """One scored row of one task on one cohort."""

    schema_version: Literal[1] = 1
    id: str
    status: Literal["ok", "failed"]
    error: str = ""
    kind: Literal["pretrained", "given", "untrained", "baseline", "filler"] = Field(
        description="given: with weights from outside, not pretrained here"
    )
    row: str
    backbone: ComponentRecord | None
    mask: ComponentRecord | None
    baseline: ComponentRecord | None
    dataset: ComponentRecord
    task: ComponentRecord
    data: DataRecord | None
    protocol: ProtocolRecord
    headline: str
    metrics: dict[str, MetricRecord]
    per_fold: dict[str, list[float | None]]
    n_subjects: int
    skill: float | None = Field(default=None, description="skill over the best baseline; 0 is as good as it")
    best_baseline: str = ""
    p_value: float | None = None
    p_value_refit: float | None = Field(default=None, description="with every probe fitted anew to permuted labels")
    above_chance: bool | None = None
    confounds: dict[str, MetricRecord] = Field(
        default={},
        description="correlations with covariates, what is left given them, site leak, difference to covariates alone",
    )
    pretraining: PretrainingRecord | None
    training: TrainingRecord | None = Field(default=None, description="on the task; none: a probe on frozen features")
    cost: CostRecord
    apart: list[Apart] = Field(
        default=[],
        description="why it is not ranked beside the others: a backbone of a size of its own, a mask that hides as "
        "much as it likes, or weights that were trained elsewhere, on people who are not known here",
    )
    notes: list[str] = []
    environment: dict[str, str]
    written: str
    content_hash: str = ""

    def hashed(self) -> Record:
        """Return the record with the sha256 of everything else in it."""
        plain = self.model_dump(mode="json", exclude={"content_hash"})
        return self.model_copy(update={"content_hash": digest(plain)})


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a record."""
    return Record.model_json_schema()


OF_THE_RUN = ("environment", "written", "content_hash")
"""Fields that differ from run to run when nothing else does."""


def write_record(
    out: Path,
    record: Record,
    held_out: pd.DataFrame | None = None,
    tables: Mapping[str, pd.DataFrame] | None = None,
    arrays: Mapping[str, Mapping[str, NDArray[Any]]] | None = None,
    identity: Mapping[str, Any] | None = None,
) -> Path:
    """Write a record, and its evidence beside it (:mod:`neurobench.evidence`); return the record's path.

    A record that is there already and says the same is left as it is. ``identity`` is what its id is the hash of, with
    everything that this names by its hash: from it the id can be found again.
    """
    path = out / "records" / f"{record.id}.json"
    with disk_errors(path):
        if held_out is not None:
            write_table(out / "predictions" / f"{record.id}.parquet", held_out)
        for kind, table in (tables or {}).items():
            write_table(out / "evidence" / record.id / f"{kind}.parquet", table)
        for kind, bundle in (arrays or {}).items():
            write_arrays(out / "evidence" / record.id / f"{kind}.npz", bundle)
    if identity is not None:
        atomic_write(out / "identities" / f"{record.id}.json", json.dumps(identity, indent=1, sort_keys=True) + "\n")
    if not (path.is_file() and _says(path, record.model_dump(mode="json"))):
        atomic_write(path, record_text(record))
    return path


def record_text(record: Record) -> str:
    """Return the content of a record's file."""
    return record.hashed().as_text


def _says(path: Path, plain: dict[str, Any]) -> bool:
    """Return whether a stored record says the same; one that is damaged says nothing, and the log tells of it."""
    try:
        stored = read_record(path).model_dump(mode="json")
    except StoreError as error:
        log.warning("%s It is written anew.", error.what)
        return False
    return all(stored[k] == v for k, v in plain.items() if k not in OF_THE_RUN)


def read_record(path: Path) -> Record:
    """Read and validate one record.

    Raises
    ------
    StoreError
        If it is not a record, is of another schema version, or was edited after it was written.
    """
    plain = None
    try:
        plain = parse_json(path.read_bytes())
        record = parse_record(plain)
        as_written = content_hash(plain) == record.content_hash
    except (OSError, ValueError) as error:
        version = plain.get("schema_version") if isinstance(plain, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise StoreError(
                f"{path} is a record of schema version {version}, and this neurobench reads up to {SCHEMA_VERSION}.",
                next_step="Use the neurobench that wrote it, or a newer one.",
            ) from error
        raise StoreError(
            f"{path} is not a record of schema version {SCHEMA_VERSION}: {error}.",
            next_step="Remove it, or run the same command again to write it anew.",
        ) from error
    if not as_written:
        raise StoreError(f"{path} was changed after it was written: its content hash does not match.")
    return record


def parse_record(plain: Any) -> Record:
    """Return the record of plain values.

    Raises
    ------
    ValueError
        If they are none, saying which field is wrong first.
    """
    return Record.of(plain)


def content_hash(plain: Mapping[str, Any]) -> str:
    """Return the hash of everything in a record but its hash.

    Of what the file says, not of the model: a record of an earlier version lacks fields that were added since.
    """
    return digest({k: v for k, v in plain.items() if k != "content_hash"})


def write_folds(out: Path, fingerprint: str, folds: Sequence[Fold]) -> None:
    """Write who is trained on and tested in every fold: what the fingerprint in the records is the hash of."""
    path = out / "folds" / f"{fingerprint}.json"
    text = json.dumps([asdict(f) for f in folds], indent=1) + "\n"
    # What is there may be cut or changed.
    if not (path.is_file() and path.read_bytes() == text.encode()):
        atomic_write(path, text)


def load_results(out: str | Path) -> pd.DataFrame:
    """Load the records of an output folder as one table, one row a record; the log says so if a run is not through.

    Of records that differ only in what made them (a newer version of the data, of a plugin or of neurobench) the newest
    is loaded; the others stay in the folder.

    Parameters
    ----------
    out
        Output folder of one or more runs.

    Returns
    -------
    DataFrame
        Columns as ``neurobench run --json`` prints them: dataset, source, task, row, kind, backbone, mask, seed,
        metric, unit, score, low, high, n_subjects, skill, … and one ``metric_<name>`` column a metric. The column
        ``record`` holds the path of the record's file.

    Raises
    ------
    StoreError
        If the folder holds no record, or one that was changed.
    """
    for text in partial(out):
        log.warning("%s: %s", out, text)
    return records_table(out)


def records_table(out: str | Path) -> pd.DataFrame:
    """Return the table of :func:`load_results`, for whoever says himself what it lacks."""
    folder = Path(out) / "records"
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        lacks = partial(out)
        raise StoreError(
            " ".join([f"{out} holds no records.", *lacks]),
            next_step=f"`neurobench status {out}` shows how far it is."
            if lacks
            else "Run `neurobench run` with --out set to it first.",
        )
    newest: dict[str, tuple[Record, Path]] = {}
    for path in paths:
        record = read_record(path)
        slot = digest([record.row, record.task.label, record.dataset.label, _settings(record.protocol)])
        if slot not in newest or record.written >= newest[slot][0].written:
            newest[slot] = record, path
    frame = pd.DataFrame([as_row(record) | {"record": str(path)} for record, path in newest.values()])
    order = ["dataset", "source", "task", "kind", "row", "seed"]
    return frame.sort_values(order, kind="stable").reset_index(drop=True)


def _settings(protocol: ProtocolRecord) -> dict[str, Any]:
    """Return what a user sets of a protocol; the folds and the recipe follow from the data and the code.

    Parameters of the adaptation are in its name; published addresses are a hash of these.
    """
    return protocol.model_dump(mode="json", exclude={"fold_fingerprint", "recipe", "suite", "adaptation_parameters"})


def load_predictions(out: str | Path, record_id: str) -> pd.DataFrame:
    """Load the held-out predictions of one record: participant_id, fold, truth, prediction and what they need.

    Of evoked responses: participant_id, state, condition, epochs and everything that was measured, one row a response.

    Raises
    ------
    StoreError, DataError
        If there are none, or they cannot be read.
    """
    path = Path(out) / "predictions" / f"{record_id}.parquet"
    if not path.is_file():
        raise StoreError(f"record {record_id} has no stored predictions under {out}.")
    return read_table(path)


def load_evidence(out: str | Path) -> tuple[Evidence, ...]:
    """Load what an output folder knows of each cohort, for figures and reports; one a (cohort, protocol).

    Seeds share a protocol; another profile, split, window or adaptation is another one.

    Raises
    ------
    StoreError, DataError
        If the folder holds no record, a record was changed, or a cohort's page is missing.
    """
    folder = Path(out)
    table = records_table(folder)
    found = []
    known = table[table["fingerprint"] != ""]
    for (fingerprint, _), own in known.groupby(["fingerprint", "protocol"], sort=False):
        cohort = read_cohort(folder, str(fingerprint))
        found.append(
            Evidence(
                folder=folder,
                dataset=cohort["dataset"],
                title=cohort["card"]["title"],
                source=cohort["source"],
                modality=cohort["modality"],
                signal=cohort["signal"],
                table=own.reset_index(drop=True),
                cohort=cohort,
            )
        )
    return tuple(found)


def as_row(record: Record) -> dict[str, Any]:
    """Return a record as one flat row of the results table."""
    head = record.metrics.get(record.headline)
    on = ",".join(o.dataset for o in record.pretraining.on) if record.pretraining else ""
    objective = parse_objective(record.protocol.objective)
    by = f" ({objective.label})" if record.kind == "pretrained" and not objective.is_default else ""
    row: dict[str, Any] = {
        "dataset": record.dataset.label,
        "source": record.data.source if record.data else "",
        "fingerprint": record.data.fingerprint if record.data else "",
        "task": record.task.label,
        "row": record.row,
        "kind": record.kind,
        "backbone": record.backbone.label if record.backbone else "",
        "mask": (record.mask.label if record.mask else "") + by + (f" ← {on}" if on else ""),
        "objective": objective.label,
        "pretrain_on": on,
        "seed": record.protocol.seed,
        "metric": record.headline,
        "unit": head.unit if head else "",
        "higher_is_better": head.higher_is_better if head else None,
        "score": head.value if head else None,
        "low": head.low if head else None,
        "high": head.high if head else None,
        "chance": head.chance if head else None,
        "n_subjects": record.n_subjects,
        "skill": record.skill,
        "best_baseline": record.best_baseline,
        "p_value": record.p_value,
        "p_value_refit": record.p_value_refit,
        "above_chance": record.above_chance,
        "learned": record.pretraining.learned if record.pretraining else None,
        "apart": ", ".join(record.apart),
        "n_parameters": record.cost.n_parameters,
        "trained_share": record.training.share if record.training else None,
        "epochs": float(np.mean([e for fold in record.training.epochs for e in fold])) if record.training else None,
        "seconds": record.cost.seconds,
        "profile": record.protocol.profile,
        "adaptation": record.protocol.adaptation,
        "probe": record.protocol.probe,
        "split": record.protocol.split,
        "transductive": record.protocol.transductive,
        "suite": record.protocol.suite,
        "protocol": digest({k: v for k, v in _settings(record.protocol).items() if k != "seed"}),
        "status": record.status,
        "error": record.error,
        "id": record.id,
    }
    return row | {f"metric_{name}": m.value for name, m in record.metrics.items()}


@functools.cache
def environment() -> dict[str, str]:
    """Return versions, git commit and command: recorded, never hashed into an identity."""
    found = {"python": platform.python_version(), "platform": platform.platform(), "machine": platform.machine()}
    for name in (
        "neurobench-fm",
        "torch",
        "timm",
        "mne",
        "nilearn",
        "numpy",
        "scipy",
        "scikit-learn",
        "pandas",
    ):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    try:
        # Of the code, not of the folder the command was given in: an installed wheel has no commit.
        run = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5
        )
        found["git_commit"] = run.stdout.strip() if run.returncode == 0 else ""
    except (OSError, subprocess.SubprocessError):
        found["git_commit"] = ""
    program = Path(sys.argv[0]).name
    # `python -m neurobench` is the same command, and what it is called then is none.
    found["command"] = " ".join(["neurobench" if program == "__main__.py" else program, *sys.argv[1:]])
    return found
