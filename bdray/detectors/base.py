"""What a detector is: a measurement of a training set, of inputs or of a model that changes none of them.

There are three kinds, since what is true differs: which samples are poisoned, which pictures are triggered, which class
is the attacker's. None is told that truth; the caller compares (`bdray.trial.detection`). Scores are float64, and the
higher, the more suspicious.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from bdray.detectors.tools import DetectorTools, Labelled, Pictures
from bdray.errors import ComponentError
from bdray.registry import Component, Registry, Sight

if TYPE_CHECKING:
    import torch
    from torch import nn

    Score = Callable[[Pictures], torch.Tensor]


class Detector(Component):
    """A measurement that is scored against the known truth. Extend one of its three kinds.

    Class attributes:
        SCORES: what it gives scores to, in words; each of the three kinds says it.
        SEES: what it may see of data and model.
    """

    SCORES: ClassVar[str] = ""
    SEES: ClassVar[frozenset[Sight]] = frozenset()

    of: Literal["poisoned", "repaired"] = "poisoned"
    """Which model is asked: as the poison stage left it, or as the repair did, which is kept then."""


class TrainingSetDetector(Detector):
    """Scores every sample of a training set as it was trained on, but for crop and flip."""

    SCORES: ClassVar[str] = "training sets"

    def score(self, model: nn.Module, items: Labelled, tools: DetectorTools) -> torch.Tensor:
        """float64, `N`."""
        raise NotImplementedError

    def flagged(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which samples the method itself would take out: bool, `N`. `labels`: as given, int64, `N`."""
        raise NotImplementedError


class InputDetector(Detector):
    """Scores single pictures that are shown to a model."""

    SCORES: ClassVar[str] = "pictures"

    asked: int = Field(default=1000, ge=2)
    """Of how many clean and of how many triggered test pictures at most, evenly spaced."""
    false_positives: float = Field(default=0.05, gt=0.0, lt=1.0)
    """Part of the clean set that its own threshold may flag."""

    def fit(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> Score:
        """From clean pictures, the function that gives pictures their scores: float64, `N`, on the host."""
        raise NotImplementedError

    def threshold(self, clean_scores: torch.Tensor) -> float:
        """The score above which a picture is flagged, from those of the clean set."""
        return float(clean_scores.quantile(1 - self.false_positives, interpolation="higher"))


class ModelDetector(Detector):
    """Scores every class of a model: is it the one that a backdoor leads to?"""

    SCORES: ClassVar[str] = "models"

    def score(self, model: nn.Module, clean: Labelled, tools: DetectorTools) -> torch.Tensor:
        """An anomaly index a class: float64, `K`."""
        raise NotImplementedError

    def flagged(self, scores: torch.Tensor) -> torch.Tensor:
        """Which classes the method itself calls a target: bool, `K`. One flagged class makes the model suspicious."""
        raise NotImplementedError


def embedded(content: Any, kind: type[Detector]) -> Detector:
    """A detector of one kind that is the option `detector` of another component, from `{name: ..., option: ...}`.

    Raises:
        ComponentError: there is no such detector or option, it is of another kind, or it says which model is asked.
    """
    if not isinstance(content, (Mapping, str, Detector)):
        raise ComponentError("detector", f"must be a mapping, got {content!r}")
    try:
        detector = DETECTORS.build(content)
    except ComponentError as error:
        raise ComponentError(f"detector.{error.path}", error.problem) from None
    if not isinstance(detector, kind):
        fitting = ", ".join(name for name, cls in DETECTORS if issubclass(cls, kind))
        raise ComponentError("detector.name", f"'{detector.name}' cannot be asked here; these can: {fitting}")
    if detector.of != "poisoned":
        raise ComponentError(
            "detector.of", f"is for `detect` only: a repair asks the model it begins with (got '{detector.of}')"
        )
    return detector


DETECTORS: Registry[Detector] = Registry("detector", "detectors", Detector, "bdray.detectors")
