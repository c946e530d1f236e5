"""One condition, run: from its data to its record. Knows neither Ray nor MLflow.

`run_trial` is imported when it is asked for, so that planning can use the other modules without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bdray.trial.options import TrialOptions
    from bdray.trial.run import ask_trial, attempt_trial, run_trial

__all__ = ["TrialOptions", "ask_trial", "attempt_trial", "run_trial"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from bdray.trial import run

        return getattr(run, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
