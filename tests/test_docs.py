"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pluggy
import pytest

import neurobench
from neurobench import hookspecs
from neurobench.checks import check_component
from neurobench.plugin_rules import HOOKS
from neurobench.plugins import load_registry

ROOT = Path(__file__).resolve().parents[1]


spec = importlib.util.spec_from_file_location("make_pages", ROOT / "docs" / "make_pages.py")
assert spec is not None
assert spec.loader is not None
pages = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pages)


@pytest.mark.parametrize("name", list(pages.PAGES))
def test_generated_pages_say_what_the_code_says(name: str) -> None:
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == pages.PAGES[name](), "run python docs/make_pages.py"


def test_the_page_of_hooks_has_every_hook() -> None:
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    hooks = [name for name in vars(manager.hook) if name.startswith("register_")]
    text = (ROOT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert re.findall(r"^## `(\w+)`$", text, re.M) == list(HOOKS)
    assert sorted(HOOKS) == sorted(hooks)


def test_the_api_page_has_every_public_class_that_plugins_use() -> None:
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    told = set(re.findall(r"neurobench\.(\w+)", text))
    assert told <= set(neurobench.__all__)
    starts = (ROOT / "neurobench" / "scaffold").glob("*.py.txt")
    used = {n for f in starts for n in re.findall(r"\b([A-Z]\w+)\b", f.read_text("utf-8")) if n in neurobench.__all__}
    assert used - told <= {"DataError", "Finding"}


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    environment = {**os.environ, "NEUROBENCH_DOCS_OFFLINE": "1"}
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(ROOT / "docs"), str(tmp_path)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    assert (tmp_path / "extending.html").is_file()


def test_the_backbone_in_the_readme_passes_every_check(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "register_backbones" in c)
    assert len(code.splitlines()) <= 40
    path = tmp_path / "my_net.py"
    path.write_text(code, encoding="utf-8")
    registry = load_registry([path])
    failed = [r for r in check_component(registry.get("backbone", "my_net"), registry=registry) if not r.ok]
    assert failed == []


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *(f"docs/{p.name}" for p in sorted((ROOT / "docs").glob("*.md")))]
)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / page).parent.joinpath(target).exists(), target
