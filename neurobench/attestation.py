"""What somebody who ran a published record again found: kept beside the records, so that a board can say so.

One file a record, ``results/<suite>/reruns/<id>.json``, written by ``neurobench leaderboard add BUNDLE --rerun`` and
never part of a bundle: nobody attests to a submission of their own by sending it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime

from pydantic import Field

from neurobench.results import Record, Strict, environment

__all__ = ["TOLERANCE_FITTED", "TOLERANCE_TRAINED", "Rerun", "attest", "contradictions", "tolerated"]

TOLERANCE_TRAINED = 0.25
"""Share of the interval's width by which a backbone's headline may differ: training sums in another order elsewhere."""

TOLERANCE_FITTED = 0.01
"""The same of baselines and fillers, which have a closed form or one optimum."""

WIDER = 2
"""How many times as wide the interval of a repetition may be as that of the record."""

OF_IT = ("neurobench-fm", "git_commit", "python", "platform", "torch", "numpy")
"""What is kept of the environment of a repetition."""


class Rerun(Strict):
    """That a record was found again by running it again."""

    record: str = Field(description="id")
    content_hash: str = Field(description="of the record as it is published")
    metric: str
    said: float = Field(description="by the record")
    found: float = Field(description="by running it again")
    allowed: float = Field(ge=0, description="difference that counts as the same")
    by: str = Field(description="who ran it, as their commits are signed; empty: they did not say")
    on: str = Field(description="day, UTC")
    environment: dict[str, str]

    @property
    def text(self) -> str:
        """It in words."""
        version = self.environment.get("neurobench-fm", "?")
        return (
            f"run again by {self.by or 'somebody who gave no name'} on {self.on} with neurobench {version}: "
            f"{self.metric} {self.found:.4g}, the record {self.said:.4g} (± {self.allowed:.2g} allowed)"
        )


def tolerated(record: Record, metric: str) -> float:
    """Return by how much a metric may differ if a record is run again, in its unit; 0 where it has no interval."""
    found = record.metrics[metric]
    if found.low is None or found.high is None:
        return 0.0
    return (TOLERANCE_TRAINED if record.backbone is not None else TOLERANCE_FITTED) * (found.high - found.low)


def attest(record: Record, found: float, allowed: float) -> Rerun:
    """Return that a record was found again, here and now.

    Parameters
    ----------
    record
        As it is published.
    found
        Its headline, run again.
    allowed
        By how much that may differ.
    """
    said = record.metrics[record.headline].value
    assert said is not None
    made_with = environment()
    return Rerun(
        record=record.id,
        content_hash=record.content_hash,
        metric=record.headline,
        said=said,
        found=found,
        allowed=allowed,
        by=_who(),
        on=datetime.now(UTC).strftime("%Y-%m-%d"),
        environment={k: made_with[k] for k in OF_IT if k in made_with},
    )


def _who() -> str:
    try:
        run = subprocess.run(["git", "config", "user.name"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    return run.stdout.strip()


def contradictions(rerun: Rerun, record: Record) -> Iterator[str]:
    """Yield why an attestation is none of a record."""
    head = record.metrics.get(record.headline)
    if (rerun.record, rerun.content_hash) != (record.id, record.content_hash):
        yield "it is of another record, or of this one before it was written anew"
    elif head is None or (rerun.metric, rerun.said) != (record.headline, head.value):
        yield "its number is not that of the record"
    elif rerun.allowed > (most := WIDER * tolerated(record, record.headline)) + 1e-9:
        yield f"it allows a difference of {rerun.allowed:.2g}, and the record's interval of at most {most:.2g}"
    elif abs(rerun.said - rerun.found) > rerun.allowed + 1e-6 * max(1.0, abs(rerun.said)):
        yield f"what was found, {rerun.found:.4g}, is further off than the {rerun.allowed:.2g} allowed"
