"""What a defender asks of a training set, of inputs or of a model: is there a backdoor? It changes none of them."""

from bdray.detectors.base import DETECTORS, Detector, InputDetector, ModelDetector, TrainingSetDetector

__all__ = ["DETECTORS", "Detector", "InputDetector", "ModelDetector", "TrainingSetDetector"]
