"""What a search looks at: numbers of a record, by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from bdray.condition import Condition, flatten
from bdray.errors import nearest
from bdray.record import RATES, FloorRecord, Rates, TrialRecord, facts_of
from bdray.results.took import TOOK_AT, took
from bdray.searches.domain import lookup

DROP = "clean_accuracy_drop"
"""Clean accuracy of the unpoisoned twin, less that of the condition, after the same stage."""

TOOK = "took"
"""Whether the backdoor took (`bdray.results.took`), 1 or 0; its mean over seeds is the share that took."""

VISIBLE = ("l_inf", "psnr_db", "ssim")


@dataclass(frozen=True)
class Metric:
    """A number of a record: `took`, `attack_success_rate`, `repaired/clean_accuracy_drop`, `trigger/l_inf`, or one of
    the condition (`poison.rate`).

    Rates are those of the last epoch of a stage, as everywhere: `poisoned/` after the poison stage (also where nothing
    is said), `repaired/` after the whole repair, and the name of any other stage's result. What collapsed by then is
    not measured: it looks like a perfect attack and is none.
    """

    name: str

    def __post_init__(self) -> None:
        if self.is_path:
            return
        head, _, last = self.name.rpartition("/")
        known = [TOOK, f"repaired/{TOOK}", *RATES, DROP, *(f"trigger/{visible}" for visible in VISIBLE)]
        if not (self.name in (*known, f"poisoned/{TOOK}") or (head not in ("", "trigger") and last in (*RATES, DROP))):
            raise ValueError(f"there is no metric '{self.name}'; {nearest(self.name, known, limit=20)}")

    @property
    def is_path(self) -> bool:
        """Whether it is a number of the condition itself."""
        return "." in self.name

    @property
    def is_took(self) -> bool:
        """Whether it has two values: a training took, or it did not."""
        return self.name.rpartition("/")[2] == TOOK

    @property
    def bounds(self) -> tuple[float, float] | None:
        """What its values lie between, whatever is measured; None where nothing bounds them."""
        if self.is_path or self.name.startswith("trigger/"):
            return None
        return (-1.0, 1.0) if self.name.rpartition("/")[2] == DROP else (0.0, 1.0)

    @property
    def needs_twin(self) -> bool:
        return self.is_took or self.name.rpartition("/")[2] == DROP

    def lacking(self, conditions: Sequence[Condition]) -> str | None:
        """What is wrong where none of these conditions can have it; None where one can."""
        if self.is_path:
            numbers = {
                path
                for condition in conditions
                for path, value in flatten(condition.content()).items()
                if isinstance(value, (int, float)) and not isinstance(value, bool)
            }
            hint = nearest(self.name, numbers)
            return None if self.name in numbers else f"no condition has a number '{self.name}'; {hint}"
        head, _, last = self.name.rpartition("/")
        if head in ("", "trigger", "poisoned", "repaired"):
            return None
        results = {stage.result for condition in conditions for stage in condition.stages} | {"repaired"}
        known = sorted(f"{result}/{last}" for result in results)
        return None if self.name in known else f"no condition has '{self.name}'; {nearest(self.name, known)}"

    def of(
        self, record: TrialRecord, twin: TrialRecord | None = None, others: Sequence[TrialRecord] = ()
    ) -> float | None:
        """Its value; None where the record has none.

        Args:
            twin: the record of the unpoisoned twin.
            others: baselines of the same cell as the twin, for where that was not tested with the record's attack.
        """
        if self.is_path:
            value = lookup(flatten(record.condition), self.name)
            return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
        head, _, last = self.name.rpartition("/")
        if head == "trigger":
            seen = getattr(record.visibility, last, None)
            return None if seen is None else float(seen)
        own = _rates(record, head or "poisoned")
        if self.is_took:
            facts = facts_of(record)
            key = facts and facts.attack
            mine, theirs = (
                [floor for each in baselines if each for floor in each.floors if floor.probe == key]
                for baselines in ([twin], others)
            )
            return self.took(record, *(mine or theirs))
        if not self.needs_twin:
            return None if own is None else getattr(own, last)
        other = _rates(twin, head or "poisoned") if twin else None
        return None if own is None or other is None else other.clean_accuracy - own.clean_accuracy

    def took(self, record: TrialRecord, *floors: FloorRecord | None, at: float = TOOK_AT) -> float | None:
        """1 where the backdoor took, 0 where not; None where that is unclear, or was not measured.

        Args:
            floors: what baselines do under the record's attack; their images are counted together.
            at: see `bdray.results.took`.
        """
        stage: Literal["poisoned", "repaired"] = "repaired" if self.name.startswith("repaired/") else "poisoned"
        own = _rates(record, stage)
        under = [rates for floor in floors if floor is not None and (rates := getattr(floor, stage)) is not None]
        counts = [_successes(rates) for rates in under if not rates.collapsed]
        if own is None or not counts:
            return None
        successes, images = (sum(each) for each in zip(*counts, strict=True))
        answer = took(*_successes(own), successes, images, at)
        return None if answer is None else float(answer)

    def mean(self, records: Sequence[tuple[TrialRecord, TrialRecord | None]]) -> float | None:
        """Its mean over replicates and their twins; None where one of them has none or did not finish."""
        values = [self.of(record, twin) if record.status == "finished" else None for record, twin in records]
        known = [value for value in values if value is not None]
        return fmean(known) if values and len(known) == len(values) else None


@dataclass(frozen=True)
class Goal:
    """A metric and where it should go: `maximize poisoned/attack_success_rate`."""

    direction: Literal["maximize", "minimize"]
    metric: Metric

    @classmethod
    def parse(cls, text: str) -> Goal:
        """Raises `ValueError` for anything else."""
        word, _, name = text.strip().partition(" ")
        if word not in ("maximize", "minimize") or not name.strip():
            raise ValueError(f"'{text}' is no goal: write 'maximize METRIC' or 'minimize METRIC'")
        return cls("maximize" if word == "maximize" else "minimize", Metric(name.strip()))

    def __str__(self) -> str:
        return f"{self.direction} {self.metric.name}"


@dataclass(frozen=True)
class Bound:
    """What a metric must hold: `clean_accuracy_drop <= 0.01`."""

    metric: Metric
    sign: Literal["<=", ">="]
    limit: float

    @classmethod
    def parse(cls, text: str) -> Bound:
        """Raises `ValueError` for anything else."""
        found = re.fullmatch(r"\s*(\S+)\s*(<=|>=)\s*([-+0-9.eE]+)\s*", text)
        if found is None:
            raise ValueError(f"'{text}' is no constraint: write 'METRIC <= NUMBER' or 'METRIC >= NUMBER'")
        return cls(Metric(found[1]), "<=" if found[2] == "<=" else ">=", float(found[3]))

    def violation(self, value: float) -> float:
        """By how much a value breaks it; 0 or less where it holds."""
        return value - self.limit if self.sign == "<=" else self.limit - value

    def __str__(self) -> str:
        return f"{self.metric.name} {self.sign} {self.limit:g}"


def twin_id(condition: Condition) -> str:
    """The id of the unpoisoned twin."""
    return condition.baseline().condition_id


def _rates(record: TrialRecord, result: str) -> Rates | None:
    """What was measured after a stage; None where there is nothing, and where the model had collapsed by then."""
    stages = () if record.status == "pruned" else record.stages
    named = [index for index, stage in enumerate(stages) if stage.result == result]
    if result == "repaired":
        named = [len(stages) - 1] if len(stages) > 1 else []
    ends = [stage.last.rates if stage.last else None for stage in stages[: named[-1] + 1]] if named else [None]
    return None if any(rates is not None and rates.collapsed for rates in ends) else ends[-1]


def _successes(rates: Rates) -> tuple[int, int]:
    """Attacked images that are classified as the attacker wants, and all of them."""
    return round((rates.attack_success_rate or 0.0) * rates.attacked_images), rates.attacked_images
