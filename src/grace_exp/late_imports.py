"""Modules that libraries import but few runs use are loaded at their first use.

Lightning needs two classes of torchmetrics. The package imports 270 modules for them, scipy.signal and matplotlib
among them. transformers imports scikit-learn and scipy.optimize for two functions that no run calls. Only the command
line loads these modules late; a program that imports grace_exp loads them as usual.
"""

import gc
import importlib
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import version
from threading import RLock
from types import ModuleType
from typing import Any


def start_quickly() -> None:
    """Import rarely used modules late, and turn garbage collection off while modules load.

    A collection would scan all loaded modules again and again. `imports_are_done` turns collection on again.
    """
    if not any(isinstance(finder, _LateFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _LateFinder())
    gc.disable()


def imports_are_done() -> None:
    """Turn garbage collection on again after `start_quickly`; objects that exist by now are never scanned."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()


_PROBED = ("__path__", "__wrapped__")
"""Attributes that the import system and `inspect` look up on any module; looking them up does not run the body."""


class _LateModule(ModuleType):
    """A module that holds some names already; its body runs when another name is looked up."""

    def __getattr__(self, name: str) -> Any:
        loader = self.__spec__.loader if self.__spec__ else None
        if isinstance(loader, _LateLoader):
            if name in loader.names:
                return loader.names[name]()
            if name not in _PROBED:
                loader.run_body(self)
        return ModuleType.__getattribute__(self, name)


class _LateLoader(Loader):
    def __init__(self, loader: Loader, names: Mapping[str, Callable[[], Any]]) -> None:
        self.names = names
        self._loader = loader
        self._lock = RLock()
        self._runs = False

    def create_module(self, spec: ModuleSpec) -> None:
        """Create the module as usual."""

    def exec_module(self, module: ModuleType) -> None:
        """Do not run the body yet."""
        module.__class__ = _LateModule

    def run_body(self, module: ModuleType) -> None:
        _run_package(module.__name__)
        with self._lock:  # other threads wait; the body may look up names of the module, and does not wait
            if self._runs or type(module) is not _LateModule or module.__spec__ is None:
                return
            self._runs = True
            try:
                self._loader.exec_module(module)
            finally:
                self._runs = False
            module.__spec__.loader = module.__loader__ = self._loader
            object.__setattr__(module, "__class__", ModuleType)


class _LateFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        names = _LATE.get(fullname)
        if names is None:
            _run_package(fullname)
        spec = PathFinder.find_spec(fullname, path, target) if names is not None else None
        if spec is not None and spec.loader is not None and names is not None:
            spec.loader = _LateLoader(spec.loader, names)
        return spec


def _run_package(name: str) -> None:
    """Run the body of a module's package first, if the module needs that and the package is late as well."""
    package, _, rest = name.partition(".")
    module = sys.modules.get(package) if rest and package in _FIRST else None
    if module is not None and module.__spec__ is not None and isinstance(module.__spec__.loader, _LateLoader):
        module.__spec__.loader.run_body(module)


def _attribute(name: str, *modules: str) -> Callable[[], Any]:
    """Return a function that imports the modules in this order and gets the attribute from the last one."""
    return lambda: getattr([importlib.import_module(module) for module in modules][-1], name)


def _call_later(name: str, module: str) -> Callable[[], Any]:
    """Return a function that imports the late module when it is called, and calls the module's function."""

    def call(*arguments: Any, **named: Any) -> Any:
        late = importlib.import_module(module)
        if late.__spec__ is not None and isinstance(late.__spec__.loader, _LateLoader):
            late.__spec__.loader.run_body(late)
        return getattr(late, name)(*arguments, **named)

    return lambda: call


_LATE: dict[str, dict[str, Callable[[], Any]]] = {
    "torchmetrics": {
        "Metric": _attribute("Metric", "torchmetrics.utilities", "torchmetrics.metric"),
        "MetricCollection": _attribute("MetricCollection", "torchmetrics.utilities", "torchmetrics.collections"),
        "__version__": lambda: version("torchmetrics"),
        "_logger": lambda: logging.getLogger("torchmetrics"),
    },
    "torchmetrics.utilities.plot": {
        "_AX_TYPE": lambda: object,
        "_PLOT_OUT_TYPE": lambda: object,
        "plot_single_or_multi_val": _call_later("plot_single_or_multi_val", "torchmetrics.utilities.plot"),
    },
    "scipy.optimize": {"linear_sum_assignment": _call_later("linear_sum_assignment", "scipy.optimize")},
    "sklearn": {},
    "sklearn.metrics": {"roc_curve": _call_later("roc_curve", "sklearn.metrics")},
}
"""The names that others take from a late module while they are imported, and how to get each; by module."""

_FIRST = ("sklearn",)
"""Packages whose body must run before the body of one of their modules."""
