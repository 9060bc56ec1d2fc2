"""Errors that a user can act on: the value, the rule and the way out, in one line.

    ScalesearchError         anything the command line reports in one line, exit code 2
    ├── ConfigError          a setting has the wrong name, type or value
    ├── ArchitectureError    a network description that cannot be built
    ├── SpaceError           values or an architecture outside a search space
    ├── BudgetError          no network fits the cost asked for
    ├── DataError            images that are missing, broken or unusable
    ├── EvaluatorError       an evaluator asked for what it does not cover
    └── RunError             a run folder that does not fit the command
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ScalesearchError(Exception):
    """Base of every error that is the user's to fix; its text is one line."""


class ConfigError(ScalesearchError):
    """A setting has the wrong name, type or value."""


class ArchitectureError(ScalesearchError):
    """A network description that cannot be built."""


class SpaceError(ScalesearchError):
    """Values or an architecture outside a search space."""


class BudgetError(ScalesearchError):
    """No network fits the cost asked for."""


class DataError(ScalesearchError):
    """Images that are missing, broken or unusable."""


class EvaluatorError(ScalesearchError):
    """An evaluator asked for what it does not cover."""


class RunError(ScalesearchError):
    """A run folder that does not fit the command."""


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """One line that refuses a name: `no sampler 'tpee'; did you mean 'tpe'? (gp, random, tpe)`.

    >>> unknown("sampler", "tpee", ["tpe", "random"])
    "no sampler 'tpee'; did you mean 'tpe'? (random, tpe)"
    """
    options = sorted(known)
    close = difflib.get_close_matches(str(name), options, n=1, cutoff=0.6)
    hint = f"did you mean '{close[0]}'? " if close else "choose one of "
    return f"no {kind} '{name}'; {hint}({', '.join(options)})"
