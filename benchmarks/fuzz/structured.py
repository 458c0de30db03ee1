"""Files made up of the fields that a format has, as hypothesis draws them: right ones, odd ones, and too many.

Most are what somebody might write, with one thing wrong deep inside, where damage to bytes seldom reaches.
"""

from __future__ import annotations

import copy
import csv
import functools
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np
import pydantic
import yaml
from hypothesis import strategies as st
from safetensors.numpy import load, save

from benchmarks.fuzz.damage import TOKENS, VALUES
from benchmarks.fuzz.results import cohort_page, kept, manifest_of, registry, sealed_checkpoint, sealed_record
from benchmarks.fuzz.tables import DICTIONARY
from benchmarks.performance.board import invented
from neurobench.options import RunConfig
from neurobench.results import record_text, schema
from neurobench_datasets._tables import ID_COLUMNS, MISSING_CODES, STANDARD

Strategy = st.SearchStrategy[Any]
Schema = Mapping[str, Any]


@functools.cache
def strategies() -> dict[str, st.SearchStrategy[bytes]]:
    """Return what draws the files of a reader, by its name."""
    told, arrays = kept()
    record = record_text(invented("net · roi", "pretrained")).encode()
    return {
        **dict.fromkeys(("record", "results", "board"), _documents(record, schema(), sealed_record)),
        "suite": _suites(),
        "participants": _tables([*ID_COLUMNS, *STANDARD, "Age", "handedness"], ID_COLUMNS[:1], PEOPLE),
        "labels": _tables(LABEL_COLUMNS, ("label", "name"), LABELS),
        "labels-text": _label_lines(),
        "labels-xml": _label_trees(),
        "dictionary": _documents(DICTIONARY, _schema_of(json.loads(DICTIONARY)), lambda plain: plain),
        "cohort": _documents(cohort_page(), _schema_of(json.loads(cohort_page())), lambda plain: plain),
        "manifest": _documents(manifest_of(), _schema_of(json.loads(manifest_of())), lambda plain: plain),
        "checkpoint": _documents(told, _schema_of(json.loads(told)), sealed_checkpoint),
        "checkpoint-arrays": _tensors(arrays),
    }


# ---------------------------------------------------------------- values

WORDS = [*(v for v in VALUES if isinstance(v, str)), "~nobody-here/x", "²", "9" * 4400, "0" * 64]

TEXT = st.sampled_from(WORDS) | st.text(max_size=8)

# Copies: what is drawn is put into documents, which are changed further.
ODD = st.sampled_from(VALUES).map(copy.deepcopy) | st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
"""Any JSON value."""


def _values(of: Schema, definitions: Schema) -> Strategy:
    """Return what draws values of a JSON schema."""
    if "$ref" in of:
        return st.deferred(lambda: _values(definitions[of["$ref"].rsplit("/", 1)[1]], definitions))
    if "anyOf" in of:
        return st.one_of([_values(one, definitions) for one in of["anyOf"]])
    if "const" in of or "enum" in of:
        return st.sampled_from([of["const"]] if "const" in of else of["enum"])
    if of.get("type") == "object" and "properties" in of:
        fields = {name: _values(one, definitions) for name, one in of["properties"].items()}
        needed = set(of.get("required", fields))
        optional = {name: one for name, one in fields.items() if name not in needed}
        return st.fixed_dictionaries({name: fields[name] for name in needed}, optional=optional)
    kinds: dict[str, Callable[[], Strategy]] = {
        "object": lambda: st.dictionaries(TEXT, _values(of.get("additionalProperties") or {}, definitions), max_size=3),
        "array": lambda: st.lists(_values(of.get("items", {}), definitions), max_size=4),
        "string": lambda: TEXT,
        "integer": lambda: st.integers(of.get("minimum"), of.get("maximum")),
        "number": lambda: st.floats(of.get("minimum"), of.get("maximum"), allow_nan=False),
        "boolean": st.booleans,
        "null": st.none,
    }
    return kinds[of["type"]]() if "type" in of else ODD


def _schema_of(plain: Any) -> Schema:
    """Return a JSON schema that a value and others like it have."""
    if isinstance(plain, dict):
        return {"type": "object", "properties": {name: _schema_of(value) for name, value in plain.items()}}
    if isinstance(plain, list):
        return {"type": "array", "items": _schema_of(plain[0]) if plain else {}}
    kinds = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
    return {"type": kinds[type(plain)]}


