"""How to repeat what a report shows, and whom to cite for it; what was not used is not cited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from neurobench.evidence import Evidence
from neurobench.plugins import Kind, Registry
from neurobench.records import DatasetCard
from neurobench.results import Record
from neurobench.tables import TextTable

__all__ = ["components", "methods", "references", "software"]

METHODS = (
    "Intervals: percentile bootstrap over subjects, 2,000 draws (Efron & Tibshirani 1993, doi:10.1201/9780429246593).",
    "Permutation p-values (b + 1) / (m + 1) (Phipson & Smyth 2010, doi:10.2202/1544-6115.1585), labels permuted within "
    "sites against fixed held-out predictions; between rows, predictions of random subjects exchanged.",
    "Many comparisons of one task: Holm 1979 (Scandinavian Journal of Statistics 6:65–70).",
    "Dependence between folds, as a check: Nadeau & Bengio 2003, doi:10.1023/A:1024068626366.",
)

OCCLUSION = (
    "Occlusion of groups: Zeiler & Fergus 2014, doi:10.1007/978-3-319-10590-1_53; beside randomised weights and "
    "randomised labels: Adebayo et al. 2018, arXiv:1810.03292; agreement over seeds, folds and with the controls: "
    "Spearman's rank correlation."
)
IMPORTANCE = (
    "What a network draws on: attention rollout (Abnar & Zuidema 2020, doi:10.18653/v1/2020.acl-main.385), "
    "of scans Ali et al. 2024, arXiv:2403.01590; why it is no explanation: Jain & Wallace 2019, "
    "doi:10.18653/v1/N19-1357."
)
ALIGNMENT = (
    "Expected sensors against turned helmets: Alexander-Bloch et al. 2018, doi:10.1016/j.neuroimage.2018.05.070; one "
    "to one: Markello & Misic 2021, doi:10.1016/j.neuroimage.2021.118052."
)
HARMONISED = (
    "Sites taken out inside folds: the model of ComBat (Johnson et al. 2007, doi:10.1093/biostatistics/kxj037; Fortin "
    "et al. 2018, doi:10.1016/j.neuroimage.2017.11.024) without its empirical Bayes step."
)
MNI = "Slices and glass brains: ICBM 152 template (Fonov et al. 2011, doi:10.1016/j.neuroimage.2010.07.033)."
NOCEILING = "Noise ceiling: split halves with Spearman–Brown (Spearman 1910; Brown 1910)."

ATLASES = (
    (
        frozenset({"Precentral_L", "Calcarine_L", "Heschl_L", "Vermis_3"}),
        "Atlas: the names of the regions are those of AAL (Tzourio-Mazoyer et al. 2002, doi:10.1006/nimg.2001.0978); "
        "of its third version also Rolls et al. 2020, doi:10.1016/j.neuroimage.2019.116189.",
    ),
)
"""Names that tell an atlas, and what to cite for it."""

OTHER_ATLAS = "Atlas: not told by the names of the regions; cite the one that the series were taken with."

SOFTWARE = {
    "torch": "PyTorch: Paszke et al. 2019, arXiv:1912.01703",
    "scikit-learn": "scikit-learn: Pedregosa et al. 2011, Journal of Machine Learning Research 12:2825–2830",
    "nilearn": "Nilearn: Abraham et al. 2014, doi:10.3389/fninf.2014.00014",
    "mne": "MNE-Python: Gramfort et al. 2013, doi:10.3389/fnins.2013.00267",
    "matplotlib": "Matplotlib: Hunter 2007, doi:10.1109/MCSE.2007.55",
    "numpy": "NumPy: Harris et al. 2020, doi:10.1038/s41586-020-2649-2",
    "scipy": "SciPy: Virtanen et al. 2020, doi:10.1038/s41592-019-0686-2",
}
"""What to cite for the packages that a run or a picture used."""


def software(environments: Sequence[Mapping[str, str]]) -> list[tuple[str, str]]:
    """Return packages with their versions."""
    names = dict.fromkeys(k for e in environments for k in e if k != "command")
    return [(n, ", ".join(dict.fromkeys(e[n] for e in environments if e.get(n)))) for n in names]


def components(records: Sequence[Record]) -> TextTable:
    """Return every plugin with its parameters, its distribution and the digest of its source."""
    found = {}
    for r in records:
        for kind in ("backbone", "mask", "baseline", "dataset", "task"):
            c = getattr(r, kind)
            if c is not None:
                found[kind, c.label, c.digest] = [
                    f"{kind} {c.label}",
                    ", ".join(f"{k}={v}" for k, v in c.parameters.items()) or "–",
                    f"{c.distribution} {c.version}".strip(),
                    c.digest[:12],
                ]
    return TextTable(["component", "parameters", "from", "sha256 of its code"], [found[k] for k in sorted(found)])


def methods(records: Sequence[Record], cohorts: Sequence[Evidence]) -> Iterator[str]:
    """Yield what was used, and whom to cite for it; what was not used is not cited."""
    yield from METHODS
    ids = [(e, r) for e in cohorts for r in e.table["id"]]
    for kind, words in (("attribution", OCCLUSION), ("importance", IMPORTANCE), ("alignment", ALIGNMENT)):
        if any(e.frame(r, kind) is not None for e, r in ids):
            yield words
    if any(r.protocol.harmonise == "site" for r in records):
        yield HARMONISED
    if any(e.arrays(r, "responses") is not None for e, r in ids):
        yield NOCEILING
    for evidence in cohorts:
        if evidence.modality == "fmri":
            names = {*evidence.units["unit"], *evidence.units["group"]}
            told = [text for some, text in ATLASES if len(some & names) > 1]
            yield from told or [OTHER_ATLAS]
    if any(e.modality == "fmri" for e in cohorts):
        yield MNI
    used = {k for r in records for k in r.environment} | {"matplotlib"}
    used |= {"nilearn"} if any(e.modality == "fmri" for e in cohorts) else set()
    used |= {"mne"} if any(e.modality == "meg" for e in cohorts) else set()
    yield "Software: " + "; ".join(text for name, text in SOFTWARE.items() if name in used) + "."


def references(records: Sequence[Record], cohorts: Sequence[Evidence], registry: Registry) -> Iterator[str]:
    """Yield whom to cite for datasets and components."""
    seen = set()
    for evidence in cohorts:
        card = evidence.cohort["card"]
        text = f"{card['title']}: {DatasetCard(**card).cite()}"
        if text not in seen:
            seen.add(text)
            yield text
    kinds: tuple[Kind, ...] = ("backbone", "mask", "task", "baseline")
    for kind in kinds:
        for name in sorted({c.name for r in records if (c := getattr(r, kind)) is not None}):
            cls = registry.of(kind).get(name)
            if cls is not None and cls.reference:
                yield f"{kind} {name}: {_reference(cls.reference)}"


def _reference(text: str) -> str:
    """Return a reference that says what it is: a bare DOI gets its prefix."""
    return f"doi:{text}" if text.startswith("10.") else text
