"""Pretraining on other cohorts than the one that is scored: who may be in both, how units meet, in which order.

A network that is pretrained on Cam-CAN and scored on ADHD-200 has one unit table, that of the first cohort it is
pretrained on. The units of every other cohort meet it by name where the atlas is the same, else each by the nearest
position. Nobody who is scored may have been pretrained on, under whatever name.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from neurobench.alignment import some
from neurobench.errors import DataError
from neurobench.records import Batch, Cohort, Correspondence, UnitTable
from neurobench.splits import family_of
from neurobench.tokens import TrainingWindows

__all__ = ["MixedWindows", "SharedPeople", "check_alike", "correspond", "outsiders", "shared_people"]


# ---------------------------------------------------------------- who is in both


@dataclass(frozen=True)
class SharedPeople:
    """People of one cohort who are in another one as well.

    Parameters
    ----------
    certain
        By the release's own identifier, by their family, or by a recording with the same content.
    by_name
        Whose identifier is found in the table of another release: the same person, or chance.
    """

    certain: tuple[str, ...]
    by_name: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.certain) + len(self.by_name)


def shared_people(other: Cohort, own: Cohort) -> SharedPeople:
    """Return the subjects of ``other`` who are, or may be, among those of ``own``.

    Notes
    -----
    Identifiers are compared without ``sub-``, without leading zeros and without case, because one release writes
    ``0010042``, ``10042`` and ``sub-0010042`` for one person. Two cohorts are of one release if the same dataset
    plugin read them, whatever its parameters: Cam-CAN's MEG and fMRI share their people.
    """
    same_release = _release(other) == _release(own)
    ids, families = {_bare(s) for s in own.subjects}, family_of(own.participants)
    theirs = family_of(other.participants)
    contents = {r.content for r in own.recordings if r.content}
    twice = {r.subject for r in other.recordings if r.content in contents}
    named = [s for s in other.subjects if _bare(s) in ids or (theirs.get(s) and theirs[s] in families.values())]
    certain = tuple(s for s in other.subjects if s in twice or (same_release and s in set(named)))
    return SharedPeople(certain, tuple(s for s in named if s not in set(certain)))


def _release(cohort: Cohort) -> str:
    return cohort.dataset.partition("[")[0]


def _bare(subject: str) -> str:
    bare = subject.casefold().removeprefix("sub-")
    return bare.lstrip("0") or bare


def outsiders(
    other: Cohort, own: Cohort, shared: Literal["refuse", "leave-out", "distinct"]
) -> tuple[tuple[str, ...], SharedPeople]:
    """Return the subjects of ``other`` that a network scored on ``own`` may be pretrained on, and who is in both.

    Parameters
    ----------
    other, own
        Cohort to pretrain on, cohort to be scored on.
    shared
        ``refuse`` if anybody may be in both; ``leave-out``: do not pretrain on them; ``distinct``: identifiers that
        two releases have in common are of different people, as the user says.

    Raises
    ------
    DataError
        If somebody is in both and that was not settled, or if nobody is left.
    """
    both = shared_people(other, own)
    where = f"{other.dataset} (to pretrain on) and {own.dataset} (to be scored on)"
    if both.certain and shared != "leave-out":
        raise DataError(
            f"{len(both.certain)} people are in {where}: {some(both.certain)}. Whoever is tested must not have been "
            "pretrained on.",
            allowed="cohorts without a person in common",
            next_step="--shared-people leave-out pretrains without them.",
        )
    if both.by_name and shared == "refuse":
        raise DataError(
            f"{len(both.by_name)} people of {where} have the same identifier or family: {some(both.by_name)}. "
            "They may be the same people.",
            allowed="cohorts without a person in common",
            next_step="--shared-people leave-out pretrains without them; --shared-people distinct, if you know that "
            "they are different people, is written into every record.",
        )
    lost = {*both.certain, *(both.by_name if shared == "leave-out" else ())}
    left = tuple(s for s in other.subjects if s not in lost)
    if not left:
        raise DataError(
            f"nobody of {other.dataset} is left to pretrain on: all of them are in {own.dataset} too.",
            next_step=f"Leave {other.dataset} out of --pretrain-on; {own.dataset} itself in it stands for the training "
            "subjects of each fold.",
        )
    return left, both


# ---------------------------------------------------------------- how units meet

SAME_PLACE_MM = 20.0
"""Distance from which two units of one name are not the same: more than heads differ under one helmet, and more than a
region's centre moves between two versions of an atlas."""

