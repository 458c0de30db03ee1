"""Errors that a user can act on.

Every error of neurobench says four things: what is wrong, what is allowed, what was likely meant, what to do next.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class NeurobenchError(Exception):
    """Base of every error that neurobench raises on purpose.

    Parameters
    ----------
    what
        What is wrong, as one sentence.
    allowed
        What would have been accepted.
    likely
        What was probably meant; shown as "Did you mean …?".
    next_step
        What to do now.
    """

    def __init__(self, what: str, *, allowed: str = "", likely: str = "", next_step: str = "") -> None:
        self.what, self.allowed, self.likely, self.next_step = what, allowed, likely, next_step
        parts = [what]
        if likely:
            parts.append(f"Did you mean {likely!r}?")
        if allowed:
            parts.append(f"Allowed: {allowed}.")
        if next_step:
            parts.append(next_step)
        super().__init__(" ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions with keyword-only arguments do not survive a process boundary without this.
        return (_rebuild, (type(self), self.what, self.allowed, self.likely, self.next_step))


def _rebuild(kind: type[NeurobenchError], what: str, allowed: str, likely: str, next_step: str) -> NeurobenchError:
    error = kind.__new__(kind)
    NeurobenchError.__init__(error, what, allowed=allowed, likely=likely, next_step=next_step)
    return error


class ConfigError(NeurobenchError):
    """A run was asked for that cannot be: an option, a suite file or a combination is wrong."""


class ConfigErrors(ConfigError):
    """Everything that is wrong with a run, found before any work starts."""

    def __init__(self, problems: Sequence[NeurobenchError]) -> None:
        self.problems = tuple(problems)
        lines = "".join(f"\n  {i}. {p}" for i, p in enumerate(self.problems, 1))
        count = "one problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{count}, nothing was started:{lines}")

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.problems,))


class UnknownNameError(ConfigError):
    """A component was asked for by a name that nothing provides."""


class PluginError(NeurobenchError):
    """A plugin is broken, unavailable, or collides with another one."""


class DataError(NeurobenchError):
    """A file, folder or table of the user cannot be used as it is."""


class StoreError(NeurobenchError):
    """The output folder or an artefact in it cannot be used."""


class BundleError(NeurobenchError):
    """A submission cannot be made, or what calls itself one cannot be read."""


class CheckError(NeurobenchError):
    """A plugin breaks a contract; raised by :mod:`neurobench.checks`."""


def closest(name: str, known: Iterable[str]) -> str:
    """Return the most similar of ``known``, whatever its capitals and signs, or an empty string.

    >>> closest("mamb", ["mamba", "transformer"])
    'mamba'
    >>> closest("ADHD-200", ["adhd200", "camcan"])
    'adhd200'
    """
    plain = {_letters(k): k for k in known}
    matches = difflib.get_close_matches(_letters(name), plain, n=1, cutoff=0.5)
    return plain[matches[0]] if matches else ""


def _letters(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum()) or name


def unknown_name(kind: str, name: str, known: Iterable[str], next_step: str = "") -> UnknownNameError:
    """Build the error for a name that nothing provides, with the likely one."""
    known = sorted(known)
    return UnknownNameError(
        f"{kind} {name!r} is not registered.",
        allowed=", ".join(known) or f"no {kind} is installed",
        likely=closest(name, known),
        next_step=next_step
        or "See `neurobench list`. A plugin of your own is found once `pip install -e .` has run in its folder, and "
        "again after each change of its entry points (group `neurobench`); before that give its file with --plugin.",
    )
