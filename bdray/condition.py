"""One experimental setting: immutable, validated, hashable, and named by its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny, ValidationError

from bdray.data.base import DATASETS, DataSet
from bdray.errors import ComponentError, ConditionError, nearest
from bdray.models.base import ARCHITECTURES, Architecture
from bdray.poisoning.base import STRATEGIES, Poison
from bdray.registry import Component, Registry, explain
from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.triggers.base import TRIGGERS, Trigger

SCHEMA = 1
"""Part of every id and fingerprint; raised when the meaning of a field changes."""

COMPONENTS: dict[str, Registry[Any]] = {
    "data": DATASETS,
    "model": ARCHITECTURES,
    "trigger": TRIGGERS,
    "poison": STRATEGIES,
    "regularizer": REGULARIZERS,
}
"""The kinds of component, by the section of a condition that holds one."""

Precision = Literal["auto", "bfloat16", "float32"]


class Section(BaseModel):
    """A frozen part of a condition."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, validate_default=True)


class Evaluation(Section):
    """When and on how much a stage is evaluated. The last epoch always uses the whole test set."""

    every: int = Field(default=1, ge=1)
    """Evaluate after every so many epochs."""
    test_limit: int | None = Field(default=None, ge=1)
    """Between first and last epoch, use only this many test images."""


Layers = Literal["all", "head", "batch_norm"]
"""Which parameters are trained."""


