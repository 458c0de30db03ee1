"""Objectives: what they change, what they leave alone, and that two of them are never taken for one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import neurobench
from neurobench import pretraining
from neurobench.cohorts import CohortSource
from neurobench.config import RunConfig, expand
from neurobench.errors import ConfigError, ConfigErrors, UnknownNameError
from neurobench.execution import measured
from neurobench.learners import Drawn, Filling, Learner, Predicting, hide, learner_of
from neurobench.objectives import Latent, Objective, Reconstruction, parse_objective
from neurobench.plugins import load_registry
from neurobench.pretraining import Recipe, build, masks_of, pretrain
from neurobench.records import BackboneSpec, Batch, Cohort, SignalSpec
from neurobench.store import Store
from neurobench.tokens import Scaler, Tokenizer, TrainingWindows
from neurobench_backbones.brainmae import BrainMAE
from neurobench_backbones.transformer import Transformer
from neurobench_masks.random import Random
from neurobench_masks.random_tube import RandomTube
from tests.fakes import FakeDataset, write_folder
from tests.tiny_run import execute

DRAWN = Reconstruction(ratio_to=0.8)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Cohort:
    root = tmp_path_factory.mktemp("objectives")
    write_folder(root / "data", n_subjects=12)
    spec = SignalSpec(window_s=40.0, patch_s=8.0)
    return CohortSource(FakeDataset(), "fake", {"name": "fake"}, spec, root / "data").load(Store(root / "out"))


def windows(cohort: Cohort, seed: int = 0) -> TrainingWindows:
    return TrainingWindows(Tokenizer(cohort, Scaler.fit(cohort, cohort.subjects)), cohort.subjects, 60, seed)


def built(cohort: Cohort) -> tuple[Any, Any]:
    spec = BackboneSpec(len(cohort.units), 3, cohort.patches_per_window, cohort.n_features, 32, 1)
    return build(Transformer, spec, {}, seed=1)


def step(cohort: Cohort, n: int = 4, ratio: float = 0.5) -> Drawn:
    batch = windows(cohort).draw(0, n)
    hidden, scored = masks_of(batch, RandomTube(), ratio, seed=0, step=0)
    return Drawn.of(batch, hidden, scored)


# ---------------------------------------------------------------- as it is written


@pytest.mark.parametrize(
    ("text", "objective"),
    [
        ("reconstruction", Reconstruction()),
        ("reconstruction[visible=0.25,ratio_to=0.8]", Reconstruction(visible=0.25, ratio_to=0.8)),
        ("latent", Latent(momentum=0.996)),
        ("latent[momentum=0.9]", Latent(momentum=0.9)),
    ],
)
def test_an_objective_is_written_as_components_are(text: str, objective: Objective) -> None:
    assert parse_objective(text) == objective
    assert objective.label == text
    assert objective.is_default == (text == "reconstruction")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latents", "objective 'latents' is not registered.*Did you mean 'latent'"),
        ("latent[momentun=0.9]", "has no parameter 'momentun'.*Did you mean 'momentum'"),
        ("latent[momentum=2]", "momentum cannot be 2"),
        ("latent[momentum=slow]", "cannot be 'slow'.*a number.*docs/relatives.md"),
        ("reconstruction[visible=1]", "visible cannot be 1.*what is left is the weight of hidden tokens"),
        ("reconstruction[ratio_from=0.8]", "no ratio lies between 0.8 and 0"),
        ("reconstruction[ratio_to=1]", "no ratio lies between 0 and 1"),
    ],
)
def test_what_is_wrong_with_an_objective_is_said(text: str, message: str) -> None:
    with pytest.raises((ConfigError, UnknownNameError), match=message):
        parse_objective(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"objective": "latent", "adaptation": "scratch"}, "no meaning with --adaptation scratch"),
        ({"objective": "latent", "mask": "none"}, "no meaning with --mask none alone"),
        ({"objective": "reconstruction[ratio_to=0.8]", "ratio": 0.75, "mask": "roi"}, "--ratio 0.75 would not be used"),
        ({"objective": "jepa", "mask": "roi"}, "objective 'jepa' is not registered"),
    ],
)
def test_an_objective_that_nothing_would_follow_is_refused(options: dict[str, Any], message: str) -> None:
    config = RunConfig.from_options(backbone="mamba", **options)
    with pytest.raises(ConfigErrors, match=message):
        expand(config, load_registry())


def test_a_grid_with_a_mask_that_pretrains_takes_an_objective() -> None:
    grid = expand(RunConfig.from_options(backbone="mamba", mask="none,roi", objective="latent"), load_registry())
    assert grid.objective == Latent()
    assert grid.arrow == " (latent)"
    assert grid.ratio == 0.5


# ---------------------------------------------------------------- drawn ratios


def test_drawn_ratios_are_uniform_between_their_ends() -> None:
    drawn = np.array([DRAWN.ratio(0.5, 0, s, "s001", f"w{w}") for s in range(100) for w in range(20)])
    assert 0 <= drawn.min() < 0.01
    assert 0.79 < drawn.max() < 0.8
    # Kolmogorov and Smirnov's distance to the uniform distribution; 1.63 / √n is its 1 % point.
    expected = np.arange(1, len(drawn) + 1) / len(drawn)
    assert np.abs(np.sort(drawn) / 0.8 - expected).max() < 1.63 / len(drawn) ** 0.5
    assert DRAWN.mean_ratio(0.5) == 0.4
    assert Reconstruction().ratio(0.5, 0, 0, "s001", "w") == 0.5


def test_every_mask_meets_the_same_drawn_ratios(cohort: Cohort) -> None:
    batch = windows(cohort).draw(3, 8)
    n_valid = batch.table.valid.sum((1, 2))
    shares = [masks_of(batch, m, 0.5, 0, 3, DRAWN)[1].sum((1, 2)) / n_valid for m in (RandomTube(), Random())]
    assert torch.equal(*shares)
    assert len(shares[0].unique()) > 4
    assert not torch.equal(shares[0], masks_of(batch, Random(), 0.5, 0, 4, DRAWN)[1].sum((1, 2)) / n_valid)


def test_every_backbone_meets_the_same_drawn_ratios(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[torch.Tensor]] = []

    class Watched(Filling):
        def losses(self, drawn_batch: Drawn) -> tuple[torch.Tensor, torch.Tensor]:
            drawn[-1].append(drawn_batch.hidden)
            return super().losses(drawn_batch)

    monkeypatch.setattr(pretraining, "learner_of", lambda o, net, decoder, **_: Watched(net, decoder))
    for cls in (Transformer, BrainMAE):
        net, decoder = build(cls, built(cohort)[0].spec, {}, seed=1)
        drawn.append([])
        options = {"recipe": Recipe(batch_size=6), "n_steps": 3, "ratio": 0.5, "seed": 0}
        history = pretrain(net, decoder, RandomTube(), windows(cohort), objective=DRAWN, **options)
        assert history.scored_fraction < 0.8
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


# ---------------------------------------------------------------- visible tokens


def gradient(learner: Learner, drawn: Drawn) -> torch.Tensor:
    learner.decoder.zero_grad()
    loss, _ = learner.losses(drawn)
    loss.backward()
    found: torch.Tensor = learner.decoder.weight.grad.clone()
    return found


def test_visible_tokens_have_the_weight_that_they_are_given(cohort: Cohort) -> None:
    net, decoder = built(cohort)
    drawn = step(cohort)
    hidden_only = gradient(Filling(net, decoder), drawn)
    seen_only = gradient(Filling(net, decoder), replace(drawn, scored=drawn.visible, n_scored=drawn.n_visible))
    both = gradient(Filling(net, decoder, visible=0.25), drawn)
    torch.testing.assert_close(both, 0.75 * hidden_only + 0.25 * seen_only)
    assert (both - hidden_only).abs().max() > 0.01
    # What everybody is told is the error of the scored tokens, whatever is minimised.
    told = {float(Filling(net, decoder, visible=v).losses(drawn)[1]) for v in (0.0, 0.25)}
    assert len(told) == 1


def test_hidden_tokens_that_are_not_scored_count_nowhere(cohort: Cohort) -> None:
    batch = windows(cohort).draw(0, 4)
    hidden, scored = masks_of(batch, RandomTube(), 0.5, seed=0, step=0)
    drawn = Drawn.of(batch, hidden, scored)
    assert len(drawn.visible) == int((batch.table.valid & ~hidden).sum())
    assert not set(drawn.visible.tolist()) & set(hidden.flatten().nonzero()[:, 0].tolist())


# ---------------------------------------------------------------- latent targets


def predicting(cohort: Cohort, momentum: float = 0.996) -> Predicting:
    net, decoder = built(cohort)
    return Predicting(net, decoder, width=32, momentum=momentum, seed=0)


@pytest.mark.parametrize("objective", [Reconstruction(), Reconstruction(visible=0.25), Latent()])
def test_a_batch_in_which_nothing_is_hidden_is_no_loss(cohort: Cohort, objective: Objective) -> None:
    # A mask outside the common budget, such as a released one, may hide nothing in a whole batch.
    backbone, decoder = built(cohort)
    drawn = step(cohort)
    nothing = torch.zeros_like(drawn.hidden)
    empty = replace(drawn, hidden=nothing, scored=drawn.scored[:0], n_scored=0)
    loss, told = learner_of(objective, backbone, decoder, width=32, seed=0).losses(empty)
    loss.backward()
    assert told == 0
    assert loss.isfinite()
    assert all(p.grad is None or p.grad.isfinite().all() for p in backbone.parameters())


def test_the_decoder_gives_the_backbone_no_gradient(cohort: Cohort) -> None:
    learner, drawn = predicting(cohort), step(cohort)

    def gradients() -> list[torch.Tensor | None]:
        learner.backbone.zero_grad()
        learner.losses(drawn)[0].backward()
        return [None if p.grad is None else p.grad.clone() for p in learner.backbone.parameters()]

    before = gradients()
    assert learner.decoder.weight.grad.abs().max() > 0
    with torch.no_grad():
        learner.decoder.weight.mul_(100)
    after = gradients()
    assert any(g is not None and g.abs().max() > 0 for g in before)
    assert all(a is b or torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # Nor by the norm at which gradients are cut: the decoder's is by itself.
    assert learner.cut_together == [[learner.backbone, learner.predictor], [learner.decoder]]


def test_the_copy_sees_the_whole_signal_and_the_backbone_does_not(cohort: Cohort) -> None:
    learner, drawn = predicting(cohort), step(cohort)
    other = replace(drawn, signal=torch.where(drawn.hidden[..., None], drawn.signal + 1, drawn.signal))
    assert not torch.allclose(learner.wanted(drawn), learner.wanted(other))
    torch.testing.assert_close(learner.wanted(drawn).mean(-1), torch.zeros(len(drawn.scored)), atol=1e-5, rtol=0)
    with torch.no_grad():
        one, two = (learner.backbone(hide(d.signal, d.hidden), d.hidden, d.table) for d in (drawn, other))
    assert torch.equal(one, two)


def test_the_copy_follows_the_backbone_and_slows_down(cohort: Cohort) -> None:
    learner = predicting(cohort, momentum=0.9)
    with torch.no_grad():
        for p in learner.backbone.parameters():
            p.add_(1.0)
    kept = next(learner.target.parameters()).clone()
    for done, share in ((0.0, 0.1), (0.5, 0.05 * 0.9), (1.0, 0.0)):
        learner.moved(done)
        now = next(learner.target.parameters()).clone()
        torch.testing.assert_close(now - kept, torch.full_like(now, share), atol=1e-5, rtol=1e-4)
        kept = now
    assert not any(p.requires_grad for p in learner.target.parameters())


def variety(net: Any, batch: Batch) -> float:
    """Return how much normalised tokens of one place differ between windows, as a share of all that they vary.

    A backbone that says the same of every window, or nothing but where a token is, has none.
    """
    with torch.no_grad():
        tokens = net.eval()(batch.signal, torch.zeros_like(batch.table.valid), batch.table)
    tokens = F.layer_norm(tokens, tokens.shape[-1:]).flatten(0, 2)
    place = (batch.table.unit[:, :, None] * 1000 + torch.arange(batch.signal.shape[2])).flatten()
    _, index = place.unique(return_inverse=True)
    mean = torch.zeros(int(index.max()) + 1, tokens.shape[1]).index_add(0, index, tokens)
    return float((tokens - (mean / index.bincount()[:, None])[index]).square().mean())


@pytest.mark.parametrize(("momentum", "collapses"), [(0.996, False), (0.0, True)])
def test_target_tokens_do_not_collapse_as_without_momentum(
    cohort: Cohort, momentum: float, collapses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Predicting] = []

    def kept(*args: Any, **named: Any) -> Learner:
        made.append(learner_of(*args, **named))
        return made[-1]

    monkeypatch.setattr(pretraining, "learner_of", kept)
    net, decoder = built(cohort)
    batch = windows(cohort, seed=9).draw(0, 32)
    before = variety(net, batch)
    options = {"recipe": Recipe.for_width(32, 16), "n_steps": 60, "ratio": 0.5, "seed": 0}
    history = pretrain(net, decoder, RandomTube(), windows(cohort), objective=Latent(momentum), **options)
    after = variety(made[0].target, batch)
    assert before > 0.2
    assert after < 0.03 if collapses else after > 0.1
    if not collapses:
        # The decoder reads the same tokens as it is taught: reconstruction has a meaning.
        assert history.to_dict()["loss_last"] < 0.6 * history.to_dict()["loss_first"]


def test_one_seed_gives_the_same_bytes(cohort: Cohort) -> None:
    options = {"recipe": Recipe(batch_size=4), "n_steps": 2, "ratio": 0.5, "seed": 0, "objective": Latent()}
    states = []
    for _ in range(2):
        net, decoder = built(cohort)
        before = torch.get_rng_state()
        pretrain(net, decoder, RandomTube(), windows(cohort), **options)
        assert torch.equal(before, torch.get_rng_state())
        states.append([*net.state_dict().values(), *decoder.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))


# ---------------------------------------------------------------- through a run


def test_runs_of_two_objectives_are_told_apart_and_share_what_is_not_pretrained(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=12)
    tables = {}
    for objective in ("reconstruction", "latent", "reconstruction[visible=0.25,ratio_to=0.8]"):
        result = execute(tmp_path / "data", tmp_path / "out", objective=objective, task="reconstruction[masks=random]")
        assert not result.failed
        tables[objective] = result.table
    ids = {o: t.groupby("kind")["id"].agg(set) for o, t in tables.items()}
    first = ids["reconstruction"]
    for objective, table in tables.items():
        pretrained = table[table["kind"] == "pretrained"]
        by = "" if objective == "reconstruction" else f" ({objective})"
        assert set(pretrained["row"]) == {f"tiny · roi{by}"}
        assert set(pretrained["mask"]) == {f"roi{by}"}
        assert set(table["objective"]) == {objective}
        if by:
            assert not ids[objective]["pretrained"] & first["pretrained"]
            assert ids[objective]["untrained"] == first["untrained"]
    # One protocol each: what is ranked together was made by one objective.
    stored = neurobench.load_results(tmp_path / "out")
    assert stored.groupby("protocol")["objective"].nunique().eq(1).all()
    assert set(stored.loc[stored["kind"] == "pretrained", "objective"]) == set(tables)
    record = neurobench.results.read_record(
        Path(stored["record"][stored["objective"].str.contains("ratio_to")].iloc[0])
    )
    assert record.protocol.ratio == 0.4
    # Three steps; the copy's forward pass is a third of a step more.
    works = [o.work for o in measured(Store(tmp_path / "out")) if o.work.kind == "pretraining"]
    assert sorted({w.amount for w in works}) == pytest.approx([0, 3, 4])
