"""Checks of backbones."""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NoReturn

import torch
from torch import nn

from neurobench import pretraining
from neurobench.checks.common import SPEC, Check, build, demand, other_global_state, raised, seeds_set_by, watched_files
from neurobench.contracts import PARAMETERS_PER_PASS, Backbone, TokenBackbone
from neurobench.errors import CheckError
from neurobench.learners import Drawn, Filling
from neurobench.plugins import Registry
from neurobench.records import BackboneSpec, Batch, TokenTable
from neurobench.specimens import simulated_batch, simulated_connectivity, simulated_units
from neurobench.tokens import types_known

PROFILES = ((32, 1), (64, 2), (256, 4))
"""Width and layers of the profiles smoke, cpu and full."""

# Sums in another order differ by some 1e-6 in single precision; a real influence is far larger.
TOLERANCE = 1e-4

SHAPES = ((12, 3, 5, 6, 3), (1, 1, 5, 6, 2), (12, 3, 1, 6, 2), (1, 1, 1, 1, 1), (17, 4, 7, 3, 2))
"""Units, groups, patches, features, windows."""


# ---------------------------------------------------------------- inputs


def _parameters(cls: type[Backbone]) -> dict[str, Any]:
    return {n: p.default for n, p in cls.component_parameters().items()} | dict(cls.check_with)


def _specs(cls: type[Backbone], specs: list[BackboneSpec]) -> list[BackboneSpec]:
    """Return the sizes that the backbone does not refuse; refusing all of them is an error."""
    parameters = _parameters(cls)
    reasons = [cls.impossible(spec, parameters) for spec in specs]
    if all(reasons):
        raise CheckError(f"`impossible` refuses every size with default parameters: {reasons[0]}.")
    return [spec for spec, reason in zip(specs, reasons, strict=True) if not reason]


def _built(cls: type[Backbone], spec: BackboneSpec = SPEC, *, shaken: bool = True, **changed: Any) -> Any:
    """Build in evaluation mode; shaken, so that what starts at zero (gates, residual branches) takes part."""
    spec = _specs(cls, [spec, replace(spec, n_layers=2)])[0]
    backbone = build(cls, spec, **changed).eval()
    if shaken:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in backbone.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return backbone


def _batch(n_batch: int = 3, *, gaps: bool = False, seed: int = 0, spec: BackboneSpec = SPEC) -> Batch:
    # Patches of a volume lie on a grid, which serves backbones of every kind of signal.
    units = simulated_units(spec.n_units, spec.n_groups, kind="volume")
    return simulated_batch(units, n_batch, spec.n_patches, spec.n_features, gaps=gaps, seed=seed)


def _hidden(batch: Batch, seed: int = 0) -> torch.Tensor:
    """Hide half of the valid tokens, the same of every window."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(batch.table.valid.shape[1:], generator=generator) < 0.5
    return chosen & batch.table.valid


def _call(backbone: Any, batch: Batch, hidden: torch.Tensor, global_seed: int = 0) -> torch.Tensor:
    """Call a backbone as the runner does: hidden values are zeroed, the raw ones still exist around the call.

    What it writes into and what it draws is a finding of the checks that are about that, and of no other one.
    """
    signal = batch.signal.masked_fill(hidden[..., None], 0.0)
    with torch.no_grad(), other_global_state(global_seed):
        tokens: torch.Tensor = backbone(signal, hidden.clone(), batch.table.map(torch.clone))
    return tokens


def _rows(batch: Batch, index: list[int]) -> Batch:
    table = batch.table.map(lambda x: x[index])
    names = tuple(batch.subjects[i] for i in index), tuple(batch.windows[i] for i in index)
    return Batch(batch.signal[index], table, batch.rows[index], batch.units, *names)


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest difference, relative to the spread of the tokens."""
    if a.shape != b.shape:
        raise CheckError(f"the output has shape {tuple(b.shape)} where it had {tuple(a.shape)}.")
    scale = float(a.std()) if a.numel() > 1 else 1.0
    return float((a - b).abs().max()) / max(scale, 1e-6)


# ---------------------------------------------------------------- one slip must not hide the rest

AXES = ("batch", "units", "patches", "width")


