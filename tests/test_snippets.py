"""Every block of the README and of the documentation is run, on simulated folders and small, or says why it is not.

A block of ``bash`` or ``python`` is run as it stands, page by page and from top to bottom, in a folder in which
somebody has run something. Any other block has an invisible comment on the line before it:

``<!-- file: NAME -->``
    what stands in it is written into the file NAME, for what comes after it on the page;
``<!-- output of: COMMAND -->``
    the command, at full length, says this; several are joined by ``&&``;
``<!-- not run: REASON -->``
    why it cannot be run, or what it is if there is nothing in it to run; of ``bash`` and ``python`` too.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.metadata import metadata
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import neurobench
from neurobench.cli import app
from neurobench.commands import KINDS
from neurobench.identity import digest
from neurobench.new import new_plugin
from neurobench.plugins import load_registry

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "leaderboard/README.md"),
    *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md"))),
]
STARTS = [f"new {kind}" for kind in KINDS]
"""The README of what ``neurobench new`` writes is a page as well."""

COMMAND = typer.main.get_command(app)
FENCED = re.compile(r"^( *)(?:<!-- ([^\n]*?) -->\n\1)?```([^\n]*)\n(.*?)^\1```$", re.S | re.M)
TIME = re.compile(r"(< )?[\d.]+ min \d+ s|(< )?[\d.]+ (s|min)\b")


@dataclass(frozen=True)
class Block:
    """A fenced block, where it begins, and what the comment before it says."""

    line: int
    language: str
    text: str
    how: str
    of: str


def blocks(text: str) -> list[Block]:
    found = []
    for m in FENCED.finditer(text):
        inside = re.sub(rf"^{m[1]}", "", m[4], flags=re.M)
        how, _, of = (m[2] or "").partition(": ")
        found.append(Block(text.count("\n", 0, m.start()) + 1, m[3], inside, how, of))
    return found


def commands(text: str) -> list[str]:
    """Return the commands of a block, without what is said of them."""
    lines = text.replace("\\\n", " ").splitlines()
    return [c for line in lines if (c := re.split(r"(?:^|\s)#", line)[0].strip())]


@functools.cache
def written(page: str) -> str:
    if page not in STARTS:
        return (ROOT / page).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        new_plugin(page.split()[1], name_of(page), Path(folder) / "new", load_registry())
        return (Path(folder) / "new" / "README.md").read_text(encoding="utf-8")


def name_of(page: str) -> str:
    """Return what a plugin is called that is started for a page."""
    return f"a_{page.split()[1]}"


# ---------------------------------------------------------------- every block has its way


@pytest.mark.parametrize("page", [*PAGES, *STARTS])
def test_a_block_is_run_or_says_why_not(page: str) -> None:
    wrong = []
    for block in blocks(written(page)):
        if block.how == "not run":
            wrong += [
                f"{block.line}: there is no {t}"
                for t in re.findall(r"tests/\w+\.py", block.of)
                if not (ROOT / t).exists()
            ]
            told = len(block.of.split()) >= 3
        elif block.how in ("file", "output of"):
            told = bool(block.of)
        elif block.language == "bash":
            told = all(shlex.split(c)[0] in PROGRAMS for c in commands(block.text))
        else:
            told = block.language == "python" or block.language.startswith("{")  # Sphinx reads the latter, in test_docs
        if not told:
            wrong.append(f"{block.line}: {block.language} {block.text.splitlines()[0]}")
    assert not wrong, f"{page}: neither run nor with a comment that says why (see the head of tests/test_snippets.py)"
    assert not re.findall(r"^    neurobench .*$", written(page), re.M), f"{page}: fence commands, so that they are run"


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_options_in_a_line_of_text_exist(page: str) -> None:
    text = FENCED.sub("", written(page))
    wrong = []
    for code in re.findall(r"`((?:neurobench )[^`]*)`", text.replace("\n", " ")):
        words = code.split()[1:]
        command: Any = COMMAND
        while words and words[0] in getattr(command, "commands", ()):
            command = command.commands[words.pop(0)]
        if hasattr(command, "commands") and words and words[0][0].islower():
            wrong.append(f"{code}: there is no {words[0]}")
        known = {o for p in command.params for o in p.opts}
        wrong += [f"{code}: there is no {w}" for w in words if re.fullmatch(r"--[a-z-]+", w) and w not in known]
    assert not wrong


# ---------------------------------------------------------------- what is run


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies in the folder of somebody who has run something."""
    here = tmp_path_factory.mktemp("before")
    tiny = (
        "backbones: [mamba, transformer]\nmasks: [roi, random_tube]\ndatasets: adhd200\ntasks: [age, reconstruction]\n"
    )
    (here / "tiny.yaml").write_text(tiny + "n_steps: 2\nn_subjects: 24\n", encoding="utf-8")
    neurobench.run(suite=here / "tiny.yaml", out=here / "neurobench-results")
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


