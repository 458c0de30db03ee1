"""Plugins: what is found, what is isolated, and what an asker is told."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from typer.testing import CliRunner

import neurobench.scoring
from neurobench.cli import app
from neurobench.errors import ConfigError, PluginError, UnknownNameError
from neurobench.plugins import PluginInfo, Registry, load_registry

MASK = """
from neurobench import MaskingStrategy, hookimpl


class Stripes(MaskingStrategy):
    name = "{name}"
    summary = "every second patch"

    def __init__(self, *, every: int = 2, shift: float = 0, both: bool = True, mode: str = "x"):
        self.every = every

    def elements(self, window, n_hidden, rng):
        yield from ()


@hookimpl
def register_masks():
    return [Stripes]
"""

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution with entry points and modules, as pip would, for one test."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)

    def add(distribution: str, files: dict[str, str], points: dict[str, str], metadata: str = "") -> None:
        for name, text in files.items():
            path = site / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(dedent(text), encoding="utf-8")
        info = site / f"{distribution.replace('-', '_')}-1.5.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n"
        (info / "METADATA").write_text(head + metadata, encoding="utf-8")
        lines = "".join(f"{k} = {v}\n" for k, v in points.items())
        (info / "entry_points.txt").write_text(f"[neurobench]\n{lines}", encoding="utf-8")
        importlib.invalidate_caches()

    yield add
    for name in set(sys.modules) - before:
        if name.startswith("third_"):
            del sys.modules[name]


def load(**options: object) -> Registry:
    """Load without the built-ins: they are not what is tested here."""
    block = ["neurobench-fm", *options.pop("block", [])]  # type: ignore[misc]
    return load_registry(**options, block=block)  # type: ignore[arg-type]


def plugin(registry: Registry, name: str) -> PluginInfo:
    (found,) = [p for p in registry.plugins if p.entry_point == name and p.distribution != "neurobench-fm"]
    return found


def test_a_third_party_plugin_is_found_with_its_origin(install: Install) -> None:
    install("third-stripes", {"third_stripes.py": MASK.format(name="stripes")}, {"mask-stripes": "third_stripes"})
    registry = load()
    assert registry.get("mask", "stripes").name == "stripes"
    assert list(registry.masks) == ["stripes"]
    info = plugin(registry, "mask-stripes")
    assert (info.distribution, info.version, info.state, info.reason) == ("third-stripes", "1.5", "available", "")
    assert info.provides == (("mask", "stripes"),)
    assert info.file is not None
    assert info.file.name == "third_stripes.py"
    assert registry.provenance("mask", "stripes").distribution == "third-stripes"


def test_unknown_names_get_the_likely_one(install: Install) -> None:
    install("third-stripes", {"third_stripes.py": MASK.format(name="stripes")}, {"mask-stripes": "third_stripes"})
    with pytest.raises(UnknownNameError, match=r"mask 'stripe' is not registered\. Did you mean 'stripes'\?"):
        load().get("mask", "stripe")


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import json\njson.loads('{')\n", r"JSONDecodeError.*\(at .*third_bad\.py:2 in <module>\)"),
        ("def broken(:\n", r"SyntaxError.*\(at .*third_bad\.py:1\)"),
        ("raise SystemExit(3)\n", r"SystemExit: 3 \(at .*third_bad\.py:1"),
        (
            "from neurobench import hookimpl\n@hookimpl\ndef register_masks():\n    return 1 / 0\n",
            r"ZeroDivisionError.*third_bad\.py:4 in register_masks",
        ),
        (
            "from neurobench import hookimpl\n@hookimpl\ndef register_mask():\n    return []\n",
            r"implements 'register_mask', which is no hook\. Did you mean 'register_masks'\?",
        ),
        ("X = 1\n", r"has no hook\. Mark one of register_backbones"),
        (
            "from neurobench import hookimpl\n@hookimpl\ndef register_masks():\n    return int\n",
            r"register_masks returned the class int, not a list of classes",
        ),
        ("import third_bad.nothing\n", r"ModuleNotFoundError"),
    ],
)
def test_a_broken_plugin_takes_nothing_down_and_its_error_is_shown(install: Install, code: str, reason: str) -> None:
    install("third-stripes", {"third_stripes.py": MASK.format(name="stripes")}, {"mask-stripes": "third_stripes"})
    install("third-bad", {"third_bad.py": code}, {"mask-bad": "third_bad"})
    registry = load()
    assert list(registry.masks) == ["stripes"]
    assert plugin(registry, "mask-bad").state == "broken"
    with pytest.raises(PluginError, match=f"mask 'bad' cannot be used: plugin third-bad:mask-bad is broken.*{reason}"):
        registry.get("mask", "bad")
    assert "NEUROBENCH_BLOCK_PLUGINS=third-bad:mask-bad" in plugin(registry, "mask-bad").reason


def test_ctrl_c_while_loading_is_not_swallowed(install: Install) -> None:
    install("third-slow", {"third_slow.py": "raise KeyboardInterrupt\n"}, {"mask-slow": "third_slow"})
    with pytest.raises(KeyboardInterrupt):
        load()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (('name = "stripes"', 'name = "Stripes-1"'), "has the name 'Stripes-1'; allowed: lower-case"),
        (('summary = "every second patch"', ""), "has no summary"),
        (("every: int = 2", "every: int"), "parameter 'every' has no default"),
        (("every: int = 2", "every=2"), "parameter 'every' must be annotated with int, float, str or bool"),
        (("every: int = 2", "every: list = []"), "parameter 'every' must be annotated"),
        (("every: int = 2", "every: int = 2.5"), "parameter 'every' has the default 2.5, which is no int"),
        (("self, *,", "self, other, *,"), "argument 'other' must be keyword-only, with a default"),
        (("def elements", "def pieces"), "does not implement elements"),
        (("(MaskingStrategy)", ""), "no subclass of MaskingStrategy"),
        ((", rng):", "):"), "elements(self, window, n_hidden) cannot be called as elements(window, n_hidden, rng)"),
        (("register_masks", "register_tasks"), "no subclass of Task; a mask is returned from register_masks"),
    ],
)
def test_a_class_that_cannot_work_is_refused_at_registration(
    install: Install, change: tuple[str, str], reason: str
) -> None:
    code = MASK.format(name="stripes")
    assert change[0] in code
    install("third-stripes", {"third_stripes.py": code.replace(*change)}, {"mask-stripes": "third_stripes"})
    info = plugin(load(), "mask-stripes")
    assert info.state == "broken"
    assert reason in info.reason


def test_a_missing_extra_makes_a_plugin_unavailable_and_says_how_to_get_it(install: Install) -> None:
    install(
        "third-fast",
        {"third_fast.py": "import some_kernels\n", "third_other.py": "import unheard_of\n"},
        {"backbone-fast": "third_fast", "backbone-other": "third_other"},
        metadata='Provides-Extra: gpu\nRequires-Dist: some-kernels>=2; extra == "gpu"\n',
    )
    registry = load()
    assert plugin(registry, "backbone-fast").state == "unavailable"
    with pytest.raises(PluginError, match=r"needs the package 'some_kernels'.*pip install 'third-fast\[gpu\]'"):
        registry.get("backbone", "fast")
    with pytest.raises(PluginError, match=r"needs the package 'unheard_of'.*pip install unheard-of"):
        registry.get("backbone", "other")


def test_a_component_may_say_itself_that_it_is_unavailable(install: Install) -> None:
    code = MASK.format(name="stripes").replace(
        "    def elements",
        "    @classmethod\n    def unavailable(cls):\n        return 'needs a helmet'\n\n    def elements",
    )
    install("third-stripes", {"third_stripes.py": code}, {"mask-stripes": "third_stripes"})
    registry = load()
    assert (plugin(registry, "mask-stripes").state, registry.masks) == ("unavailable", {})
    with pytest.raises(PluginError, match="needs a helmet"):
        registry.get("mask", "stripes")


def test_two_components_of_one_name_are_both_unusable_until_one_is_blocked(install: Install) -> None:
    install("third-a", {"third_a.py": MASK.format(name="stripes")}, {"mask-stripes": "third_a"})
    install("third-b", {"third_b.py": MASK.format(name="stripes")}, {"mask-stripes": "third_b"})
    with pytest.raises(PluginError, match=r"third-a:mask-stripes and third-b:mask-stripes.*neither can be used"):
        load().get("mask", "stripes")
    assert load(block=["third-b"]).provenance("mask", "stripes").distribution == "third-a"


def test_blocking_through_the_environment(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("third-stripes", {"third_stripes.py": "1 / 0\n"}, {"mask-stripes": "third_stripes"})
    monkeypatch.setenv("NEUROBENCH_BLOCK_PLUGINS", "neurobench-fm, third-stripes:mask-stripes")
    registry = load_registry()
    assert {p.state for p in registry.plugins} == {"blocked"}
    assert "third_stripes" not in sys.modules
    with pytest.raises(PluginError, match=r"is blocked.*NEUROBENCH_BLOCK_PLUGINS"):
        registry.get("mask", "stripes")
    monkeypatch.setenv("NEUROBENCH_BLOCK_PLUGINS", "third-stripe")
    with pytest.raises(ConfigError, match="Did you mean 'third-stripes'"):
        load_registry()


def test_only_some_plugins_through_the_environment(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    install("third-stripes", {"third_stripes.py": "1 / 0\n"}, {"mask-stripes": "third_stripes"})
    (tmp_path / "mine.py").write_text(MASK.format(name="mine"), encoding="utf-8")
    monkeypatch.setenv("NEUROBENCH_ONLY_PLUGINS", "neurobench-fm:mask-roi")
    registry = load_registry([tmp_path / "mine.py"])
    assert [p.id for p in registry.plugins if p.state != "blocked"] == ["file:mine:mine", "neurobench-fm:mask-roi"]
    assert "third_stripes" not in sys.modules
    with pytest.raises(PluginError, match=r"is blocked.*Not among NEUROBENCH_ONLY_PLUGINS"):
        registry.get("mask", "stripes")
    monkeypatch.setenv("NEUROBENCH_ONLY_PLUGINS", "neurobench")
    with pytest.raises(ConfigError, match=r"loaded and no others.*Did you mean 'neurobench-fm'"):
        load_registry()


def test_the_list_says_where_code_comes_from(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("third-a", {"third_a.py": MASK.format(name="stripes")}, {"mask-stripes": "third_a"})
    monkeypatch.setenv("NEUROBENCH_ONLY_PLUGINS", "third-a")
    monkeypatch.setenv("COLUMNS", "400")
    said = CliRunner().invoke(app, ["plugins", "-v"]).output
    digest = load_registry().provenance("mask", "stripes").digest
    assert "third-a 1.5 from" in said
    assert "third_a.py" in said
    assert digest[:12] in said


def test_tracing_writes_hook_calls_to_the_log(
    install: Install, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install("third-stripes", {"third_stripes.py": MASK.format(name="stripes")}, {"mask-stripes": "third_stripes"})
    monkeypatch.setenv("NEUROBENCH_TRACE_PLUGINS", "1")
    logger = logging.getLogger("neurobench.plugins")
    before = logger.level
    try:
        load()
    finally:
        logger.setLevel(before)
    assert "register_masks" in caplog.text
    assert "Stripes" in caplog.text


def test_a_plugin_file_is_loaded_besides_the_installed_ones(tmp_path: Path) -> None:
    file = tmp_path / "stripes.py"
    file.write_text(MASK.format(name="stripes"), encoding="utf-8")
    registry = load(plugin_files=[file])
    origin = registry.provenance("mask", "stripes")
    assert (origin.distribution, origin.version) == ("file:stripes", "")
    file.write_text(MASK.format(name="stripes") + "# changed\n", encoding="utf-8")
    assert load(plugin_files=[file]).provenance("mask", "stripes").digest != origin.digest
    with pytest.raises(ConfigError, match="does not exist"):
        load(plugin_files=[tmp_path / "no.py"])
    with pytest.raises(ConfigError, match="is not a Python file"):
        load(plugin_files=[_touched(tmp_path / "plugin.txt")])


def _touched(path: Path) -> Path:
    path.touch()
    return path


def test_the_digest_covers_private_files_and_bases_but_no_other_plugin(install: Install, tmp_path: Path) -> None:
    base, rest = MASK.format(name="stripes").split("@hookimpl")
    files = {
        "third_pack/__init__.py": "",
        "third_pack/_shared.py": "WIDTH = 1\n",
        "third_pack/_atlas.csv": "name\n",
        "third_pack/nets.py": base,
        "third_pack/stripes.py": "from neurobench import hookimpl\nfrom third_pack.nets import Stripes\n@hookimpl"
        + rest,
        "third_pack/other.py": "X = 1\n",
    }
    install("third-pack", files, {"mask-stripes": "third_pack.stripes"})
    site = tmp_path / "site" / "third_pack"

    def digest() -> str:
        # As another process would.
        for name in [n for n in sys.modules if n.startswith("third_pack")]:
            del sys.modules[name]
        return load().provenance("mask", "stripes").digest

    first = digest()
    assert digest() == first
    (site / "other.py").write_text("X = 2\n", encoding="utf-8")
    assert digest() == first
    seen = {first}
    for name in ("_shared.py", "_atlas.csv", "nets.py", "stripes.py"):
        (site / name).write_text((site / name).read_text(encoding="utf-8") + "# changed\n", encoding="utf-8")
        seen.add(digest())
    assert len(seen) == 5


def test_what_changed_since_it_was_imported_is_not_used_under_its_new_name(install: Install, tmp_path: Path) -> None:
    install("third", {"third.py": MASK.format(name="stripes")}, {"mask-stripes": "third"})
    assert load().get("mask", "stripes").name == "stripes"
    load()
    file = tmp_path / "site" / "third.py"
    file.write_text(file.read_text(encoding="utf-8").replace("every second", "every third"), encoding="utf-8")
    # A worker that stays while its plugin is written would compute with the old code under the new digest.
    with pytest.raises(PluginError, match=r"third.py has changed since this process imported it; start the process"):
        load().get("mask", "stripes")
    del sys.modules["third"]
    importlib.invalidate_caches()
    assert load().get("mask", "stripes").summary == "every third patch"


def test_built_ins_are_called_as_their_files_and_entry_points() -> None:
    registry = load_registry()
    for info in registry.plugins:
        kind, _, suffix = info.entry_point.partition("-")
        assert info.state == "available", info.reason
        assert info.provides == ((kind, suffix),)
        assert info.file is not None
        assert info.file.stem == suffix


def test_a_named_file_that_cannot_be_used_is_an_error_with_its_reason(tmp_path: Path) -> None:
    for name, code in (("one", "def broken(:\n"), ("two", MASK.format(name="two").replace("def register", "def r"))):
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
    with pytest.raises(
        PluginError, match=r"one\.py and .*two\.py cannot be used.*one\.py:1.*'r_masks', which is no hook"
    ):
        load(plugin_files=[tmp_path / "one.py", tmp_path / "two.py"])
    said = CliRunner().invoke(app, ["check", "one", "--plugin", str(tmp_path / "one.py")])
    assert said.exit_code == 2
    assert "SyntaxError" in said.output
    assert "is not registered" not in said.output


def test_everything_wrong_with_a_class_is_told(install: Install) -> None:
    code = MASK.format(name="Stripes").replace("every: int = 2", "every=2").replace("def elements", "def element")
    install("third-stripes", {"third_stripes.py": code}, {"mask-stripes": "third_stripes"})
    reason = plugin(load(), "mask-stripes").reason
    assert "the name 'Stripes'" in reason
    assert "does not implement elements (is 'element' meant?)" in reason
    assert "parameter 'every' must be annotated" in reason


def test_an_import_prints_nothing_into_the_output_and_sets_nothing_for_everybody(
    install: Install, capsys: pytest.CaptureFixture[str]
) -> None:
    loud = MASK.format(name="loud") + "print('hello')\n"
    double = MASK.format(name="double") + "import torch\ntorch.set_default_dtype(torch.float64)\n"
    install(
        "third-loud",
        {"third_loud.py": loud, "third_double.py": double},
        {"mask-loud": "third_loud", "mask-double": "third_double"},
    )
    registry = load()
    assert list(registry.masks) == ["loud"]
    assert capsys.readouterr() == ("", "hello\n")
    assert "changes torch's default dtype" in plugin(registry, "mask-double").reason
    assert torch.get_default_dtype() == torch.float32


REPLACES = """
import functools
import neurobench.scoring


