"""Public contract checks, run by `neurobench check NAME` and by the tests alike; everything wrong is told at once.

A check is a function of a component's class (and of the registry) that raises
:class:`~neurobench.errors.CheckError` with a sentence for the author, or returns a remark. Which checks run depends on
the kind of the component alone: no check knows a name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from neurobench.checks import backbones, baselines, common, datasets, figures, masks, tasks
from neurobench.checks.common import Check, Skip, raised
from neurobench.contracts import Backbone, Baseline, Component, Dataset, Figure, MaskingStrategy, Task
from neurobench.errors import CheckError
from neurobench.plugins import Registry

__all__ = ["CheckResult", "Outcome", "check_component", "checks_of"]

Outcome = Literal["passed", "failed", "expected-failure", "unexpected-pass", "skipped"]

_BY_KIND: Mapping[type[Component], Mapping[str, Check]] = {
    Backbone: backbones.CHECKS,
    MaskingStrategy: masks.CHECKS,
    Dataset: datasets.CHECKS,
    Task: tasks.CHECKS,
    Baseline: baselines.CHECKS,
    Figure: figures.CHECKS,
}


@dataclass(frozen=True)
class CheckResult:
    """What one check said of one component.

    Parameters
    ----------
    component, check
        Their names.
    outcome
        ``passed``; ``failed``; ``expected-failure`` (declared beside the plugin, with the reason);
        ``unexpected-pass`` (declared, but passes: the declaration has to go); ``skipped``.
    message
        For the author of the plugin: what is wrong, what was found, or why the check was skipped.
    """

    component: str
    check: str
    outcome: Outcome
    message: str = ""

    @property
    def ok(self) -> bool:
        """Whether nothing has to be done."""
        return self.outcome not in ("failed", "unexpected-pass")


def checks_of(cls: type[Component]) -> dict[str, Check]:
    """Return the checks that apply to a component, by name.

    Raises
    ------
    CheckError
        If the class is of no kind that neurobench knows.
    """
    for base, own in _BY_KIND.items():
        if issubclass(cls, base):
            return {**common.CHECKS, **own, **common.LAST}
    kinds = ", ".join(base.__name__ for base in _BY_KIND)
    raise CheckError(f"{cls.__name__} is no plugin class.", allowed=f"a subclass of one of {kinds}")


def check_component(
    cls: type[Component], *, registry: Registry | None = None, full: bool = False, only: str = ""
) -> list[CheckResult]:
    """Run every check of a component's kind and return what each said; never stops at the first failure.

    Parameters
    ----------
    cls
        The plugin class.
    registry
        What is installed; checks that look other components up are skipped without it.
    full
        Run on more shapes, and simulate more.
    only
        Name of one check to run.

    Raises
    ------
    CheckError
        If the class is of no kind, or there is no check ``only``.
    """
    found = checks_of(cls)
    name = str(getattr(cls, "name", cls.__name__))
    if only and only not in found:
        raise CheckError(f"there is no check {only!r} for {name}.", allowed=", ".join(found))
    results: list[CheckResult] = []
    if (reason := _why_unavailable(cls)) and not only:
        return [CheckResult(name, check, "skipped", reason) for check in found]
    usable = backbones.mended(cls) if issubclass(cls, Backbone) else cls
    for check, function in found.items():
        if only in ("", check):
            seen = cls if check in {**common.CHECKS, **common.LAST} else usable
            outcome, message = _run(function, seen, registry, full)
            if outcome == "failed":
                message = _in_short(check, message, results)
            results.append(_judged(cls, name, check, outcome, message))
    for check in sorted(set(cls.expected_failures) - set(found)) if not only else ():
        message = f"expected_failures names a check {check!r} that does not exist; there are {', '.join(found)}"
        results.append(CheckResult(name, check, "failed", message))
    return results


FIRST: Mapping[str, str] = {"builds": "raised ", "elements-are-flat-indices": ""}
"""Checks without which others cannot be understood, and how the messages of those begin."""


def _in_short(check: str, message: str, results: list[CheckResult]) -> str:
    """Return a message without what an earlier check has said, and with the check that is to be mended before."""
    failed = {r.check: r.message for r in results if r.outcome == "failed"}
    if same := [r for r, said in failed.items() if said == message]:
        return f"the same as `{same[0]}`"
    for first, begin in FIRST.items():
        if first in failed and begin in message:
            return f"{message} Mend `{first}` first: this may come of it."
    return message


def _why_unavailable(cls: type[Component]) -> str:
    try:
        return cls.unavailable()
    except Exception:  # reported by the check `metadata`
        return ""


def _run(function: Check, cls: type[Component], registry: Registry | None, full: bool) -> tuple[Outcome, str]:
    # Inputs are tiny: more threads only wait for each other, and bytes are promised for one thread count.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return "passed", function(cls, registry, full)
    except Skip as skip:
        return "skipped", str(skip)
    except CheckError as error:
        return "failed", str(error)
    except Exception as error:  # whatever a plugin raises is a finding about the plugin, not an end of the checks
        return "failed", f"raised {raised(error, cls)}"
    finally:
        torch.set_num_threads(threads)


def _judged(cls: type[Component], name: str, check: str, outcome: Outcome, message: str) -> CheckResult:
    reason = cls.expected_failures.get(check)
    if reason is None or outcome == "skipped":
        return CheckResult(name, check, outcome, message)
    if outcome == "failed":
        return CheckResult(name, check, "expected-failure", f"{reason} ({message})")
    return CheckResult(
        name, check, "unexpected-pass", f"is declared to fail ({reason}) and passes: remove it from expected_failures"
    )
