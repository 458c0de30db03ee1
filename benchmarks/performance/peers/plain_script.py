"""Masked pretraining and probing of ROI time series, the way one writes it for a paper: PyTorch, nilearn, scikit-learn.

    python plain_script.py FOLDER [--steps 200] [--folds folds.json] [--out scores.json]

Written for the benchmark as what a user would write instead of using a suite: usual idioms, nothing slowed down on
purpose. FOLDER has participants.tsv and timeseries/<participant_id>.npy (volumes × regions). A factorised transformer
is pretrained on the training subjects of each fold by hiding half of the regions; embeddings (mean and s.d. of every
region's tokens) are probed by ridge and logistic regression beside an untrained network and six baselines.
"""

from __future__ import annotations

import argparse
import json
import math
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from nilearn.connectome import ConnectivityMeasure
from nilearn.signal import clean
from scipy.signal import resample_poly, welch
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegressionCV, RidgeCV
from sklearn.metrics import balanced_accuracy_score, mean_absolute_error, r2_score, roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from torch import nn
from torch.utils.data import DataLoader, Dataset

WINDOW_S, PATCH_S, BAND_HZ = 150.0, 15.0, (0.01, 0.1)
WIDTH, HEADS, N_UNITS, BATCH, RATIO = 32, 2, 10, 32, 0.5
ALPHAS, CS = np.logspace(-3, 5, 9), np.logspace(-4, 3, 8)
TASKS = {"age": "regression", "fluid_intelligence": "regression", "diagnosis": "class", "sex": "class"}


# ---------------------------------------------------------------- data


def load(folder: Path) -> tuple[pd.DataFrame, dict[str, np.ndarray], float]:
    """Return participants, (regions, times) of each, filtered and z-scored, and the common repetition time."""
    people = pd.read_csv(folder / "participants.tsv", sep="\t", index_col="participant_id")
    slowest = people["t_r"].max()
    series = {}
    for name, t_r in people["t_r"].items():
        raw = np.load(next((folder / "timeseries").glob(f"{name}*.npy")), allow_pickle=False)
        filtered = clean(raw, t_r=t_r, high_pass=BAND_HZ[0], low_pass=BAND_HZ[1], detrend=False, standardize=None)
        if t_r < slowest:
            filtered = resample_poly(filtered, round(t_r * 1000), round(slowest * 1000), axis=0)
        series[name] = ((filtered - filtered.mean(0)) / filtered.std(0)).T.astype(np.float32)
    return people, series, slowest


class Windows(Dataset):
    """One random window of random regions a subject, with a mask that hides half of them."""

    def __init__(self, series: dict[str, np.ndarray], n_times: int, n_patches: int, seed: int) -> None:
        self.series, self.n_times, self.n_patches = list(series.values()), n_times, n_patches
        self.rng = np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.series)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        data = self.series[i]
        start = int(self.rng.integers(data.shape[1] - self.n_times + 1))
        units = np.sort(self.rng.choice(len(data), N_UNITS, replace=False))
        window = torch.from_numpy(data[units, start : start + self.n_times].copy())
        hidden = torch.zeros(N_UNITS, self.n_patches, dtype=torch.bool)
        hidden[torch.randperm(N_UNITS)[: round(RATIO * N_UNITS)]] = True
        return window.view(N_UNITS, self.n_patches, -1), hidden, torch.from_numpy(units)


# ---------------------------------------------------------------- network


class Net(nn.Module):
    """A transformer layer across regions and one along time."""

    def __init__(self, n_regions: int, n_patches: int, n_features: int) -> None:
        super().__init__()
        self.value = nn.Linear(n_features, WIDTH)
        self.mask_token = nn.Parameter(torch.randn(WIDTH) * 0.02)
        self.region = nn.Embedding(n_regions, WIDTH)
        nn.init.normal_(self.region.weight, std=0.2)
        self.time = nn.Parameter(torch.randn(n_patches, WIDTH) * 0.02)

        def layer() -> nn.Module:
            return nn.TransformerEncoderLayer(
                WIDTH, HEADS, 4 * WIDTH, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )

        self.across, self.along, self.norm = layer(), layer(), nn.LayerNorm(WIDTH)
        self.decoder = nn.Linear(WIDTH, n_features)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor, units: torch.Tensor) -> torch.Tensor:
        b, u, p, _ = x.shape
        tokens = torch.where(hidden[..., None], self.mask_token, self.value(x))
        tokens = tokens + self.region(units)[:, :, None] + self.time
        tokens = self.across(tokens.transpose(1, 2).reshape(b * p, u, WIDTH)).view(b, p, u, WIDTH).transpose(1, 2)
        tokens = self.along(tokens.reshape(b * u, p, WIDTH)).view(b, u, p, WIDTH)
        return self.norm(tokens)


