"""The simulated twin of ADHD-200: Athena's files, the eight sites' real repetition times and run lengths."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from neurobench import seed_for
from neurobench_datasets._bold_twin import (
    BoldTwin,
    Effects,
    Traits,
    balanced_diagnosis,
    even_uniform,
    synthetic_regions,
    write_effects,
)
from neurobench_datasets._tables import number_text
from neurobench_datasets._volume_twin import write_atlas, write_volume

# Folder, site code, repetition time in s, volumes; Peking has three folders and one code.
FOLDERS = (
    ("NYU", 5, 2.0, 172),
    ("Peking_1", 1, 2.0, 232),
    ("OHSU", 6, 2.5, 74),
    ("KKI", 3, 2.5, 120),
    ("NeuroIMAGE", 4, 1.96, 257),
    ("Pittsburgh", 7, 1.5, 192),
    ("WashU", 8, 2.5, 129),
    ("Brown", 2, 2.0, 247),
    ("Peking_2", 1, 2.0, 232),
    ("Peking_3", 1, 2.0, 232),
)
SHARES = (0.2, 0.08, 0.14, 0.12, 0.12, 0.12, 0.1, 0.06, 0.03, 0.03)
LOW_AGE, HIGH_AGE = 7.0, 21.0

COLUMNS = (
    *("ScanDir ID", "Site", "Gender", "Age", "Handedness", "DX", "Secondary Dx ", "ADHD Measure", "ADHD Index"),
    *("Inattentive", "Hyper/Impulsive", "IQ Measure", "Verbal IQ", "Performance IQ", "Full2 IQ", "Full4 IQ"),
    *("Med Status", "QC_Rest_1", "QC_Rest_2", "QC_Rest_3", "QC_Rest_4", "QC_Anatomical_1", "QC_Anatomical_2"),
)


def simulate(
    root: Path,
    *,
    n_subjects: int,
    seed: int,
    variant: Literal["default", "null", "confounded"],
    volumes: bool = False,
) -> None:
    """Write the twin: phenotype tables with their quirks, filtered and a few unfiltered time courses or ``volumes``.

    Brown's labels are ``pending``; a WashU subject has three sessions; some IQs are −999; one table is in latin-1.
    """
    from neurobench_datasets._atlases import aal_regions

    rng = np.random.default_rng(seed_for(seed, "twin", "adhd200"))
    regions = synthetic_regions(64) if volumes else aal_regions()
    twin = BoldTwin(regions[["x", "y", "z"]].to_numpy(float), seed=seed, effects=Effects.of(variant))
    counts = np.floor(np.array(SHARES) * n_subjects).astype(int)
    counts[np.argsort(-(np.array(SHARES) * n_subjects - counts), kind="stable")[: n_subjects - counts.sum()]] += 1
    folder = np.repeat(np.arange(len(FOLDERS)), counts)
    code = np.array([FOLDERS[f][1] for f in folder])
    age = even_uniform(rng, n_subjects, LOW_AGE, HIGH_AGE)
    age_z = (age - (LOW_AGE + HIGH_AGE) / 2) / ((HIGH_AGE - LOW_AGE) / np.sqrt(12))
    diagnosis = balanced_diagnosis(rng, code, prevalence=0.45, confounded=variant == "confounded")
    subtype = np.where(diagnosis == 1, rng.choice([1, 2, 3], n_subjects, p=[0.58, 0.05, 0.37]), 0)
    mean_fd = rng.gamma(4.0, 0.04, n_subjects)
    if volumes:
        root.mkdir(parents=True, exist_ok=True)
        write_atlas(root, regions)
        regions = regions.assign(code=0)
    header = "File\tSub-brick\t" + "\t".join(f"Mean_{c} " for c in regions["code"])
    people: dict[str, list[dict[str, object]]] = {}
    for i in range(n_subjects):
        name, site, t_r, n_times = FOLDERS[folder[i]]
        # Seven digits, of which tables lose the leading zeros.
        subject = f"{10000 + 37 * i if i % 2 else 1018000 + 11 * i:07d}"
        traits = Traits(float(age_z[i]), 0.0, float(diagnosis[i]), float(mean_fd[i]))
        n_sessions = 3 if name == "WashU" and "WashU" not in people else 1
        people.setdefault(name, []).append(_row(rng, subject, name, site, float(age[i]), int(subtype[i]), n_sessions))
        for session in range(1, n_sessions + 1):
            series = twin.recording(subject, traits, n_times=n_times, t_r=t_r, site=str(site), run=session)
            place = root / name / subject
            place.mkdir(parents=True, exist_ok=True)
            # The unfiltered file is the same signal on another scale: reading it by mistake would be seen.
            kinds = (("sfnwmrda", 1.0), ("snwmrda", 100.0)) if i % 16 == 0 else (("sfnwmrda", 1.0),)
            for prefix, gain in kinds:
                scan = f"{prefix}{subject}_session_{session}_rest_1"
                if volumes:
                    own = np.random.default_rng(seed_for(seed, "twin", "voxels", scan))
                    write_volume(place / f"{scan}.nii.gz", series, regions, t_r=t_r, rng=own)
                    continue
                rows = number_text(series * gain, "%.3f")
                lines = [f"{scan}.nii.gz\t{t}[?]\t{row}" for t, row in enumerate(rows)]
                path = place / f"{scan}_aal_TCs.1D"
                path.write_text("\n".join([header, *lines]) + "\n", encoding="ascii")
    (root / "templates").mkdir(exist_ok=True)
    (root / "templates" / "README.txt").write_text("Simulated; no templates.\n", encoding="ascii")
    for name, rows in people.items():
        _write_phenotypes(root, name, pd.DataFrame(rows, columns=list(COLUMNS)))
    write_effects(root, twin, variant=variant, seed=seed, fluid_intelligence="not measured in ADHD-200")


def _row(
    rng: np.random.Generator, subject: str, name: str, site: int, age: float, subtype: int, n_sessions: int
) -> dict[str, object]:
    iq = float(np.clip(rng.normal(108, 14), 70, 145).round())
    hand = round(float(rng.uniform(0.5, 1)), 2) if name == "NYU" else int(rng.random() < 0.9)
    no_iq = name == "NeuroIMAGE" or rng.random() < 0.08
    brown = name == "Brown"
    row: dict[str, object] = dict.fromkeys(COLUMNS, "-999")
    row |= {
        "ScanDir ID": int(subject),
        "Site": site,
        "Gender": int(rng.random() < 0.6),
        "Age": round(age, 2),
        "Handedness": hand,
        "DX": "pending" if brown else subtype,
        "Secondary Dx ": "Simulé" if name == "Pittsburgh" else "",
        "Full4 IQ": -999 if no_iq else int(iq),
        "Med Status": int(rng.integers(1, 3)),
        "QC_Rest_1": int(rng.random() > 0.05),
        "QC_Anatomical_1": 1,
    }
    row |= {f"QC_Rest_{k}": "1" if k <= n_sessions else "N/A" for k in (2, 3, 4)}
    return row | {"QC_Anatomical_2": "N/A"}


def _write_phenotypes(root: Path, name: str, table: pd.DataFrame) -> None:
    if name == "WashU":
        table = table.rename(columns={"ScanDir ID": "ScanDirID"})
    release = "_TestRelease" if name == "Brown" else ""
    text = table.to_csv(index=False, lineterminator="\n")
    (root / name / f"{name}{release}_phenotypic.csv").write_bytes(text.encode("latin-1"))
