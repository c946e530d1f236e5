"""One experimental setting: immutable, validated, hashable, and named by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SerializeAsAny, ValidationError

from bdray.data.base import DATASETS, DataSet
from bdray.data.clean import Clean
from bdray.errors import ComponentError, ConditionError, nearest
from bdray.models.base import ARCHITECTURES, Architecture
from bdray.plugins import digest_of, source_of
from bdray.poisoning.base import STRATEGIES, Poison
from bdray.poisoning.classes import class_options, index_of
from bdray.recipes import Finetune, Train
from bdray.registry import Component, Identified, Registry, explain
from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.repairs.base import REPAIRS, Repair, RepairStage, Training
from bdray.triggers.base import TRIGGERS, Trigger
from bdray.triggers.variations import Variation

SCHEMA = 2
"""Part of every id and fingerprint; raised when ids are made in another way, which orphans every result. What only
changes its own meaning raises its own `VERSION` instead."""

MAX_SEED = 2**63 - 1
"""Tables keep seeds as whole numbers of 64 bits."""

TEST_TRIGGER = "test_trigger"
"""The option of a strategy that no training sees."""

TRAINING_ONLY = frozenset({"rate", "rate_of", "mode", "cover_rate", "stamp"})
"""Options of a strategy that a test set does not see."""

COMPONENTS: dict[str, Registry[Any]] = {
    "data": DATASETS,
    "model": ARCHITECTURES,
    "trigger": TRIGGERS,
    "poison": STRATEGIES,
    "regularizer": REGULARIZERS,
    "repair": REPAIRS,
}
"""The kinds of component, by the section of a condition that holds one."""


def _builder(name: str, registry: Registry[Any]) -> Callable[[Any], Any]:
    def build(content: Any) -> Any:
        if not isinstance(content, (Mapping, str, Component)):
            raise ConditionError(name, f"must be a mapping, got {content!r}")
        try:
            return registry.build(content)
        except ComponentError as error:
            # Pydantic passes on whatever is no ValueError.
            raise error.below(name) from None

    return build


def _section(name: str, registry: Registry[Any]) -> BeforeValidator:
    return BeforeValidator(_builder(name, registry))


def _optional(name: str, registry: Registry[Any]) -> BeforeValidator:
    build = _builder(name, registry)
    return BeforeValidator(lambda content: None if content is None else build(content))


@dataclass(frozen=True)
class PlannedStage:
    """A stage that a condition goes through.

    Attributes:
        name: `poison`, then the repair's own ("finetune", "prune").
        result: what the model is afterwards ("poisoned", "finetuned"): the prefix of its metrics.
        fingerprint: made of all that the model after this stage depends on.
        shared: the model is kept for other conditions, which may go another way from here.
    """

    name: str
    result: str
    fingerprint: str
    shared: bool


class Condition(Identified):
    """One experimental setting. Build it with `Condition.parse`, which explains what is wrong."""

    data: Annotated[SerializeAsAny[DataSet], _section("data", DATASETS)]
    model: Annotated[SerializeAsAny[Architecture], _section("model", ARCHITECTURES)]
    trigger: Annotated[SerializeAsAny[Trigger] | None, _optional("trigger", TRIGGERS)] = None
    """None only where nothing is poisoned."""
    poison: Annotated[SerializeAsAny[Poison], _section("poison", STRATEGIES)] = Field(
        default_factory=lambda: STRATEGIES.build("all_to_one")
    )
    regularizer: Annotated[SerializeAsAny[Regularizer], _section("regularizer", REGULARIZERS)] = Field(
        default_factory=lambda: REGULARIZERS.build("none")
    )
    train: Train = Train()
    repair: Annotated[SerializeAsAny[Repair], _section("repair", REPAIRS)] = Field(
        default_factory=lambda: REPAIRS.build("finetune")
    )
    finetune: Finetune = Finetune()
    clean: Clean = Clean()
    seed: int = Field(default=0, ge=0, le=MAX_SEED)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Condition:
        """A validated condition from nested content, in which a class may be named wherever its index is meant.

        A section `evaluate` is passed over: conditions had one before questions were no part of them.

        Raises:
            ConditionError: with the dotted path and the nearest valid name.
        """
        content = {section: options for section, options in content.items() if section != "evaluate"}
        poison = content.get("poison")
        if isinstance(poison, Mapping) and "strategy" not in poison:
            content["poison"] = {"strategy": "all_to_one", **poison}
        content = {**content, **_with_test_trigger(content)}
        for required in ("data", "model"):
            if required not in content:
                raise ConditionError(f"{required}.name", f"is missing: every condition needs a {required}")
        try:
            condition = cls.model_validate(_with_indices(content))
        except ValidationError as error:
            raise ConditionError(*_explain_section(error)) from None
        condition.check()
        return condition

    def check(self) -> None:
        """What no section can check alone.

        Raises:
            ConditionError: sections that do not go together.
        """
        if self.trigger is None and not self.is_baseline:
            raise ConditionError("trigger.name", "is missing: a condition that poisons needs a trigger")
        checks: list[tuple[str, Callable[[], None]]] = [
            ("model", lambda: self.model.check(self.data.image_size)),
            ("regularizer", lambda: self.regularizer.check(self.model.MIXING_POINTS)),
        ]
        if self.train.given is not None and not Path(self.train.given).is_file():
            raise ConditionError("train.given", f"there is no file {self.train.given}")
        if self.trigger and any(one.ONLY_ORIGINALS for one in self.trigger.members):
            self._check_originals(self.trigger.name)
        if self.clean.root is not None and self.finetune.split != "held_out":
            problem = "means clean versions of training images, but the clean set is drawn from clean.root"
            raise ConditionError("finetune.split", f"{self.finetune.split} {problem}: leave one of the two out")
        if (other := self._unmixable) is not None:
            problem = f"cutmix mixes batches and their labels, and regularizer '{other}' mixes them or compares labels"
            raise ConditionError("train.augment", f"{problem}: they cannot go together")
        if self.finetune.augment == "cutmix" and self.repair.USES_LABELS:
            problem = f"cutmix mixes batches and their labels, and repair '{self.repair.name}' looks at each label"
            raise ConditionError("finetune.augment", f"{problem}: they cannot go together")
        if (classes := self.data.NUM_CLASSES) is not None:
            checks.append(("poison", lambda: self.poison.check(classes)))
        for section, check in checks:
            try:
                check()
            except ComponentError as error:
                raise error.below(section) from None

    def _check_originals(self, trigger: str) -> None:
        said = f"the trigger '{trigger}' stamps the data set's own pictures alone"
        if self.poison.stamp == "after_augmentation":
            raise ConditionError("poison.stamp", f"{said}, and after crop and flip they are others")
        if self.poison.surrogate_recipe is not None:
            raise ConditionError("poison.perturbation", f"{said}, and no perturbed ones")

    @property
    def checked_by(self) -> tuple[object, ...]:
        """All that `check` looks at: of conditions whose components are the same objects, those that agree in this need
        one check."""
        components = (id(getattr(self, section)) for section in COMPONENTS)
        recipes = (self.train.given, self.train.augment, self.finetune.augment, self.finetune.split)
        return (*components, *recipes, self.clean.root)

    @property
    def _unmixable(self) -> str | None:
        """The regularizer beside which batches cannot be mixed, where they are to be."""
        parts = self.regularizer.members if self.train.augment == "cutmix" else ()
        return next((part.name for part in parts if part.MIXES or part.USES_LABELS), None)

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is poisoned."""
        return self.poison.rate == 0.0 and self.poison.cover_rate == 0.0

    @property
    def test_trigger(self) -> Trigger | None:
        """What test images are stamped with; None only where nothing is poisoned."""
        return self.poison.test_trigger or (self.trigger and self.trigger.test_trigger)

    @property
    def attack(self) -> str:
        """Names its attack, see `attack_key`."""
        return attack_key(self.test_trigger, self.poison)

    @property
    def role(self) -> Literal["baseline", "poisoned"]:
        return "baseline" if self.is_baseline else "poisoned"

    @property
    def held_out_fraction(self) -> float:
        """Fraction of the training set that the poison stage never sees."""
        is_own = self.finetune.split == "held_out" and self.clean.root is None
        wanted = self.clean_fraction if is_own else 0.0
        return max(self.data.clean_pool, wanted)

    @property
    def is_repaired(self) -> bool:
        """Whether anything is done to the model after the poison stage: `none` has no stage, `finetune` may have no
        epoch."""
        return any(not isinstance(stage, Training) or stage.recipe.epochs for stage in self.repair_stages)

    @property
    def clean_fraction(self) -> float:
        """Size of the clean set as a fraction of the training set; 0 where none is set aside."""
        return self.finetune.fraction if self.repair.uses_clean_data(self.finetune) else 0.0

    @property
    def asked_fraction(self) -> float:
        """Size of the clean set that detectors get, as a fraction of the training set. Where the repair uses none it is
        what `finetune` says, so that all conditions of one poisoned model ask alike; 0 where the poison stage has been
        left no room for that, which a set from a folder of its own (`clean.root`) does not need."""
        if self.clean_fraction:
            return self.clean_fraction
        needs_room = self.clean.root is None and self.finetune.split == "held_out"
        has_room = not needs_room or self.finetune.fraction <= self.held_out_fraction
        return self.finetune.fraction if has_room else 0.0

    @property
    def clean_identity(self) -> list[Any]:
        """JSON content that says which clean set the repair has, beside data and seed."""
        return self._identity_of_clean(self.clean_fraction)

    @property
    def asked_identity(self) -> list[Any]:
        """The same of the clean set that detectors get."""
        return self._identity_of_clean(self.asked_fraction)

    def _identity_of_clean(self, fraction: float) -> list[Any]:
        own = self.clean.identity()
        return [fraction, self.finetune.split, *([own] if own else [])]

    @cached_property
    def repair_stages(self) -> tuple[RepairStage, ...]:
        """What is done to the model after the poison stage."""
        return tuple(self.repair.stages(self.finetune))

    def baseline(self) -> Condition:
        """The unpoisoned twin: everything that does not say how to poison is the same."""
        unpoisoned = STRATEGIES.build({"strategy": "all_to_one", "rate": 0.0})
        kept = {name: getattr(self, name) for name in Condition.model_fields}
        # Not model_copy: that would carry the cached ids over.
        changed: dict[str, Any] = {"trigger": None, "poison": unpoisoned}
        if self.train.given is not None:
            changed["train"] = self.train.trained()
        return Condition.model_construct(**{**kept, **changed})

    @property
    def foreign(self) -> dict[str, type[Component]]:
        """The components from outside the package, by kind and name: "trigger corner_dot", and from `VERSION` 2 on
        "trigger corner_dot@2"."""
        return foreign_of([self])

    @property
    def sources(self) -> dict[str, str]:
        """Digests of the source of those: no part of the id, but of what was measured."""
        return sources_of(self.foreign)

    def content(self) -> dict[str, Any]:
        """The resolved content as nested JSON: what `condition.json` holds and `parse` reads back."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """The resolved content by dotted path (`trigger.size`)."""
        return flatten(self.content())

    @cached_property
    def _cell(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **{key: value for key, value in self.identity().items() if key != "seed"}}

    @cached_property
    def cell_id(self) -> str:
        """12 hex digits of SHA-256 over the scientific content without the seed."""
        return digest(self._cell)

    @cached_property
    def condition_id(self) -> str:
        """12 hex digits of SHA-256 over the scientific content."""
        return digest({**self._cell, "seed": self.seed})

    @cached_property
    def poison_fingerprint(self) -> str:
        """Names the poison stage: conditions with the same one share one poisoned model."""
        later = ("finetune", "repair", "clean", *(("trigger", "poison") if self.is_baseline else ()))
        content = {key: value for key, value in self._cell.items() if key not in later}
        content["data"] = _without("clean_pool", content["data"])
        if "poison" in content:
            content["poison"] = _without(TEST_TRIGGER, content["poison"])
        return digest({**content, "held_out": self.held_out_fraction, "seed": self.seed, "stage": "poison"})

    @cached_property
    def stages(self) -> tuple[PlannedStage, ...]:
        """All stages in their order. The last one of a repair is this condition's own: what it trains is measured under
        this condition's attack, and nothing goes on from there."""
        planned = [PlannedStage("poison", "poisoned", self.poison_fingerprint, shared=True)]
        for step in self.repair_stages:
            shared = step is not self.repair_stages[-1]
            content = {**step.identity(), "after": planned[-1].fingerprint, "clean": self.clean_identity}
            fingerprint = digest(content if shared else {**content, "condition": self.condition_id})
            planned.append(PlannedStage(step.name, step.result, fingerprint, shared))
        return tuple(planned)

    @property
    def shared_fingerprints(self) -> tuple[str, ...]:
        """Of the stages whose models are kept for other conditions."""
        return tuple(stage.fingerprint for stage in self.stages if stage.shared)


