"""Opening images without taking a header's word for how much the file holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from neurobench_datasets._tables import DEFLATE


def open_image(path: Path) -> Any:
    """Return nibabel's image of a file; its voxels are not read.

    nibabel makes room for what a header says before it looks how much there is: 400 bytes can say gigabytes.

    Raises
    ------
    ValueError
        If the file is too small for what its header says. Whatever nibabel raises else.
    """
    import nibabel as nib

    image: Any = nib.load(path)
    kept = Path(image.file_map["image"].filename or path)
    n_bytes = math.prod(map(int, image.shape)) * image.get_data_dtype().itemsize
    most = kept.stat().st_size * (DEFLATE if kept.suffix == ".gz" else 1)
    if n_bytes > most and kept.suffix in (".nii", ".img", ".gz"):
        raise ValueError(f"its header says {n_bytes} bytes of voxels, and there are {most} at most: it is cut off")
    return image
