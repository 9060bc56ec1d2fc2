"""The import ladder, and what starting up may load."""

from __future__ import annotations

import ast
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import scalesearch

PACKAGE = Path(scalesearch.__file__).resolve().parent
HEAVY = {"torch", "torchvision", "optuna", "sklearn", "scipy", "fvcore", "matplotlib", "pandas", "pyarrow", "timm", "PIL"}

# A module imports from lines above its own, or from its own package. Commas part what stands side by side.
LADDER = """
errors, stopping
config
plugins, screen, metrics
architecture
cost, objective
scaling, cost_table
records
spaces
samplers, analysis, networks
rank_correlation
training, figures, contrasts, racing, triangle
surface_posterior
search_figures, audit_figures, explain_figures, sweep_figures, gains, response_surface
scaling_figures
evaluators
promotion, candidates, measuring
executors
bench
search
report
studies
manual
completion
cli
""".split("\n")
RUNG = {name.strip(): rung for rung, line in enumerate(LADDER) for name in line.split(",") if name.strip()}

MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name not in ("__main__.py",) and path != PACKAGE / "__init__.py")


def imported(path: Path) -> Iterator[str]:
    """Modules of this package that a file imports, also inside functions; `if TYPE_CHECKING` aside."""
    def visit(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write absolute imports"
            if node.module == "scalesearch":
                yield from (f"scalesearch.{alias.name}" for alias in node.names if not alias.name.startswith("__"))
            elif node.module:
                yield node.module
        for child in ast.iter_child_nodes(node):
            yield from visit(child)

    yield from (name for name in visit(ast.parse(path.read_text(encoding="utf-8"))) if name.startswith("scalesearch."))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_the_ladder(path: Path) -> None:
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert own in RUNG, f"{path.name}: give it a rung"
    for module in imported(path):
        other = module.split(".")[1]
        assert other == own or RUNG[other] < RUNG[own], f"{path.relative_to(PACKAGE)} imports {module} from its own rung or above"


def packages_after(*statements: str) -> set[str]:
    loaded = "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    code = "\n".join(["import sys, json", *statements, loaded])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("statements", [
    ["import scalesearch"],
    ["from scalesearch import cli", "cli.main(['--help'])"],
    ["from scalesearch import cli", "cli.main(['nas', '--help'])"],
    ["from scalesearch import cli", "cli.main(['--complete', 'nas', 'sampler='])"],
    ["import scalesearch.architecture, scalesearch.scaling, scalesearch.objective, scalesearch.records"],
], ids=["import", "help", "nas help", "completion", "core"])
def test_starting_up_loads_nothing_heavy(statements: list[str]) -> None:
    loaded = packages_after(*statements)
    assert not loaded & HEAVY
    assert not loaded & {"hydra", "omegaconf", "rich"}


@pytest.mark.parametrize("package", [
    "spaces", "samplers", "evaluators", "executors", "networks", "training", "report", "studies"])
def test_a_package_alone_loads_nothing_heavy(package: str) -> None:
    assert not packages_after(f"import scalesearch.{package}") & HEAVY


@pytest.mark.parametrize("command", [["cost", "architecture=efficientnet_b0"], ["scale", "phi=0..2"]], ids=" ".join)
def test_paper_and_pencil_commands_load_nothing_heavy(command: list[str]) -> None:
    assert not packages_after("from scalesearch import cli", f"cli.main({command!r})") & HEAVY


def test_every_public_name_resolves() -> None:
    for name in scalesearch.__all__:
        assert getattr(scalesearch, name) is not None
        assert name in dir(scalesearch)


def test_public_names_are_what_type_checkers_see() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == scalesearch._HOME
    assert sorted(seen) == sorted(scalesearch.__all__)


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        importlib.import_module("scalesearch").serach  # noqa: B018
