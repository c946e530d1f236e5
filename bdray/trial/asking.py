"""Asking detectors of a poisoned model, and holding what they say against the truth.

    stages/<fingerprint>/answers/<key>.json    one answer, by question, attack and clean split
    conditions/<id>/answers/<key>.json         the same of a repaired model, which no other condition has

An answer that is there is not asked for again. Only this module and `bdray.trial.detection` know plan and trigger.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from bdray.condition import Condition, foreign_of, sources_of
from bdray.detectors import Detector, InputDetector, ModelDetector, TrainingSetDetector
from bdray.detectors.tools import DetectorTools
from bdray.models.networks.taps import evaluating
from bdray.poisoning.stamping import PoisonedSet
from bdray.questions import answer_key
from bdray.randomness import watching
from bdray.record import Answer, FeaturesRecord
from bdray.seeds import stream
from bdray.store.checksummed import ChecksummedFolder
from bdray.store.storage import Storage
from bdray.training.evaluation import CleanSet
from bdray.training.reporter import Reporter
from bdray.trial.detection import Found, plane_of
from bdray.trial.isolation import cause_of
from bdray.trial.repair_inputs import asked_clean_set
from bdray.trial.setup import Experiment

_SHOWN_SIDE, _SHOWN = 96, 100


@dataclass(frozen=True)
class ItemImages:
    """The pictures of a training set, without a word of which are stamped."""

    _items: PoisonedSet

    def __len__(self) -> int:
        return len(self._items)

    def split(self, size: int, /) -> Iterable[torch.Tensor]:
        every = torch.arange(len(self), device=self._items.labels.device)
        return (self._items.gather(part)[0] for part in every.split(size))


@dataclass(frozen=True)
class Shown:
    """What a detector is shown: pictures, and labels as given on the host."""

    images: ItemImages | torch.Tensor
    labels: torch.Tensor


class Asking:
    """Asks detectors of one condition's poisoned model, or of its repaired one (those whose `of` says so).

    Args:
        sweep: where answers are kept; None: nowhere.
    """

    def __init__(
        self, experiment: Experiment, detectors: Sequence[Detector], sweep: Storage | None, reporter: Reporter
    ) -> None:
        self._experiment, self._detectors, self._reporter = experiment, detectors, reporter
        of_repaired = any(detector.of == "repaired" for detector in detectors)
        place = _place(experiment.condition, of_repaired=of_repaired)
        self._kept = ChecksummedFolder(sweep, place) if sweep and detectors else None

    def ask(self, model: nn.Module) -> tuple[Answer, ...]:
        """All answers, in the order of the questions; those that are kept already are read. The model stays as it is.

        A detector that fails has its error for an answer: what it was asked of stands.
        """
        return tuple(self._once(detector, model) for detector in self._detectors)

    def _once(self, detector: Detector, model: nn.Module) -> Answer:
        key = answer_key(detector, self._experiment.condition)
        content = self._kept.read_json(f"{key}.json", "it is asked for again") if self._kept else None
        if content is not None:
            return Answer.model_validate(content)
        answer = self._answer(detector, key, model)
        if self._kept is not None and answer.error is None:
            self._kept.write_json(f"{key}.json", answer.model_dump(mode="json"))
        return answer

    def _answer(self, detector: Detector, key: str, model: nn.Module) -> Answer:
        begun = time.monotonic()
        asked: dict[str, Any] = {"key": key, "detector": detector.model_dump(mode="json"), "result": detector.of}
        asked["sources"] = sources_of(foreign_of([], [detector]))
        try:
            with evaluating(model), watching(detector, detector.title):
                measured = self._measured(detector, self._tools(detector, key), model)
        except Exception as error:
            return Answer(**asked, error=cause_of(error))
        seconds = time.monotonic() - begun
        features = self._features(detector, key, model) if isinstance(detector, TrainingSetDetector) else None
        return Answer(**asked, **measured, features=features, seconds=seconds)

    def _measured(self, detector: Detector, tools: DetectorTools, model: nn.Module) -> dict[str, Any]:
        experiment, clean = self._experiment, tools.clean
        assert clean is not None
        if isinstance(detector, TrainingSetDetector):
            return self._of_training_set(detector, tools, model).measured()
        if isinstance(detector, InputDetector):
            test = experiment.test.sample(detector.asked)
            score = detector.fit(model, clean, tools)
            threshold = detector.threshold(score(clean.images))
            parts = [test.images] if experiment.condition.is_baseline else [test.images, test.attack_images]
            scores = [score(part).numpy() for part in parts]
            positive = np.repeat([False, True][: len(parts)], [len(part) for part in parts])
            return _found(np.concatenate(scores), positive, threshold).measured()
        assert isinstance(detector, ModelDetector)
        seen: list[torch.Tensor] = []
        scores_by_class = detector.score(model, clean, replace(tools, show=seen.append))
        flagged = detector.flagged(scores_by_class).numpy()
        targets = np.zeros(len(flagged), dtype=np.bool_)
        if not experiment.condition.is_baseline:
            targets[experiment.test.wanted_labels.unique().cpu().numpy()] = True
        found = Found(scores_by_class.numpy(), targets, flagged, np.zeros_like(targets))
        recovered = {int(label): _png(seen[-1][label]) for label in targets.nonzero()[0]} if seen else {}
        said = {"index": scores_by_class.tolist(), "flagged": flagged.nonzero()[0].tolist(), "recovered": recovered}
        return {**found.measured(), **said}

    @cached_property
    def _clean(self) -> CleanSet:
        return asked_clean_set(self._experiment)

    def _of_training_set(self, detector: TrainingSetDetector, tools: DetectorTools, model: nn.Module) -> Found:
        items = self._experiment.stamped_set
        shown = shown_of(items)
        scores = detector.score(model, shown, tools)
        rows, poisoned = items.overlay_row.cpu().numpy(), len(self._experiment.plan.indices)
        flagged = detector.flagged(scores, shown.labels).numpy()
        return Found(scores.numpy(), (rows >= 0) & (rows < poisoned), flagged, rows >= poisoned)

    def _features(self, detector: Detector, key: str, model: nn.Module) -> FeaturesRecord | None:
        """Where poisoned samples lie among those of their label; None where there are none, or no others."""
        items = self._experiment.stamped_set
        rows, labels = items.overlay_row.cpu().numpy(), items.labels.cpu().numpy()
        poisoned = (rows >= 0) & (rows < len(self._experiment.plan.indices))
        if not poisoned.any():
            return None
        label = int(np.bincount(labels[poisoned]).argmax())
        groups = [np.flatnonzero((labels == label) & group) for group in (poisoned, ~poisoned)]
        if not all(map(len, groups)):
            return None
        shown = np.zeros(len(labels), dtype=np.bool_)
        for group in groups:
            shown[group[np.linspace(0, len(group) - 1, min(_SHOWN, len(group))).round().astype(int)]] = True
        images = ItemImages(items.only(torch.from_numpy(shown)))
        features = self._tools(detector, key).outputs(model, images).features.double().numpy()
        return plane_of(features, poisoned[shown], label)

    def _tools(self, detector: Detector, key: str) -> DetectorTools:
        return tools_of(
            self._experiment,
            self._clean,
            stream(self._experiment.condition.seed, "detector", key),
            lambda done, total: self._reporter.batch(f"detect {detector.name}", 1, 1, done, total),
        )


def shown_of(items: PoisonedSet) -> Shown:
    """A training set without a word of what is poisoned."""
    return Shown(ItemImages(items), items.labels.cpu())


def tools_of(
    experiment: Experiment, clean: CleanSet, generator: torch.Generator, tick: Callable[[int, int], None]
) -> DetectorTools:
    """What a detector works with that is asked of a model of this experiment."""
    return DetectorTools(
        generator=generator,
        num_classes=experiment.data.num_classes,
        device=experiment.compute.device,
        normalize=experiment.normalize,
        autocast=experiment.compute.autocast,
        tick=tick,
        clean=Shown(clean.images, clean.labels.cpu()),
    )


def _found(scores: np.ndarray, positive: np.ndarray, threshold: float) -> Found:
    return Found(scores, positive, scores > threshold, np.zeros_like(positive))


def _png(pixels: torch.Tensor) -> str:
    """A picture (float in [0, 1], `3 x S x S`) as base64, made smaller where it is large."""
    levels = pixels.detach().mul(255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
    picture, buffer = Image.fromarray(levels), io.BytesIO()
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE), Image.Resampling.LANCZOS)
    picture.save(buffer, "png", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _place(condition: Condition, *, of_repaired: bool) -> str:
    owner = f"conditions/{condition.condition_id}" if of_repaired else f"stages/{condition.poison_fingerprint}"
    return f"{owner}/answers"
