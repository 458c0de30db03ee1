"""Preparing 4-D BOLD beside its peers, and whether training waits for data: ratios, measured side by side in one run.

    python -m benchmarks.performance prepare

One simulated recording of 61 × 73 × 61 voxels of 3 mm and 176 volumes, int16, .nii.gz (noise inside and outside the
head, as fMRIPrep writes it), one thread:

* its decompression and one pass over the values (conversion to float32 and a sum), by zlib and by isal;
* our whole preparation (read, reduce, filter, write) to the regions of an atlas, and to patches of 24 mm
  (voxels of 4 mm) and of 12 mm (voxels of 3 mm);
* nilearn's ``NiftiLabelsMasker`` on the same atlas, filtered the same way, which is compared for equality too.

Then: the growth of the process' peak memory over what it was after importing, in copies of the recording as float32;
and how much faster two workers prepare several recordings than one.
"""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import threadpoolctl
from isal import igzip
from nilearn.datasets import load_mni152_brain_mask
from nilearn.image import resample_img
from nilearn.maskers import NiftiLabelsMasker

from benchmarks.performance.table import Ratio, interleaved, peak_bytes
from neurobench import RecordingFile, SignalSpec
from neurobench.preparation import write_prepared
from neurobench_datasets._bold_images import read_bold

SHAPE = (61, 73, 61)
N_TIMES, T_R = 176, 2.0
AFFINE = np.array([[3.0, 0, 0, -90], [0, 3, 0, -126], [0, 0, 3, -72], [0, 0, 0, 1]])
N_REGIONS = 116
SPEC = SignalSpec(window_s=150.0, patch_s=15.0, sfreq=1 / T_R, band_hz=(0.01, 0.1))
WAYS = {
    "regions": {"signal": "parcels"},
    "patches of 24 mm, 4 mm voxels": {"signal": "volume", "spacing_mm": 4.0, "patch_voxels": 6},
    "patches of 12 mm, 3 mm voxels": {"signal": "volume", "spacing_mm": 3.0, "patch_voxels": 4},
}


def write_files(folder: Path, n: int) -> tuple[list[Path], Path]:
    """Write ``n`` simulated recordings and a label image of Voronoi cells of the brain."""
    rng = np.random.default_rng(0)
    mask = resample_img(
        load_mni152_brain_mask(resolution=2),
        target_affine=AFFINE,
        target_shape=SHAPE,
        interpolation="nearest",
        force_resample=True,
        copy_header=True,
    ).get_fdata()
    brain = np.argwhere(mask > 0)
    centres = brain[rng.choice(len(brain), N_REGIONS, replace=False)]
    nearest = np.array([((centres - v) ** 2).sum(1).argmin() for v in brain])
    labels = np.zeros(SHAPE, np.int16)
    labels[tuple(brain.T)] = nearest + 1
    nib.save(nib.Nifti1Image(labels, AFFINE), folder / "labels.nii.gz")
    paths = []
    for i in range(n):
        data = np.abs(rng.normal(0, 8, (*SHAPE, N_TIMES)))
        data[mask > 0] += rng.normal(1000, 100, (len(brain), 1)) + rng.normal(0, 20, (len(brain), N_TIMES))
        image = nib.Nifti1Image(data.astype(np.int16), AFFINE)
        image.header.set_xyzt_units("mm", "sec")
        image.header["pixdim"][4] = T_R
        paths.append(folder / f"sub-{i:02d}.nii.gz")
        nib.save(image, paths[-1])
    return paths, folder / "labels.nii.gz"


def decompress(path: Path, opened: Callable[..., object]) -> float:
    """Decompress a recording volume by volume and sum its values as float32."""
    total = 0.0
    with opened(path, "rb") as stream:  # type: ignore[attr-defined]
        stream.read(352)
        for _ in range(N_TIMES):
            volume = np.frombuffer(stream.read(int(np.prod(SHAPE)) * 2), np.int16)
            total += float(volume.astype(np.float32).sum())
    return total


