"""Readers of text that people write: suites, settings, participants, labels, series, events and sidecars."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pandas as pd
import scipy.io

from benchmarks.fuzz.reader import Reader
from neurobench import RecordingFile
from neurobench.batch_systems import settings_of
from neurobench.config import load_suite
from neurobench_datasets._adhd200_phenotypes import read_phenotypes
from neurobench_datasets._atlases import read_names
from neurobench_datasets._bold_layouts import repetition_time as time_of_images
from neurobench_datasets._confounds import regressors_of
from neurobench_datasets._description import FILE, described
from neurobench_datasets._meg_events import read_events
from neurobench_datasets._meg_sidecars import bad_channels, noise_file
from neurobench_datasets._roi_series import read_regions, read_series, units_of
from neurobench_datasets._series_folder import repetition_time
from neurobench_datasets._tables import match_id, participants_from
from neurobench_datasets.camcan import read_cattell, read_participants
from neurobench_datasets.parcels import Parcels

SUITE = b"""backbones: [mamba, 'hybrid[layout=MA]']
masks: roi
datasets: [parcels]
tasks: [age]
seeds: [0, 1]
ratio: .5
data_dirs: {parcels: here}
profile: smoke
n_subjects: 24
"""
CLUSTER = b"queue: short\ncores: 4\nmemory: 8GB\nwalltime: '01:00:00'\njobs: 3\n"
PEOPLE = b"participant_id\tage\tsex\tsite\tdiagnosis\nsub-01\t20.5\tF\tA\tcontrol\nsub-02\t-999\tmale\tB\tADHD\n"
CODED = b"participant_id\tage\tsex\tdiagnosis\nsub-01\t120\t1\t0\nsub-02\t99\t2\t1\n"
DICTIONARY = b"""{"sex": {"Levels": {"1": "male", "2": {"Description": "female"}}},
"diagnosis": {"Levels": {"0": "control", "1": "ADHD"}}, "age": {"Units": "months"}}"""
ADHD = b"""ScanDir ID,Site,Gender,Age,Handedness,DX,Secondary Dx ,Full4 IQ,QC_Rest_1
10001,5,1,9.2,-0.3,pending,,110,1
0010002,5,0,11,1,3,x,-999,N/A
"""
CAMCAN = b"CCID,Age,Sex,Hand\nCC110033,24,MALE,76\nCC110037,18,FEMALE,100\n"
CATTELL = b"text\n" * 8 + b"CCID\tNtrials\tTotalScore\tRA\nCC110033\t46\t37\tAB\nCC110037\t46\tNaN\tAB\n\ntext\n"
NAMES = b"label,name,group\n1,Precentral_L,Frontal\n2,Precentral_R,Frontal\n"
XML = b"<atlas><data><label><index>1</index><name>Precentral_L</name></label></data></atlas>"
LUT = b"1 7Networks_LH_Vis_1 120 18 131 0\n2 7Networks_LH_Vis_2 120 18 132 0\n"
REGIONS = b"name,group,x,y,z\na,front,1,2,3\na,back,4,5,6\n"
SIDECAR = b'{"RepetitionTime": 2.0, "TaskName": "rest", "SliceTiming": [0, 0.5, 1.0]}'
MEG = b'{"PowerLineFrequency": 50, "AssociatedEmptyRoom": ["bids::sub-emptyroom/meg/x_meg.fif"]}'
EVENTS = b"onset\tduration\ttrial_type\tvalue\n0.5\t0\taudio\t1\n1.5\tn/a\tvisual\t2.0\n"
CHANNELS = b"name\ttype\tstatus\nMEG0111\tMEGMAG\tgood\nMEG0112\tMEGGRADPLANAR\tbad\n"
MOTION = b"# roll pitch yaw dS dL dP\n" + b"0.1 0.2 -0.1 0.01 0.02 0.03\n" * 4
DESCRIPTION = b'{"Name": "A", "Authors": ["B", "C"], "DatasetDOI": "doi:10.123/x", "ReferencesAndLinks": ["D"]}'

CAMCAN_FILE = "dataman/useraccess/processed/me/standard_data.csv"
MEG_NAME = "sub-01_task-rest_meg"


def readers() -> dict[str, Reader]:
    """Return the readers of text by name."""
    series = np.random.default_rng(0).standard_normal((4, 6)).round(3)
    text = "\n".join(",".join(map(str, row)) for row in series).encode()
    npy, mat = io.BytesIO(), io.BytesIO()
    np.save(npy, series)
    scipy.io.savemat(mat, {"ROISignals": series})
    return {
        "suite": Reader("suite.yaml", (SUITE, CLUSTER), lambda f: load_suite(f / "suite.yaml")),
        "cluster": Reader("cluster.yaml", (CLUSTER, SUITE), lambda f: settings_of(f / "cluster.yaml")),
        "participants": Reader("participants.tsv", (PEOPLE, ADHD, CAMCAN), _people),
        "dictionary": Reader("participants.json", (DICTIONARY,), _people, beside={"participants.tsv": CODED}),
        "adhd200": Reader("NYU_phenotypic.csv", (ADHD,), lambda f: read_phenotypes(f, [])),
        "camcan": Reader(CAMCAN_FILE, (CAMCAN, PEOPLE), lambda f: read_participants(f, [])),
        "cattell": Reader("Cattell_summary.txt", (CATTELL,), lambda f: read_cattell(f, [])),
        "labels": Reader("labels.csv", (NAMES, REGIONS), lambda f: read_names(f / "labels.csv")),
        "labels-text": Reader("labels.txt", (LUT,), lambda f: read_names(f / "labels.txt")),
        "labels-xml": Reader("labels.xml", (XML,), lambda f: read_names(f / "labels.xml")),
        "regions": Reader("regions.csv", (REGIONS, NAMES), lambda f: units_of(read_regions(f / "regions.csv"))),
        "series-text": Reader("series.csv", (text, NAMES), lambda f: read_series(f / "series.csv")),
        "series-npy": Reader("series.npy", (npy.getvalue(),), lambda f: read_series(f / "series.npy")),
        "series-mat": Reader("series.mat", (mat.getvalue(),), lambda f: read_series(f / "series.mat")),
        "sidecar-bold": Reader("x_bold.json", (SIDECAR,), lambda f: time_of_images(f / "x_bold.nii.gz", f)),
        "sidecar-series": Reader("x.json", (SIDECAR,), _time_of_series),
        "sidecar-meg": Reader(f"{MEG_NAME}.json", (MEG, SIDECAR), lambda f: noise_file(f / f"{MEG_NAME}.fif")),
        "events": Reader("events.tsv", (EVENTS,), _events),
        "channels": Reader(
            "sub-01_task-rest_channels.tsv",
            (CHANNELS, EVENTS),
            lambda f: bad_channels(f / f"{MEG_NAME}.fif", {"MEG0111", "MEG0112"}, [], "01"),
        ),
        "motion": Reader("rp.1D", (MOTION,), _regressors),
        "description": Reader(FILE, (DESCRIPTION,), lambda f: described(Parcels.card, f)),
    }


def _people(folder: Path) -> Any:
    table, findings = participants_from(folder / "participants.tsv", component="parcels")
    # As files are matched that lost the zeros of their names.
    return table, findings, match_id("1", table.index)


def _time_of_series(folder: Path) -> float:
    person = pd.Series({"t_r": None}, dtype=object)
    return repetition_time(folder / "x.csv", folder, person, 0.0, 0.0, "parcels")


SILENCE = mne.io.RawArray(np.zeros((1, 400)), mne.create_info(["MEG0111"], 200.0, "mag"), verbose="ERROR")
"""Two seconds that events may lie in."""


def _events(folder: Path) -> Any:
    of = {"events_file": "events.tsv"}
    read_events(SILENCE, None, of | {"conditions": (("1", "tone"),), "button": "press"}, folder)
    return read_events(SILENCE, None, of, folder)


def _regressors(folder: Path) -> Any:
    file = RecordingFile("01", folder / "x_bold.nii", 0.5, beside={"confounds": folder / "rp.1D"})
    return regressors_of(file, ("motion",), 4)
