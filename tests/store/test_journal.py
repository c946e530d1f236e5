"""The journal: names of metrics, nothing twice, a damaged line costs itself alone."""

from __future__ import annotations

from pathlib import Path

from made_up import rates

from bdray.record import EpochRecord
from bdray.store.condition_folder import ConditionFolder
from bdray.store.file_names import JOURNAL
from bdray.store.journal import Journal, stage_metrics
from bdray.store.storage import Storage

RATES = rates(None, 0.5, robust_accuracy=0.25)


def epoch(number: int, *, images: int = 20) -> EpochRecord:
    return EpochRecord(
        epoch=number, loss=1.5, penalty=0.0, accuracy=0.4, rates=RATES, images=images, finished_ms=number
    )


def folder(path: Path) -> ConditionFolder:
    return ConditionFolder(Storage.open(path), "0123456789ab")


def test_metrics_of_the_standard_stages_have_the_names_of_the_contract() -> None:
    trained = {"loss", "penalty", "accuracy"}
    cost = {"images_per_second", "stage_seconds", "peak_memory_bytes"}
    rates = {"clean_accuracy", "robust_accuracy"}
    ((_, poison),) = stage_metrics("poison", "poisoned", [epoch(1)])
    assert set(poison) == {f"train/{n}" for n in trained} | {f"cost/{n}" for n in cost} | {
        f"poisoned/{n}" for n in rates
    }
    ((_, tuned),) = stage_metrics("finetune", "finetuned", [epoch(1)])
    assert {name for name in tuned if name.startswith("finetuned/")} == {f"finetuned/{n}" for n in rates}
    assert not set(tuned) & set(poison)


def test_what_trains_nothing_has_rates_alone() -> None:
    ((_, pruned),) = stage_metrics("prune", "pruned", [epoch(1, images=0)])
    assert pruned == {"pruned/clean_accuracy": 0.5, "pruned/robust_accuracy": 0.25}


def test_an_epoch_told_again_adds_nothing(tmp_path: Path) -> None:
    journal = Journal(folder(tmp_path))
    journal.add("poison", "poisoned", [epoch(1)])
    journal.add("poison", "poisoned", [epoch(1), epoch(2)])
    text = (tmp_path / "conditions/0123456789ab" / JOURNAL).read_bytes()
    again = Journal(folder(tmp_path))
    again.add("poison", "poisoned", [epoch(1), epoch(2)])
    assert [entry["step"] for entry in again.entries] == [1, 2]
    assert (tmp_path / "conditions/0123456789ab" / JOURNAL).read_bytes() == text


def test_a_line_that_was_cut_off_is_written_again(tmp_path: Path) -> None:
    journal = Journal(folder(tmp_path))
    journal.add("poison", "poisoned", [epoch(1), epoch(2)])
    path = tmp_path / "conditions/0123456789ab" / JOURNAL
    whole = path.read_bytes()
    path.write_bytes(whole[:-10])
    mended = Journal(folder(tmp_path))
    assert [entry["step"] for entry in mended.entries] == [1]
    mended.add("poison", "poisoned", [epoch(1), epoch(2)])
    assert path.read_bytes() == whole
    assert len(list(path.parent.glob(f"{JOURNAL}.damaged-*"))) == 1
