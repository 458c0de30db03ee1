"""What a record claims beside its numbers: texts that are shown, terms of the data, a command to repeat it, its cost.

Nothing here follows from predictions. What the installed code, the identity or arithmetic can say of it is said.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from neurobench.bundle_reader import printable
from neurobench.components import from_outside
from neurobench.contracts import Backbone
from neurobench.errors import NeurobenchError
from neurobench.plugins import Registry
from neurobench.pretraining import build, count_parameters
from neurobench.records import BackboneSpec
from neurobench.results import Record

__all__ = ["beyond_reason", "not_of_card", "not_repeatable", "wrong_cost"]

MOST_TEXT, MOST_NUMBER = 10_000, 2**53
"""Characters of a text; the largest whole number that every reader of JSON keeps."""

UNSEEN = {"Cc", "Cf", "Co", "Cs", "Zl", "Zp"}
"""Categories of characters that are not seen, or that turn round what is: of a text nobody reads what is there."""

SHELL = re.compile(r"[;&|<>`\n\r]|\$\(")

FASTEST_STEP_S = 1e-4
"""Seconds of a step of an optimiser, at least: no machine starts the kernels of one in less."""

MOST_SIZE: Mapping[str, int] = {
    "n_units": 5_000,
    "n_groups": 5_000,
    "n_patches": 10_000,
    "n_features": 20_000,
    "width": 2_048,
    "n_layers": 64,
    "n_types": 100,
    "oriented": 1,
}
"""Of a network that is built to count its parameters."""

FEWEST_VALID = 0.1
"""Share of the tokens of a window that are valid, at least: of short recordings, or with absent units, not all are."""


def beyond_reason(plain: Any, where: str = "") -> Iterator[str]:
    """Yield texts of plain values that hold what is not seen or have no end, and numbers that no reader keeps."""
    if isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from beyond_reason(str(key), "a name")
            yield from beyond_reason(value, f"{where}.{key}" if where else str(key))
    elif isinstance(plain, list | tuple):
        for value in plain:
            yield from beyond_reason(value, where)
    elif isinstance(plain, str):
        if len(plain) > MOST_TEXT:
            yield f"{printable(where)} has {len(plain)} characters, and {MOST_TEXT} are allowed"
        if unseen := next((c for c in plain if unicodedata.category(c) in UNSEEN), ""):
            yield f"{printable(where)} holds U+{ord(unseen):04X}, which is not seen and changes how a text is read"
    elif isinstance(plain, int) and abs(plain) > MOST_NUMBER:
        yield f"{printable(where)} is a whole number of {plain.bit_length()} bits, and 53 are allowed"


def not_of_card(record: Record, registry: Registry) -> Iterator[str]:
    """Yield what a record says of the terms of simulated data that is not on the card of the installed dataset.

    Of real data a description in their folder may say more than the card does.
    """
    data, says = record.data, record.dataset
    if data is None or data.source != "simulated" or says.name not in registry.datasets:
        return
    if says.digest != registry.provenance("dataset", says.name).digest:
        # Told already; another version may have had another card.
        return
    try:
        dataset = registry.get("dataset", says.name)(**says.parameters)
    except (NeurobenchError, TypeError, ValueError):
        return
    card = dataset.card
    wanted = {
        "title": card.title,
        "revision": card.revision,
        "licence": card.licence,
        "access": card.access,
        "citation": card.cite(),
        "signal": dataset.signal,
        "dataset": says.label,
    }
    for name, value in wanted.items():
        if getattr(data, name) != value:
            yield f"the {name} of its data is given as {printable(str(getattr(data, name)))!r}, and is {value[:100]!r}"


def not_repeatable(record: Record) -> Iterator[str]:
    """Yield why the command of a record, which its page tells readers to copy, does more than run neurobench."""
    command = record.environment.get("command", "")
    if SHELL.search(command):
        yield f"its command holds what a shell would act on, and readers copy it: {printable(command)!r}"


def wrong_cost(record: Record, identity: Mapping[str, Any] | None, registry: Registry) -> Iterator[str]:
    """Yield what of a row's cost cannot be: its parameters are counted again, its time is held to what was computed."""
    cost, p = record.cost, record.protocol
    if record.backbone is None:
        if cost.n_parameters is not None:
            yield f"says that it has {cost.n_parameters} parameters, and there is no backbone"
        return
    trained = _pretrainings(identity)
    sizes = {n for step in trained if (n := _counted(record, step, registry)) is not None}
    if sizes and cost.n_parameters not in sizes:
        yield f"says that its backbone has {cost.n_parameters} parameters, and it has {min(sizes)}"
    if record.kind != "pretrained":
        return
    n_tokens = FEWEST_VALID * len(trained) * p.n_steps * p.batch_size * p.n_tokens
    if cost.tokens_per_s is not None and n_tokens > 1.01 * cost.seconds * max(cost.tokens_per_s, 0.0):
        text = f"{cost.seconds:.3g} s at {cost.tokens_per_s:.3g} tokens a second"
        yield f"says that it took {text}, which is less than a tenth of the pretraining that it speaks of"
    n_steps = len(trained) * p.n_steps
    if n_steps * FASTEST_STEP_S > cost.seconds:
        yield f"says that it took {cost.seconds:.3g} s, in which no machine makes {n_steps} steps"


def _pretrainings(identity: Mapping[str, Any] | None) -> list[Mapping[str, Any]]:
    steps = identity["steps"].values() if identity is not None else ()
    return [step["identity"] for step in steps if "backbone" in step["identity"]]


def _counted(record: Record, step: Mapping[str, Any], registry: Registry) -> int | None:
    """Return the parameters of a backbone as it is installed here; None where that is another one, or none."""
    says, spec = record.backbone, step.get("spec")
    assert says is not None
    known = registry.backbones.get(says.name)
    if known is None or registry.provenance("backbone", says.name).digest != says.digest:
        return None
    if from_outside(says.parameters) or not isinstance(spec, dict):
        return None
    # Sizes come from outside: what nobody would train is not built.
    if not all(isinstance(n, int) and 0 <= n <= MOST_SIZE.get(name, 0) for name, n in spec.items()):
        return None
    try:
        return _size(known, tuple(sorted(spec.items())), tuple(sorted(says.parameters.items())))
    except (NeurobenchError, TypeError, ValueError, RuntimeError, ImportError):
        # Parameters that it does not take are a finding of their own; one for a GPU alone cannot be built here.
        return None


@functools.lru_cache(maxsize=256)
def _size(cls: type[Backbone], spec: tuple[tuple[str, Any], ...], parameters: tuple[tuple[str, Any], ...]) -> int:
    return count_parameters(build(cls, BackboneSpec(**dict(spec)), dict(parameters), 0)[0])
