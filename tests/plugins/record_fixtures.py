"""Records as a sweep leaves them, made up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from made_up import rates, record, stage

from bdray.condition import Condition, attack_key
from bdray.record import (
    ErrorRecord,
    FloorRecord,
    Rates,
    StageRecord,
    TrialRecord,
    Visibility,
    persistence_of,
)
from bdray.store.labels import warning_for

IMAGES = 1000

MakeRecord = Callable[..., TrialRecord]


def _rates(clean: float, attack: float | None, *, collapsed: bool = False) -> Rates:
    largest = 0.95 if collapsed else 0.12
    return rates(attack, clean, clean_images=IMAGES, attacked_images=IMAGES, largest_share=largest, collapsed=collapsed)


def _condition(seed: int, trigger: Any, rate: float, sections: Mapping[str, Any]) -> Condition:
    content = {"data": "digits", "model": "resnet8", "poison": {"rate": rate}, "seed": seed, **sections}
    return Condition.parse(content | ({"trigger": trigger} if trigger else {}))


def _stages(
    condition: Condition, curve: Sequence[float], clean: float, tuned: float, *, collapsed: bool, fell: bool
) -> tuple[StageRecord, ...]:
    before = _rates(clean, curve[0], collapsed=collapsed)
    after = [_rates(tuned if k else clean, rate, collapsed=fell and k > 0) for k, rate in enumerate(curve)]
    return (
        stage(before, fingerprint=condition.poison_fingerprint),
        stage(*after, name="finetune", fingerprint=condition.stages[-1].fingerprint),
    )


@pytest.fixture(scope="session")
def make_record() -> MakeRecord:
    def make(
        curve: Sequence[float] = (0.9, 0.5, 0.05),
        *,
        seed: int = 0,
        trigger: Any = "patch",
        rate: float = 0.1,
        clean: float = 0.9,
        tuned: float = 0.91,
        status: str = "finished",
        collapsed: bool = False,
        collapsed_in_repair: bool = False,
        error: ErrorRecord | None = None,
        **sections: Any,
    ) -> TrialRecord:
        """`curve`: attack success rate before fine-tuning and after each of its epochs."""
        condition = _condition(seed, trigger, rate, sections)
        stages = (
            ()
            if status == "failed"
            else _stages(condition, curve, clean, tuned, collapsed=collapsed, fell=collapsed_in_repair)
        )
        return record(
            condition,
            *stages,
            status=status,
            error=error,
            started_ms=1_700_000_000_000,
            finished_ms=1_700_000_600_000,
            visibility=Visibility(l_inf=255.0, l_inf_mean=200.5, psnr_db=21.5, ssim=0.997, unchanged_images=0),
            persistence=persistence_of(stages[1:]),
            environment={"bdray": "0.1.0", "device": "cpu: test"},
            warning=warning_for(condition),
        )

    return make


@pytest.fixture(scope="session")
def make_baseline(make_record: MakeRecord) -> MakeRecord:
    def make(
        attacked: Sequence[TrialRecord] = (), floor: float = 0.02, after: float | None = None, **options: Any
    ) -> TrialRecord:
        """The baseline of `options`, tested under the attacks of `attacked`; `after`: its floor after the repair."""
        made = make_record((0.0, 0.0, 0.0), trigger=None, rate=0.0, **options)
        floors = []
        for other in attacked:
            condition = Condition.parse(other.condition)
            floors.append(
                FloorRecord(
                    probe=attack_key(condition.trigger, condition.poison),
                    trigger=other.condition["trigger"],
                    poison=other.condition["poison"],
                    poisoned=_rates(0.9, floor),
                    repaired=_rates(0.9, floor if after is None else after),
                )
            )
        return made.model_copy(update={"floors": tuple(floors)})

    return make
