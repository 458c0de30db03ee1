"""Pretraining as a stored step: on whom, from which weights, and the network that comes of it."""

from __future__ import annotations

import contextlib
import functools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import neurobench
from neurobench import (
    adaptation,
    cohort_steps,
    connectivity,
    contracts,
    distributed,
    energy,
    hardware,
    learners,
    masking,
    monitoring,
    objectives,
    optimisers,
    pretraining,
    tokens,
    transfer,
)
from neurobench.cohort_steps import CohortSteps, once
from neurobench.components import ComponentSpec, Setting
from neurobench.contracts import Backbone
from neurobench.cost import Work
from neurobench.identity import digest, seed_for
from neurobench.progress import Advance
from neurobench.records import Fold
from neurobench.steps import Step, code_digest
from neurobench.store import Checkpoint

__all__ = ["PretrainingSteps"]


class PretrainingSteps(CohortSteps):
    """The pretrainings of one (cohort, seed), one a fold unless a network never meets the cohort."""

    @property
    def pretrains_inside(self) -> bool:
        """Whether networks are pretrained on the cohort itself, which makes one network a fold."""
        return not self.grid.pretrain_on or any(s.label == self.cohort.dataset for s in self.grid.pretrain_on)

    def _people(self, fold: Fold) -> tuple[str, ...]:
        """Return whom of the cohort itself networks are pretrained on."""
        if not self.pretrains_inside:
            return ()
        # Transductive: on everybody's recordings, without labels; scaling is fitted on training subjects all the same.
        return self.cohort.subjects if self.grid.config.transductive else fold.train

    def _learns(self, backbone: ComponentSpec, mask: ComponentSpec) -> bool:
        """Whether anything of a network comes from recordings: its weights, or the connectivity that it is given."""
        cls: type[Backbone] = self.registry.get("backbone", backbone.name)
        return self.strategy(mask).pretrains or cls.uses_connectivity

    def _meets(self, backbone: ComponentSpec, mask: ComponentSpec) -> bool:
        """Whether a network has met the cohort before it is scored on it, which makes it another one in every fold."""
        return self.pretrains_inside and self._learns(backbone, mask)

    def _data_identity(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> dict[str, Any]:
        """Return what identifies the data of a pretraining; without the cohort itself it is the same in every fold."""
        identity: dict[str, Any] = {"seed": self.seed, "neurobench": neurobench.__version__}
        if self._meets(backbone, mask):
            identity = self._fold_identity(fold) | {"people": digest(list(self._people(fold)))}
        if self.grid.pretrain_on and self._learns(backbone, mask):
            identity["order"] = [s.label for s in self.grid.pretrain_on]
            identity["outside"] = [[o.cohort.fingerprint, digest(list(o.people))] for o in self.outside]
            identity["units"] = digest(self.cohort.known_units.describe())
        return identity

    @once
    def _network_identity(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> dict[str, Any]:
        """Return what identifies a pretrained network that is used on the cohort in a fold."""
        identity: dict[str, Any] = {"pretraining": self.pretraining_step(backbone, mask, fold).key}
        # A network that never met the cohort says nothing of who is scaled and scored with it, and how units meet.
        met = {} if self.cohort.seen_as is None else {"units": digest(self.cohort.known_units.describe())}
        return identity | met if self._meets(backbone, mask) else identity | met | self._fold_identity(fold)

    @functools.cached_property
    def _network(self) -> dict[str, Any]:
        """What identifies the networks of every row: what they are built for, and how they are trained."""
        return {"spec": self.spec.describe(), "recipe": asdict(self.recipe)}

    @once
    def pretraining_step(self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold) -> Step:
        """Pretrain a backbone under a masking strategy on the training subjects of a fold, or on other cohorts."""
        strategy = self.strategy(mask)
        n_steps = self.grid.profile.n_steps if strategy.pretrains else 0
        ratio, objective = self.grid.config.ratio, self.grid.objective
        identity = {
            **self._data_identity(backbone, mask, fold),
            "backbone": self.component(backbone),
            "mask": self.component(mask),
            "spec": self._network["spec"],
            "n_steps": n_steps,
            "n_tokens": self.grid.profile.n_tokens,
            "recipe": self._network["recipe"],
            "ratio": self.grid.ratio if strategy.pretrains else 0.0,
            "objective": objective.identity() if strategy.pretrains else None,
            "device": self.device.type,
            "code": code_digest(
                __name__,
                cohort_steps,
                contracts,
                connectivity,
                pretraining,
                learners,
                objectives,
                optimisers,
                tokens,
                masking,
                transfer,
            ),
        }

        together = self.grid.distributed if n_steps else None
        if together is not None:
            # Sums of shares are rounded otherwise.
            identity["distributed"] = together.identity() | {"code": code_digest(distributed)}

        def compute(folder: Path, advance: Advance, checkpoint: Checkpoint) -> None:
            group = distributed.joined()
            if together is not None and group.size == 1:
                # The seconds that led to it count here; the processes read it for themselves.
                pretraining.reached(checkpoint)
                distributed.launch(self._member(together, identity, folder, checkpoint), advance)
                return
            net, decoder = self._build(backbone)
            parts = self._training_windows(fold)
            if net.uses_connectivity:
                net.connectivity.copy_(connectivity.mean_connectivity(parts, self.spec.n_units))
            windows = parts[0] if len(parts) == 1 else transfer.MixedWindows(parts)
            with (
                hardware.metered(self.device) as meter,
                energy.counted(meter) if self.grid.config.energy else contextlib.nullcontext(),
                monitoring.monitored(meter, events if group.rank == 0 else None) as monitor,
            ):
                history = pretraining.pretrain(
                    net,
                    decoder,
                    strategy,
                    windows,
                    recipe=self.recipe,
                    n_steps=n_steps,
                    ratio=ratio,
                    seed=self.seed,
                    objective=objective,
                    device=self.device,
                    on_step=lambda step: advance(step + 1, n_steps),
                    on_look=monitor.look if group.rank == 0 else None,
                    checkpoint=checkpoint,
                    group=group,
                )
                meter.is_part = checkpoint.was_read
            weights = {f"backbone.{k}": v for k, v in net.state_dict().items()}
            weights |= {f"decoder.{k}": v for k, v in decoder.state_dict().items()}
            whole = group.whole(weights)
            if group.rank != 0:
                return
            save_file(whole, folder / "weights.safetensors")
            met = n_steps or net.uses_connectivity
            summary = history.to_dict() | {
                "n_parameters": pretraining.count_parameters(net),
                "scalers": {p.tokenizer.cohort.dataset: p.tokenizer.scaler.to_dict() for p in parts if met},
                "device": str(self.device),
                "hardware": meter.to_dict(),
                "distributed": "" if together is None else f"{together.name}[processes={group.size}]",
            }
            (folder / "pretraining.json").write_text(json.dumps(summary), encoding="utf-8")

        what = f"pretrain {backbone.label} · {mask.label}" + (self.grid.arrow if strategy.pretrains else "")
        label = self._title(what, fold) if self._meets(backbone, mask) else f"{what} · seed {self.seed}"
        watched = n_steps and self.grid.config.tensorboard
        events = monitoring.folder_of(self.grid.config.out, label, identity) if watched else None
        amount = n_steps * objective.work / (1 if together is None else distributed.n_processes(together))
        work = Work("pretraining", amount, self.recipe.batch_size * self._pass_size, self._by(backbone))
        return Step("pretraining", label, identity, work, compute)

    def _member(
        self, together: Setting, identity: Mapping[str, Any], folder: Path, checkpoint: Checkpoint
    ) -> distributed.Member:
        return distributed.Member(
            config=self.grid.config,
            setting=together,
            device=self.device.type,
            dataset=self.cohort.dataset,
            seed=self.seed,
            stage="pretraining",
            key=digest(identity),
            folder=folder,
            checkpoint=checkpoint,
            path=tuple(sys.path),
        )

    @functools.cached_property
    def _outside_tokenizers(self) -> dict[str, tokens.Tokenizer]:
        """By label of the cohort, scaled on whom the networks are pretrained on."""
        return {
            o.cohort.dataset: tokens.Tokenizer(o.cohort, tokens.Scaler.fit(o.cohort, o.people)) for o in self.outside
        }

    def release(self) -> None:
        """Let go of signal, of other cohorts too."""
        super().release()
        self.__dict__.pop("_outside_tokenizers", None)

    def _training_windows(self, fold: Fold) -> list[tokens.TrainingWindows]:
        """Return the windows of every cohort that a network is pretrained on in a fold, in the order asked for."""
        sources: list[tuple[tokens.Tokenizer, Sequence[str], tuple[float, float]]] = []
        asked = [s.label for s in self.grid.pretrain_on] or [self.cohort.dataset]
        people = {o.cohort.dataset: o.people for o in self.outside}
        for label in asked:
            if label == self.cohort.dataset:
                sources.append((self.tokenizer(fold), self._people(fold), fold.train_span))
            else:
                sources.append((self._outside_tokenizers[label], people[label], (0.0, 1.0)))
        return [
            tokens.TrainingWindows(tokenizer, who, self.grid.profile.n_tokens, self.seed, span)
            for tokenizer, who, span in sources
        ]

    def _build(self, backbone: ComponentSpec) -> tuple[Backbone, pretraining.Decoder]:
        # One initialisation a (seed, backbone): every mask and fold starts from the same weights.
        cls = self.registry.get("backbone", backbone.name)
        net, decoder = pretraining.build(
            cls, self.spec, backbone.arguments, seed_for(self.seed, "pretrain-init", backbone.label)
        )
        return net.to(self.device), decoder.to(self.device)

    def load_pretrained(
        self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold
    ) -> tuple[Backbone, pretraining.Decoder]:
        """Return backbone and decoder with their pretrained weights."""
        entry = self.fetch(self.pretraining_step(backbone, mask, fold))
        net, decoder = self._build(backbone)
        weights = load_file(entry.file("weights.safetensors"), device=str(self.device))
        for prefix, module in (("backbone.", net), ("decoder.", decoder)):
            module.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
        return net.eval(), decoder.eval()

    @functools.cached_property
    def _asked(self) -> set[str]:
        """Keys of the pretrainings whose network was asked whether it remembers."""
        return set()

    def load_honest(
        self, backbone: ComponentSpec, mask: ComponentSpec, fold: Fold
    ) -> tuple[Backbone, pretraining.Decoder]:
        """Return the same, of a network whose tokens depend on nothing that it was shown before.

        It is asked once in a process: under ten masks it is the same network.

        Raises
        ------
        PluginError
            See :func:`neurobench.adaptation.refuse_memory`.
        """
        net, decoder = self.load_pretrained(backbone, mask, fold)
        key = self.pretraining_step(backbone, mask, fold).key
        if key not in self._asked:
            windows = tokens.evaluation_windows(self.cohort, fold.test)
            adaptation.refuse_memory(net, self.tokenizer(fold), windows, self.chunks[0], self.device)
            self._asked.add(key)
        return net, decoder