def pretrain(net: Net, data: Windows, n_steps: int) -> None:
    """Minimise the squared error at hidden tokens."""
    optimiser = torch.optim.AdamW(net.parameters(), lr=0.32 / WIDTH, betas=(0.9, 0.95), weight_decay=0.05)
    warm = max(1, round(0.05 * n_steps))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: (s + 1) / warm if s < warm else 0.5 * (1 + math.cos(math.pi * (s - warm) / n_steps))
    )
    loader = DataLoader(data, batch_size=BATCH, shuffle=True)
    net.train()
    step = 0
    while step < n_steps:
        for x, hidden, units in loader:
            predicted = net.decoder(net(x, hidden, units))
            loss = ((predicted - x) ** 2)[hidden].mean()
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            step += 1
            if step == n_steps:
                break


@torch.no_grad()
def embed(net: Net, series: dict[str, np.ndarray], n_times: int, n_patches: int) -> np.ndarray:
    """Return (subjects, regions · 2 · width): mean and s.d. over time of every region's tokens, mean over windows."""
    net.eval()
    rows = []
    for data in series.values():
        n_regions = len(data)
        n_chunks = math.ceil(n_regions / N_UNITS)
        starts = np.linspace(0, data.shape[1] - n_times, math.ceil(data.shape[1] / n_times)).round().astype(int)[:8]
        found = torch.zeros(n_regions, 2 * WIDTH)
        x = torch.stack([torch.from_numpy(data[:, s : s + n_times].copy()) for s in starts])
        for chunk in range(n_chunks):
            units = torch.arange(n_regions)[chunk::n_chunks]
            part = x[:, units].view(len(x), len(units), n_patches, -1)
            tokens = net(part, torch.zeros(part.shape[:3], dtype=torch.bool), units.expand(len(x), -1))
            found[units] = torch.cat([tokens.mean(2), tokens.std(2, unbiased=False)], -1).mean(0)
        rows.append(found.flatten().numpy())
    return np.stack(rows)


# ---------------------------------------------------------------- baselines


def raw_signal(series: dict[str, np.ndarray], t_r: float) -> np.ndarray:
    """Return log variance and log relative band power of every region."""
    rows = []
    for data in series.values():
        frequency, power = welch(data, 1 / t_r, nperseg=min(data.shape[1], round(100 / t_r)), nfft=512)
        bands = [
            power[:, (frequency >= a) & (frequency < b)].sum(1) for a, b in ((0.01, 0.04), (0.04, 0.07), (0.07, 0.1))
        ]
        rows.append(np.log(np.stack([data.var(1), *(b / sum(bands) for b in bands)]) + 1e-12).ravel())
    return np.stack(rows)


def connectivity(kind: str, series: list[np.ndarray], train: np.ndarray) -> np.ndarray:
    """Return the upper triangle of a connectivity matrix a subject."""
    measure = ConnectivityMeasure(kind=kind, vectorize=True, discard_diagonal=kind == "correlation", standardize=False)
    measure.fit([series[i].T for i in train])
    found = measure.transform([s.T for s in series])
    return np.arctanh(np.clip(found, -0.999999, 0.999999)) if kind == "correlation" else found


def covariates(people: pd.DataFrame, target: str) -> np.ndarray:
    """Return age, sex, site and motion, less the target."""
    columns = [c for c in ("age", "sex", "site", "mean_fd") if c != target and c in people]
    return pd.get_dummies(people[columns], dtype=float).to_numpy()


# ---------------------------------------------------------------- probes and scores


def predict(x: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, kind: str, kernel: bool) -> np.ndarray:
    """Fit the probe on the training subjects, penalties chosen by inner folds, and predict the test subjects."""
    inner = KFold(5, shuffle=True, random_state=0) if kind == "regression" else StratifiedKFold(5, shuffle=True)
    if kernel:
        gammas = np.array([1 / 4, 1, 4, 16]) / (2 * x.shape[1])
        if kind == "regression":
            mean = y[train].mean()
            model = GridSearchCV(KernelRidge(kernel="rbf"), {"alpha": ALPHAS, "gamma": gammas}, cv=inner)
            return make_pipeline(StandardScaler(), model).fit(x[train], y[train] - mean).predict(x[test]) + mean
        model = GridSearchCV(SVC(class_weight="balanced"), {"C": CS, "gamma": gammas}, cv=inner)
        return make_pipeline(StandardScaler(), model).fit(x[train], y[train]).decision_function(x[test])
    if kind == "regression":
        return make_pipeline(StandardScaler(), RidgeCV(ALPHAS, cv=inner)).fit(x[train], y[train]).predict(x[test])
    model = LogisticRegressionCV(
        Cs=CS, cv=inner, class_weight="balanced", scoring="neg_log_loss", max_iter=1000, l1_ratios=(0,),
        use_legacy_attributes=False,
    )  # fmt: skip
    return make_pipeline(StandardScaler(), model).fit(x[train], y[train]).predict_proba(x[test])[:, 1]


