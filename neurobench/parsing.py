"""Text of JSON and YAML, and paths, from outside as plain values; whatever is wrong with a text is one kind of error.

The parsers of both answer some texts with errors of their own making (nesting too deep for the stack, a tag on an empty
value), YAML can say in a few lines what takes more memory than there is, and JSON lets pass what no message, hash or
comparison can hold: a number that is no float, half a character, two values of one name.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

__all__ = ["finite", "parse_json", "parse_yaml", "user_path"]

DEEPEST = 50
"""Lists and mappings in each other that a YAML text may have."""


MOST_DIGITS = 300
"""Digits of a whole number in a JSON text: any with fewer is a float as well."""

_MAY_BE_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If it is none, is nested too deeply, gives a name two values, or holds a number or a text that cannot be
        computed with or written down again.
    """
    try:
        # Decoded here: the parser lets half a character pass.
        text = content if isinstance(content, str) else content.decode(json.detect_encoding(content))
        value = json.loads(text, parse_float=finite, parse_int=_whole, object_pairs_hook=_one_value_a_name)
        if _MAY_BE_HALF.search(text):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    return value


def finite(text: str) -> float:
    """Return the number of a JSON text; ValueError: no float is as large."""
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"the number {text[:40]} is too large")
    return value


def _whole(text: str) -> int:
    if len(text) > MOST_DIGITS:
        raise ValueError(f"it holds a number of {len(text)} digits")
    return int(text)


def _one_value_a_name(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a mapping; ValueError: a name has two values, of which the parser would take the last without a word.

    Converters of scans do write a name twice, with the same value: that harms nobody.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        for name, value in pairs:
            # By their text: 1, 1.0 and true are equal, and say different things; NaN is not equal to itself.
            if repr(value) != repr(found[name]):
                raise ValueError(f"it gives {name[:40]!r} two values; keep one of them")
    return found


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text without aliases; nothing in it is run.

    Raises
    ------
    ValueError
        If it is none, or holds what cannot be written down again.
    """
    import yaml

    try:
        depth = 0
        for token in yaml.scan(text, Loader=yaml.SafeLoader):
            # An alias stands for a whole part: ten lines of them for more text than any memory holds, or for itself.
            if isinstance(token, yaml.AliasToken):
                raise ValueError("it repeats a part by its name (*name); write the part out")
            # The parser takes the square of the depth, and then the whole stack.
            name = type(token).__name__
            if name.startswith(("Block", "Flow")):
                depth += name.endswith("StartToken") - name.endswith("EndToken")
            if depth > DEEPEST:
                raise RecursionError
        _refuse_twice(yaml.compose(text, Loader=yaml.SafeLoader))
        value = yaml.safe_load(text)
        # Half a character, or a number of thousands of digits, is not in any message or hash.
        json.dumps(value, default=str, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, AttributeError, LookupError, OverflowError, TypeError) as error:
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    return value


def _refuse_twice(node: Any) -> None:
    """Raise ValueError for a name that a mapping holds twice: the parser takes the last one without a word."""
    values = getattr(node, "value", None)
    if not isinstance(values, list):
        return
    pairs = [pair for pair in values if isinstance(pair, tuple)]
    seen: set[str] = set()
    for name in (key.value for key, _ in pairs if isinstance(key.value, str)):
        if name in seen:
            raise ValueError(f"it says {name[:40]!r} twice; keep one of them")
        seen.add(name)
    for inner in [value for _, value in pairs] or values:
        _refuse_twice(inner)


def user_path(path: str | os.PathLike[str]) -> Path:
    """Return a path with the home of a user in the place of ``~``.

    Of a user who is unknown here it stays as it is, as in a shell: there is no such path, which whoever opens it says.
    """
    return Path(os.path.expanduser(path))
