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

__all__ = ["Rerun", "attest", "contradictions"]

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
    elif abs(rerun.said - rerun.found) > rerun.allowed + 1e-6 * max(1.0, abs(rerun.said)):
        yield f"what was found, {rerun.found:.4g}, is further off than the {rerun.allowed:.2g} allowed"
