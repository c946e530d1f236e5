"""The loop: what a resumed stage computes, batches, divergence, evaluation, frozen layers, number formats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from bdray.errors import TrialInterrupted
from bdray.poisoning import PoisonedSet
from bdray.poisoning.pgd import Adversary
from bdray.record import EpochRecord
from bdray.regularizers.base import Regularizer
from bdray.store.storage import Storage
from bdray.training import loop
from bdray.training.augmentation import augment
from bdray.training.batches import BatchSource, FromHost
from bdray.training.loop import Stage, StageState, augmented_batches, run_stage
from bdray.trial.stage_store import StageStore

MakeStage = Callable[..., Stage]
NewModel = Callable[..., nn.Module]


def weights(state: StageState) -> dict[str, torch.Tensor]:
    own = state.regularizer_state.state_dict() if state.regularizer_state else {}
    return {**state.model.state_dict(), **{f"regularizer.{name}": value for name, value in own.items()}}


def momenta(state: StageState) -> list[torch.Tensor]:
    states = state.optimizer.state_dict()["state"]
    return [value for key in sorted(states) for value in states[key].values() if isinstance(value, torch.Tensor)]


def without_times(history: list[EpochRecord]) -> list[EpochRecord]:
    unknown = {"seconds": 0.0, "stage_seconds": 0.0, "peak_memory_bytes": 0, "finished_ms": 0}
    return [epoch.model_copy(update=unknown) for epoch in history]


@dataclass
class Watched:
    """A source that notes what is taken from it."""

    source: BatchSource
    taken: list[torch.Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        self.taken.append(positions)
        return self.source.gather(positions)


@pytest.mark.parametrize(
    ("options", "dropout"),
    [
        ({}, False),
        ({"recipe": {"optimizer": "adamw", "schedule": "cosine"}, "lr": 0.01}, False),
        ({"regularizer": "manifold_mixup"}, False),
        ({"regularizer": "logit_squeezing"}, False),
        ({"regularizer": {"name": "soft_nearest_neighbors", "learned": True}}, False),
        ({}, True),
        ({"late": {"position": "random"}}, False),
        ({"adversary": Adversary(8 / 255, 2)}, False),
    ],
    ids=["momentum", "adamw", "manifold_mixup", "logit_squeezing", "temperature", "dropout", "late", "adversary"],
)
def test_an_interrupted_stage_ends_where_an_uninterrupted_one_does(
    options: dict[str, Any], dropout: bool, make_stage: MakeStage, new_model: NewModel, tmp_path: Path
) -> None:
    stage = make_stage(epochs=3, **options)
    whole = run_stage(stage, stage.start(new_model(dropout=dropout)))
    store = StageStore(Storage.open(tmp_path))

    def stop(state: StageState) -> None:
        store.save_checkpoint("f", state, "data", {})
        raise TrialInterrupted

    for seed in range(2):
        # Another first model each time: everything must come from the checkpoint.
        broken = stage.start(new_model(seed, dropout=dropout))
        assert store.load_checkpoint("f", broken, "data") is (seed > 0)
        torch.randn(seed + 5)
        with pytest.raises(TrialInterrupted):
            run_stage(stage, broken, after_epoch=stop)
        assert broken.epoch == seed + 1
    resumed = stage.start(new_model(7, dropout=dropout))
    assert store.load_checkpoint("f", resumed, "data")
    run_stage(stage, resumed)

    expected = weights(whole)
    assert weights(resumed).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in weights(resumed).items())
    assert len(momenta(whole)) > 10
    assert all(torch.equal(a, b) for a, b in zip(momenta(resumed), momenta(whole), strict=True))
    assert without_times(resumed.history) == without_times(whole.history)
    assert resumed.evaluation == whole.evaluation


def test_training_does_something_and_the_global_generator_does_not_matter(
    make_stage: MakeStage, new_model: NewModel
) -> None:
    stage = make_stage(count=100, epochs=6, lr=0.1)
    state = torch.get_rng_state()
    first = run_stage(stage, stage.start(new_model(dropout=True)))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(99)
    again = run_stage(stage, stage.start(new_model(dropout=True)))
    torch.set_rng_state(state)
    assert without_times(first.history) == without_times(again.history)
    losses = [epoch.loss for epoch in first.history]
    assert losses[0] is not None
    assert losses[-1] is not None
    assert losses[-1] < losses[0] - 0.5


def test_one_step_is_what_plain_pytorch_does(make_stage: MakeStage, new_model: NewModel) -> None:
    stage = make_stage(count=16, epochs=1)
    model, reference = new_model(), new_model()
    run_stage(stage, stage.start(model))

    order = torch.randperm(16, generator=stage.stream("order", 1))
    pixels, labels = stage.source.gather(order)
    pixels = augment(pixels, "crop_flip", stage.stream("augment", 1))
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    reference.train()
    normalized = (pixels.float() / 255 - 0.3) / 0.35
    functional.cross_entropy(reference(normalized), labels).backward()
    optimizer.step()
    for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6, msg=name)


class _Seen(Regularizer):
    """Keeps what it is shown."""

    def transform_inputs(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        SEEN.append(images.clone())
        return images


SEEN: list[torch.Tensor] = []


@pytest.mark.parametrize("on_host", [False, True])
def test_late_stamps_are_whole_after_crop_and_flip(on_host: bool, make_stage: MakeStage, new_model: NewModel) -> None:
    stage = make_stage(epochs=1, late={"color": (255, 0, 255)})
    items = stage.source
    assert isinstance(items, PoisonedSet)
    early = make_stage().source
    assert isinstance(early, PoisonedSet)
    poisoned = early.overlay_row >= 0
    stage = replace(stage, regularizer=_Seen(), source=FromHost(items) if on_host else items)
    SEEN.clear()
    run_stage(stage, stage.start(new_model()))

    # Written by slicing: at 16 x 16 the default patch is 2 x 2 pixels, and its margin rounds to 1.
    augmented, drawn = [], stage.stream("augment", 1)
    orders = torch.randperm(40, generator=stage.stream("order", 1)).tensor_split(3)
    for order in orders:
        pixels = augment(items.images[order], "crop_flip", drawn).clone()
        marked = poisoned[order]
        pixels[marked, :, 13:15, 13:15] = torch.tensor([255, 0, 255], dtype=torch.uint8).view(3, 1, 1)
        augmented.append(pixels)
    assert int(poisoned.sum()) == 8
    for seen, expected in zip(SEEN, augmented, strict=True):
        assert torch.equal((seen * 255).round().to(torch.uint8), expected)


def test_the_reported_loss_holds_the_penalty(make_stage: MakeStage, new_model: NewModel) -> None:
    def first_epoch(weight: float) -> EpochRecord:
        regularizer = {"name": "logit_squeezing", "weight": weight, "sigma": 0.0}
        stage = make_stage(count=16, regularizer=regularizer, epochs=1)
        return run_stage(stage, stage.start(new_model())).history[0]

    plain, squeezed = first_epoch(0.0), first_epoch(0.5)
    assert plain.loss is not None
    assert squeezed.loss is not None
    assert squeezed.penalty is not None
    assert squeezed.penalty > 0
    # One batch an epoch: both saw the same weights.
    assert squeezed.loss - squeezed.penalty == pytest.approx(plain.loss, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_only_its_gradient_moves_a_learned_temperature(
    optimizer: str, make_stage: MakeStage, new_model: NewModel
) -> None:
    def after(weight: float, decay: float) -> torch.Tensor:
        regularizer = {"name": "soft_nearest_neighbors", "learned": True, "weight": weight}
        stage = make_stage(regularizer=regularizer, recipe={"optimizer": optimizer, "weight_decay": decay}, lr=0.01)
        return weights(run_stage(stage, stage.start(new_model())))["regularizer.features"]

    start = torch.tensor(100.0).log()
    assert torch.equal(after(weight=0.0, decay=1.0), start)
    moved = after(weight=5.0, decay=0.0)
    assert not torch.equal(moved, start)
    # Decay still reaches the temperature through the features, but no longer pulls it to 1, whose logarithm is zero.
    assert float(after(weight=5.0, decay=1.0)) == pytest.approx(float(moved), abs=0.02)


@pytest.mark.parametrize("batch_size", [2, 3, 16, 64])
@pytest.mark.parametrize("count", [2, 3, 5, 17, 33])
def test_batches_are_even_and_hold_every_image_once(
    batch_size: int, count: int, make_stage: MakeStage, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "JOINED_BYTES", 0)
    stage = make_stage(count=40, recipe={"batch_size": batch_size}, epochs=1)
    images, labels = stage.source.gather(torch.arange(count))
    watched = Watched(_Plain(images, labels))
    stage = replace(stage, source=watched)
    state = run_stage(stage, stage.start(new_model()))
    sizes = [len(positions) for positions in watched.taken]
    assert sorted(torch.cat(watched.taken).tolist()) == list(range(count))
    assert min(sizes) > 1
    assert max(sizes) - min(sizes) <= 1
    assert max(sizes) <= max(batch_size, 3)
    assert len(sizes) == stage.steps_per_epoch
    assert state.history[0].images == count


@dataclass
class _Plain:
    """Images in memory."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def gather(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.images[positions], self.labels[positions]