def prepare(path: Path, atlas: Path, way: str) -> np.ndarray:
    """Read, filter and write one recording; return what was written."""
    file = RecordingFile(path.name, path, 1 / T_R, beside={"atlas": atlas})
    with tempfile.TemporaryDirectory() as folder:
        raw = read_bold(file, confounds=(), **WAYS[way])  # type: ignore[arg-type]
        write_prepared(raw, SPEC, Path(folder))
        return np.load(Path(folder) / "signal.npy", allow_pickle=False)


def with_nilearn(path: Path, atlas: Path) -> np.ndarray:
    """Return the (times, regions) means of nilearn's masker."""
    return NiftiLabelsMasker(str(atlas), standardize=None, resampling_target="data").fit_transform(str(path))


def memory_in_copies(path: Path, atlas: Path, way: str) -> float:
    """Return by how many float32 copies of the recording the peak memory of a fresh process grows."""
    code = (
        "import sys; from pathlib import Path; from benchmarks.performance.prepare import peak_growth; "
        "print(peak_growth(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(atlas), way], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1]) / (int(np.prod(SHAPE)) * N_TIMES * 4)


def peak_growth(path: Path, atlas: Path, way: str) -> int:
    """Return the bytes by which preparing one recording raises this process' peak memory."""
    before = peak_bytes()
    prepare(path, atlas, way)
    return peak_bytes() - before


def workers_ratio(paths: list[Path], atlas: Path, way: str) -> float:
    """Return how much faster two single-threaded workers are than one, both started and warm."""
    import joblib

    seconds = {}
    for n in (1, 2):
        with joblib.parallel_config(backend="loky", inner_max_num_threads=1), joblib.Parallel(n_jobs=n) as pool:
            # Every worker imports, and works out the grid, before the clock runs.
            pool(joblib.delayed(prepare)(p, atlas, way) for p in [paths[0]] * 6 * n)
            started = time.perf_counter()
            pool(joblib.delayed(prepare)(p, atlas, way) for p in paths * 3)
            seconds[n] = time.perf_counter() - started
    return seconds[1] / seconds[2]


def measure(quick: bool) -> list[Ratio]:
    """Return time against decompression and nilearn's masker, peak memory, and what a second worker gains."""
    rows = []

    def add(name: str, value: float, bar: float | None = None, at_least: bool = True, **measured: float) -> None:
        rows.append(Ratio("prepare", name, value, bar, at_least, measured))

    with tempfile.TemporaryDirectory() as name, threadpoolctl.threadpool_limits(1):
        paths, atlas = write_files(Path(name), 2 if quick else 6)
        path = paths[0]
        contenders: dict[str, Callable[[], object]] = {
            "zlib": lambda: decompress(path, gzip.open),
            "isal": lambda: decompress(path, igzip.open),
            "nilearn": lambda: with_nilearn(path, atlas),
        }
        contenders |= {way: lambda way=way: prepare(path, atlas, way) for way in WAYS}
        seconds = interleaved(contenders, 1 if quick else 3)
        for way in WAYS:
            times = {f"{k}_s": seconds[k] for k in ("zlib", "isal")} | {"ours_s": seconds[way]}
            add(f"{way}: our time over decompression by zlib and one pass", seconds[way] / seconds["zlib"], **times)
        times = {"nilearn_s": seconds["nilearn"], "ours_s": seconds["regions"]}
        add("regions: nilearn's masker's time over ours", seconds["nilearn"] / seconds["regions"], 1.0, True, **times)
        raw = read_bold(RecordingFile("x", path, 1 / T_R, beside={"atlas": atlas}), signal="parcels", confounds=())
        difference = float(np.abs(raw.data.T / with_nilearn(path, atlas) - 1).max())
        add("regions: largest relative difference from nilearn's means", difference, 1e-4, False)
        for way in WAYS:
            copies = memory_in_copies(path, atlas, way)
            add(f"{way}: growth of peak memory in copies of the recording as float32", copies, 1.0, False)
        if not quick:
            for way in WAYS:
                add(f"{way}: two workers' speed over one's", workers_ratio(paths, atlas, way), 1.7)
    return rows
