"""Fill hidden tokens of held-out subjects, every row under the same masks whatever it was pretrained with."""

from __future__ import annotations

from neurobench import Cohort, ConfigError, Metric, ReconstructionTask, hookimpl


class Reconstruction(ReconstructionTask):
    """Masked reconstruction under one common set of evaluation masks.

    Parameters
    ----------
    masks
        Masking strategies to evaluate under, joined by ``+``.
    ratio
        Share of the valid tokens that is scored, between 0 and 1.
    """

    name = "reconstruction"
    summary = "R² of hidden tokens of held-out subjects under a common set of masks, and skill over trivial fillers"

    def __init__(self, *, masks: str = "random+random_tube+roi+time_block", ratio: float = 0.5) -> None:
        names = tuple(part.strip() for part in masks.split("+"))
        if not all(names) or len(set(names)) < len(names):
            raise ConfigError(
                f"reconstruction cannot be evaluated under the masks {masks!r}.",
                allowed="one or more masking strategies, each once, joined by +",
                next_step="Write for example --task 'reconstruction[masks=random_tube+roi]'.",
            )
        if not 0 < ratio < 1:
            raise ConfigError(
                f"reconstruction cannot score {ratio:g} of the tokens.", allowed="a ratio between 0 and 1"
            )
        self._masks, self._ratio = names, ratio
        # R² is against each unit's own mean over the recording, so predicting that mean scores 0.
        per_mask = (Metric(f"r2[{name}]", "", True, 0.0, 1.0) for name in names)
        self.metrics = (Metric("r2", "", True, 0.0, 1.0), *per_mask)

    @property
    def evaluation_masks(self) -> tuple[str, ...]:
        """Masking strategies to evaluate under."""
        return self._masks

    @property
    def ratio(self) -> float:
        """Share of the valid tokens that is scored."""
        return self._ratio

    def refuses(self, cohort: Cohort) -> str:
        """Refuse windows of a single patch: hiding it leaves nothing to fill from but other units."""
        if cohort.patches_per_window > 1:
            return ""
        return (
            "reconstruction needs windows of two patches or more, and one patch is as long as the window; "
            "use a longer --window-s or a shorter --patch-s"
        )


@hookimpl
def register_tasks() -> list[type[ReconstructionTask]]:
    """Register the task."""
    return [Reconstruction]
