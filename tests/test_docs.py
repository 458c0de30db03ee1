"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from neurobench.checks import check_component
from neurobench.plugins import load_registry

ROOT = Path(__file__).resolve().parents[1]


def test_the_page_of_plugins_is_the_registry() -> None:
    spec = importlib.util.spec_from_file_location("make_plugins_page", ROOT / "docs" / "make_plugins_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8") == module.page(), (
        "run python docs/make_plugins_page.py"
    )


def test_the_backbone_in_the_readme_passes_every_check(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    code = next(c for c in re.findall(r"```python\n(.*?)```", readme, re.S) if "register_backbones" in c)
    assert len(code.splitlines()) <= 40
    path = tmp_path / "my_net.py"
    path.write_text(code, encoding="utf-8")
    registry = load_registry([path])
    failed = [r for r in check_component(registry.get("backbone", "my_net"), registry=registry) if not r.ok]
    assert failed == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_between_pages_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / target).exists(), target