@functools.lru_cache(maxsize=1)
def mended(cls: type[Backbone]) -> type[Backbone]:
    """Return the class, or one whose tokens have the type and the axes that were asked for if its own have not.

    Torch's first error about them would be all that any check finds. ``output`` tells what was put right; what cannot
    be is told by every check that needs tokens, in the same words.
    """
    method = "mix" if issubclass(cls, TokenBackbone) and cls.forward is TokenBackbone.forward else "forward"
    own = getattr(cls, method)
    wrong: dict[str, None] = {}
    back: list[Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor] | None] = []

    def refuse(what: str = "") -> NoReturn:
        if what:
            wrong[what] = None
        raise CheckError(f"{'; '.join(wrong)}.")

    def put_right(self: Any, first: torch.Tensor, *rest: Any) -> torch.Tensor:
        try:
            inspect.signature(own).bind(self, first, *rest)
        except TypeError as error:
            refuse(f"`{method}{inspect.signature(own)}` cannot be called as it is: {error}")
        tokens, wanted = own(self, first, *rest), (*first.shape[:3], self.spec.width)
        if not isinstance(tokens, torch.Tensor):
            refuse(f"`{method}` returns {type(tokens).__name__}, not a tensor ({', '.join(AXES)})")
        if not back and tuple(tokens.shape) != wanted:
            wrong[f"`{method}` returns ({_axes(tokens.shape, wanted)}), not ({', '.join(AXES)})"] = None
            back.append(_way_back(tuple(tokens.shape), wanted))
        if tokens.dtype != first.dtype:
            wrong[f"`{method}` returns {tokens.dtype} and was given {first.dtype}"] = None
        if not torch.isfinite(tokens).all():
            if not any("NaN" in w for w in wrong):
                missing = "" if rest[-1].valid.all() else " where units or patches are missing"
                wrong[f"`{method}` returns NaN or infinity{missing}"] = None
            tokens = torch.nan_to_num(tokens, 0.0, 1.0, -1.0)
        if back:
            # Without a way back, the words are those of the first call, whatever the sizes are now.
            tokens = back[0](tokens, wanted) if back[0] else refuse()
        return tokens.to(first.dtype)

    right = type(cls.__name__, (cls,), {method: put_right, "__module__": cls.__module__, "wrong": wrong})
    with contextlib.suppress(Exception):  # whatever is raised, each check meets it again
        for gaps in (False, True):
            batch = _batch(gaps=gaps)
            _call(build(right).eval(), batch, _hidden(batch))
    return right if wrong else cls


def _axes(shape: torch.Size, wanted: tuple[int, ...]) -> str:
    """Name the axes of a shape, those that were joined too; a number is none of them."""
    names: dict[int, str] = {}
    for n in range(1, 4):
        for some in itertools.combinations(range(4), n):
            names.setdefault(
                functools.reduce(operator.mul, (wanted[i] for i in some)), " × ".join(AXES[i] for i in some)
            )
    return ", ".join(names.get(size, str(size)) for size in shape)


def _way_back(
    shape: tuple[int, ...], wanted: tuple[int, ...]
) -> Callable[[torch.Tensor, tuple[int, ...]], torch.Tensor] | None:
    """Return what makes the wanted shape of one whose axes were exchanged or joined, or None where nothing can."""
    if sorted(shape) == sorted(wanted):
        order = [shape.index(size) for size in wanted]
        return lambda tokens, _: tokens.permute(order)
    ends = [list(itertools.accumulate(sizes, operator.mul)) for sizes in (shape, wanted)]
    if ends[0][-1:] == ends[1][-1:] and set(ends[0]) <= set(ends[1]):
        return lambda tokens, now: tokens.reshape(now)
    return None


# ---------------------------------------------------------------- shapes and sizes


def _set_again(cls: type[Backbone]) -> list[str]:
    """Return the layers of TokenBackbone that a constructor overwrites by its own under the same name."""
    if not issubclass(cls, TokenBackbone):
        return []
    times: Counter[str] = Counter()

    class Watched(cls):  # type: ignore[misc,valid-type]
        def __setattr__(self, name: str, value: Any) -> None:
            times[f"self.{name}"] += isinstance(value, nn.Module | nn.Parameter)
            super().__setattr__(name, value)

    class Bare(TokenBackbone):
        def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
            return tokens

    try:
        build(Watched, SPEC)
    except Exception:  # reported with the sizes
        return []
    own = {f"self.{name}" for name in (*Bare(SPEC)._modules, *Bare(SPEC)._parameters)}
    return sorted(name for name in own if times[name] > 1)


