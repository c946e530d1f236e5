"""What is asked of kept models and changes none of their numbers. Part of no id: a question that is added later
retrains nothing."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, Literal

from bdray.condition import Condition, digest
from bdray.detectors import DETECTORS, Detector
from bdray.recipes import Evaluate, Relearn


@dataclass(frozen=True)
class Questions:
    """What a sweep asks of its models."""

    detect: tuple[Detector, ...] = ()
    evaluate: Evaluate = field(default_factory=Evaluate)

    def detectors_of(self, of: Literal["poisoned", "repaired"]) -> tuple[Detector, ...]:
        """Those that are asked of the poisoned, or of the repaired model."""
        return tuple(detector for detector in self.detect if detector.of == of)

    @property
    def of_repaired(self) -> bool:
        """Whether repaired models are to be kept, for detectors to be asked of them."""
        return bool(self.detectors_of("repaired"))

    @property
    def asked(self) -> tuple[dict[str, Any], ...]:
        """What kept models can be asked later, as JSON content."""
        relearn = self.evaluate.relearn
        detect = tuple(detector.model_dump(mode="json") for detector in self.detect)
        return (*detect, {"relearn": relearn.model_dump(mode="json")}) if relearn else detect

    def dump(self) -> str:
        """JSON text."""
        detect = [detector.model_dump(mode="json") for detector in self.detect]
        return json.dumps({"detect": detect, "evaluate": self.evaluate.model_dump(mode="json")})

    @classmethod
    def parse(cls, text: str) -> Questions:
        """From the JSON text that `dump` made."""
        content = json.loads(text)
        evaluate = Evaluate.model_validate(content["evaluate"])
        return cls(tuple(map(DETECTORS.build, content["detect"])), evaluate)


def relearn_key(relearn: Relearn, attack: str) -> str:
    """12 hex digits that name what of a repaired model is asked: the recipe and the attack
    (`bdray.condition.attack_key`). A poisoned model's and its control's are the same."""
    return digest({"relearn": relearn.identity(), "attack": attack})


def answer_key(detector: Detector, condition: Condition) -> str:
    """12 hex digits that name what a detector is asked of a condition's model: question, model, attack, clean split."""
    return digest(
        {
            "question": detector.identity(),
            "stage": condition.stages[-1 if detector.of == "repaired" else 0].fingerprint,
            "attack": condition.attack,
            "clean": condition.asked_identity,
        }
    )