def foreign_of(conditions: Sequence[Condition], detect: Sequence[Component] = ()) -> dict[str, type[Component]]:
    """`Condition.foreign` of several; sections that they share are looked at once. `detect`: detectors beside them
    ("detector mine"), which are no part of conditions."""
    sections = {
        id(part): (name, part) for one in conditions for name in COMPONENTS if (part := getattr(one, name)) is not None
    }
    sections |= {id(detector): ("detector", detector) for detector in detect}
    found = [(name, part) for name, section in sections.values() for part in foreign_in(section)]
    return {
        f"{name} {part.name}" + (f"@{part.VERSION}" if part.VERSION > 1 else ""): type(part) for name, part in found
    }


def sources_of(components: Mapping[str, type[Component]]) -> dict[str, str]:
    """Digests of the source of each."""
    return {name: digest_of(source_of(cls.__module__)) for name, cls in components.items()}


def foreign_in(value: Any) -> Iterator[Component]:
    """The components from outside the package that `value` is or holds."""
    if isinstance(value, Component) and not type(value).__module__.startswith("bdray."):
        yield value
    if isinstance(value, Identified):
        value = tuple(getattr(value, name) for name in type(value).model_fields)
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from foreign_in(item)


def _without(name: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in content.items() if key != name}


def _with_test_trigger(content: Mapping[str, Any]) -> dict[str, Any]:
    """The sections of a condition whose `poison.test_trigger` says only in which options test images are stamped
    otherwise: with all of that trigger."""
    poison, trigger = content.get("poison"), content.get("trigger")
    if not isinstance(poison, Mapping):
        return {}
    options = poison.get(TEST_TRIGGER)
    if not isinstance(options, Mapping) or TRIGGERS.name_key in options or trigger is None:
        return {}
    built: Trigger = _builder("trigger", TRIGGERS)(trigger)
    usual = built.test_trigger.model_dump(mode="json")
    if "path" in options:
        # Of another file.
        usual.pop("sha256", None)
    return {"trigger": built, "poison": {**poison, TEST_TRIGGER: {**usual, **options}}}


