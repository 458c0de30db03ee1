"""A backbone that starts from a user's file: known by its content, and never called untrained."""

from __future__ import annotations

from pathlib import Path

from neurobench import runner
from neurobench.caveats import caveats
from neurobench.config import RunConfig, expand
from neurobench.plugins import load_registry
from neurobench.results import load_evidence, read_record
from tests.fakes import write_folder

PLUGIN = '''
from pathlib import Path

import torch
from neurobench import hookimpl
from tests.tiny_plugin import Tiny


class Given(Tiny):
    """Starts from a number in a file."""

    name = "given"
    files = ("weights",)

    def __init__(self, spec: object, *, weights: str = "") -> None:
        super().__init__(spec)
        if weights:
            torch.nn.init.constant_(self.lift.bias, float(Path(weights).read_text()))

    @classmethod
    def starts_trained(cls, parameters):
        return "a number in a file" if parameters["weights"] else ""

    @classmethod
    def beyond_budget(cls, parameters):
        return "is tiny"


@hookimpl
def register_backbones():
    return [Given]
'''


def execute(folder: Path, weights: Path) -> runner.RunResult:
    plugins = (folder / "given.py", Path(__file__).with_name("tiny_plugin.py"))
    config = RunConfig.from_options(
        backbone=f"given[weights={weights}]",
        mask="random_tube",
        dataset="fake",
        data_dir=folder / "data",
        task="age",
        n_steps=2,
        out=folder / "out",
        plugin_files=plugins,
    )
    registry = load_registry(config.plugin_files)
    return runner.execute(expand(config, registry), registry)


def test_weights_of_a_file_are_known_by_content_and_said_of_everywhere(tmp_path: Path) -> None:
    write_folder(tmp_path / "data", n_subjects=24)
    (tmp_path / "given.py").write_text(PLUGIN, encoding="utf-8")
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text("0.5", encoding="utf-8")
    two.write_text("0.5", encoding="utf-8")
    result = execute(tmp_path, one)
    rows = set(result.table["row"])
    label = next(r.removesuffix(" · as given") for r in rows if r.endswith("as given"))
    assert label.startswith("given[weights=sha256:")
    assert f"{label} · random_tube" in rows
    assert not any("untrained" in r for r in rows)
    assert any("starts from a number in a file" in n for n in result.notes)
    assert any("is tiny, not the common budget" in n for n in result.notes)
    (evidence,) = load_evidence(tmp_path / "out")
    records = [read_record(Path(p)) for p in evidence.table["record"]]
    said = {c.code: c.text for c in caveats(evidence, records)}
    assert "has seen its test subjects" in said["weights-given"]
    assert {r.backbone.parameters["weights"] for r in records if r.backbone} == {label[len("given[weights=") : -1]}
    # Elsewhere, the same: nothing is computed again. Other content: another network.
    assert execute(tmp_path, two).n_computed == 0
    two.write_text("0.7", encoding="utf-8")
    assert execute(tmp_path, two).n_computed > 0