@functools.wraps(neurobench.scoring.holm)
def kind(p_values):
    return [0.001 for _ in p_values]


neurobench.scoring.holm = kind
"""


@pytest.mark.parametrize("ending", ["", "raise RuntimeError('too late')\n"], ids=["loads", "fails to load"])
def test_a_plugin_that_replaces_a_part_of_neurobench_stops_everything(
    install: Install, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ending: str
) -> None:
    monkeypatch.setattr(neurobench.scoring, "holm", neurobench.scoring.holm)
    code = MASK.format(name="stripes") + REPLACES + ending
    install("third-intruder", {"third_intruder.py": code}, {"mask-stripes": "third_intruder"})
    said = r"puts code of its own into neurobench\.scoring\.holm.*NEUROBENCH_BLOCK_PLUGINS=third-intruder:mask-stripes"
    with pytest.raises(PluginError, match=said):
        load()
    monkeypatch.undo()
    monkeypatch.setattr(neurobench.scoring, "holm", neurobench.scoring.holm)
    file = tmp_path / "intruder.py"
    file.write_text(code)
    with pytest.raises(PluginError, match=r"plugin file:intruder:intruder puts code of its own into.*leave it out"):
        load(plugin_files=[file])


def test_a_plugin_that_replaces_something_once_it_is_called_is_found_before_anything_is_scored(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(neurobench.scoring, "holm", neurobench.scoring.holm)
    file = tmp_path / "late.py"
    late = "        import neurobench.scoring\n        neurobench.scoring.holm = lambda p: [0.001 for _ in p]\n"
    file.write_text(MASK.format(name="late").replace("        yield from ()", f"{late}        yield from ()"))
    registry = load(plugin_files=[file])
    registry.refuse_intruders()
    list(registry.get("mask", "late")().elements(None, 1, None))
    with pytest.raises(
        PluginError, match=r"mask late of file:late:late has put code of its own into neurobench.scoring"
    ):
        registry.refuse_intruders()


def test_a_file_whose_component_is_called_otherwise_says_how(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(MASK.format(name="stripes"), encoding="utf-8")
    said = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["check", "mine", "--plugin", str(file)])
    assert "What the file given with --plugin provides is called stripes." in said.output
    said = CliRunner(env={"COLUMNS": "400"}).invoke(app, ["check", "mine.py"])
    assert "`neurobench check NAME --plugin mine.py`" in said.output
