"""A diagnosis from MEG with braindecode and skorch, trained from scratch in every fold.

    python braindecode_script.py FOLDER --folds folds.json [--out scores.json]

FOLDER is a BIDS tree of MEG (.fif). Written for the benchmark from braindecode's own idioms: recordings to windows of
4 s, EEGClassifier with AdamW and a cosine schedule, a subject's probability the mean over its windows, scikit-learn's
metrics in a bootstrap over subjects.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from pathlib import Path

import mne
import numpy as np
import pandas as pd
import torch
from braindecode import EEGClassifier
from braindecode.datasets import BaseConcatDataset, RawDataset
from braindecode.models import ShallowFBCSPNet
from braindecode.preprocessing import create_fixed_length_windows
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from skorch.callbacks import LRScheduler

WINDOW_S, SFREQ, BAND_HZ, BATCH = 4.0, 128.0, (1.0, 40.0), 16
N_BOOTSTRAP, N_PERMUTATIONS = 2000, 1000


def load(folder: Path, people: pd.DataFrame) -> BaseConcatDataset:
    """Return the magnetometers of every recording, filtered, resampled and scaled, in windows."""
    recordings = []
    for name, row in people.iterrows():
        for path in sorted((folder / name / "meg").glob("*_meg.fif")):
            raw = mne.io.read_raw_fif(path, preload=True, verbose="error").pick("mag")
            raw.filter(*BAND_HZ, verbose="error").resample(SFREQ, verbose="error")
            data = raw.get_data()
            low, high = np.percentile(data, [25, 75], axis=1, keepdims=True)
            raw = mne.io.RawArray(
                (data - data.mean(1, keepdims=True)) / (high - low) * 1.349, raw.info, verbose="error"
            )
            recordings.append(RawDataset(raw, {"subject": name, "patient": int(row["group"] == "headache")}, "patient"))
    size = round(WINDOW_S * SFREQ)
    return create_fixed_length_windows(
        BaseConcatDataset(recordings),
        window_size_samples=size,
        window_stride_samples=size,
        drop_last_window=True,
        preload=True,
    )


def score(y: np.ndarray, p: np.ndarray, site: np.ndarray) -> dict[str, dict[str, float]]:
    """Return AUROC and balanced accuracy with 95 % intervals over subjects and p within sites."""

    def metrics(y: np.ndarray, p: np.ndarray) -> list[float]:
        if len(np.unique(y)) < 2:
            return [np.nan, np.nan]
        return [roc_auc_score(y, p), balanced_accuracy_score(y, p > 0.5)]

    rng = np.random.default_rng(0)
    found = metrics(y, p)
    draws = np.array([metrics(y[i], p[i]) for i in (rng.integers(len(y), size=len(y)) for _ in range(N_BOOTSTRAP))])
    reached = np.zeros(2)
    for _ in range(N_PERMUTATIONS):
        permuted = y.copy()
        for s in np.unique(site):
            permuted[site == s] = rng.permutation(y[site == s])
        reached += np.array(metrics(permuted, p)) >= found
    low, high = np.nanpercentile(draws, [2.5, 97.5], axis=0)
    return {
        name: {"value": found[i], "low": low[i], "high": high[i], "p": (reached[i] + 1) / (N_PERMUTATIONS + 1)}
        for i, name in enumerate(("auroc", "balanced_accuracy"))
    }


def main() -> None:
    """Train and score."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--folds", type=Path, required=True, help="JSON: a list of {train, test}")
    parser.add_argument("--steps", type=int, default=60, help="optimiser steps a fold, in whole epochs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.manual_seed(args.seed)
    started = time.perf_counter()
    people = pd.read_csv(args.folder / "participants.tsv", sep="\t", index_col="participant_id")
    windows = load(args.folder, people)
    seconds = {"data": time.perf_counter() - started}
    subject = np.concatenate([[d.description["subject"]] * len(d) for d in windows.datasets])
    y = np.concatenate([[d.description["patient"]] * len(d) for d in windows.datasets])
    predicted = pd.Series(np.nan, index=people.index)
    n_steps = []
    for fold in json.loads(args.folds.read_text()):
        train, test = (np.flatnonzero(np.isin(subject, fold[part])) for part in ("train", "test"))
        per_epoch = max(1, len(train) // BATCH)
        n_epochs = max(1, round(args.steps / per_epoch))
        n_steps.append(n_epochs * per_epoch)
        share = y[train].mean()
        net = EEGClassifier(
            ShallowFBCSPNet,
            module__n_chans=windows[0][0].shape[0],
            module__n_outputs=2,
            module__n_times=windows[0][0].shape[1],
            criterion=torch.nn.CrossEntropyLoss,
            criterion__weight=torch.tensor([0.5 / (1 - share), 0.5 / share], dtype=torch.float32),
            optimizer=torch.optim.AdamW,
            optimizer__lr=1e-3,
            batch_size=BATCH,
            max_epochs=n_epochs,
            train_split=None,
            callbacks=[("cosine", LRScheduler("CosineAnnealingLR", T_max=n_epochs))],
            classes=[0, 1],
            verbose=0,
        )
        net.fit(torch.utils.data.Subset(windows, train.tolist()), y=None)
        p = net.predict_proba(torch.utils.data.Subset(windows, test.tolist()))[:, 1]
        for name in fold["test"]:
            predicted[name] = p[subject[test] == name].mean()
    seconds["training"] = time.perf_counter() - started - seconds["data"]
    truth = (people["group"] == "headache").to_numpy(float)
    scores = score(truth, predicted.to_numpy(), people["site"].to_numpy())
    seconds["intervals and permutations"] = time.perf_counter() - started - sum(seconds.values())
    parameters = sum(x.numel() for x in net.module_.parameters())
    found = {
        "scores": {"scratch · diagnosis": scores},
        "seconds": seconds,
        "n_parameters": parameters,
        "n_steps": n_steps,
    }
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    print(found)


if __name__ == "__main__":
    main()