SAME_SITE_MM = 0.01
"""Distance below which direction decides."""

IN_TESLA = {"mag": "axial", "axial": "mag"}


def correspond(units: UnitTable, known: UnitTable) -> Correspondence:
    """Return which unit of ``known`` stands for each of ``units``.

    By name if every name is there and, as far as positions are known, at the same place; else the nearest one of the
    same type, and of several in one place the one that measures along the most similar direction. Magnetometers and
    axial gradiometers, which both measure in tesla, stand for each other where there is none of the same type.

    Raises
    ------
    DataError
        If names differ and positions are missing, or a type of unit is not there at all.
    """
    place = {name: i for i, name in enumerate(known.names)}
    if all(name in place for name in units.names):
        unit = np.array([place[name] for name in units.names], np.int64)
        apart = np.linalg.norm(units.position_mm - known.position_mm[unit], axis=1).astype(np.float64)
        # Two atlases may both number their regions from 1.
        if not (apart > SAME_PLACE_MM).any():
            return Correspondence(known, unit, known.group_index[unit], np.nan_to_num(apart), "name")
    if not (units.has_positions and known.has_positions):
        raise DataError(
            f"units of two cohorts cannot meet: names or places differ ({some(units.names)}; {some(known.names)}) and "
            "positions are missing.",
            allowed="the same names, or a position (x, y, z in mm) of every unit",
            next_step="Give regions.tsv the columns x, y, z, or prepare both cohorts with one atlas.",
        )
    theirs = np.array(known.types)
    types = np.array([t if t in known.type_names else IN_TESLA.get(t, t) for t in units.types])
    if missing := sorted(set(types) - set(theirs)):
        raise DataError(
            f"units of type {', '.join(missing)} meet none: the network knows {', '.join(sorted(set(theirs)))}.",
            next_step="Use sensors of one kind for both.",
        )
    distance = np.linalg.norm(
        units.position_mm[:, None].astype(np.float64) - known.position_mm[None].astype(np.float64), axis=-1
    )
    distance[types[:, None] != theirs[None]] = np.inf
    parallel = np.abs(np.nan_to_num(units.orientation) @ np.nan_to_num(known.orientation).T)
    unit = (distance - SAME_SITE_MM * parallel).argmin(1)
    return Correspondence(known, unit, known.group_index[unit], distance[np.arange(len(units)), unit], "position")


def check_alike(cohort: Cohort, first: Cohort) -> None:
    """Refuse two cohorts whose tokens do not have the same shape.

    Raises
    ------
    DataError
        Saying what differs.
    """
    differences = [
        f"{what}: {a} and {b}"
        for what, a, b in (
            ("kind of signal", cohort.signal, first.signal),
            ("source", cohort.source, first.source),
            ("patches a window", cohort.patches_per_window, first.patches_per_window),
            ("samples a patch", cohort.samples_per_patch, first.samples_per_patch),
            ("voxels a unit", cohort.n_voxels, first.n_voxels),
        )
        if a != b
    ]
    if differences:
        raise DataError(
            f"{cohort.dataset} and {first.dataset} cannot share a network; {'; '.join(differences)}.",
            allowed="the same kind of signal, real or simulated alike, in windows and patches of the same length",
            next_step="Set --window-s and --patch-s for both; give --data-dir NAME=PATH for each or for none.",
        )


# ---------------------------------------------------------------- in which order


class MixedWindows:
    """Training windows of several cohorts, a step of one after a step of another; every person is drawn equally often.

    Step n comes from the cohort that is furthest behind its share of the people, so that any number of steps is as
    even as can be, and step n is the same in any order of calls.

    Parameters
    ----------
    parts
        Of each cohort.
    """

    def __init__(self, parts: Sequence[TrainingWindows]) -> None:
        self.parts = tuple(parts)
        n = np.array([len(p.subjects) for p in parts], float)
        self._share = n / n.sum()
        self._turns: list[tuple[int, int]] = []
        self._count = np.zeros(len(parts), np.int64)

    def turn(self, step: int) -> tuple[int, int]:
        """Return whose turn a step is, and the how-many-th of that cohort it is."""
        while len(self._turns) <= step:
            part = int(np.argmax(self._share * (len(self._turns) + 1) - self._count))
            self._turns.append((part, int(self._count[part])))
            self._count[part] += 1
        return self._turns[step]

    def draw(self, step: int, batch_size: int) -> Batch:
        """Return the batch of one step."""
        part, own_step = self.turn(step)
        return self.parts[part].draw(own_step, batch_size)