class Optimization(Section):
    """How one stage trains: what both stages have in common."""

    batch_size: int = Field(default=128, ge=2)
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` is with Nesterov momentum."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    weight_decay: float = Field(default=5e-4, ge=0.0)
    schedule: Literal["one_cycle", "cosine", "constant"] = "one_cycle"
    augment: Literal["auto", "none", "crop", "crop_flip"] = "auto"
    """Random crop after reflecting 1/8 of the side, and horizontal flip; `auto` is the data set's own choice."""
    precision: Precision = "auto"
    """`auto` is bfloat16 autocast where the device computes it natively, else float32."""
    compile: bool = False
    """Train through `torch.compile`."""
    evaluate: Evaluation = Evaluation()


class Train(Optimization):
    """The poison stage: train from scratch on poisoned data."""

    epochs: int = Field(default=30, ge=1)
    lr: float = Field(default=0.1, gt=0.0)
    """Peak learning rate."""


class Finetune(Optimization):
    """The clean fine-tuning stage: retrain the poisoned model on a little clean data."""

    epochs: int = Field(default=10, ge=0)
    """0 leaves the stage out (but for the evaluation before it)."""
    lr: float = Field(default=0.01, gt=0.0)
    fraction: float = Field(default=0.05, gt=0.0, le=1.0)
    """Size of the clean set, as a fraction of the whole training set."""
    split: Literal["held_out", "train_clean"] = "held_out"
    """`held_out`: images the poison stage never saw; `train_clean`: clean versions of images it trained on."""
    layers: Layers = "all"
    """Which parameters are trained. Running statistics of batch normalisation follow the clean data in any case."""


class _NestedComponentError(Exception):
    """Carries a component's error through pydantic, which would swallow its path."""

    def __init__(self, section: str, error: ComponentError) -> None:
        self.section, self.error = section, error
        super().__init__(str(error))


def _section(name: str, registry: Registry[Any]) -> BeforeValidator:
    def build(content: Any) -> Any:
        if not isinstance(content, (Mapping, str, Component)):
            raise _NestedComponentError(name, ComponentError("", f"must be a mapping, got {content!r}"))
        try:
            return registry.build(content)
        except ComponentError as error:
            raise _NestedComponentError(name, error) from None

    return BeforeValidator(build)


def _optional(name: str, registry: Registry[Any]) -> BeforeValidator:
    build: Callable[[Any], Any] = _section(name, registry).func  # type: ignore[assignment]
    return BeforeValidator(lambda content: None if content is None else build(content))


class Condition(Section):
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
    finetune: Finetune = Finetune()
    seed: int = Field(default=0, ge=0)

    @classmethod
    def parse(cls, content: Mapping[str, Any]) -> Condition:
        """A validated condition from nested content.

        Raises:
            ConditionError: with the dotted path and the nearest valid name.
        """
        content = dict(content)
        poison = content.get("poison")
        if isinstance(poison, Mapping) and "strategy" not in poison:
            content["poison"] = {"strategy": "all_to_one", **poison}
        for required in ("data", "model"):
            if required not in content:
                raise ConditionError(f"{required}.name", f"is missing: every condition needs a {required}")
        try:
            condition = cls.model_validate(content)
        except _NestedComponentError as nested:
            raise _below(nested.section, nested.error) from None
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
        if (classes := self.data.NUM_CLASSES) is not None:
            checks.append(("poison", lambda: self.poison.check(classes)))
        for section, check in checks:
            try:
                check()
            except ComponentError as error:
                raise _below(section, error) from None

    @property
    def is_baseline(self) -> bool:
        """Whether nothing is poisoned."""
        return self.poison.rate == 0.0 and self.poison.cover_rate == 0.0

    @property
    def role(self) -> Literal["baseline", "poisoned"]:
        return "baseline" if self.is_baseline else "poisoned"

    @property
    def held_out_fraction(self) -> float:
        """Fraction of the training set that the poison stage never sees."""
        wanted = self.finetune.fraction if self.finetune.split == "held_out" and self.finetune.epochs else 0.0
        return max(self.data.clean_pool, wanted)

    def baseline(self) -> Condition:
        """The unpoisoned twin: everything that does not say how to poison is the same."""
        unpoisoned = STRATEGIES.build({"strategy": "all_to_one", "rate": 0.0})
        kept = {name: getattr(self, name) for name in Condition.model_fields}
        # Not model_copy: that would carry the cached ids over.
        return Condition.model_construct(**{**kept, "trigger": None, "poison": unpoisoned})

    def content(self) -> dict[str, Any]:
        """The resolved content as nested JSON: what `condition.json` holds and `parse` reads back."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, Any]:
        """The resolved content by dotted path (`trigger.size`)."""
        return flatten(self.content())

    @cached_property
    def _sections(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "data": self.data.identity(),
            "model": self.model.identity(),
            "trigger": self.trigger.identity() if self.trigger else None,
            "poison": self.poison.identity(),
            "regularizer": self.regularizer.identity(),
            "train": self.train.model_dump(mode="json"),
            "finetune": self.finetune.model_dump(mode="json"),
        }

    @cached_property
    def cell_id(self) -> str:
        """12 hex digits of SHA-256 over the scientific content without the seed."""
        return digest(self._sections)

    @cached_property
    def condition_id(self) -> str:
        """12 hex digits of SHA-256 over the scientific content."""
        return digest({**self._sections, "seed": self.seed})

    @cached_property
    def poison_fingerprint(self) -> str:
        """Names the poison stage: conditions with the same one share one poisoned model."""
        content = {key: value for key, value in self._sections.items() if key != "finetune"}
        content["data"] = {k: v for k, v in content["data"].items() if k != "clean_pool"}
        content["held_out"] = self.held_out_fraction
        if self.is_baseline:
            content["trigger"], content["poison"] = None, None
        return digest({**content, "seed": self.seed, "stage": "poison"})

    @cached_property
    def finetune_fingerprint(self) -> str:
        """Names the fine-tuning stage."""
        return digest({"condition": self.condition_id, "stage": "finetune"})


def digest(content: Mapping[str, Any]) -> str:
    """The first 12 hex digits of SHA-256 over canonical JSON."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def flatten(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted path; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in content.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{path}."))
        else:
            flat[path] = value
    return flat


def _below(section: str, error: ComponentError) -> ConditionError:
    return ConditionError(f"{section}.{error.path}" if error.path else section, error.problem)


def _explain_section(error: ValidationError) -> tuple[str, str]:
    first = error.errors()[0]
    if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
        word = str(first["loc"][0])
        return word, f"there is no section '{word}'; {nearest(word, Condition.model_fields)}"
    section = str(first["loc"][0])
    return explain(error, Condition, section)