def builds(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Builds with every size of the profiles, and for single units and patches."""
    specs = [replace(SPEC, width=w, n_layers=n) for w, n in PROFILES]
    specs += [replace(SPEC, n_units=u, n_groups=g, n_patches=p, n_features=f) for u, g, p, f, _ in SHAPES]
    problems = []
    possible = _specs(cls, specs)
    for spec in possible:
        try:
            build(cls, spec)
        except Exception as error:  # every size is tried, and all that fail are told
            problems.append(f"cannot be built with {spec}: {type(error).__name__}: {error}")
    next_step = "Say so in `impossible` if some sizes cannot be." if problems else ""
    if taken := _set_again(cls):
        problems.append(f"sets {', '.join(taken)}, which TokenBackbone embeds with: choose other names")
    demand(problems, next_step)
    return f"{len(specs) - len(possible)} of {len(specs)} sizes are refused" if len(possible) < len(specs) else ""


def output(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Tokens of the right shape and type, finite, for one unit, one patch, gaps and padding, in both modes."""
    problems: list[str] = list(getattr(cls, "wrong", ()))
    failures: dict[str, list[str]] = {}
    shapes = SHAPES + (((116, 7, 10, 8, 2), (40, 2, 16, 32, 1)) if full else ())
    for n_units, n_groups, n_patches, n_features, n_batch in shapes:
        spec = replace(SPEC, n_units=n_units, n_groups=n_groups, n_patches=n_patches, n_features=n_features)
        parameters = _parameters(cls)
        if cls.impossible(spec, parameters):
            continue
        for gaps in (False, True):
            batch = _batch(n_batch, gaps=gaps, spec=spec)
            for hidden, mode in ((_hidden(batch), "eval"), (torch.zeros_like(batch.table.valid), "train")):
                backbone = _built(cls, spec).train(mode == "train")
                where = f"{n_units} units × {n_patches} patches{', with gaps' if gaps else ''}, {mode} mode"
                try:
                    tokens = _call(backbone, batch, hidden)
                except Exception as error:  # every shape is tried, and all that fail are told
                    if isinstance(error, CheckError) and problems:
                        continue
                    failures.setdefault(f"raised {raised(error, cls)}", []).append(where)
                    continue
                wanted = (*batch.table.valid.shape, spec.width)
                if tuple(tokens.shape) != wanted:
                    problems.append(f"the output has shape {tuple(tokens.shape)}, not {wanted} ({where})")
                if tokens.dtype != torch.float32:
                    failures.setdefault(f"the output is {tokens.dtype}, not torch.float32,", []).append(where)
                if not torch.isfinite(tokens).all():
                    failures.setdefault("the output holds NaN or infinity", []).append(where)
    if len(failures) == 1 and not problems and len(next(iter(failures.values()))) > 1:
        raise CheckError(next(iter(failures)))  # wherever it is called: as the other checks say it
    problems += [
        f"{error} with {where[0]}{f' and {len(where) - 1} more' * (len(where) > 1)}"
        for error, where in failures.items()
    ]
    demand(problems[:6])
    return ""


def parameter_budget(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Parameters are within 10 % of the budget in every profile, unless the backbone says that it is exempt."""
    problems, found = [], []
    keeps = cls.keeps_budget(_parameters(cls))
    for spec in _specs(cls, [replace(SPEC, width=w, n_layers=n) for w, n in PROFILES]):
        count = sum(p.numel() for p in build(cls, spec).parameters())
        embedding = sum(p.numel() for p in build(_Embedding, spec).parameters())
        wanted = embedding + 2 * spec.n_layers * PARAMETERS_PER_PASS * spec.width**2
        found.append(f"{spec.width} × {spec.n_layers}: {count:,} ({count / wanted - 1:+.1%})")
        if keeps and abs(count / wanted - 1) > 0.1:
            problems.append(
                f"{count:,} parameters at width {spec.width} and {spec.n_layers} layers, "
                f"{count / wanted - 1:+.0%} of the budget of {wanted:,}"
            )
    demand(
        problems,
        "Never by the width: give each layer a block Linear(width, wide), GELU, Linear(wide, width) with "
        "wide = 2 * feedforward_width(width, mixer // 2), where `mixer` counts the other parameters of the layer.",
    )
    return ("" if keeps else "exempt, and marked so wherever it is shown: ") + "; ".join(found)


class _Embedding(TokenBackbone):
    """The common embedding and nothing else."""

    name = "embedding"
    summary = "the common embedding alone"

    def mix(self, tokens: torch.Tensor, table: TokenTable) -> torch.Tensor:
        """Mix nothing."""
        return tokens


# ---------------------------------------------------------------- what the tokens depend on


def hidden_values_stay_hidden(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Other values at hidden places change nothing, although they exist in memory around the call."""
    for seed in range(3):
        for mode in ("eval", "train"):
            first, second = (_with_hidden_values(cls, seed, mode, factor) for factor in (1.0, -3.0))
            if not torch.equal(first, second):
                raise CheckError(
                    f"hidden values reach the tokens in {mode} mode: changing them changes the output by "
                    f"{_difference(first, second):.1e} s.d., although they are zeroed before the call.",
                    next_step="Use `signal` as it is given, nothing from around the call.",
                )
    return ""


def _with_hidden_values(cls: type[Backbone], seed: int, mode: str, factor: float) -> torch.Tensor:
    """Return the tokens of a batch whose hidden values are multiplied; no other version of it exists meanwhile."""
    batch = _batch(seed=seed)
    hidden = _hidden(batch, seed)
    batch.signal[hidden] *= factor
    with other_global_state(0):
        return _call(_built(cls).train(mode == "train"), batch, hidden)


def reach(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Every visible token reaches the output at some hidden place, and every hidden place sees some visible token."""
    problems = []
    backbone = _built(cls)
    batch = _batch(1)
    hidden = _hidden(batch)
    influence = _influence(backbone, batch, hidden)
    unseen = (~hidden[0]) & (influence == 0)
    if unseen.any():
        problems.append(
            f"{int(unseen.sum())} of {int((~hidden[0]).sum())} visible tokens reach no output at a hidden "
            f"place, such as {_place(unseen)}"
        )
    for unit, patch in ((0, 0), (SPEC.n_units - 1, SPEC.n_patches - 1), (0, SPEC.n_patches - 1), (SPEC.n_units - 1, 0)):
        single = torch.zeros_like(hidden)
        single[0, unit, patch] = True
        seen = _influence(backbone, batch, single)
        seen[unit, patch] = 0
        if not (seen > 0).any():
            problems.append(f"the output at unit {unit}, patch {patch} sees no other token")
    demand(problems, "Mix across units, and along time in both directions.")
    return ""


def _influence(backbone: Any, batch: Batch, hidden: torch.Tensor) -> torch.Tensor:
    """Return (units, patches) size of the gradient of the outputs at hidden places with respect to each token."""
    signal = batch.signal.masked_fill(hidden[..., None], 0.0).requires_grad_()
    gradient = _gradient(backbone(signal, hidden.clone(), batch.table.map(torch.clone))[hidden], signal)
    if gradient is None:
        raise CheckError(
            "no gradient gets from the output back to the signal.",
            next_step="Do not detach tokens, nor compute with them in numpy or in integers.",
        )
    return gradient[0].abs().amax(-1)


def _gradient(tokens: torch.Tensor, signal: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient of a random sum of tokens with respect to the signal; None where nothing gets back to it."""
    if not tokens.requires_grad:
        return None
    weights = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))
    return torch.autograd.grad((tokens * weights).sum(), signal, allow_unused=True)[0]


def _place(where: torch.Tensor) -> str:
    unit, patch = where.nonzero()[0].tolist()
    return f"unit {unit}, patch {patch}"


def gradients(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Every parameter gets a gradient from the tokens at hidden places."""
    backbone = _built(cls).train()
    batch = _batch()
    hidden = _hidden(batch)
    tokens = backbone(batch.signal.masked_fill(hidden[..., None], 0.0), hidden, batch.table)[hidden]
    (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    named = [(n, p) for n, p in backbone.named_parameters() if p.requires_grad]
    if not named:
        raise CheckError("has no parameter to train.")
    without = [n for n, p in named if p.grad is None or not p.grad.abs().max() > 0]
    demand([f"no gradient reaches {', '.join(without[:6])}"] if without else [], "Use it, or remove it.")
    return ""


def subjects_do_not_mix(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """The tokens of one window do not depend on the other windows of its batch, training or not."""
    problems = []
    batch = _batch(3)
    hidden = _hidden(batch)
    for mode in ("eval", "train"):
        backbone = _built(cls).train(mode == "train")
        signal = batch.signal.masked_fill(hidden[..., None], 0.0).requires_grad_()
        gradient = _gradient(backbone(signal, hidden, batch.table)[0], signal)
        if gradient is not None and (leak := float(gradient[1:].abs().max())) > 0:
            problems.append(
                f"subjects of a batch are mixed in {mode} mode: the tokens of one window depend on another window "
                f"(gradient {leak:.1e})"
            )
    backbone = _built(cls)
    together = _call(backbone, batch, hidden)
    alone = _call(_built(cls), _rows(batch, [1]), hidden[1:2])
    if (difference := _difference(together[1:2], alone)) > TOLERANCE:
        problems.append(f"subjects of a batch are mixed: alone, a window gets other tokens (by {difference:.1e} s.d.)")
    turned = _call(_built(cls), _rows(batch, [2, 0, 1]), hidden[[2, 0, 1]])
    if (difference := _difference(together[[2, 0, 1]], turned)) > TOLERANCE:
        problems.append(f"the order of the windows in a batch changes their tokens (by {difference:.1e} s.d.)")
    demand(problems, "Normalise and mix within a window: LayerNorm, not BatchNorm.")
    return ""


_unseen = itertools.count(1000)
"""Seeds of batches that no backbone has been given."""


def no_state(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Nothing is carried from one batch to the next, training or not."""
    # No other check, nor this one before, may have shown them: a memory outside of the object would know them already.
    batch, other = _batch(seed=next(_unseen)), _batch(seed=next(_unseen))
    hidden, nothing = _hidden(batch), torch.zeros_like(batch.table.valid)
    fresh = _call(_built(cls), batch, hidden)
    before: dict[str, Callable[[Any], Any]] = {
        "another batch": lambda b: _call(b.eval(), other, hidden),
        "another batch in train mode": lambda b: _call(b.train(), other, hidden),
        "the same batch with nothing hidden": lambda b: _call(b.eval(), batch, nothing),
        "the same batch": lambda b: _call(b.eval(), batch, hidden),
    }
    problems = []
    for what, call in before.items():
        backbone = _built(cls)
        call(backbone)
        if (difference := _difference(fresh, _call(backbone.eval(), batch, hidden))) > TOLERANCE:
            problems.append(
                f"state is carried between batches: after {what} the tokens differ by {difference:.1e} s.d."
            )
    demand(problems, "Keep nothing on `self` in `forward`, running statistics included.")
    return ""


def invalid_tokens(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Tokens that are not valid have no influence: neither what is in them, nor that they are there."""
    problems = []
    batch = _batch(2, gaps=True)
    valid = batch.table.valid
    hidden = _hidden(batch)
    backbone = _built(cls)
    clean = _call(backbone, batch, hidden)
    noisy = torch.where(valid[..., None], batch.signal, torch.full_like(batch.signal, 5.0))
    if (
        difference := _difference(clean[valid], _call(backbone, replace(batch, signal=noisy), hidden)[valid])
    ) > TOLERANCE:
        problems.append(f"values at places that are not valid change valid tokens by {difference:.1e} s.d.")
    # Places at an end: one in the middle is a gap that a convolution may see, and that is reported, not judged.
    for what, n_units, n_patches in (
        ("missing units", SPEC.n_units - 3, None),
        ("padded patches", None, SPEC.n_patches - 2),
    ):
        if n_patches and not issubclass(cls, TokenBackbone):
            continue
        padded, short = _padded(n_units, n_patches), _cut(_padded(n_units, n_patches), n_units, n_patches)
        there = _call(backbone, padded, _hidden(padded))[:, :n_units, :n_patches]
        absent = _call(backbone, short, _hidden(padded)[:, :n_units, :n_patches])
        if (difference := _difference(absent, there)) > TOLERANCE:
            problems.append(f"{what} change the other tokens by {difference:.1e} s.d., compared with leaving them out")
    demand(problems, "Mask with `table.valid`: attention keys, the input and the step of a scan, sums and norms.")
    kept = valid[0].any(1)
    without = _call(backbone, _cut(batch, kept.nonzero()[:, 0]), hidden[:, kept])
    share = float((clean[:, kept] - without)[valid[:, kept]].std() / clean[valid].std())
    return f"a unit missing between others changes them by {share:.1%} of their s.d., compared with leaving it out"


def _padded(n_units: int | None, n_patches: int | None) -> Batch:
    """Return a batch in which everything from a unit and from a patch on is not valid."""
    batch = _batch(2)
    valid = torch.zeros_like(batch.table.valid)
    valid[:, :n_units, :n_patches] = True
    return replace(batch, signal=batch.signal * valid[..., None], table=replace(batch.table, valid=valid))


def _cut(batch: Batch, units: torch.Tensor | int | None, n_patches: int | None = None) -> Batch:
    """Return a batch of some units (an index, or the first so many), in the order given, and of the first patches."""
    at = units if isinstance(units, torch.Tensor) else slice(units)
    table = batch.table.map(lambda x: x[:, at])
    table = replace(table, valid=table.valid[:, :, :n_patches])
    return replace(batch, signal=batch.signal[:, at][:, :, :n_patches], table=table)


def drops_hidden(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Where hidden tokens are said to be left out, visible ones are what they are without them in the table."""
    if not cls.drops(_parameters(cls)):
        return "hidden tokens take part, as one learned token"
    problems = []
    for what, n_units, n_patches in (
        ("hidden units", SPEC.n_units - 9, None),
        ("hidden patches", None, SPEC.n_patches - 3),
    ):
        if n_patches and not issubclass(cls, TokenBackbone):
            continue
        batch = _batch(2)
        hidden = torch.ones_like(batch.table.valid)
        hidden[:, :n_units, :n_patches] = False
        there = _call(_built(cls), batch, hidden)[:, :n_units, :n_patches]
        short = _cut(batch, n_units, n_patches)
        absent = _call(_built(cls), short, torch.zeros_like(short.table.valid))
        if (difference := _difference(absent, there)) > TOLERANCE:
            problems.append(
                f"is said to leave hidden tokens out, and {what} change the visible tokens by {difference:.1e} s.d., "
                "compared with a table without them"
            )
    demand(problems, "Compute visible tokens from visible ones, or leave `drops_hidden` False.")
    return "hidden tokens are left out"


def sensors(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Types and orientations of sensors are told apart by the embedding, each window's own, and may be unknown."""
    batch = _of_sensors(_batch(2))
    spec = replace(SPEC, n_types=len(batch.units.type_names), oriented=True)
    hidden = torch.zeros_like(batch.table.valid)
    backbone = _built(cls, spec)
    t, tokens, changes, problems = batch.table, _call(backbone, batch, hidden), [], []
    unknown = torch.full_like(t.type, -1)
    for what, table in (
        ("orientations", replace(t, orientation=-t.orientation)),
        ("types", replace(t, type=(t.type + 1) % spec.n_types)),
        ("sensors of which nothing is known", replace(t, orientation=torch.zeros_like(t.orientation), type=unknown)),
    ):
        # Only the second window's.
        table = table.map(lambda x: x.clone())
        for name in ("orientation", "type"):
            getattr(table, name)[0] = getattr(t, name)[0]
        other = _call(backbone, replace(batch, table=table), hidden)
        if not torch.isfinite(other).all():
            problems.append(f"the output holds NaN or infinity with other {what}")
        if (leak := _difference(tokens[:1], other[:1])) > TOLERANCE:
            problems.append(f"other {what} in one window change the tokens of another one by {leak:.1e} s.d.")
        changes.append((what, _difference(tokens[1:], other[1:])))
        if issubclass(cls, TokenBackbone) and changes[-1][1] <= TOLERANCE:
            problems.append(f"other {what} change nothing")
    demand(problems, "`embed` adds what a sensor is: a `forward` of its own has to call it.")
    return "; ".join(f"other {what} change the tokens by {change:.1e} s.d." for what, change in changes)


def _of_sensors(batch: Batch) -> Batch:
    """Return a batch whose units are magnetometers and gradiometers with orientations, wherever they lie."""
    like = simulated_units(len(batch.units), 3, kind="sensors")
    units = replace(batch.units, types=like.types, orientation=like.orientation)
    table = replace(
        batch.table,
        orientation=torch.from_numpy(units.orientation)[batch.table.unit],
        type=torch.from_numpy(types_known(units, units))[batch.table.unit],
        units=units,
    )
    return replace(batch, table=table, units=units)


def connectivity(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Who asks for connectivity uses it: another one gives other tokens, and none at all gives finite ones."""
    if not cls.uses_connectivity:
        return "does not ask for connectivity"
    batch = _batch()
    hidden = _hidden(batch)
    backbone = _built(cls)
    tokens = _call(backbone, batch, hidden)
    problems = []
    backbone.connectivity.copy_(simulated_connectivity(len(backbone.connectivity), seed=7))
    if (difference := _difference(tokens, _call(backbone, batch, hidden))) <= TOLERANCE:
        problems.append(f"asks for connectivity, and another one changes the tokens by {difference:.1e} s.d. only")
    backbone.connectivity.zero_()
    if not torch.isfinite(_call(backbone, batch, hidden)).all():
        problems.append("the output holds NaN or infinity where no unit is connected")
    demand(problems, "Read `self.connectivity` in `mix`, or leave `uses_connectivity` False.")
    return f"another connectivity changes the tokens by {difference:.1e} s.d."


def routing(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Gate shares are from 0 and sum to 1 a unit, to 0 for one without valid tokens; there are none without experts."""
    backbone, told = _built(cls), ""
    problems = []
    for gaps in (False, True):
        batch = _batch(gaps=gaps)
        hidden = _hidden(batch)
        with torch.no_grad():
            signal = batch.signal.masked_fill(hidden[..., None], 0.0)
            shares = backbone.routing(signal, hidden, batch.table)
        if shares is None:
            return "has no experts"
        seen = (batch.table.valid & ~hidden if cls.drops(_parameters(cls)) else batch.table.valid).any(2)
        if shares.ndim != 3 or shares.shape[:2] != seen.shape:
            raise CheckError(f"`routing` returns shape {tuple(shares.shape)}, not {(*seen.shape, 'experts')}.")
        told = f"{shares.shape[2]} experts, the busiest with {float(shares[seen].mean(0).max()):.0%} before training"
        if not (shares >= 0).all():
            problems.append("`routing` returns shares below 0, or NaN")
        if (far := float((shares.sum(2) - seen.float()).abs().max())) > TOLERANCE:
            problems.append(
                f"the shares of `routing` are {far:.1e} off a sum of 1, or of 0 for a unit without valid tokens"
            )
    demand(problems, "Average the gates over a unit's valid patches.")
    return told


N_PROMPTS = 3

UNITS_OF_THEIR_OWN = replace(SPEC, n_units=13)
"""Sizes in which whatever is of the length of the unit table is about units."""


def prompts(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Learned tokens reach all others, are trained alone, and belong to no unit."""
    if not cls.takes_prompts():
        return "takes no prompts, and is refused where they are asked for"
    variants = [{}, {"visible_only": True}] if "visible_only" in cls.component_parameters() else [{}]
    for changed in variants:
        _prompted_tokens(cls, changed)
        _no_unit(cls, changed)
    return ""


def _prompted(
    cls: type[Backbone], changed: dict[str, Any], spec: BackboneSpec = SPEC
) -> tuple[Any, list[nn.Parameter]]:
    """Return a frozen backbone with prompts, and them; the same of every call."""
    backbone = _built(cls, spec, **changed).requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return backbone, list(backbone.with_prompts(N_PROMPTS))


def _prompted_tokens(cls: type[Backbone], changed: dict[str, Any]) -> None:
    problems = []
    batch = _batch(2, gaps=True)
    valid = batch.table.valid
    hidden = _hidden(batch)
    plain = _built(cls, **changed)
    before = {n: t.clone() for n, t in plain.state_dict().items()}
    backbone, added = _prompted(cls, changed)
    own = {id(p) for p in added}
    lost = [n for n, t in before.items() if not torch.equal(t, dict(backbone.state_dict()).get(n, torch.empty(0)))]
    if lost:
        problems.append(f"`with_prompts` changes or removes {', '.join(lost[:5])}")
    trained = [n for n, p in backbone.named_parameters() if p.requires_grad and id(p) not in own]
    if trained:
        problems.append(f"`with_prompts` makes {', '.join(trained[:5])} trainable, and does not return it")
    there = {id(p) for p in backbone.parameters()}
    if not added or not own <= there or not all(p.requires_grad for p in added):
        problems.append("`with_prompts` does not return parameters of the backbone that can be trained")
    demand(problems, "Return what was added, and leave everything else as it is.")
    for what, where in (("half of them hidden", hidden), ("nothing hidden", torch.zeros_like(hidden))):
        without, with_them = _call(plain, batch, where), _call(backbone, batch, where)
        difference = _difference(without[valid], with_them[valid])
        if not torch.isfinite(with_them[valid]).all():
            problems.append(f"with prompts the tokens hold NaN or infinity ({what})")
        elif difference < TOLERANCE:
            problems.append(f"prompts do not reach the tokens ({what}): they change by {difference:.1e} s.d.")
    demand(
        problems, "Prompts are units more: `mix` has to mix across units, a `forward` of its own has to mix them in."
    )
    signal = batch.signal.masked_fill(hidden[..., None], 0.0)
    tokens = backbone.train()(signal, hidden, batch.table)[valid]
    if tokens.requires_grad:
        (tokens * torch.randn(tokens.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    if [p for p in added if p.grad is None or not (p.grad.flatten(1) if p.ndim > 1 else p.grad).abs().max() > 0]:
        problems.append("no gradient reaches the prompts")
    written = [n for n, t in before.items() if not torch.equal(t, backbone.state_dict()[n])]
    if written:
        problems.append(f"a call with prompts in train mode changes {', '.join(written[:5])}")
    problems += _invalid_beside_prompts(cls, changed, batch)
    demand(problems)


def _invalid_beside_prompts(cls: type[Backbone], changed: dict[str, Any], batch: Batch) -> list[str]:
    """Return what is wrong with how tokens that are not valid, and padding, are treated beside prompts."""
    problems = []
    backbone, _ = _prompted(cls, changed)
    valid, hidden = batch.table.valid, _hidden(batch)
    clean = _call(backbone, batch, hidden)
    noisy = torch.where(valid[..., None], batch.signal, torch.full_like(batch.signal, 5.0))
    difference = _difference(clean[valid], _call(backbone, replace(batch, signal=noisy), hidden)[valid])
    if difference > TOLERANCE:
        problems.append(f"with prompts, values at places that are not valid change tokens by {difference:.1e} s.d.")
    if issubclass(cls, TokenBackbone):
        n = SPEC.n_patches - 2
        padded, short = _padded(None, n), _cut(_padded(None, n), None, n)
        there = _call(backbone, padded, _hidden(padded))[:, :, :n]
        absent = _call(backbone, short, _hidden(padded)[:, :, :n])
        if (difference := _difference(absent, there)) > TOLERANCE:
            problems.append(f"with prompts, padded patches change the other tokens by {difference:.1e} s.d.")
    return problems


def _no_unit(cls: type[Backbone], changed: dict[str, Any]) -> None:
    """Whatever is known of the last unit must not reach windows without it: −1 is no index of its row."""
    spec = UNITS_OF_THEIR_OWN
    parameters = _parameters(cls) | changed
    if cls.impossible(spec, parameters):
        return
    some = _cut(_batch(2, spec=spec), spec.n_units - 4)
    nothing = torch.zeros_like(some.table.valid)
    moved = []
    for with_prompts in (False, True):
        one, other = (
            _prompted(cls, changed, spec)[0] if with_prompts else _built(cls, spec, **changed) for _ in range(2)
        )
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name, tensor in other.state_dict().items():
                for axis, size in enumerate(tensor.shape):
                    if size == spec.n_units and tensor.is_floating_point() and "prompt" not in name:
                        last = tensor.select(axis, -1)
                        last += torch.randn(last.shape, generator=generator)
        moved.append(_difference(_call(one, some, nothing), _call(other, some, nothing)))
    if moved[0] < TOLERANCE < moved[1]:
        raise CheckError(
            "prompts are taken for the last unit of the table: what is learned of that one changes the tokens of "
            f"windows without it, by {moved[1]:.1e} s.d.",
            next_step="`table.unit` is −1 for a prompt, and an index of −1 is the last row: leave prompts out of what "
            "units are looked up in, or let them see and be seen by everything.",
        )


def order_of_units(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Says (and never fails) how much the tokens depend on the order in which units are given."""
    batch = _batch()
    hidden = _hidden(batch)
    turn = torch.randperm(SPEC.n_units, generator=torch.Generator().manual_seed(0))
    backbone = _built(cls)
    straight = _call(backbone, batch, hidden)
    turned = _call(backbone, _cut(batch, turn), hidden[:, turn])[:, turn.argsort()]
    share = float((straight - turned).std() / straight.std())
    return f"before training, another order of units changes the tokens by {share:.1%} of their s.d."


# ---------------------------------------------------------------- determinism


def same_seed_same_bytes(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """The same seed builds the same weights and gives the same tokens, whatever other generators hold."""
    problems = []
    backbone, batch = _built(cls), _batch()
    states = [build(cls, backbone.spec, legacy_seed=seed).state_dict() for seed in (1, 2)]
    different = [k for k in states[0] if not torch.equal(states[0][k], states[1][k])]
    if different:
        problems.append(f"the same seed builds different weights: {', '.join(different[:5])}")
    hidden = _hidden(batch)
    tokens = []
    for global_seed in (1, 2):
        tokens.append(_call(backbone, batch, hidden, global_seed))
    if not torch.equal(*tokens):
        problems.append(f"in eval mode two calls differ by {_difference(*tokens):.1e} s.d.: chance is left on")
    for what, action in (
        ("the constructor", lambda: cls(backbone.spec, **dict(cls.check_with))),
        ("a call", lambda: backbone.train()(batch.signal, hidden, batch.table)),
    ):
        problems += [f"{what} sets the seed of {name} for everybody" for name in seeds_set_by(action)]
    chance = ": until then other checks may take chance for an influence" if any("call" in p for p in problems) else ""
    demand(
        problems, f"Initialise with torch's generator, set no seed, use chance (dropout) in train mode only{chance}."
    )
    return ""


def weights_move(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """Weights moved into a newly built backbone give the same tokens: they are all there is."""
    batch = _batch()
    hidden = _hidden(batch)
    original = _built(cls)
    spec = original.spec
    other = build(cls, spec, seed=5).eval()
    other.load_state_dict(original.state_dict())
    difference = _difference(_call(original, batch, hidden), _call(other, batch, hidden))
    if difference > TOLERANCE:
        raise CheckError(
            f"the tokens differ by {difference:.1e} s.d. after the weights are moved into a new backbone.",
            next_step="Register what was drawn at random as a parameter or buffer.",
        )
    shared = _shared(original)
    demand([f"{' and '.join(names)} share memory" for names in shared], "Safe weight files hold each tensor once.")
    return ""


def _shared(module: nn.Module) -> list[list[str]]:
    places: dict[int, list[str]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        places.setdefault(tensor.untyped_storage().data_ptr(), []).append(name)
    return [names for place, names in places.items() if len(names) > 1 and place]


def inputs_are_left_alone(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """A call writes into none of its inputs and opens no file, training or not."""
    batch = _batch(gaps=True)
    hidden = _hidden(batch)
    backbone = _built(cls)
    given = dict(_tensors(batch, hidden))
    before = {name: tensor.clone() for name, tensor in given.items()}
    # What it returns is for the other checks. Whoever writes in training reads later, and looks first if it is there.
    with watched_files() as seen, torch.no_grad():
        for training in (True, False):
            with contextlib.suppress(CheckError):
                backbone.train(training)(batch.signal, hidden, batch.table)
    problems = [f"a call writes into `{n}`" for n, tensor in given.items() if not torch.equal(before[n], tensor)]
    problems += [f"a call {what}" for what in dict.fromkeys(seen)]
    demand(problems)
    return ""


def _tensors(batch: Batch, hidden: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    yield "signal", batch.signal
    yield "hidden", hidden
    for name in ("unit", "valid", "position", "group", "orientation", "type"):
        yield f"table.{name}", getattr(batch.table, name)


RESUMED_STEPS = 4


def resumes(cls: type[Backbone], registry: Registry | None, full: bool) -> str:
    """A pretraining that goes on from a checkpoint in a new process ends with the bytes of one that was not stopped."""
    whole = _trained(cls, None, RESUMED_STEPS, seed=0)
    half = _trained(cls, None, RESUMED_STEPS // 2, seed=1)
    resumed = _trained(cls, half, RESUMED_STEPS, seed=2)
    different = [name for name, tensor in whole.items() if not torch.equal(tensor, resumed[name])]
    if different:
        raise CheckError(
            f"a pretraining that goes on from a checkpoint ends with other values of {', '.join(different[:4])}"
            f"{f' and {len(different) - 4} more' if len(different) > 4 else ''} than one that was never stopped.",
            next_step="What changes in training belongs into a parameter or a buffer that is saved, not into an "
            "attribute of the object, and chance comes from torch's own generator.",
        )
    return ""


def _trained(
    cls: type[Backbone], found: dict[str, torch.Tensor] | None, n_done: int, seed: int
) -> dict[str, torch.Tensor]:
    """Pretrain a new backbone until some steps are done, from what was found of an earlier one on; return its state.

    Generators that a checkpoint does not hold are at another place every time, as they are in another process.
    """
    with other_global_state(seed):
        torch.manual_seed(0)
        backbone = _built(cls, shaken=False)
        learner = Filling(backbone, pretraining.Decoder(backbone.spec.width, backbone.spec.n_features))
        recipe = pretraining.Recipe(batch_size=2)
        training = pretraining.Training(learner, recipe, RESUMED_STEPS, torch.device("cpu"), seed=0)
        if found is not None:
            training.restore(found, training.counts() | {"n_done": RESUMED_STEPS // 2})
        backbone.train()
        while training.n_done < n_done:
            batch = _batch(2, seed=training.n_done, spec=backbone.spec)
            hidden = _hidden(batch, training.n_done)
            training.step(Drawn.of(batch, hidden, hidden))
        return {name: tensor.detach().clone() for name, tensor in training.tensors().items()}


CHECKS: dict[str, Check] = {
    "builds": builds,
    "output": output,
    "parameter-budget": parameter_budget,
    "hidden-values-stay-hidden": hidden_values_stay_hidden,
    "reach": reach,
    "gradients": gradients,
    "subjects-do-not-mix": subjects_do_not_mix,
    "no-state": no_state,
    "invalid-tokens": invalid_tokens,
    "drops-hidden": drops_hidden,
    "same-seed-same-bytes": same_seed_same_bytes,
    "weights-move": weights_move,
    "resumes": resumes,
    "inputs-are-left-alone": inputs_are_left_alone,
    "sensors": sensors,
    "connectivity": connectivity,
    "routing": routing,
    "prompts": prompts,
    "order-of-units": order_of_units,
}
