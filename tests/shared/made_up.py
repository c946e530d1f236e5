"""Records made up: only what a test is about has to be said."""

from __future__ import annotations

from typing import Any

from bdray.condition import Condition
from bdray.record import DataRecord, EpochRecord, Rates, StageRecord, TrialRecord


def rates(attack: float | None = 0.5, clean: float = 0.9, **fields: Any) -> Rates:
    """`attack`: the attack success rate; half of the other attacked images are seen as what they are."""
    attacked = (
        {"robust_accuracy": None, "attacked_images": 0} if attack is None else {"robust_accuracy": (1 - attack) / 2}
    )
    known = {"clean_images": 100, "attacked_images": 90, "largest_share": 0.2, "collapsed": False, **attacked}
    return Rates(clean_accuracy=clean, attack_success_rate=attack, **{**known, **fields})


def stage(*epochs: EpochRecord | Rates | float | None, name: str = "poison", **fields: Any) -> StageRecord:
    """`epochs`: as they are, or what was measured after each, or its attack success rate. Those of any stage but
    `poison` are counted from 0, before its first."""
    result = {"poison": "poisoned", "finetune": "finetuned"}.get(name, name)
    known = {"name": name, "result": result, "fingerprint": "f"}
    numbered = enumerate(epochs, start=int(name == "poison"))
    return StageRecord(**{**known, **fields}, epochs=tuple(_epoch(number, one) for number, one in numbered))


def _epoch(number: int, said: EpochRecord | Rates | float | None) -> EpochRecord:
    if isinstance(said, EpochRecord):
        return said
    return EpochRecord(epoch=number, rates=said if isinstance(said, Rates) else rates(said))


def record(condition: Condition | None = None, /, *stages: StageRecord, **fields: Any) -> TrialRecord:
    """A finished one, of a condition or of none that there is."""
    known: dict[str, Any] = {"condition_id": "c", "cell_id": "d", "role": "poisoned", "condition": {}}
    if condition is not None:
        ids = {"condition_id": condition.condition_id, "cell_id": condition.cell_id, "role": condition.role}
        known = ids | {"condition": condition.content()}
    known |= {"status": "finished", "started_ms": 1, "finished_ms": 2, "stages": stages}
    return TrialRecord(**{**known, **fields})


def data(**fields: Any) -> DataRecord:
    """Of a hundred training images, ten of them clean, nine poisoned, and two hundred test images of two classes."""
    counts = {"train_images": 90, "clean_images": 10, "test_images": 200, "poisoned_images": 9, "cover_images": 0}
    return DataRecord(**{"fingerprint": "d", "class_names": ("a", "b"), **counts, **fields})
