"""bdray: sweeps that measure backdoor data poisoning of image classifiers.

In Python: `run_trial(Condition.parse({...}))` runs one condition; `load_results` and `load_curves` read a sweep;
`load_model` a model that `bdray export model` wrote.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdray.condition import Condition
    from bdray.models.networks.exported import load_model
    from bdray.results.reading import load_curves, load_results
    from bdray.trial import run_trial

__version__ = "0.1.0"
__all__ = ["Condition", "__version__", "load_curves", "load_model", "load_results", "run_trial"]

_HOMES = {
    "Condition": "bdray.condition",
    "load_curves": "bdray.results.reading",
    "load_model": "bdray.models.networks.exported",
    "load_results": "bdray.results.reading",
    "run_trial": "bdray.trial",
}


def __getattr__(name: str) -> Any:
    # On demand: `bdray --help` needs neither pydantic nor torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'bdray' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