def _with_indices(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The content with the index of every class that it names.

    Raises:
        ConditionError: there is no such class.
    """
    poison = content.get("poison")
    if not isinstance(poison, Mapping):
        return content
    options = class_options(poison["strategy"])
    if not any(isinstance(poison.get(option), str) for option in options):
        return content
    data: DataSet = _builder("data", DATASETS)(content["data"])
    names = data.class_names()
    indices: dict[str, int] = {}
    for option in options:
        if isinstance(name := poison.get(option), str):
            try:
                indices[option] = index_of(name, names, data.name)
            except ComponentError as error:
                raise ConditionError(f"poison.{option}", error.problem) from None
    return {**content, "data": data, "poison": {**poison, **indices}}


def digest(content: Mapping[str, Any]) -> str:
    """The first 12 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def attack_key(trigger: Trigger | None, poison: Poison, variation: Variation = "whole") -> str:
    """12 hex digits that name an attack as a test set sees it: by the trigger that this is stamped with."""
    wanted = {key: value for key, value in poison.identity().items() if key not in {*TRAINING_ONLY, TEST_TRIGGER}}
    content = {"trigger": trigger.identity() if trigger else None, "poison": wanted}
    return digest(content if variation == "whole" else {**content, "variation": variation})


class Section(dict[str, Any]):
    """A section of the content of many conditions, which is flattened once."""

    __slots__ = ("_flat",)

    def flat(self, prefix: str) -> Mapping[str, Any]:
        """As `flatten`; the same prefix every time."""
        if not hasattr(self, "_flat"):
            self._flat = flatten(dict(self), prefix)
        return self._flat


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries by dotted path; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Section):
            flat.update(value.flat(f"{path}."))
        # Not Mapping: whether a number is one takes longer than all the rest, and every row of every table asks.
        elif isinstance(value, dict):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def _explain_section(error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        word = str(first["loc"][0])
        return word, f"there is no section '{word}'; {nearest(word, Condition.model_fields)}"
    return explain(error, Condition, "")
