"""Poison stages that end early, because others do better by then: `search: {..., prune: {rule: median}}`.

Rules are Optuna's. A poison stage is compared with those of the same data, model and number of epochs, epoch by epoch.
Conditions that share it share the decision. Baselines are never asked about, nor is any stage of a repair.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from bdray.condition import Condition, digest
from bdray.record import EpochRecord, TrialRecord
from bdray.registry import Identified
from bdray.searches.study import quiet

if TYPE_CHECKING:
    import optuna


class Prune(Identified):
    """When a poison stage is not worth its time."""

    rule: Literal["median", "halving"] = "median"
    """`median`: its best so far is worse than the median of the stages that went through, after as many epochs;
    `halving`: after `warmup_epochs`, and `reduction` times as many, and so on, it is not among the best 1 in
    `reduction` of those that got there (asynchronous successive halving)."""
    metric: Literal["clean_accuracy", "loss"] = "clean_accuracy"
    """On the test set after an epoch; or the mean loss of the epoch's training."""
    warmup_epochs: int = Field(default=3, ge=1)
    """No stage ends before it has trained so many epochs."""
    startup_trials: int = Field(default=5, ge=1)
    """`median`: nothing ends before so many stages went through."""
    reduction: int = Field(default=3, ge=2)
    """`halving`: one in how many goes on."""

    @model_validator(mode="before")
    @classmethod
    def _of_its_rule(cls, content: Any) -> Any:
        return {"rule": content} if isinstance(content, str) else content

    def value(self, epoch: EpochRecord) -> float | None:
        """What is compared; None where the epoch has none."""
        if self.metric == "loss":
            return epoch.loss
        return epoch.rates.clean_accuracy if epoch.rates else None

    def curve(self, condition: Condition, epochs: Sequence[EpochRecord]) -> Curve:
        """The poison stage of a condition, as far as it got."""
        found = {epoch.epoch: self.value(epoch) for epoch in epochs if epoch.epoch > 0}
        content = condition.content()
        kind = {"data": content["data"], "model": content["model"], "epochs": condition.train.epochs}
        has_ended = bool(epochs) and (epochs[-1].epoch >= condition.train.epochs or epochs[-1].diverged)
        values = {epoch: value for epoch, value in found.items() if value is not None}
        return Curve(digest(kind), condition.poison_fingerprint, values, has_ended)


@dataclass(frozen=True)
class Curve:
    """A poison stage, as far as it got.

    Attributes:
        kind: what is compared has the same one.
        values: what is compared, by epoch.
        has_ended: it went through.
        was_pruned: it ended early.
    """

    kind: str
    fingerprint: str
    values: Mapping[int, float]
    has_ended: bool = False
    was_pruned: bool = False


@dataclass(frozen=True)
class Pruning:
    """What a sweep knows when it starts: the `known` stages, and those that are `spared`, which means that they are
    trained to their end whatever the rule says."""

    prune: Prune
    known: tuple[Curve, ...] = ()
    spared: frozenset[str] = frozenset()


def known_curves(prune: Prune, records: Iterable[TrialRecord]) -> tuple[Curve, ...]:
    """The poison stages behind records."""
    curves: dict[str, Curve] = {}
    # What went through after all stands above what was ended early.
    for record in sorted(records, key=lambda record: record.status != "pruned"):
        stage = record.stage("poison")
        if stage is None or record.role == "baseline":
            continue
        curve = prune.curve(Condition.parse(record.condition), stage.epochs)
        was_pruned = record.status == "pruned"
        curves[curve.fingerprint] = replace(curve, has_ended=not was_pruned, was_pruned=was_pruned)
    return tuple(curves.values())


class Pruner:
    """Hears of all poison stages and says which of them end early. In the order in which it hears of them."""

    def __init__(self, pruning: Pruning) -> None:
        self._prune, self._spared = pruning.prune, pruning.spared
        self._studies: dict[str, optuna.Study] = {}
        self._trials: dict[str, optuna.Trial] = {}
        self._told: dict[str, set[int]] = {}
        self._decided: dict[str, bool] = {}
        for curve in pruning.known:
            with quiet():
                self._hear(curve)
                if curve.was_pruned:
                    self._end(curve, pruned=True)

    def ends(self, curve: Curve) -> bool:
        """Whether a stage ends here. Once it does, it does for everyone who asks again."""
        if curve.fingerprint in self._decided:
            return self._decided[curve.fingerprint]
        with quiet():
            if not self._hear(curve) or curve.has_ended or curve.fingerprint in self._spared:
                return False
            self._end(curve, pruned=True)
        return True

    def _hear(self, curve: Curve) -> bool:
        """Whether the rule ends it by the last epoch that is new."""
        if curve.fingerprint not in self._trials:
            self._trials[curve.fingerprint] = self._study(curve.kind).ask()
        trial, told = self._trials[curve.fingerprint], self._told.setdefault(curve.fingerprint, set())
        is_worse, new = False, sorted(curve.values.keys() - told)
        for epoch in new:
            trial.report(curve.values[epoch], epoch)
            # Halving notes which rung a trial reached only where it is asked, and asked twice it answers for the next.
            # The median notes nothing, and takes long where all epochs of many records are told.
            if self._prune.rule == "halving" or epoch == new[-1]:
                is_worse = trial.should_prune()
        told.update(new)
        if curve.has_ended and curve.values:
            self._end(curve, pruned=False)
        return is_worse

    def _end(self, curve: Curve, *, pruned: bool) -> None:
        from optuna.trial import TrialState

        self._decided[curve.fingerprint] = pruned
        last = None if pruned else curve.values[max(curve.values)]
        state = TrialState.PRUNED if pruned else TrialState.COMPLETE
        self._studies[curve.kind].tell(self._trials[curve.fingerprint], last, state=state)

    def _study(self, kind: str) -> optuna.Study:
        import optuna

        if kind not in self._studies:
            prune = self._prune
            # Optuna counts steps as it is told, and a stage's first epoch is 1.
            pruner: optuna.pruners.BasePruner = (
                optuna.pruners.MedianPruner(n_startup_trials=prune.startup_trials, n_warmup_steps=prune.warmup_epochs)
                if prune.rule == "median"
                else optuna.pruners.SuccessiveHalvingPruner(prune.warmup_epochs, prune.reduction)
            )
            self._studies[kind] = optuna.create_study(
                direction="minimize" if prune.metric == "loss" else "maximize",
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=pruner,
            )
        return self._studies[kind]


def spared_stages(conditions: Iterable[Condition], pruned: Collection[str]) -> frozenset[str]:
    """The poison stages of those conditions whose id is among `pruned`: run again, they go through."""
    return frozenset(one.poison_fingerprint for one in conditions if one.condition_id in pruned)
