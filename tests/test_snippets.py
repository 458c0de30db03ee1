"""Every command and every piece of Python in the README and the documentation runs, on simulated folders, small."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import neurobench
from neurobench.cli import app
from neurobench.plugins import Registry, load_registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "leaderboard" / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]

pytestmark = pytest.mark.slow


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the blocks of a page that are fenced as a language; of bash also what is indented."""
    text = page.read_text(encoding="utf-8")
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)
    if language == "bash":
        yield "\n".join(line.strip() for line in re.findall(r"^    neurobench .*$", text, re.M))


def commands() -> list[Any]:
    found: dict[tuple[str, str], None] = {}
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("neurobench "):
                    found[str(page.relative_to(ROOT)), line.partition("  #")[0].strip()] = None
    return [pytest.param(command, id=f"{page}: {command}") for page, command in found]


@pytest.fixture(scope="module")
def registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which somebody has run something, with the README's backbone in a file."""
    here = tmp_path_factory.mktemp("snippets")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "register_backbones" in c)
    (here / "my_net.py").write_text(code, encoding="utf-8")
    (here / "benchmarks").mkdir()
    for suite in (ROOT / "benchmarks").glob("*.yaml"):
        shutil.copy(suite, here / "benchmarks")
    tiny = "backbones: [mamba, transformer]\nmasks: roi\ndatasets: adhd200\ntasks: [age, reconstruction]\n"
    (here / "tiny.yaml").write_text(tiny + "n_steps: 2\nn_subjects: 24\n", encoding="utf-8")
    neurobench.run(suite=here / "tiny.yaml", out=here / "neurobench-results")
    models(here)
    return here


def models(folder: Path) -> None:
    """Write the files of weights that the page on models names, with random numbers in them."""
    import timm
    from safetensors.torch import save_file
    from transformers import BertConfig, BertModel

    from neurobench_backbones.braindecode import _models

    save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), folder / "vit.safetensors")
    save_file(_models().CBraMod(n_outputs=2, n_chans=3, n_times=400).state_dict(), folder / "cbramod.safetensors")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=20, **sizes)).save_pretrained(folder / "my-bert")


def recordings(folder: Path, words: list[str], registry: Registry) -> str:
    """Return a folder with the twin of the dataset that a command is about."""
    after = dict(itertools.pairwise(words))
    named = after.get("--dataset") or after.get("check") or after.get("prepare") or "parcels"
    name, _, rest = named.partition("[")
    meg = "signal=meg" in rest
    target = folder / f"twin-{name}{'-meg' if meg else ''}"
    if not target.exists():
        parameters = {"signal": "meg"} if meg else {}
        registry.get("dataset", name)(**parameters).simulate(target, n_subjects=24, seed=0, variant="default")
    return str(target)


@pytest.mark.parametrize("command", commands())
def test_a_command_runs(command: str, folder: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    words = [w for w in shlex.split(re.sub(r"\[--[^\]]*\]", "", command))[1:] if w not in ("…", "...")]
    stands_for = {"OUT": "neurobench-results", "NAME": "adhd200"}
    if words[0] == "leaderboard":
        stands_for |= {w: "neurobench-results" for w in words if w == "twins" or w.startswith("board/")}
    folders = {"FOLDER", "abide_aal116", "rpn_mist122"}
    # Records are published into a folder of their own, never into the repository's.
    published = {"--results": "leaderboard/results", "--site": "leaderboard/site"}
    before = ["", *words]
    words = [published.get(before[i], w) if w == "DIR" else stands_for.get(w, w) for i, w in enumerate(words)]
    words = [recordings(folder, words, registry) if w in folders else w for w in words]
    if words[0] == "run":
        words = [*(w for w in words if w != "--detach"), "--dry-run"]
    result = CliRunner(env={"COLUMNS": "200"}).invoke(app, words)
    if words[0] == "cancel":
        assert "no run is under way" in result.output
        return
    # What is of no suite that comes with neurobench is verified with a warning, which is exit code 2.
    warned = words[0] == "verify" and "believed, with warnings" in result.output
    assert result.exit_code == 0 or warned, result.output


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=f"{page.name}: {code.split()[0]} {i}")
        for page in PAGES
        for i, code in enumerate(blocks(page, "python"))
        if "import neurobench" in code
    ],
)
def test_a_piece_of_python_runs(code: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run = neurobench.run
    small = {"n_steps": 2, "n_subjects": 24, "task": "age"}
    monkeypatch.setattr(neurobench, "run", lambda **options: run(**{**small, **options}))
    exec(compile(code, "snippet", "exec"), {})
