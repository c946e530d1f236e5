"""The boundary between a model that took hours and what is tried on it: a detector, a probe or relearning, which may be
anyone's code."""

from __future__ import annotations

import torch

from bdray.credentials import public
from bdray.errors import StorageError, TrialInterrupted
from bdray.gpu_errors import gpu_error
from bdray.training.device import refused_operation


def cause_of(error: Exception) -> str:
    """Why something tried on a model failed, which costs nothing else. A stop request, the machine's failures and what
    the whole trial is made again for (`deterministically`) are raised again.
    """
    if isinstance(error, (StorageError, TrialInterrupted, torch.OutOfMemoryError)):
        raise error
    if gpu_error(error) or refused_operation(error):
        raise error
    return f"{type(error).__name__}: {public(str(error))}"
