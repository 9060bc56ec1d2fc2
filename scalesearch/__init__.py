"""scalesearch: search a network for a compute budget, find how to scale it, build the family.

    import scalesearch as ss

    base = ss.load_architecture("efficientnet_b0")
    larger = ss.ScalingRule(depth=1.2, width=1.1, resolution=1.15)(base, phi=1)
    ss.cost_of(larger).macs                  # 992_629_472 multiply-adds
    model = ss.build_model(larger)           # a torch.nn.Module

Names are resolved on first use, so that `import scalesearch` waits for neither torch nor optuna.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalesearch.architecture import Architecture, Stage, load_architecture
    from scalesearch.config import format_count, parse_count
    from scalesearch.cost import Cost, cost_of
    from scalesearch.cost_table import CostTable
    from scalesearch.errors import ScalesearchError
    from scalesearch.evaluators import EVALUATORS, Evaluator
    from scalesearch.executors import EXECUTORS, Executor
    from scalesearch.networks.build import build_model
    from scalesearch.networks.export import export_model
    from scalesearch.networks.pretrained import load_model
    from scalesearch.objective import AccuracyReward, SoftReward, Window
    from scalesearch.records import Evaluation, Failure, Record, RecordFile
    from scalesearch.report import write_report
    from scalesearch.samplers import SAMPLERS, Outcome, Sampler
    from scalesearch.scaling import ScalingRule, published, solve_phi
    from scalesearch.search import SearchResult, run_search
    from scalesearch.spaces import SPACES, Parameter, Space, load_space
    from scalesearch.spaces.feasible import feasible_set
    from scalesearch.training.checkpoint import Checkpoint
    from scalesearch.training.data import DataSettings, load_data
    from scalesearch.training.loop import EpochStats, train
    from scalesearch.training.recipe import Recipe

__version__ = "0.1.0"

_MODULES = {
    "scalesearch.architecture": ("Architecture", "Stage", "load_architecture"),
    "scalesearch.config": ("format_count", "parse_count"),
    "scalesearch.cost": ("Cost", "cost_of"),
    "scalesearch.cost_table": ("CostTable",),
    "scalesearch.errors": ("ScalesearchError",),
    "scalesearch.evaluators": ("EVALUATORS", "Evaluator"),
    "scalesearch.executors": ("EXECUTORS", "Executor"),
    "scalesearch.networks.build": ("build_model",),
    "scalesearch.networks.export": ("export_model",),
    "scalesearch.networks.pretrained": ("load_model",),
    "scalesearch.objective": ("AccuracyReward", "SoftReward", "Window"),
    "scalesearch.records": ("Evaluation", "Failure", "Record", "RecordFile"),
    "scalesearch.report": ("write_report",),
    "scalesearch.samplers": ("SAMPLERS", "Outcome", "Sampler"),
    "scalesearch.scaling": ("ScalingRule", "published", "solve_phi"),
    "scalesearch.search": ("SearchResult", "run_search"),
    "scalesearch.spaces": ("SPACES", "Parameter", "Space", "load_space"),
    "scalesearch.spaces.feasible": ("feasible_set",),
    "scalesearch.training.checkpoint": ("Checkpoint",),
    "scalesearch.training.data": ("DataSettings", "load_data"),
    "scalesearch.training.loop": ("EpochStats", "train"),
    "scalesearch.training.recipe": ("Recipe",),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "EVALUATORS", "EXECUTORS", "SAMPLERS", "SPACES", "AccuracyReward", "Architecture", "Checkpoint", "Cost",
    "CostTable", "DataSettings", "EpochStats", "Evaluation", "Evaluator", "Executor", "Failure", "Outcome",
    "Parameter", "Recipe", "Record", "RecordFile", "Sampler", "ScalesearchError", "ScalingRule", "SearchResult",
    "SoftReward", "Space", "Stage", "Window", "build_model", "cost_of", "export_model", "feasible_set", "format_count",
    "load_architecture", "load_data", "load_model", "load_space", "parse_count", "published", "run_search",
    "solve_phi", "train", "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scalesearch' has no attribute '{name}'")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