def test_a_single_image_is_a_batch(make_stage: MakeStage) -> None:
    stage = make_stage()
    stage = replace(stage, source=_Plain(*stage.source.gather(torch.arange(1))))
    assert (stage.whole_epoch, stage.steps_per_epoch) == (1, 1)


def test_epochs_differ_in_order_and_a_rehearsal_cuts_them_short(make_stage: MakeStage, new_model: NewModel) -> None:
    stage = make_stage(epochs=2, max_batches=2)
    watched = Watched(stage.source)
    heard: list[tuple[int, int, int]] = []
    stage = replace(stage, source=watched)
    run_stage(stage, stage.start(new_model()), on_batch=lambda *seen: heard.append(seen))
    assert heard == [(1, 1, 2), (1, 2, 2), (2, 1, 2), (2, 2, 2)]
    assert stage.whole_epoch == 3
    first, second = watched.taken
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("on_host", [False, True])
@pytest.mark.parametrize("flip", ["random", "alternating"])
@pytest.mark.parametrize("mode", ["none", "crop", "crop_flip", "zero_crop_flip"])
def test_joined_batches_are_those_made_one_by_one(
    mode: str, flip: str, on_host: bool, make_stage: MakeStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = make_stage(recipe={"batch_size": 6, "flip": flip}, augmentation=mode)
    stage = replace(stage, source=FromHost(stage.source) if on_host else stage.source)
    orders, drawn, chances = stage.orders(stage.stream("order", 2)), stage.stream("augment", 2), stage.flips
    alone = []
    for order, flipped in zip(orders, chances(2, orders), strict=True):
        images, labels = stage.source.gather(order)
        alone.append((augment(images, stage.augmentation, drawn, flipped), labels))
    # Of 16 x 16 x 3 bytes a picture: two batches of six at once, and one that is left.
    monkeypatch.setattr(loop, "JOINED_BYTES", 2 * 6 * 768)
    joined = list(augmented_batches(stage, 2, orders, stage.stream("augment", 2)))
    assert len(orders) == 7
    for (images, labels), (images_alone, labels_alone) in zip(joined, alone, strict=True):
        assert torch.equal(images, images_alone)
        assert torch.equal(labels, labels_alone)
        assert images.stride() == images_alone.stride()


class _Operations(TorchDispatchMode):
    """Counts what a GPU would launch, views included."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_another_batch_costs_few_operations_before_its_step(make_stage: MakeStage) -> None:
    stage = make_stage(recipe={"batch_size": 4})
    orders, counts = stage.orders(stage.stream("order", 1)), []
    for some in (orders[:5], orders):
        with _Operations() as operations:
            assert len(list(augmented_batches(stage, 1, some, stage.stream("augment", 1)))) == len(some)
        counts.append(operations.count)
    assert len(orders) == 10
    assert counts[1] - counts[0] <= 5 * 6


def test_a_loss_that_is_not_finite_ends_the_stage(make_stage: MakeStage, new_model: NewModel, tmp_path: Path) -> None:
    stage = make_stage(epochs=3, lr=1e30)
    state = run_stage(stage, stage.start(new_model()))
    assert [epoch.epoch for epoch in state.history] == [1]
    assert (state.history[0].loss, state.history[0].diverged) == (None, True)
    store = StageStore(Storage.open(tmp_path))
    store.save_checkpoint("f", state, "data", {})
    resumed = stage.start(new_model())
    assert store.load_checkpoint("f", resumed, "data")
    assert len(run_stage(stage, resumed).history) == 1


def test_a_stage_that_diverges_is_evaluated_as_it_ended(make_stage: MakeStage, new_model: NewModel) -> None:
    """Found: the confusion matrix was that of the last evaluation before, on part of the test set."""
    stage = make_stage(epochs=6, lr=1e30, recipe={"evaluate": {"every": 4, "test_limit": 10}})
    state = run_stage(stage, stage.start(new_model()))
    assert state.history[-1].diverged and state.evaluation
    assert state.history[-1].rates == state.evaluation.rates()
    assert state.evaluation.rates().clean_images == 50


def test_weights_that_the_last_step_ruins_are_a_divergence(make_stage: MakeStage, new_model: NewModel) -> None:
    """Found: a stage of one step has the loss of the weights before it, and passed for finished."""
    stage = make_stage(epochs=1, lr=1e39, recipe={"schedule": "constant", "batch_size": 1000})
    assert stage.steps_per_epoch == 1
    state = run_stage(stage, stage.start(new_model()))
    assert not all(bool(each.isfinite().all()) for each in state.model.parameters())
    assert state.history[-1].diverged


def test_evaluates_as_often_and_on_as_much_as_it_is_told(make_stage: MakeStage, new_model: NewModel) -> None:
    stage = make_stage(epochs=5, recipe={"evaluate": {"every": 2, "test_limit": 10}})
    history = run_stage(stage, stage.start(new_model())).history
    assert [epoch.rates.clean_images if epoch.rates else None for epoch in history] == [None, 10, None, 10, 50]
    assert history[-1].rates is not None
    assert history[-1].rates.attacked_images == len(stage.test.attack_labels)
    # Looking less often changes nothing of what is trained.
    often = make_stage(epochs=5)
    assert run_stage(often, often.start(new_model())).history[-1].rates == history[-1].rates


@pytest.mark.parametrize("layers", ["head", "batch_norm"])
def test_frozen_layers_keep_their_parameters(
    layers: Literal["head", "batch_norm"], make_stage: MakeStage, new_model: NewModel
) -> None:
    model = new_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    stage = make_stage(epochs=1, layers=layers)
    run_stage(stage, stage.start(model))
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    parameters = {name for name, _ in model.named_parameters()}
    trained = {name for name in parameters if (name.startswith("fc.") if layers == "head" else "bn" in name)}
    assert changed & parameters == trained
    # The running statistics follow the data in every mode: only parameters are frozen.
    assert changed - parameters == {name for name, _ in model.named_buffers()}


def test_both_number_formats_train(make_stage: MakeStage, new_model: NewModel) -> None:
    losses = {}
    for precision in ("float32", "bfloat16"):
        stage = make_stage(recipe={"precision": precision})
        state = run_stage(stage, stage.start(new_model()))
        losses[precision] = [epoch.loss for epoch in state.history]
        assert all(parameter.dtype == torch.float32 for parameter in state.model.parameters())
    assert None not in losses["float32"] + losses["bfloat16"]
    assert losses["float32"] != losses["bfloat16"]
    assert losses["float32"][0] == pytest.approx(losses["bfloat16"][0], rel=0.05)