class Reader:
    """Somebody who types what a page says, in a folder of their own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.site = folder / "installed"
        self.monkeypatch = monkeypatch
        monkeypatch.chdir(folder)
        monkeypatch.setenv("NO_COLOR", "1")
        monkeypatch.setenv("COLUMNS", "200")

    def read(self, page: list[Block]) -> list[str]:
        """Do what all blocks say, and return what went wrong."""
        wrong = []
        for block in page:
            try:
                if block.how == "file":
                    Path(block.of).write_text(block.text, encoding="utf-8")
                elif block.how:
                    continue
                elif block.language == "python":
                    self.python(block.text)
                elif block.language == "bash":
                    for command in commands(block.text):
                        PROGRAMS[shlex.split(command)[0]](self, shlex.split(command))
            except AssertionError as error:
                wrong.append(f"line {block.line}: {error}")
        return wrong

    def python(self, code: str) -> None:
        run = neurobench.run
        small = {"n_steps": 2, "n_subjects": 24, "task": "age"}
        with self.monkeypatch.context() as patched:
            patched.setattr(neurobench, "run", lambda **options: run(**{**small, **options}))
            exec(compile(code, "block", "exec"), {})

    def neurobench(self, words: list[str]) -> None:
        _, command, *rest = words
        for name in {"FOLDER", "abide_aal116", "rpn_mist122"} & {w.rpartition("=")[2] for w in rest}:
            self.recordings(name, words)
        if command == "run":
            small = ["--steps", "2", "--jobs", "1", *([] if "--data-dir" in rest else ["--n-subjects", "24"])]
            if not {"--suite", "--dataset", "--pretrain-on"} & set(rest):
                small += ["--dataset", "adhd200"]
            # Models that people have are large, and are scored under no dozen masks here.
            small += ["--task", "age"] if any("weights=" in w or "model=" in w for w in rest) else []
            # Whole suites are run by tests/test_suites.py, and what is detached by tests/test_monitoring.py.
            whole = any(w.startswith("benchmarks/") for w in rest)
            rest = [*(w for w in rest if w != "--detach"), *small, *(["--dry-run"] if whole else [])]
        result = CliRunner().invoke(app, [command, *rest])
        # Exit code 2 of `verify` says that what is of no suite that comes with neurobench is believed, with warnings.
        fine = {"verify": "believed, with warnings", "cancel": "no run is under way"}.get(command)
        assert result.exit_code == 0 or (fine is not None and fine in result.output), (
            f"{shlex.join(words)}\n{result.output}"
        )

    def recordings(self, name: str, words: list[str]) -> None:
        """Have a folder hold the twin of the dataset that a command is about."""
        after = dict(itertools.pairwise(words))
        named = after.get("--dataset") or after.get("check") or after.get("prepare")
        if named is None:
            named = "adhd200[signal=volume]" if "neurostorm" in after["--suite"] else "parcels"
        label, _, parameters = named.partition("[")
        given = {"signal": s[1]} if (s := re.search(r"signal=(\w+)", parameters)) else {}
        twin = self.folder / f"twin-{label}-{given.get('signal', '')}"
        if not twin.exists():
            load_registry().get("dataset", label)(**given).simulate(twin, n_subjects=24, seed=0, variant="default")
        Path(name).unlink(missing_ok=True)
        Path(name).symlink_to(twin)

    def make(self, words: list[str]) -> None:
        self.start("make", "-n", "-C", str(ROOT), *words[1:])

    def pip(self, words: list[str]) -> None:
        """Install a folder beside everything else; of neurobench itself look whether what is named can be installed."""
        what = words[-1]
        if what.startswith("neurobench-fm["):
            asked = what.partition("[")[2].removesuffix("]").split(",")
            assert set(asked) <= set(metadata("neurobench-fm").get_all("Provides-Extra") or ()), what
            return
        folder = str(Path(what.partition("[")[0]).resolve())
        self.start(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(self.site), folder)
        self.monkeypatch.syspath_prepend(str(self.site))

    def run_python(self, words: list[str]) -> None:
        self.start(sys.executable, *words[1:])

    def cd(self, words: list[str]) -> None:
        self.monkeypatch.chdir(words[1])

    def start(self, *words: str) -> None:
        done = subprocess.run(
            words, env={**os.environ, "PYTHONPATH": str(self.site)}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"


LONG_PAGES = ("docs/relatives.md",)
"""Pages with a dozen runs of whole networks, which take six minutes even when they are small."""

PROGRAMS = {
    "neurobench": Reader.neurobench,
    "make": Reader.make,
    "pip": Reader.pip,
    "python": Reader.run_python,
    "cd": Reader.cd,
}
"""What a block of ``bash`` may call."""


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, marks=[pytest.mark.campaign] * (p in LONG_PAGES))
        for p in [*PAGES, *STARTS]
        if p in STARTS or blocks(written(p))
    ],
)
def test_what_a_page_says_works(page: str, before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(before, tmp_path, dirs_exist_ok=True)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")
    (tmp_path / "board").mkdir()
    for other in ("OUT", "SHARED", "twins", "board/twins"):
        shutil.copytree(before / "neurobench-results", tmp_path / other)
    reader = Reader(tmp_path, monkeypatch)
    if page in STARTS:
        new_plugin(page.split()[1], name_of(page), tmp_path / "new", load_registry())
        (tmp_path / "new" / "neurobench-results").symlink_to(tmp_path / "neurobench-results")
        reader.cd(["cd", "new"])
    if page == "docs/pretrained.md":
        models(tmp_path)
    wrong = reader.read(blocks(written(page)))
    assert not wrong, "\n\n".join(wrong)


# ---------------------------------------------------------------- what is said to come out


def told(text: str, masked: bool) -> str:
    """Return output without what differs between machines: how long it took, what a trained network scored."""
    lines = []
    for line in TIME.sub("TIME", text).splitlines():
        trained = re.match(r" +(mamba|transformer) · \w+", line)
        lines.append(trained[0] if trained else re.sub(r"[-+]?\d[\d.,]*", "N", line) if masked else line)
    return " ".join("\n".join(lines).split())


OUTPUTS = [(page, b) for page in PAGES for b in blocks(written(page)) if b.how == "output of"]
MAIN = "neurobench run --backbone mamba --mask roi"
"""The main job takes minutes, and tests/test_acceptance.py has run it anyway: there its output is looked at."""

LONG = "--steps 200"
"""In a command that takes several minutes."""


def missing(block: Block, output: str, *, masked: bool = False) -> list[str]:
    """Return the paragraphs of a block that are not in an output."""
    output = told(output, masked)
    return [p for p in re.split(r"\n\s*\n", block.text) if told(p, masked) not in output]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Where commands run, and what those said that have run: again they would find everything stored."""
    return tmp_path_factory.mktemp("outputs"), {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("page", "block"),
    [
        pytest.param(p, b, id=f"{p}:{b.line}", marks=[pytest.mark.campaign] * (LONG in b.of))
        for p, b in OUTPUTS
        if b.of != MAIN
    ],
)
def test_what_a_command_says_is_what_the_page_says(
    page: str,
    block: Block,
    outputs: tuple[Path, dict[str, str]],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, said = outputs
    todo = block.of.split(" && ")
    # A folder for each: two runs in one would share the untrained network of one size.
    place = folder / digest(todo[0])
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "160")
    for command in todo:
        words = shlex.split(command)
        if command in said:
            continue
        if "--data-dir" in words and not Path(name := words[words.index("--data-dir") + 1]).exists():
            Path(name).symlink_to(request.getfixturevalue("shared_data") / name)
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
        said[command] = result.output
    # What goes over comparisons has numbers of trained networks in every line.
    masked = words[1] != "run"
    lost = missing(block, said[command], masked=masked)
    assert not lost, f"{page} says what {command} does not:\n" + "\n\n".join(lost) + f"\n\n{said[command]}"
