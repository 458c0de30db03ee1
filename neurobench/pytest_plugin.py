"""For projects that provide plugins: ``def test_contract(contract_check): contract_check()`` is every check as a test.

What is checked is what the project's own distribution provides, or the components named by the ini option
``neurobench_components``. Nothing is imported unless a test asks for ``contract_check``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from neurobench.contracts import Component
    from neurobench.plugins import Kind, Registry

__all__ = ["contract_check", "pytest_addoption", "pytest_generate_tests"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option."""
    parser.addini(
        "neurobench_components",
        "names of the components that contract_check runs on; without it, everything this project provides",
        type="args",
        default=[],
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test of every check of every component."""
    if "contract_check" not in metafunc.fixturenames:
        return
    from neurobench.checks import checks_of
    from neurobench.plugins import load_registry

    registry = load_registry()
    names: list[str] = metafunc.config.getini("neurobench_components")
    try:
        components = _components(registry, names, metafunc.config.rootpath)
    except pytest.UsageError as error:
        # As an exception it would come below pages of pytest's own frames.
        pytest.fail(str(error), pytrace=False)
    cases = [
        (kind, cls, check)
        for kind, cls in components
        for check in [*checks_of(cls), *sorted(set(cls.expected_failures) - set(checks_of(cls)))]
    ]
    metafunc.parametrize(
        "contract_check",
        [partial(_run, cls, check, registry) for _, cls, check in cases],
        ids=[f"{kind}-{cls.name}-{check}" for kind, cls, check in cases],
        indirect=True,
    )


@pytest.fixture
def contract_check(request: pytest.FixtureRequest) -> Callable[[], None]:
    """Return one contract check of one component, to be called."""
    check: Callable[[], None] = request.param
    return check


def _components(registry: Registry, names: list[str], root: Path) -> list[tuple[Kind, type[Component]]]:
    from neurobench.plugin_rules import KINDS

    everything: list[tuple[Kind, type[Component]]] = [(k, cls) for k in KINDS for cls in registry.of(k).values()]
    if names:
        known = {cls.name for _, cls in everything}
        if missing := [n for n in names if n not in known]:
            for kind in KINDS:
                if (error := registry.unusable.get((kind, missing[0]))) is not None:
                    raise pytest.UsageError(str(error))
            raise pytest.UsageError(f"neurobench_components: nothing called {missing[0]!r} is registered.")
        return [(kind, cls) for kind, cls in everything if cls.name in names]
    own = _distribution(root)
    broken = [p for p in registry.plugins if _same(p.distribution, own) and p.state != "available"]
    if broken:
        raise pytest.UsageError(f"{broken[0].id} is {broken[0].state}: {broken[0].reason}")
    found = [(kind, cls) for kind, cls in everything if _same(registry.provenance(kind, cls.name).distribution, own)]
    if not found:
        raise pytest.UsageError(
            f"the distribution {own!r} provides no component of neurobench. Declare it under "
            "[project.entry-points.neurobench] in pyproject.toml, and run `pip install -e .` again."
        )
    return found


def _distribution(root: Path) -> str:
    """Return the name of the project under test."""
    path = root / "pyproject.toml"
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
        return str(content["project"]["name"])
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise pytest.UsageError(
            f"contract_check does not know what to check: {path} has no [project] name ({error}). "
            "Or set neurobench_components in pytest's configuration."
        ) from error


def _same(one: str, other: str) -> bool:
    return one.replace("_", "-").replace(".", "-").lower() == other.replace("_", "-").replace(".", "-").lower()


def _run(cls: type[Component], check: str, registry: Registry) -> None:
    from neurobench.checks import check_component, checks_of

    found = check_component(cls, registry=registry, only=check if check in checks_of(cls) else "")
    result = next(r for r in found if r.check == check)
    if result.outcome == "skipped":
        pytest.skip(result.message)
    if result.outcome == "expected-failure":
        pytest.xfail(result.message)
    if not result.ok:
        pytest.fail(f"{cls.name}: {result.message}", pytrace=False)
