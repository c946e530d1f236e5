"""A condition made concrete: its data on the device, its poison plan, its test sets, its model and the stages that
train it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from bdray.attacks import Probe
from bdray.condition import Condition
from bdray.data.arrays import ImageData
from bdray.data.duplicates import image_digests
from bdray.data.splits import CleanSplit, split_clean
from bdray.errors import ComponentError, DataError
from bdray.models.networks.taps import taps_of
from bdray.poisoning.base import Poison, PoisonPlan
from bdray.poisoning.pgd import Adversary
from bdray.poisoning.poison_plan import make_poison_plan, require_some
from bdray.poisoning.stamping import AttackSet, PoisonedSet, apply_plan, attack_set, unstamped
from bdray.randomness import watched, watching
from bdray.recipes import Finetune, Resolved, Train
from bdray.record import (
    NAMED,
    DataRecord,
    DuplicatesRecord,
    StageName,
    ValidationRecord,
)
from bdray.regularizers.base import Regularizer
from bdray.seeds import derive_seed, stream
from bdray.shares import comes_to_nothing
from bdray.training.batches import DataPlace, FromHost, choose_place
from bdray.training.device import Compute, make_compute
from bdray.training.evaluation import Normalization, TestSet
from bdray.training.loop import Stage
from bdray.trial.survival import trigger_kept
from bdray.triggers.base import Trigger
from bdray.triggers.variations import vary

NO_INDICES = np.empty(0, dtype=np.int64)
NOTHING = PoisonPlan(NO_INDICES, NO_INDICES, NO_INDICES, NO_INDICES)
"""A plan that poisons nothing."""


@dataclass(frozen=True)
class Experiment:
    """Everything a condition's stages need, on one device.

    Attributes:
        data: the arrays as loaded (in host memory, memory-mapped).
        place: where pictures lie: on the device, or on the host, from where batches are fetched ahead.
        images, labels: the training arrays in that place.
        split: who trains on what; positions in the whole training set, but for the clean set that `pool` holds.
        pool: the clean set's pictures and true labels, on the host, where it comes from another folder.
        pool_duplicates: how many of these are test images too.
        cache: folder of decoded data sets; None: the user's.
        plan: the poison plan; positions in the whole training set.
        test: the test set, with triggered images; its labels on the device, its pictures in that place.
        unchanged_tests: how many triggered test images are as they were.
        largest_change: of any value in any triggered test image, in levels 0..255.
        perturbed: what is stamped instead of the poisoned originals, uint8, in step with `plan.indices`.
        adversary: moves the images of the poison stage (adversarial training of a surrogate).
        auto: what `precision: auto` comes to.
        compiled: what `compile: auto` comes to.
    """

    condition: Condition
    compute: Compute
    data: ImageData
    place: DataPlace
    images: torch.Tensor
    labels: torch.Tensor
    split: CleanSplit
    plan: PoisonPlan
    test: TestSet
    unchanged_tests: int
    largest_change: int
    max_batches: int | None = None
    perturbed: torch.Tensor | None = None
    adversary: Adversary | None = None
    auto: Resolved = "float32"
    compiled: bool = False
    pool: tuple[torch.Tensor, torch.Tensor] | None = None
    pool_duplicates: int | None = None
    cache: Path | None = None

    @classmethod
    def prepare(
        cls,
        condition: Condition,
        device: torch.device,
        cache: Path | None = None,
        max_batches: int | None = None,
        place: DataPlace | None = None,
        *,
        auto: Resolved = "float32",
    ) -> Experiment:
        """Load, split, plan and stamp.

        Args:
            cache: folder of decoded data sets; None: the user's.
            max_batches: cut every epoch short.
            place: where pictures should lie; None: on the device where they fit well, else on the host.
            auto: what `precision: auto` comes to.

        Raises:
            DataError, PoisonError, TriggerError, ComponentError: what is wrong with the condition on this data.
        """
        with watching(condition.data, condition.data.title):
            data = condition.data.load(cache)
        watched(condition.poison, condition.poison.title).check(data.num_classes)
        labels = data.train_labels.numpy()
        pool = clean_pool(condition, data, cache, condition.clean_fraction)
        split = split_of(condition, labels, condition.clean_fraction if pool is None else 0.0)
        if pool is not None:
            split = replace(split, clean_indices=np.arange(len(pool[1])))
        plan = _plan(condition, labels[split.train_indices], split.train_indices, data.num_classes)
        place = place or choose_place(_image_bytes(data, plan), device)
        home = device if place == "device" else torch.device("cpu")
        attack = _attack_set(data, condition.test_trigger, condition.poison, condition.seed)
        return cls(
            condition=condition,
            compute=make_compute(condition.train.precision, device, auto),
            data=data,
            place=place,
            images=data.train_images.to(home),
            labels=data.train_labels.to(home),
            split=split,
            plan=plan,
            test=_test_set(data, attack, device, home),
            unchanged_tests=attack.unchanged,
            largest_change=attack.largest_change,
            max_batches=max_batches,
            auto=auto,
            pool=pool,
            pool_duplicates=None if pool is None else _count_tests(condition, pool[0], data),
            cache=cache,
        )

    @property
    def precision(self) -> Resolved:
        """Of the poison stage."""
        return self.compute.precision

    def with_precision(self, auto: Resolved) -> Experiment:
        """The same experiment with another meaning of `precision: auto`."""
        return replace(self, auto=auto, compute=make_compute(self.condition.train.precision, self.compute.device, auto))

    def build_model(self) -> nn.Module:
        """The freshly initialised network, in channels-last memory on the device; its weights come from `init`.

        Raises:
            ConditionError: it cannot take images of this size, or does not see the whole of them, or has not the layers
                that the regularizer names.
            WeightsError: weights were asked for and cannot be had, or do not fit.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(self.condition.seed, "init"))
            architecture = self.condition.model
            try:
                with watching(architecture, architecture.title, seeded=True):
                    model = architecture.build(self.data.num_classes, self.condition.data.image_size)
            except ComponentError as error:
                raise error.below("model") from error
        try:
            # Planning knows the layers of no network of timm's.
            self.condition.regularizer.watched().check(tuple(taps_of(model).points))
        except ComponentError as error:
            raise error.below("regularizer") from error
        return model.to(self.compute.device).to(memory_format=torch.channels_last)

    @property
    def starts_untrained(self) -> bool:
        """Whether `build_model` gives random weights, and none that are made for other pictures."""
        return self.condition.model.weights == "none"

    def poison_stage(self) -> Stage:
        """The stage that trains on poisoned data."""
        recipe = self.condition.train
        stage = self.stage("poison", recipe, self.poisoned_set, self.condition.regularizer, self.compute)
        return replace(stage, adversary=self.adversary, fresh=self.starts_untrained)

    def untouched_stage(self) -> Stage:
        """The poison stage before anything is poisoned, on one batch of its images: what its steps cost."""
        recipe = self.condition.train
        some = self.training_set(NOTHING, self.split.train_indices[: recipe.batch_size])
        stage = self.stage("poison", recipe, some, self.condition.regularizer, self.compute)
        return replace(stage, fresh=self.starts_untrained)

    def stage(
        self,
        name: StageName,
        recipe: Train | Finetune,
        items: PoisonedSet,
        regularizer: Regularizer,
        compute: Compute,
    ) -> Stage:
        return Stage(
            name=name,
            seed=self.condition.seed,
            epochs=recipe.epochs,
            lr=recipe.lr,
            recipe=recipe.model_copy(update={"compile": self.compiled}) if recipe.compile == "auto" else recipe,
            augmentation=recipe.cropping or self.condition.data.AUGMENTATION,
            layers=recipe.layers if isinstance(recipe, Finetune) else "all",
            regularizer=regularizer,
            source=items if self.place == "device" else FromHost(items),
            test=self.test,
            num_classes=self.data.num_classes,
            normalize=self.normalize,
            compute=compute,
            max_batches=self.max_batches,
            late=items.late,
        )

    def probe_test(self, probe: Probe) -> TestSet | None:
        """The triggered images of a probe, without clean ones; None where its variation is no other picture."""
        attack = _attack_set(self.data, probe.trigger, probe.poison, self.condition.seed)
        if probe.variation != "whole":
            clean = self.data.test_images[self.attacked(probe.poison)]
            generator = stream(self.condition.seed, "trigger", "test")
            varied = vary(probe.variation, probe.trigger, clean, generator=generator)
            if varied is None:
                return None
            attack = replace(attack, images=varied, already=None)
        return _test_set(self.data, attack, self.compute.device, self.images.device).attack_only()

    def validate(self, model: nn.Module) -> ValidationRecord | None:
        """The model on the clean pictures that no stage trains on; None where there are none."""
        chosen = torch.from_numpy(self.split.validation_indices)
        if not len(chosen):
            return None
        images, device = self.images.index_select(0, chosen.to(self.images.device)), self.compute.device
        labels = self.labels.index_select(0, chosen.to(self.labels.device)).to(device)
        clean = TestSet(images, labels, images[:0], labels[:0], labels[:0])
        found = replace(self.poison_stage(), test=clean).evaluate(model)
        return ValidationRecord(images=found.evaluated, clean_accuracy=found.clean_accuracy)

    @cached_property
    def poisoned_set(self) -> PoisonedSet:
        """What the poison stage trains on: its images with the poisoned ones laid over, or appended."""
        return self.training_set(self.plan, self.split.train_indices)

    @property
    def stamped_set(self) -> PoisonedSet:
        """The same with everything stamped that ever is."""
        late = self.poisoned_set.late is not None
        return self.training_set(self.plan, self.split.train_indices, late=False) if late else self.poisoned_set

    @property
    def image_bytes(self) -> int:
        """What all pictures take: training and test images, triggered ones included."""
        return _image_bytes(self.data, self.plan)

    @property
    def attack(self) -> str:
        return self.condition.attack

    def describe(self) -> DataRecord:
        """What is trained and tested on, in numbers."""
        return DataRecord(
            fingerprint=self.data.fingerprint,
            class_names=self.data.class_names,
            train_images=len(self.poisoned_set),
            clean_images=len(self.split.clean_indices) if self.condition.repair_stages else 0,
            test_images=len(self.data.test_labels),
            poisoned_images=len(self.plan.indices),
            cover_images=len(self.plan.cover_indices),
            mean=self.data.mean,
            std=self.data.std,
            duplicates=DuplicatesRecord.of(self.data.duplicates),
            clean_duplicates=self.pool_duplicates,
            trigger_kept=trigger_kept(self.poison_stage(), self.poisoned_set, self._unstamped),
            unread=len(self.data.unread),
            unread_named=self.data.unread[:NAMED],
        )

    @property
    def _unstamped(self) -> torch.Tensor:
        return unstamped(self.data.train_images, self.plan, self.perturbed)

    def attacked(self, poison: Poison) -> torch.Tensor:
        """Positions of the test images that count: int64, on the CPU."""
        rule = watched(poison, poison.title)
        return torch.from_numpy(rule.attacked(self.data.test_labels.numpy(), self.data.num_classes).nonzero()[0])

    @cached_property
    def normalize(self) -> Normalization:
        return Normalization.of(self.data.mean, self.data.std, self.compute.device)

    def training_set(self, plan: PoisonPlan, members: np.ndarray, *, late: bool | None = None) -> PoisonedSet:
        """The training images at the positions `members`, with those of `plan` stamped. `late`: whether the loop stamps
        them, after augmentation; None: as the condition says."""
        return apply_plan(
            self.images,
            self.labels,
            plan,
            self.condition.trigger,
            generator=stream(self.condition.seed, "trigger", "train"),
            members=torch.from_numpy(members),
            perturbed=self.perturbed if plan is self.plan else None,
            on_host=self.data.train_images,
            late=self.condition.poison.stamp == "after_augmentation" if late is None else late,
        )

    def perturb(self, surrogate: nn.Module) -> Experiment:
        """The same experiment, its poisoned images perturbed with the help of a model trained on clean data."""
        device = self.compute.device
        chosen = torch.from_numpy(self.plan.indices).to(self.images.device)
        surrogate.eval().requires_grad_(False)
        # Never in bfloat16: the gradient's sign is all that is asked for.
        self.compute.settle_tf32()
        perturbed = watched(self.condition.poison, self.condition.poison.title).perturb(
            lambda images: surrogate(self.normalize(images)),
            self.images[chosen],
            self.labels[chosen],
            generator=stream(self.condition.seed, "poison", "perturbation"),
            device=device,
        )
        return replace(self, perturbed=perturbed)


