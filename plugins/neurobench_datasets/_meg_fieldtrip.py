"""FieldTrip's continuous recordings in ``.mat`` files, as MNE objects.

MNE's own reader needs a package besides and knows no sensor positions without the original recording; FieldTrip's
``grad`` has them. Structure: https://www.fieldtriptoolbox.org/development/datastructure/
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mne
import numpy as np
import scipy
from mne.io.constants import FIFF

from neurobench import DataError
from neurobench_datasets._mat import damage

PARTS = ("label", "time", "trial")
METRES = {"m": 1.0, "dm": 0.1, "cm": 0.01, "mm": 0.001}
TYPES = {
    "megmag": "mag",
    "meggrad": "mag",
    "megaxial": "mag",
    "megplanar": "grad",
    "mag": "mag",
    "refmag": "ref_meg",
    "refgrad": "ref_meg",
}
"""FieldTrip's type of a sensor and MNE's kind; MNE counts axial gradiometers as magnetometers, in tesla."""

COILS = {"mag": FIFF.FIFFV_COIL_VV_MAG_T3, "grad": FIFF.FIFFV_COIL_VV_PLANAR_T1}
AXIAL = ("meggrad", "megaxial")
STIMULUS = ("STI", "UPPT", "TRIG", "STIM")


def open_fieldtrip(path: Path) -> Any:
    """Return the recording as :class:`mne.io.RawArray`.

    Raises
    ------
    DataError
        If the file is no continuous FieldTrip recording, saying what it is.
    """
    try:
        # Of version 5 scipy takes lengths on trust, and a damaged file could end the process.
        if scipy.io.matlab.matfile_version(path)[0] == 1 and (why := damage(path)):
            raise DataError(f"{path.name} {why}.", next_step="Copy or save it again.")
        content = scipy.io.loadmat(path, squeeze_me=True, struct_as_record=False)
    except DataError:
        raise
    except NotImplementedError as error:
        raise DataError(
            f"{path.name} is a MATLAB file of version 7.3.", next_step="Save it again: save(…, '-v7')."
        ) from error
    except Exception as error:
        raise DataError(f"{path.name} cannot be read as a MATLAB file ({type(error).__name__}: {error}).") from error
    variables = {k: v for k, v in content.items() if not k.startswith("__")}
    data = next((v for v in variables.values() if all(hasattr(v, p) for p in PARTS)), None)
    if data is None:
        raise DataError(
            f"{path.name} holds no FieldTrip recording; its variables: {', '.join(sorted(variables)[:6]) or 'none'}.",
            allowed="a variable with the fields label, time and trial, as ft_preprocessing returns it",
        )
    signal = np.asarray(data.trial)
    if signal.dtype == object or signal.ndim != 2:
        n = len(signal)
        raise DataError(
            f"{path.name} holds {n} trials, not one continuous recording.",
            next_step="Use the data before ft_redefinetrial, or join the trials.",
        )
    labels = [str(n) for n in np.atleast_1d(data.label)]
    time = np.asarray(data.time, float)
    if signal.shape != (len(labels), len(time)) or len(time) < 2:
        raise DataError(
            f"{path.name} has {len(labels)} labels and {len(time)} times for a signal of {signal.shape[0]} × "
            f"{signal.shape[1]}.",
            next_step="Its fields label, time and trial have to belong together.",
        )
    sfreq = float(getattr(data, "fsample", 0.0) or 0.0) or 1.0 / float(np.median(np.diff(time)))
    info = _info(labels, sfreq, getattr(data, "grad", None))
    return mne.io.RawArray(signal.astype(np.float64), info, verbose="ERROR")


def _info(labels: list[str], sfreq: float, grad: Any) -> Any:
    """Return the header with kinds and places of sensors as ``grad`` gives them."""
    names = [str(n) for n in np.atleast_1d(grad.label)] if grad is not None else []
    row = {n: i for i, n in enumerate(names)}
    types = np.atleast_1d(getattr(grad, "chantype", ["megmag"] * len(names)))
    kinds = [
        TYPES.get(str(types[row[n]]), "misc") if n in row else "stim" if n.upper().startswith(STIMULUS) else "misc"
        for n in labels
    ]
    info = mne.create_info(labels, sfreq, kinds, verbose="ERROR")
    place = np.asarray(getattr(grad, "chanpos", np.zeros((len(names), 3))), float)
    outward = np.asarray(getattr(grad, "chanori", np.zeros_like(place)), float)
    along = _along(grad, len(names))
    place = place * METRES.get(str(getattr(grad, "unit", "m")), 1.0)
    for channel, kind in zip(info["chs"], kinds, strict=True):
        if channel["ch_name"] in row and kind in COILS:
            i = row[channel["ch_name"]]
            channel["loc"] = np.concatenate([place[i], along[i], np.zeros(3), outward[i]])
            channel["coil_type"] = FIFF.FIFFV_COIL_AXIAL_GRAD_5CM if str(types[i]) in AXIAL else COILS[kind]
    with info._unlock():
        # FieldTrip moves sensors into the coordinates of the head, and says which.
        if getattr(grad, "coordsys", None) is not None:
            info["dev_head_t"] = mne.transforms.Transform("meg", "head", np.eye(4))
        info["description"] = "read from a FieldTrip structure, values taken as tesla and tesla per metre"
    return info


def _along(grad: Any, n: int) -> Any:
    """Return (sensors, 3) unit vectors from the coils that count negative to those that count positive; else zeros.

    ``tra`` (sensors, coils) holds their weights; along this a planar gradiometer's signal is the gradient.
    """
    weights, coils = getattr(grad, "tra", None), np.asarray(getattr(grad, "coilpos", None))
    fits = coils.dtype.kind == "f" and coils.ndim == 2 and getattr(weights, "shape", None) == (n, len(coils))
    if not fits or weights.dtype.kind not in "fiu":
        return np.zeros((n, 3))
    weights = np.asarray(weights.toarray() if scipy.sparse.issparse(weights) else weights, float)

    def centre(share: Any) -> Any:
        return share @ coils / np.maximum(share.sum(1, keepdims=True), 1e-30)

    both = (weights > 0).any(1) & (weights < 0).any(1)
    along = (centre(np.maximum(weights, 0)) - centre(np.maximum(-weights, 0))) * both[:, None]
    length = np.linalg.norm(along, axis=1, keepdims=True)
    return np.divide(along, length, out=np.zeros_like(along), where=length > 0)
