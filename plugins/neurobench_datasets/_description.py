"""What a folder says of itself: BIDS's ``dataset_description.json``, as the card of these very recordings.

It names recordings and whom to cite. It does not widen what may leave: a licence covers the files, not what the people
in them agreed to, and single predictions are about people.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from neurobench import DataError, DatasetCard
from neurobench_datasets._tables import MISSING_CODES, read_json

FILE = "dataset_description.json"
MAX_CHARACTERS = 600
DOI = re.compile(r"(?:doi:|https?://(?:dx\.)?doi\.org/)?(10\.\d{3,}(?:\.\d+)*/\S+)", re.IGNORECASE)


def described(card: DatasetCard, folder: Path) -> DatasetCard:
    """Return the card with the title, licence, citation and DOI that the folder's description gives, if it has one.

    Raises
    ------
    DataError
        If there is a description and it cannot be read, has no name, or holds something else than text in a field.
    """
    path = folder / FILE
    if not path.exists() and not path.is_symlink():
        return card
    content = read_json(path)
    title = _text(content, "Name")
    if not title:
        raise DataError(
            f"{FILE} has no Name, so no record could say which recordings these are.",
            allowed='such as {"Name": "My cohort, release 2", "BIDSVersion": "1.8.0"}',
            next_step="Give it one, or remove the file.",
        )
    authors = _texts(content, "Authors")
    asked = _text(content, "HowToAcknowledge") or (f"{', '.join(authors)}: {title}" if authors else "")
    doi = _text(content, "DatasetDOI")
    found = DOI.fullmatch(doi)
    if doi and not found:
        raise DataError(
            f"{FILE}: DatasetDOI {doi!r} is no DOI.",
            allowed="such as 10.18112/openneuro.ds000001.v1.0.0, with doi: or https://doi.org/ before it or without",
            next_step="Correct it, or remove it.",
        )
    return replace(
        card,
        title=title,
        licence=_text(content, "License") or card.licence,
        citation="; ".join([asked, *_texts(content, "ReferencesAndLinks")]).removeprefix("; ") or card.citation,
        doi=found[1] if found else card.doi,
    )


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{FILE}: {name} is {type(value).__name__}, no text.", next_step='Write it in "quotes".')
    return _one_line(value or "")


def _texts(content: Mapping[str, Any], name: str) -> list[str]:
    """Return a list of texts; older descriptions have one text where BIDS has a list."""
    value = content.get(name)
    values = value if isinstance(value, list) else [] if value is None else [value]
    if wrong := [v for v in values if not isinstance(v, str)]:
        raise DataError(f"{FILE}: {name} holds {type(wrong[0]).__name__}, no text.", allowed='such as ["A", "B"]')
    return [text for v in values if (text := _one_line(v))]


def _one_line(text: str) -> str:
    """Return printable text on one line, cut where it is long; empty for what stands for "not known"."""
    line = " ".join(text.split())
    line = "".join(c for c in line if c.isprintable())
    if line.lower() in MISSING_CODES:
        return ""
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 2].rstrip() + " …"