def split_of(condition: Condition, labels: np.ndarray, fraction: float) -> CleanSplit:
    """`fraction`: of the clean set."""
    return split_clean(
        labels,
        fraction=fraction,
        held_out_fraction=condition.held_out_fraction,
        split=condition.finetune.split,
        generator=stream(condition.seed, "clean_split"),
    )


def clean_pool(
    condition: Condition, data: ImageData, cache: Path | None, fraction: float
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The clean set, as large as this fraction of the training set, where it comes from another folder."""
    if condition.clean.root is None or not fraction:
        return None
    total, size = len(data.train_labels), condition.data.image_size
    count = round(fraction * total)
    if problem := comes_to_nothing(fraction, total, "training images", "finetune.fraction"):
        raise DataError(f"finetune.fraction: {problem}")
    generator = stream(condition.seed, "clean_split", "folder")
    return condition.clean.draw(data.class_names, size, count, generator, cache)


def _count_tests(condition: Condition, pool: torch.Tensor, data: ImageData) -> int:
    """How many pictures of a clean set from another folder are test images too.

    Raises:
        DataError: all are.
    """
    tests = set(image_digests(data.test_images.numpy()))
    count = sum(digest in tests for digest in image_digests(pool.numpy()))
    if count == len(pool):
        raise DataError(
            f"clean.root: all {count} pictures that are drawn from {condition.clean.root} are test images too; name a "
            "folder of others, since a model is not tested on what its repair has seen"
        )
    return count


def _plan(condition: Condition, labels: np.ndarray, positions: np.ndarray, num_classes: int) -> PoisonPlan:
    """The plan over the poison stage's images, told in positions of the whole training set."""
    with watching(condition.poison, condition.poison.title):
        require_some(condition.poison, labels, num_classes)
        plan = make_poison_plan(
            labels,
            strategy=condition.poison,
            num_classes=num_classes,
            generator=stream(condition.seed, "poison"),
        )
    return plan.relocated(positions)


def _image_bytes(data: ImageData, plan: PoisonPlan) -> int:
    # At most every test image has a triggered twin.
    test = data.test_images.nbytes * 2
    stamped = (len(plan.indices) + len(plan.cover_indices)) * data.train_images[0].nbytes
    return data.train_images.nbytes + test + stamped


def _attack_set(data: ImageData, trigger: Trigger | None, poison: Poison, seed: int) -> AttackSet:
    return attack_set(
        data.test_images,
        data.test_labels,
        poison,
        trigger,
        num_classes=data.num_classes,
        generator=stream(seed, "trigger", "test"),
    )


def _test_set(data: ImageData, attack: AttackSet, device: torch.device, home: torch.device) -> TestSet:
    """Labels on `device`, pictures on `home`."""
    return TestSet(
        images=data.test_images.to(home),
        labels=data.test_labels.to(device),
        attack_images=attack.images.to(home),
        attack_labels=attack.true_labels.to(device),
        wanted_labels=attack.wanted_labels.to(device),
        already=attack.already and (attack.already[0].to(home), attack.already[1].to(device)),
    )