# ---------------------------------------------------------------- JSON

Place = tuple[tuple[str, ...], Schema]


def _places(of: Schema, plain: Any, definitions: Schema, at: tuple[str, ...] = ()) -> Iterator[Place]:
    """Yield where a document has fields, or may have them, with the schema of each."""
    if at:
        yield at, of
    if not isinstance(plain, dict):
        return
    refs = [one["$ref"] for one in (of, *of.get("anyOf", ())) if "$ref" in one]
    inner = definitions[refs[0].rsplit("/", 1)[1]] if refs else of
    for name in sorted({*inner.get("properties", {}), *plain}):
        one = inner.get("properties", {}).get(name) or inner.get("additionalProperties")
        yield from _places(one if isinstance(one, dict) else {}, plain.get(name), definitions, (*at, name))


def _documents(sample: bytes, of: Schema, sealed: Callable[[Any], Any]) -> st.SearchStrategy[bytes]:
    """Return what draws a document with some fields of other values: right ones, odd ones, none, and unknown ones."""
    definitions = of.get("$defs", {})
    edits: list[tuple[tuple[str, ...], Strategy | None]] = []
    for at, one in _places(of, json.loads(sample), definitions):
        edits += [(at, _values(one, definitions))] * 3 + [(at, ODD), (at, None), ((*at[:-1], at[-1] + "_"), ODD)]
    edit = st.sampled_from(edits)

    @st.composite
    def document(draw: st.DrawFn) -> bytes:
        plain = json.loads(sample)
        for _ in range(draw(st.integers(0, 3))):
            at, values = draw(edit)
            parent = functools.reduce(lambda p, key: p.get(key) if isinstance(p, dict) else None, at[:-1], plain)
            if not isinstance(parent, dict):
                continue
            if values is None:
                parent.pop(at[-1], None)
            else:
                parent[at[-1]] = draw(values)
        # A sum that is wrong is noticed first of all: what comes after is tried with a right one.
        return json.dumps(sealed(plain) if draw(st.integers(0, 9)) else plain).encode()

    return document()


# ---------------------------------------------------------------- text


