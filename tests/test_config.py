"""Configuration: what is read, what is refused, and what grid follows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neurobench.components import parse_component, split_names
from neurobench.config import PROFILES, Grid, RunConfig, expand, load_suite
from neurobench.contracts import Backbone, Baseline, Dataset, MaskingStrategy, ReconstructionTask, SubjectTask
from neurobench.errors import ConfigError, ConfigErrors, PluginError, UnknownNameError
from neurobench.options import frozen_suites
from neurobench.plugin_rules import wrong_class
from neurobench.plugins import Registry, load_registry


class Net(Backbone):
    name = "net"
    summary = "a backbone"

    def __init__(self, spec, *, layout: str = "", depth: int = 1, rate: float = 0.5, both: bool = False) -> None:
        super().__init__(spec)

    @classmethod
    def impossible(cls, spec, parameters):
        layout = parameters["layout"]
        return f"layout {layout} has not {spec.n_layers} letters" if layout and len(layout) != spec.n_layers else ""

    def forward(self, signal, hidden, table):
        return signal


class Regions(MaskingStrategy):
    name = "regions"
    summary = "a mask"

    def __init__(self, *, rule: str = "any") -> None:
        if rule not in ("any", "pure"):
            raise ValueError(f"rule {rule!r} is none of any, pure")

    def elements(self, window, n_hidden, rng):
        yield np.arange(n_hidden)


class Nothing(Regions):
    name = "nothing"
    summary = "no mask"
    pretrains = False


class People(Dataset):
    name = "people"
    summary = "a dataset"
    default_grid = True
    twin_subjects = 8

    def __init__(self, *, signal: str = "parcels") -> None: ...

    spec = None
    list_recordings = read = None


class Loose(People):
    name = "loose"
    summary = "another dataset"
    default_grid = False
    twin_subjects = 0


class Column(SubjectTask):
    name = "target"
    summary = "any column"
    classes = ("", "")

    def __init__(self, *, column: str = "") -> None:
        if not column:
            raise ConfigError("task 'target' needs a column.")
        self.column = column

    refuses = target = None


class Age(Column):
    name = "age"
    summary = "age"

    def __init__(self) -> None: ...


class Fill(ReconstructionTask):
    name = "fill"
    summary = "reconstruction"
    evaluation_masks = ratio = refuses = None


class Mean(Baseline):
    name = "mean"
    summary = "a baseline"
    fit = transform = None


def registry(**changes: Any) -> Registry:
    kinds: dict[str, list[Any]] = {
        "backbones": [Net],
        "masks": [Nothing, Regions],
        "datasets": [Loose, People],
        "tasks": [Age, Fill, Column],
        "baselines": [Mean],
    }
    return Registry(**{k: {c.name: c for c in v} for k, v in kinds.items()}, **changes)


def grid(**options: Any) -> Grid:
    return expand(RunConfig.from_options(**{"backbone": "net", "mask": "regions", **options}), registry())


def problems(**options: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        grid(**options)
    return [str(p) for p in caught.value.problems]


def test_the_components_of_these_tests_are_components() -> None:
    for kind, component in (("backbone", Net), ("mask", Regions), ("dataset", People), ("task", Column)):
        assert wrong_class(kind, component) == ""  # type: ignore[arg-type]


# ---------------------------------------------------------------- components


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hybrid[layout=MA],mamba", ["hybrid[layout=MA]", "mamba"]),
        ("adhd200[signal=parcels,atlas=cc200]", ["adhd200[signal=parcels,atlas=cc200]"]),
        (" a , ,b,", ["a", "b"]),
        ("", []),
    ],
)
def test_commas_inside_brackets_do_not_split(text: str, parts: list[str]) -> None:
    assert split_names(text) == parts


def test_parameters_get_their_types_and_the_label_shows_only_what_was_changed() -> None:
    spec = parse_component("backbone", "net[both=yes,depth=3, layout=MA]", registry())
    assert dict(spec.parameters) == {"layout": "MA", "depth": 3, "rate": 0.5, "both": True}
    assert spec.label == "net[layout=MA,depth=3,both=true]"
    assert spec.identity() == {"name": "net", "parameters": dict(spec.parameters)}
    default = parse_component("backbone", "net[rate=.5]", registry())
    assert default.label == "net"
    assert default == parse_component("backbone", "net", registry())
    assert len({default, parse_component("backbone", "net", registry()), spec}) == 2


def test_the_label_can_be_read_back() -> None:
    spec = parse_component("backbone", "net[both=1,rate=1e-3]", registry())
    assert parse_component("backbone", spec.label, registry()) == spec


def test_a_column_has_a_short_form() -> None:
    assert parse_component("task", "target:full_iq", registry()).label == "target[column=full_iq]"
    with pytest.raises(ConfigError, match="task 'age' has no parameter 'column'"):
        parse_component("task", "age:full_iq", registry())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "net[layuot=MA]",
            r"no parameter 'layuot'.*Did you mean 'layout'\?.*Allowed: layout= \(str\), depth=1 \(int\)",
        ),
        ("net[depth=two]", r"'depth' of backbone 'net' cannot be 'two'.*a whole number"),
        ("net[depth=2.5]", r"cannot be '2.5'.*a whole number"),
        ("net[rate=nan]", r"cannot be 'nan'.*a number"),
        ("net[both=maybe]", r"cannot be 'maybe'.*true or false"),
        ("net[depth]", r"'depth' in backbone 'net\[depth\]' gives no value"),
        ("net[depth=1,depth=2]", r"sets 'depth' twice"),
        ("net[depth=1", r"cannot be read.*Allowed: name, or name\[parameter=value"),
        ("", r"backbone '' cannot be read"),
    ],
)
def test_parameters_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_component("backbone", text, registry())


# ---------------------------------------------------------------- options


def test_options_may_be_texts_or_lists() -> None:
    a = RunConfig.from_options(backbone="net,net[depth=2]", mask=["regions", "nothing"], seed="0,3", data_dir="/x")
    b = RunConfig.from_options(
        backbone=["net", "net[depth=2]"], mask="regions,nothing", seed=[0, 3], data_dir={"": Path("/x")}
    )
    assert a == b
    assert (a.backbones, a.seeds, a.data_dirs) == (("net", "net[depth=2]"), (0, 3), {"": Path("/x")})
    assert RunConfig.from_options(seed=2).seeds == (2,)
    assert RunConfig.from_options() == RunConfig()


def test_data_dirs_say_whose_they_are() -> None:
    config = RunConfig.from_options(data_dir=["people=/a", "loose[signal=x]=/b=c"])
    assert config.data_dirs == {"people": Path("/a"), "loose[signal=x]": Path("/b=c")}
    with pytest.raises(ConfigError, match="two folders are given for the dataset"):
        RunConfig.from_options(data_dir=["/a", "/b"])
    with pytest.raises(ConfigError, match="seed 'one' is no seed"):
        RunConfig.from_options(seed="one")


# ---------------------------------------------------------------- suites


def test_a_suite_is_read_and_options_go_over_it(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(
        "backbones: net, net[depth=2]\nmasks: [regions]\nseeds: 3\nratio: 0.75\ndata_dirs: {people: data}\n"
        "plugin_files: mine.py\n",
        encoding="utf-8",
    )
    config = load_suite(file)
    assert (config.backbones, config.masks, config.seeds) == (("net", "net[depth=2]"), ("regions",), (3,))
    assert config.data_dirs == {"people": tmp_path / "data"}
    assert config.plugin_files == (tmp_path / "mine.py",)
    plugin = tmp_path / "mine.py"
    assert RunConfig.from_options(suite=file, ratio=0.25, plugin_files=plugin).ratio == 0.25
    assert RunConfig.from_options(suite=file, plugin_files=plugin).ratio == 0.75


def test_everything_wrong_with_a_suite_is_said_at_once(tmp_path: Path) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text("mask: roi\nratio: high\nsplit: people\n", encoding="utf-8")
    with pytest.raises(ConfigErrors) as caught:
        load_suite(file)
    text = str(caught.value)
    assert "'mask' is no setting. Did you mean 'masks'?" in text
    assert "ratio cannot be 'high'" in text
    assert "split cannot be 'people'. Allowed: subjects, site, within-recording" in text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "is no YAML"),
        ("backbones: [mamba]\nbackbones: [transformer]", "it says 'backbones' twice"),
        ("masks: [{roi: 1, roi: 2}]", "it says 'roi' twice"),
        ("- net", "holds no settings"),
        ("out: !!python/object/apply:os.getcwd []", "is no YAML"),
        ("out: here", "'out' is no setting"),
    ],
)
def test_suites_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "suite.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_suite(file)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load_suite(tmp_path / "no.yaml")


def test_what_a_suite_says_of_its_twin_does_not_concern_real_recordings(tmp_path: Path) -> None:
    suite = tmp_path / "mine.yaml"
    suite.write_text("backbones: mamba\nmasks: roi\ndatasets: parcels\nn_subjects: 40\n", encoding="utf-8")
    asked = {"suite": suite, "data_dir": tmp_path}
    grid = expand(RunConfig.from_options(**asked), load_registry())
    assert [grid.source(d) for d in grid.datasets] == ["real"]
    with pytest.raises(ConfigErrors, match="--n-subjects is about simulated data"):
        expand(RunConfig.from_options(**asked, n_subjects=24), load_registry())


# ---------------------------------------------------------------- the grid


def test_a_grid_is_every_backbone_mask_dataset_and_seed() -> None:
    found = grid(backbone="net,net[depth=2],net", mask="regions,regions[rule=pure]", seed="0,1", n_steps=7, folds=3)
    assert len(found.combinations) == 8
    assert found.combinations[0].label == "net · regions · people · seed 0"
    assert (found.profile.n_steps, found.profile.n_folds, found.profile.width) == (7, 3, 32)
    assert [d.label for d in found.datasets] == ["people"]
    assert [t.label for t in found.tasks] == ["age", "fill"]
    assert not found.tasks_asked
    assert [b.label for b in found.baselines] == ["mean"]
    assert found.source(found.datasets[0]) == "simulated"


def test_seeds_come_from_the_profile() -> None:
    assert grid(profile="full").seeds == (0, 1, 2)
    assert PROFILES["full"].n_seeds == 3


def test_all_problems_are_said_at_once() -> None:
    found = problems(
        backbone="nett,net[depth=x],net[layout=MMMM]",
        mask="regions[rule=most]",
        task="target",
        ratio=1.5,
        folds=1,
        profile="large",
        split="sites",
        window_s=1.0,
        patch_s=2.0,
        n_steps=0,
        data_dir=["peeple=/nowhere", "people=/nowhere"],
    )
    expected = (
        "backbone 'nett' is not registered. Did you mean 'net'?",
        "'depth' of backbone 'net' cannot be 'x'",
        "'net[layout=MMMM]' cannot be built at --profile smoke: layout MMMM has not 1 letters",
        "mask 'regions[rule=most]': rule 'most' is none of any, pure",
        "task 'target' needs a column",
        "--ratio cannot be 1.5",
        "--folds cannot be 1",
        "--profile cannot be 'large'. Allowed: smoke, cpu, full",
        "--split cannot be 'sites'. Did you mean 'site'?",
        "a patch of 2 s does not fit into a window of 1 s",
        "--steps cannot be 0",
        "dataset 'peeple' is not asked for. Did you mean 'people'?",
        "the folder /nowhere does not exist",
    )
    for text in expected:
        assert any(text in p for p in found), (text, found)


def test_nothing_asked_for() -> None:
    found = problems(backbone=[], mask=[])
    assert any("no backbone was asked for. Allowed: net." in p for p in found)
    assert any("no mask was asked for. Allowed: nothing, regions." in p for p in found)


def test_real_and_simulated(tmp_path: Path) -> None:
    people, loose = tmp_path / "people", tmp_path / "loose"
    people.mkdir()
    loose.mkdir()
    found = grid(data_dir=people)
    assert found.root(found.datasets[0]) == people
    assert found.source(found.datasets[0]) == "real"
    both = grid(dataset="people,loose", data_dir=[f"loose={loose}"])
    assert [both.source(d) for d in both.datasets] == ["simulated", "real"]
    assert grid(data_dir=people, source="simulated").data_dirs == {}
    assert "--source real: no folder is given for dataset 'people'" in problems(source="real")[0]
    assert "dataset 'loose' has no simulated twin" in problems(dataset="loose")[0]
    assert "does not say whose folder it is" in problems(dataset="people,loose", data_dir=people)[0]
    assert "--variant is about simulated data" in problems(data_dir=people, variant="null")[0]


def test_a_folder_may_belong_to_one_form_of_a_dataset(tmp_path: Path) -> None:
    found = grid(dataset="people,people[signal=volume]", data_dir=[f"people[signal=volume]={tmp_path}"])
    assert [found.source(d) for d in found.datasets] == ["simulated", "real"]


def test_within_recording_is_about_reconstruction_only() -> None:
    assert [t.label for t in grid(split="within-recording").tasks] == ["fill"]
    assert "cannot be scored on task 'age'" in problems(split="within-recording", task="age,fill")[0]
    assert "--folds has no meaning" in problems(split="within-recording", folds=3)[0]


def test_scratch_is_finetuning_without_pretraining() -> None:
    found = grid(adaptation="scratch", mask=[])
    assert ([m.label for m in found.masks], found.adaptation.label) == (["nothing"], "finetune")
    assert "mask 'regions' would not be used" in problems(adaptation="scratch")[0]


def test_what_a_plugin_cannot_do_is_a_problem_of_the_run() -> None:
    error = PluginError("backbone 'fast' cannot be used: plugin x:backbone-fast is unavailable.")
    known = registry(unusable={("backbone", "fast"): error})
    with pytest.raises(ConfigErrors) as caught:
        expand(RunConfig.from_options(backbone="fast", mask="regions"), known)
    assert caught.value.problems == (error,)


def test_cuda_where_there_is_none() -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    assert "no CUDA device" in problems(device="cuda")[0]


def test_data_alone_needs_no_backbone() -> None:
    found = expand(RunConfig.from_options(dataset="people"), registry(), data_only=True)
    assert (found.backbones, found.combinations, [d.label for d in found.datasets]) == ((), (), ["people"])
    with pytest.raises(ConfigErrors, match="dataset 'persons' is not registered"):
        expand(RunConfig.from_options(dataset="persons"), registry(), data_only=True)


def test_unknown_names_are_their_own_error() -> None:
    with pytest.raises(UnknownNameError):
        parse_component("mask", "region", registry())


def test_configuration_is_light() -> None:
    """Completion and --help must not wait for torch."""
    code = "import sys, neurobench.config; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'mne', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---------------------------------------------------------------- frozen suites


def test_a_frozen_suite_is_known_by_name_and_hash():
    config = RunConfig.from_options(suite="core-v1")
    assert config.suite == f"core-v1@{frozen_suites()['core-v1'][:12]}"
    assert config.profile == "full"
    assert config.masks[0] == "roi"


def test_options_over_a_suite_are_said(tmp_path):
    config = RunConfig.from_options(suite="core-v1", profile="smoke", out=tmp_path, device="cpu")
    assert config.suite.endswith(", changed: profile")
    assert RunConfig.from_options(suite="core-v1", out=tmp_path, profile="full").suite.count("changed") == 0


def test_a_changed_copy_of_a_frozen_suite_is_refused(tmp_path):
    from neurobench.options import SUITES

    copy = tmp_path / "core-v1.yaml"
    copy.write_text((SUITES / "core-v1.yaml").read_text() + "folds: 3\n")
    with pytest.raises(ConfigError, match="frozen, and this file's content differs"):
        RunConfig.from_options(suite=copy)
    # Comments and order are no content; under another name everything may be changed.
    copy.write_text("# mine\n" + (SUITES / "core-v1.yaml").read_text())
    assert RunConfig.from_options(suite=copy).suite.startswith("core-v1@")
    other = tmp_path / "mine.yaml"
    other.write_text((SUITES / "core-v1.yaml").read_text() + "folds: 3\n")
    assert RunConfig.from_options(suite=other).suite.startswith("mine@")


def test_a_suite_that_does_not_exist():
    with pytest.raises(ConfigError, match="no suite 'core-v2'") as found:
        RunConfig.from_options(suite="core-v2")
    assert "core-v1" in str(found.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"harmonise": "site", "adaptation": "finetune"}, "--harmonise site is about the probe on frozen features"),
        ({"probe": "kernel", "adaptation": "scratch"}, "--probe kernel is about the probe on frozen features"),
        ({"refit_permutations": 50, "adaptation": "finetune"}, "--refit-permutations is about the probe"),
        ({"refit_permutations": 10}, "--refit-permutations cannot be 10.*20 to 10000"),
        ({"probe": "kernal"}, "--probe cannot be 'kernal'.*Did you mean 'kernel'"),
    ],
)
def test_what_would_not_be_true_of_backbones_is_refused(options, message):
    mask = None if options.get("adaptation") == "scratch" else "roi"
    config = RunConfig.from_options(backbone="mamba", mask=mask, **options)
    with pytest.raises(ConfigErrors, match=message):
        expand(config, load_registry())


def test_transductive_within_recordings_is_refused():
    config = RunConfig.from_options(backbone="mamba", mask="roi", transductive=True, split="within-recording")
    with pytest.raises(ConfigErrors, match="--transductive has no meaning"):
        expand(config, load_registry())


def test_a_folder_that_is_none_says_what_was_meant(tmp_path: Path) -> None:
    meant = tmp_path / "adhd200" / "filtfix"
    meant.mkdir(parents=True)
    (meant / "participants.tsv").write_text("participant_id\n")
    (tmp_path / "gone").symlink_to(tmp_path / "elsewhere")
    says = {
        tmp_path / "ADHD-200" / "filtfix": f"does not exist. Did you mean '--data-dir {meant}'?",
        meant / "participants.tsv": f"is a file. Did you mean '--data-dir {meant}'?",
        tmp_path / "gone": "is a link to what is not there",
        Path("/xyzzyxyzzy"): "does not exist. Give the folder",
    }
    for path, text in says.items():
        (found,) = problems(data_dir=[str(path)])
        assert text in found, found