def metrics(y: np.ndarray, p: np.ndarray, kind: str) -> dict[str, float]:
    """Return the metrics of held-out predictions, the headline first."""
    if kind == "regression":
        r = np.corrcoef(y, p)[0, 1] if p.std() > 0 else np.nan
        return {"mae": mean_absolute_error(y, p), "r2": r2_score(y, p), "pearson_r": r}
    if len(np.unique(y)) < 2:
        return {"auroc": np.nan, "balanced_accuracy": np.nan}
    return {"auroc": roc_auc_score(y, p), "balanced_accuracy": balanced_accuracy_score(y, p > 0.5)}


def score(
    y: np.ndarray, p: np.ndarray, site: np.ndarray, kind: str, n_bootstraps: int, n_permutations: int
) -> dict[str, dict[str, float]]:
    """Return value, 95 % interval over subjects and p within sites of every metric."""
    rng = np.random.default_rng(0)
    found = metrics(y, p, kind)
    draws: dict[str, list[float]] = {m: [] for m in found}
    for _ in range(n_bootstraps):
        rows = rng.integers(len(y), size=len(y))
        for name, value in metrics(y[rows], p[rows], kind).items():
            draws[name].append(value)
    worse = dict.fromkeys(found, 0)
    for _ in range(n_permutations):
        permuted = y.copy()
        for s in np.unique(site):
            permuted[site == s] = rng.permutation(y[site == s])
        for name, value in metrics(permuted, p, kind).items():
            worse[name] += value <= found[name] if name == "mae" else value >= found[name]
    return {
        name: {
            "value": value,
            "low": np.nanpercentile(draws[name], 2.5),
            "high": np.nanpercentile(draws[name], 97.5),
            "p": (worse[name] + 1) / (n_permutations + 1),
        }
        for name, value in found.items()
    }


# ---------------------------------------------------------------- everything


def main() -> None:
    """Run the protocol."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--folds", type=Path, help="JSON: a list of {train, test}; without it two folds are drawn")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--bootstraps", type=int, default=2000)
    parser.add_argument("--permutations", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    warnings.simplefilter("ignore")
    tasks = {t: TASKS[t] for t in args.tasks.split(",")}
    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal clock
        seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - clock
        clock = time.perf_counter()

    people, series, t_r = load(args.folder)
    names, signals = list(series), list(series.values())
    per_patch = round(PATCH_S / t_r)
    n_patches = round(WINDOW_S / PATCH_S)
    n_times = per_patch * n_patches
    y = {t: people[t].to_numpy(float) if k == "regression" else pd.factorize(people[t], sort=True)[0].astype(float)
         for t, k in tasks.items()}  # fmt: skip
    if args.folds:
        folds = [
            [np.array([names.index(s) for s in f[p]]) for p in ("train", "test")] for f in json.load(args.folds.open())
        ]
    else:
        strata = people["site"] + people["diagnosis"]
        folds = list(StratifiedKFold(2, shuffle=True, random_state=args.seed).split(strata, strata))
    lap("data")
    rows = ("pretrained", "untrained", "connectome", "connectome_kernel", "tangent", "raw_signal", "covariates", "mean")
    held_out = {(row, task): np.zeros(len(names)) for row in rows for task in tasks}
    for train, test in folds:
        net = Net(len(signals[0]), n_patches, per_patch)
        features = {"untrained": embed(net, series, n_times, n_patches)}
        lap("embedding")
        pretrain(net, Windows({names[i]: signals[i] for i in train}, n_times, n_patches, args.seed), args.steps)
        lap("pretraining")
        features["pretrained"] = embed(net, series, n_times, n_patches)
        lap("embedding")
        features["connectome"] = features["connectome_kernel"] = connectivity("correlation", signals, train)
        features["tangent"] = connectivity("tangent", signals, train)
        features["raw_signal"] = raw_signal(series, t_r)
        lap("baselines")
        for task, kind in tasks.items():
            features["covariates"] = covariates(people, task)
            for row in rows[:-1]:
                held_out[row, task][test] = predict(
                    features[row], y[task], train, test, kind, row == "connectome_kernel"
                )
            dummy = DummyRegressor() if kind == "regression" else DummyClassifier()
            dummy.fit(train[:, None], y[task][train])
            constant = (
                dummy.predict(test[:, None]) if kind == "regression" else dummy.predict_proba(test[:, None])[:, 1]
            )
            held_out["mean", task][test] = constant
        lap("probes")
    site = people["site"].to_numpy()
    scores = {
        f"{row} · {task}": score(y[task], p, site, tasks[task], args.bootstraps, args.permutations)
        for (row, task), p in held_out.items()
    }
    lap("intervals and permutations")
    parameters = sum(p.numel() for p in net.parameters()) - sum(p.numel() for p in net.decoder.parameters())
    found = {"scores": scores, "seconds": seconds, "n_parameters": parameters}
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    for name, of_metrics in scores.items():
        metric, s = next(iter(of_metrics.items()))
        print(f"{name:32} {metric:6} {s['value']:8.3f}  {s['low']:.3f} to {s['high']:.3f}  p {s['p']:.3f}")
    print({k: round(v, 1) for k, v in seconds.items()})


if __name__ == "__main__":
    main()
