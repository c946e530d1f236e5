"""Which poison stages end early: Optuna's rules over made-up curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from made_up import stage
from optuna.trial import TrialState

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.record import EpochRecord
from bdray.searches.optuna import OptunaAsker
from bdray.searches.pruning import Curve, Prune, Pruner, Pruning, known_curves, spared_stages
from bdray.space import SearchSpace
from bdray.store.storage import Storage
from benchmarks.searching import made_up

Load = Callable[..., SearchSpace]
EARLY = Prune(warmup_epochs=2, startup_trials=2)


def curve(name: str, values: Sequence[float], *, kind: str = "a", has_ended: bool = False) -> Curve:
    return Curve(kind, name, dict(enumerate(values, 1)), has_ended)


def ended(pruner: Pruner, name: str, values: Sequence[float], kind: str = "a") -> int | None:
    """Tell a stage epoch by epoch; after how many it ends early."""
    for epoch in range(1, len(values) + 1):
        if pruner.ends(curve(name, values[:epoch], kind=kind, has_ended=epoch == len(values))):
            return epoch
    return None


GOOD, BETTER, BAD = [0.3, 0.5, 0.7, 0.8], [0.4, 0.6, 0.8, 0.9], [0.1, 0.1, 0.1, 0.1]


def test_median_ends_what_is_worse_than_half_of_those_that_went_through() -> None:
    pruner = Pruner(Pruning(EARLY))
    assert ended(pruner, "first", BAD) is None, "two must have gone through first"
    assert ended(pruner, "second", GOOD) is None
    assert ended(pruner, "third", BETTER) is None
    assert ended(pruner, "bad", [0.2, *BAD[1:]]) == 2, "not before the warm-up is over"
    assert ended(pruner, "late", [0.9, 0.9, 0.1, 0.1]) is None, "its best so far counts"
    assert ended(pruner, "elsewhere", BAD, kind="b") is None, "other data, models and lengths are no measure"


def test_a_decision_stands_for_all_who_share_the_stage() -> None:
    pruner = Pruner(Pruning(EARLY, (curve("one", GOOD, has_ended=True), curve("two", GOOD, has_ended=True))))
    assert ended(pruner, "bad", BAD) == 2
    assert pruner.ends(curve("bad", BAD[:2]))
    assert pruner.ends(curve("bad", [])), "also for one that lost its checkpoint"
    assert not pruner.ends(curve("one", GOOD[:1])), "nor does what went through end later"


def test_what_is_known_counts_and_what_is_spared_goes_on() -> None:
    known = (
        curve("one", GOOD, has_ended=True),
        curve("two", BETTER, has_ended=True),
        Curve("a", "old", {1: 0.1, 2: 0.1}, was_pruned=True),
    )
    pruner = Pruner(Pruning(EARLY, known, frozenset({"asked for"})))
    assert pruner.ends(curve("old", []))
    assert ended(pruner, "asked for", BAD) is None
    assert ended(pruner, "bad", BAD) == 2


def test_halving_lets_the_best_of_each_rung_go_on() -> None:
    pruner = Pruner(Pruning(Prune(rule="halving", warmup_epochs=1, reduction=2)))
    assert ended(pruner, "first", GOOD) is None
    assert ended(pruner, "second", BETTER) is None
    assert ended(pruner, "third", BAD) == 1
    assert ended(pruner, "tires", [0.5, *BAD[1:]]) == 2


def test_halving_knows_after_a_restart_who_got_to_which_rung() -> None:
    """Found: what records say had no rung, and a bad stage that came after a restart went through."""
    known = (curve("one", GOOD, has_ended=True), curve("two", BETTER, has_ended=True))
    pruner = Pruner(Pruning(Prune(rule="halving", warmup_epochs=1, reduction=2), known))
    assert ended(pruner, "third", BAD) == 1
    assert ended(pruner, "tires", [0.5, *BAD[1:]]) == 2


@pytest.mark.parametrize("first_heard", [1, 3])
def test_halving_compares_a_stage_that_goes_on_by_what_it_was_at_the_rung(first_heard: int) -> None:
    """Found: one that went on from a checkpoint stood at its first rung with the value of the epoch it went on from."""
    pruner = Pruner(Pruning(Prune(rule="halving", warmup_epochs=2, reduction=2)))
    goes_on, fresh = [0.3, 0.4, 0.7, 0.8, 0.85, 0.9], [0.4, 0.5, 0.8, 0.85, 0.9, 0.95]
    assert not any(pruner.ends(curve("goes on", goes_on[:epoch])) for epoch in range(first_heard, 5))
    assert ended(pruner, "fresh", fresh) is None


def test_a_loss_should_be_low() -> None:
    known = (curve("one", [2.0, 1.0, 0.5], has_ended=True), curve("two", [2.0, 1.0, 0.4], has_ended=True))
    pruner = Pruner(Pruning(EARLY.model_copy(update={"metric": "loss"}), known))
    assert ended(pruner, "high", [3.0, 2.9, 2.8]) == 2
    assert ended(pruner, "low", [1.0, 0.5, 0.1]) is None


def epochs(values: Sequence[float]) -> tuple[EpochRecord, ...]:
    return tuple(EpochRecord(epoch=epoch, loss=value, images=1) for epoch, value in enumerate(values, 1))


def test_records_say_what_went_through_and_what_did_not() -> None:
    content: dict[str, Any] = {"data": "digits", "model": "resnet8", "trigger": "patch", "train": {"epochs": 3}}
    prune, records, conditions = Prune(metric="loss"), [], []
    for seed, status, values in ((0, "pruned", [1.0]), (1, "finished", [1.0, 0.5, 0.2]), (2, "failed", [])):
        condition = Condition.parse({**content, "seed": seed})
        stages = (stage(*epochs(values), fingerprint=condition.poison_fingerprint),) if values else ()
        records.append(made_up(condition).model_copy(update={"status": status, "stages": stages}))
        conditions.append(condition)
    pruned, finished = known_curves(prune, [*records, made_up(conditions[0].baseline())])
    assert (pruned.was_pruned, pruned.has_ended, pruned.values) == (True, False, {1: 1.0})
    assert (finished.was_pruned, finished.has_ended, finished.values) == (False, True, {1: 1.0, 2: 0.5, 3: 0.2})
    assert pruned.kind == finished.kind != prune.curve(Condition.parse({**content, "model": "resnet20"}), ()).kind
    assert spared_stages(conditions, {conditions[0].condition_id}) == {conditions[0].poison_fingerprint}
    assert records[0].poisoned is None
    assert not records[0].collapsed


def test_a_cell_with_a_pruned_seed_is_a_pruned_trial(load: Load, tmp_path: Path) -> None:
    rates = {"poison.rate": {"min": 0.01, "max": 0.1}}
    space = load(parameters=rates, search={"method": "optuna", "max_trials": 2, "prune": "median"})
    asker = space.start(Storage.open(tmp_path), [])
    assert isinstance(asker, OptunaAsker)
    first, second = asker.ask(1)
    asker.tell(made_up(first))
    asker.tell(made_up(second).model_copy(update={"status": "pruned"}))
    assert [trial.state for trial in asker.study.trials] == [TrialState.PRUNED]
    assert asker.ask(1)[0].cell_id != first.cell_id


def test_the_space_that_is_kept_says_the_same(load: Load) -> None:
    short = load(parameters={"trigger.size": {"values": [1, 2]}}, search={"method": "grid", "prune": "halving"})
    assert short.search.prune == Prune(rule="halving")
    assert short.resolved()["search"]["prune"]["rule"] == "halving"
    assert load(parameters={"trigger.size": {"values": [1, 2]}}).search.prune is None


@pytest.mark.parametrize(
    ("prune", "said"),
    [
        ("mean", "search.prune"),
        ({"rule": "median", "warmup": 2}, "warmup_epochs"),
        ({"metric": "attack_success_rate"}, "'clean_accuracy' or 'loss'"),
        ({"warmup_epochs": 0}, "greater than or equal to 1"),
    ],
)
def test_mistakes_are_named(prune: object, said: str, load: Load) -> None:
    with pytest.raises(SpaceError) as caught:
        load(parameters={"trigger.size": {"values": [1]}}, search={"method": "grid", "prune": prune})
    assert said in str(caught.value)
