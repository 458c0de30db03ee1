"""Text of JSON and YAML from outside as plain values; whatever is wrong with it is one kind of error.

The parsers of both answer some texts with errors of their own making (nesting too deep for the stack, a tag on an empty
value), and YAML can say in a few lines what takes more memory than there is.
"""

from __future__ import annotations

import json
from typing import Any

__all__ = ["parse_json", "parse_yaml"]

DEEPEST = 50
"""Lists and mappings in each other that a YAML text may have."""


def parse_json(content: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises
    ------
    ValueError
        If it is none, or is nested too deeply.
    """
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


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
