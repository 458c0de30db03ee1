"""Damaged and hostile files for every reader of what comes from outside: each is read, or is refused in plain words.

    python -m benchmarks.fuzz [--n 100000] [--seed 0] [--save] [READER …]

Files are valid samples, mutated: bits flipped, pieces cut, doubled, moved and replaced by what breaks parsers. The only
errors that may come out are neurobench's own; everything else is a bug, and so is a file that takes longer than
:data:`LIMIT_S`. ``--save`` keeps what was run in ``benchmarks/results/fuzz.json``. Exit code 1: something was found.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import io
import json
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from rich.progress import track
from safetensors.numpy import save

from benchmarks.performance.board import invented
from neurobench.bundle import FORMAT, MANIFEST
from neurobench.bundle_reader import read_bundle
from neurobench.clusters import settings_of
from neurobench.config import load_suite
from neurobench.errors import NeurobenchError
from neurobench.evidence import read_cohort
from neurobench.results import read_record, record_text
from neurobench.upkeep import check
from neurobench_datasets._adhd200_phenotypes import read_phenotypes
from neurobench_datasets._atlases import read_names
from neurobench_datasets._roi_series import read_regions, read_series
from neurobench_datasets._tables import read_table
from neurobench_datasets.camcan import read_cattell, read_participants

KEPT = Path(__file__).parent / "results" / "fuzz.json"
LIMIT_S = 5.0
"""Seconds that one small file may take."""

TOKENS = [
    *(b"", b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b"\t", b",", b";", b'"', b"'", b"[", b"{", b"}", b":"),
    *(b"NaN", b"inf", b"-Infinity", b"1e999", b"-999", b"9" * 400, b"0x10", b"1_000", b"True", b"null", b"~"),
    *(b"../../etc/passwd", b"/dev/zero", b"<script>", b"!!python/object/apply:os.system", b"&a [*a]", b"\\u0000"),
    *(b"A" * 5000, "é٣😀".encode(), b"\x80\x81", b"CC110033", b"0010001", b"%s%n", b"#", b"---", b"- "),
]
"""What breaks parsers."""


@dataclass(frozen=True)
class Reader:
    """Something that reads what comes from outside.

    Parameters
    ----------
    file
        Name that a sample is written under.
    samples
        Valid files.
    read
        Takes the folder.
    """

    file: str
    samples: tuple[bytes, ...]
    read: Callable[[Path], Any]


def mutated(rng: np.random.Generator, sample: bytes, others: Sequence[bytes]) -> bytes:
    """Return a sample after one to six changes."""
    data = bytearray(sample)
    for _ in range(int(rng.integers(1, 7))):
        n = len(data)
        low = int(rng.integers(n + 1))
        high = min(n, low + int(rng.geometric(0.1)))
        what = rng.integers(8)
        if what == 0 and n:
            data[low % n] ^= 1 << int(rng.integers(8))
        elif what == 1:
            del data[low:high]
        elif what == 2:
            data[low:low] = data[low:high] * int(rng.integers(1, 4))
        elif what == 3:
            data[low:high] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif what == 4:
            data[low:low] = TOKENS[int(rng.integers(len(TOKENS)))]
        elif what == 5:
            data[low:high] = rng.bytes(high - low)
        elif what == 6 and rng.random() < 0.3:
            del data[low:]
        else:
            other = others[int(rng.integers(len(others)))]
            start = int(rng.integers(len(other) + 1))
            data[low:high] = other[start : start + int(rng.geometric(0.05))]
    return bytes(data[: 1 << 16])


# ---------------------------------------------------------------- what is read


def readers() -> dict[str, Reader]:
    """Return every reader by name."""
    rng = np.random.default_rng(0)
    series = rng.standard_normal((4, 6)).round(3)
    text = "\n".join(",".join(map(str, row)) for row in series).encode()
    npy, mat = io.BytesIO(), io.BytesIO()
    np.save(npy, series)
    scipy.io.savemat(mat, {"ROISignals": series})
    record = invented("net · roi", "pretrained")
    suite = b"backbones: [mamba, 'hybrid[layout=MA]']\nmasks: roi\ndatasets: [parcels]\ntasks: [age]\nseeds: [0, 1]\n"
    suite += b"ratio: .5\ndata_dirs: {parcels: here}\nprofile: smoke\nn_subjects: 24\n"
    people = b"participant_id\tage\tsex\tsite\tdiagnosis\nsub-01\t20.5\tF\tA\tcontrol\nsub-02\t-999\tmale\tB\tADHD\n"
    adhd = b"ScanDir ID,Site,Gender,Age,Handedness,DX,Secondary Dx ,Full4 IQ,QC_Rest_1\n"
    adhd += b"10001,5,1,9.2,-0.3,pending,,110,1\n0010002,5,0,11,1,3,x,-999,N/A\n"
    camcan = b"CCID,Age,Sex,Hand\nCC110033,24,MALE,76\nCC110037,18,FEMALE,100\n"
    cattell = b"text\n" * 8 + b"CCID\tNtrials\tTotalScore\tRA\nCC110033\t46\t37\tAB\nCC110037\t46\tNaN\tAB\n\ntext\n"
    names = b"label,name,group\n1,Precentral_L,Frontal\n2,Precentral_R,Frontal\n"
    xml = b"<atlas><data><label><index>1</index><name>Precentral_L</name></label></data></atlas>"
    lut = b"1 7Networks_LH_Vis_1 120 18 131 0\n2 7Networks_LH_Vis_2 120 18 132 0\n"
    regions = b"name,group,x,y,z\na,front,1,2,3\na,back,4,5,6\n"
    cluster = b"queue: short\ncores: 4\nmemory: 8GB\nwalltime: '01:00:00'\njobs: 3\n"
    return {
        "record": Reader("record.json", (record_text(record).encode(),), lambda f: read_record(f / "record.json")),
        "suite": Reader("suite.yaml", (suite, cluster), lambda f: load_suite(f / "suite.yaml")),
        "cluster": Reader("cluster.yaml", (cluster, suite), lambda f: settings_of(f / "cluster.yaml")),
        "participants": Reader(
            "participants.tsv", (people, adhd, camcan), lambda f: read_table(f / "participants.tsv")
        ),
        "adhd200": Reader("NYU_phenotypic.csv", (adhd,), lambda f: read_phenotypes(f, [])),
        "camcan": Reader("standard_data.csv", (camcan, people), _camcan),
        "cattell": Reader("Cattell_summary.txt", (cattell,), lambda f: read_cattell(f, [])),
        "labels": Reader("labels.csv", (names, regions), lambda f: read_names(f / "labels.csv")),
        "labels-text": Reader("labels.txt", (lut,), lambda f: read_names(f / "labels.txt")),
        "labels-xml": Reader("labels.xml", (xml,), lambda f: read_names(f / "labels.xml")),
        "regions": Reader("regions.csv", (regions, names), lambda f: read_regions(f / "regions.csv")),
        "series-text": Reader("series.csv", (text, names), lambda f: read_series(f / "series.csv")),
        "series-npy": Reader("series.npy", (npy.getvalue(),), lambda f: read_series(f / "series.npy")),
        "series-mat": Reader("series.mat", (mat.getvalue(),), lambda f: read_series(f / "series.mat")),
        "bundle": Reader("bundle.zip", (_bundle(record_text(record)),), lambda f: read_bundle(f / "bundle.zip")),
        "cohort": Reader("cohort.json", (b'{"dataset": "x", "fingerprint": "0"}',), _cohort),
        "manifest": Reader("manifest.json", (_manifest(),), _store),
    }


def _camcan(folder: Path) -> Any:
    place = folder / "dataman" / "useraccess" / "processed" / "me"
    place.mkdir(parents=True, exist_ok=True)
    (place / "standard_data.csv").write_bytes((folder / "standard_data.csv").read_bytes())
    return read_participants(folder, [])


def _bundle(record: str) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as bundle:
        name = f"records/{'0' * 64}.json"
        bundle.writestr(name, record)
        content_of = {"sha256": hashlib.sha256(record.encode()).hexdigest(), "bytes": len(record.encode())}
        about = {"format": FORMAT, "made_by": "neurobench 0", "n_records": 1, "left_behind": []}
        bundle.writestr(MANIFEST, json.dumps(about | {"files": {name: content_of}}))
    return content.getvalue()


def _cohort(folder: Path) -> Any:
    place = folder / "cohorts" / "0"
    place.mkdir(parents=True, exist_ok=True)
    (place / "cohort.json").write_bytes((folder / "cohort.json").read_bytes())
    return read_cohort(folder, "0")


def _manifest() -> bytes:
    files = {"weights.safetensors": ["0" * 64, 3]}
    return json.dumps({"stage": "pretraining", "key": "0" * 64, "label": "x", "identity": {}, "files": files}).encode()


def _store(folder: Path) -> Any:
    (folder / "neurobench.json").write_text('{"format": 1}')
    place = folder / "store" / "pretraining" / ("0" * 64)
    place.mkdir(parents=True, exist_ok=True)
    (place / "weights.safetensors").write_bytes(save({"a": np.zeros(1)})[:3])
    (place / "manifest.json").write_bytes((folder / "manifest.json").read_bytes())
    return check(folder)


# ---------------------------------------------------------------- the campaign


@dataclass
class Campaign:
    """What reading many files came to.

    Parameters
    ----------
    n, n_read
        Files; those that were read without an error.
    slowest_s
        Seconds of the slowest.
    found
        Traceback and content of every file that was neither read nor refused, one a place in the code.
    """

    n: int
    n_read: int = 0
    slowest_s: float = 0.0
    found: dict[str, bytes] | None = None


def fuzz(name: str, n: int, seed: int = 0) -> Campaign:
    """Give a reader ``n`` mutated files."""
    reader = readers()[name]
    rng = np.random.default_rng([seed, *name.encode()])
    done = Campaign(n, found={})
    assert done.found is not None
    known: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        # What a parser warns of is no crash.
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        for _ in range(n):
            sample = reader.samples[int(rng.integers(len(reader.samples)))]
            content = mutated(rng, sample, reader.samples)
            (folder / reader.file).write_bytes(content)
            started = time.perf_counter()
            try:
                reader.read(folder)
                done.n_read += 1
            except NeurobenchError:
                pass
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)
                ours = [f for f in last if "neurobench" in f.filename and "benchmarks" not in f.filename]
                place = f"{type(error).__name__} at {Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "?"
                if place not in known:
                    done.found[f"{place}: {str(error)[:200]}"] = content
                known.add(place)
            seconds = time.perf_counter() - started
            done.slowest_s = max(done.slowest_s, seconds)
            if seconds > LIMIT_S:
                done.found.setdefault(f"took {seconds:.0f} s", content)
    return done


def main() -> None:
    """Run the campaigns and say what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("reader", nargs="*", choices=[*readers(), []], help="Without: all of them.")
    parser.add_argument("--n", type=int, default=100_000, help="Files for each.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", action="store_true", help=f"Keep what was run in {KEPT.name}.")
    options = parser.parse_args()
    kept = json.loads(KEPT.read_text(encoding="utf-8")) if KEPT.is_file() else {}
    broken = False
    for name in track(options.reader or list(readers()), description="reading", disable=not sys.stderr.isatty()):
        done = fuzz(name, options.n, options.seed)
        places = list(done.found or {})
        print(
            f"{name}: {done.n} files, {done.n_read} read, slowest {done.slowest_s:.2f} s, {len(places)} bugs",
            flush=True,
        )
        for place in places:
            print(f"  {place}\n  {(done.found or {})[place][:300]!r}", flush=True)
        broken |= bool(places)
        if options.save and not places:
            kept[name] = {
                "date": datetime.date.today().isoformat(),
                "files": done.n,
                "seed": options.seed,
                "read": done.n_read,
                "slowest_s": round(done.slowest_s, 2),
            }
            KEPT.write_text(json.dumps(kept, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    sys.exit(broken)


if __name__ == "__main__":
    main()
