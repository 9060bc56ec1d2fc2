"""Tables of plug-ins: a closed list of names, resolved on demand, open to registration.

A row is a name and "module:Callable". Nothing is imported until a row is used; a config can only
pick a name. Third parties join by `TABLE.register("mine", MyClass)` or by an entry point in the
table's group.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from scalesearch.config import convert
from scalesearch.errors import ConfigError, unknown

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


class Table:
    """Names → callables of one kind, for example SPACES, SAMPLERS, EVALUATORS, EXECUTORS."""

    def __init__(self, kind: str, rows: Mapping[str, str]) -> None:
        self.kind = kind
        self.group = f"scalesearch.{kind}s"
        self._rows: dict[str, str | Callable[..., Any]] = dict(rows)

    def names(self) -> list[str]:
        """All known names: built in, registered, and installed entry points."""
        return sorted({*self._rows, *self._installed()})

    def register(self, name: str, target: Callable[..., Any] | str) -> None:
        """Add a row; `target` is a callable or "module:Callable". A taken name is refused."""
        if name in self.names():
            raise ConfigError(f"{self.kind} '{name}' is already registered; choose another name")
        self._rows[name] = target

    def load(self, name: str) -> Callable[..., Any]:
        """The callable of a row; ConfigError with the nearest name for an unknown one."""
        target = self._rows.get(name)
        if target is None:
            installed = self._installed()
            if name not in installed:
                raise ConfigError(unknown(self.kind, name, self.names()))
            return typing.cast(Callable[..., Any], installed[name].load())
        if isinstance(target, str):
            module, _, attribute = target.partition(":")
            target = typing.cast(Callable[..., Any], getattr(import_module(module), attribute))
        return target

    def _installed(self) -> dict[str, EntryPoint]:
        """Entry points of other packages in this table's group."""
        from importlib.metadata import entry_points  # slow to import, and most commands need no table

        return {point.name: point for point in entry_points(group=self.group)}

    def build(self, settings: Mapping[str, Any] | str, **context: Any) -> Any:
        """Call the row `settings["name"]` with the other settings, typed by its signature, and the context."""
        settings = {"name": settings} if isinstance(settings, str) else dict(settings)
        name = str(settings.pop("name", None))
        target = self.load(name)
        hints = _hints(target)
        parameters = inspect.signature(target).parameters
        free = {key for key in parameters if key not in context and key != "self"}
        for key in settings:
            if key not in free:
                if not free:
                    raise ConfigError(f"{self.kind}.{key}: {self.kind} '{name}' has no settings")
                raise ConfigError(unknown(f"setting of {self.kind} '{name}'", key, free))
        for key in sorted(free - settings.keys()):
            if parameters[key].default is inspect.Parameter.empty:
                raise ConfigError(f"{self.kind}.{key} is required; write {self.kind}.{key}=VALUE")
        # A group of its own (data, recipe) is named as the user typed it: data.size, not evaluator.data.size.
        typed = {key: convert(value, hints.get(key, Any), key if isinstance(value, Mapping) else f"{self.kind}.{key}")
                 for key, value in settings.items()}
        return target(**typed, **{k: v for k, v in context.items() if k in parameters})


def _hints(target: Callable[..., Any]) -> dict[str, Any]:
    if isinstance(target, type):
        return typing.get_type_hints(target.__init__)  # type: ignore[misc]
    return typing.get_type_hints(target)