@st.composite
def _spliced(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Draw a file, of which every third has something put into it, or cut out."""
    content = draw(whole)
    if not draw(st.integers(0, 2)):
        start = draw(st.integers(0, len(content)))
        content = content[:start] + draw(st.sampled_from(TOKENS)) + content[start + draw(st.integers(0, 9)) :]
    return content


def _suites() -> st.SearchStrategy[bytes]:
    of = pydantic.TypeAdapter(RunConfig).json_schema()
    found = registry()
    names = [*found.backbones, *found.masks, *found.datasets, *found.tasks, "hybrid[layout=MA]", "roi[", "a[b=c,d=1]"]
    known = st.sampled_from([*names, ",".join(names[:3])])
    right = {
        name: _values(one, of.get("$defs", {})) | (known if "items" in one else st.nothing())
        for name, one in of["properties"].items()
    }
    keys = st.sampled_from(sorted(right))

    @st.composite
    def settings(draw: st.DrawFn) -> dict[str, Any]:
        some = {name: draw(right[name]) for name in draw(st.lists(keys, max_size=5, unique=True))}
        return some | {draw(keys | TEXT): draw(ODD)} if draw(st.booleans()) else some

    as_yaml = settings().map(lambda plain: yaml.safe_dump(plain, allow_unicode=True).encode("utf-8", "surrogatepass"))
    as_json = settings().map(lambda plain: json.dumps(plain).encode())
    return _spliced(as_yaml | as_json)


CODES = ("utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16")
PEOPLE = ["sub-01", "sub-02", "01", "0010001", "20.5", "1", "2", "F", "male", "A", "control", "ADHD", "3,5", "1e999"]
PEOPLE += ["inf", "²", "sub-²", "٣"]
LABEL_COLUMNS = ["label", "index", "id", "code", "value", "roi", "name", "region", "region_name", "group"]
LABELS = ["0", "1", "2", "2", "170", "-1", "1.0", "1e999", "1e30", "Precentral_L", "Frontal", "7Networks_LH_Vis_1", "a"]


def _tables(columns: Sequence[str], needed: Sequence[str], values: Sequence[str]) -> st.SearchStrategy[bytes]:
    """Return what draws tables: known columns and others, cells that such columns have and others, rows too short.

    Most have what is needed among their first columns, so that their cells are looked at.
    """
    odd = [v for v in VALUES if isinstance(v, str) and len(v) < 100] + ["a,b", 'a"b', "é٣😀", " 1 ", "9" * 400]
    names = st.sampled_from([*columns, *columns, *odd])
    starts = st.sampled_from([[*needed], [*needed], [*reversed(needed)], []])
    cells = st.sampled_from([*values, *values, *values, *MISSING_CODES, *odd])
    form = st.sampled_from(
        [(s, end, q, code) for s in "\t,;" for end in ("\n", "\r\n", "\r") for q in (True, False) for code in CODES]
    )

    @st.composite
    def table(draw: st.DrawFn) -> bytes:
        header = draw(starts) + list(draw(st.tuples(names, names)))[: draw(st.integers(0, 2))]
        lines = st.lists(st.tuples(*[cells for _ in header]), max_size=3)
        rows = [header, *draw(lines)]
        if draw(st.integers(0, 3)) == 0:
            rows.append([draw(TEXT)] * draw(st.integers(0, len(header) + 1)))
        separator, end, quoted, encoding = draw(form)
        if not quoted:
            return end.join(separator.join(row) for row in rows).encode(encoding, "replace")
        text = io.StringIO()
        csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
        return text.getvalue().encode(encoding, "replace")

    return _spliced(table())


def _label_lines() -> st.SearchStrategy[bytes]:
    words = st.sampled_from(LABELS) | TEXT
    lines = st.lists(st.lists(words, max_size=5).map(" ".join), max_size=5)
    return _spliced(lines.map(lambda found: "\n".join(found).encode("utf-8", "replace")))


def _label_trees() -> st.SearchStrategy[bytes]:
    words = st.sampled_from(LABELS) | TEXT
    tags = st.sampled_from(["label", "label", "index", "name", "data", "atlas"])

    def element(tag: str, inner: str, attribute: str | None) -> str:
        said = f" name={quoteattr(attribute)}" if attribute is not None else ""
        return f"<{tag}{said}>{inner}</{tag}>"

    leaf = st.builds(element, tags, words.map(escape), st.none() | words)
    pair = st.tuples(words, words).map(
        lambda p: f"<label><index>{escape(p[0])}</index><name>{escape(p[1])}</name></label>"
    )
    trees = st.recursive(
        pair | leaf,
        lambda inner: st.builds(element, tags, st.lists(inner, max_size=3).map("".join), st.none()),
        max_leaves=8,
    )
    head = st.sampled_from(["", '<?xml version="1.0" encoding="UTF-8"?>', '<?xml version="1.0"?>'])
    whole = st.builds(
        lambda start, inner: f"{start}<atlas>{inner}</atlas>", head, st.lists(trees, max_size=3).map("".join)
    )
    return _spliced(whole.map(lambda text: text.encode("utf-8", "replace")))


# ---------------------------------------------------------------- tensors


def _tensors(sample: bytes) -> st.SearchStrategy[bytes]:
    """Return what draws tensors: those that a file has, some of another shape or kind, missing, or too many."""
    whole = load(sample)
    kinds = st.sampled_from(["float32", "float64", "float16", "int64", "uint8", "bool"])

    @st.composite
    def file(draw: st.DrawFn) -> bytes:
        tensors = dict(whole)
        for _ in range(draw(st.integers(0, 4))):
            name = draw(st.sampled_from(sorted(whole)) | st.text(max_size=5))
            if draw(st.integers(0, 3)):
                other = st.lists(st.integers(0, 3), max_size=8)
                shape = draw(st.just(whole[name].shape if name in whole else (2,)) | other)
                fill = draw(st.sampled_from([0.0, 1.0, -1.0, 1e30, float("nan"), float("inf")]))
                with np.errstate(all="ignore"):
                    tensors[name] = np.full(shape, fill).astype(draw(kinds))
            else:
                tensors.pop(name, None)
        return save(tensors)

    return _spliced(file())
