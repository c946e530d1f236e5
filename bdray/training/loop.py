"""The training loop. One loop serves every stage that trains:

    for epoch in epochs:
        for batch in a fresh permutation:
            uint8 images, labels   <- the data source (stamped already, unless ...)  } several batches
            crop, flip, cutout, ... <- stream `augment`, batch by batch              } at once
            stamp, where the poison says so: after augmentation (stream `trigger`)
            [0, 1] floats          -> regularizer.transform_inputs   (stream `noise`)
            normalise              -> one forward pass, mixed where the regularizer or cutmix says (stream `mixup`)
            objective.loss (cross-entropy) + regularizer.penalty -> objective.step: backward -> optimizer step
        evaluate on clean and triggered test images
        report, checkpoint

Every stream is derived from (seed, name, stage, epoch), so a stage that continues from a checkpoint after epoch `e`
computes the same bits as one that was never interrupted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from torch import nn

from bdray.data.base import Augmentation
from bdray.gpu import is_gpu, to_device
from bdray.models.networks.taps import Outputs, forward_outputs, taps_of
from bdray.poisoning.late import LateStamps
from bdray.poisoning.pgd import Adversary
from bdray.randomness import watched
from bdray.recipes import Layers, Optimization, Strong
from bdray.record import EpochRecord, StageName, finite, now_ms
from bdray.regularizers.base import Mixing, Regularizer
from bdray.regularizers.mixing import mix, mixed_cross_entropy, paste
from bdray.repairs.objective import Batch, Objective
from bdray.seeds import Stream, stream
from bdray.training.augmentation import alternating_flips, augment
from bdray.training.averaging import Lookahead
from bdray.training.batches import BatchSource, batches
from bdray.training.compilation import CompiledParts
from bdray.training.device import Compute, forked_generators
from bdray.training.evaluation import Evaluation, Normalization, TestSet, evaluate
from bdray.training.optimization import lr_factor, make_optimizer, norm_biases_of, select_layers, set_lr
from bdray.training.strong import draw_cutmix, draw_strong, strengthen

JOINED_BYTES = 4 * 2**20
"""Of pictures that are gathered, cropped and flipped at once: on a GPU each operation costs small networks as much time
as a layer does. A CPU does not care, as long as they fit its caches (our choice)."""

FIRST_PICTURES = 5_000
"""Training pictures that a network is shown before it is trained, where it takes something from them."""


@runtime_checkable
class FromPictures(Protocol):
    """A network part of which is computed from training pictures, not trained."""

    def set_from_pictures(self, pictures: torch.Tensor) -> None:
        """`pictures`: normalised, `N x 3 x S x S`."""
        ...


@dataclass
class StageState:
    """All that changes while a stage runs. A checkpoint holds it, but for `evaluation`."""

    model: nn.Module
    regularizer_state: nn.Module | None
    optimizer: torch.optim.Optimizer
    history: list[EpochRecord] = field(default_factory=list)
    average: Lookahead | None = None
    objective_state: nn.Module | None = None
    computed_on: list[dict[str, str | int]] = field(default_factory=list)
    """The environments of earlier processes, in order, where this one goes on from a checkpoint."""
    evaluation: Evaluation | None = None
    """The last one, with its confusion matrices."""

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.history[-1].epoch if self.history else 0


@dataclass(frozen=True)
class Stage:
    """One stage, ready to run.

    Attributes:
        name: `poison`, or what the repair calls it; part of every stream it draws from.
        epochs, lr, recipe: how it is optimized; nothing of it is left to be decided.
        augmentation: what `recipe.augment` comes to on this data set.
        layers: which parameters are trained.
        source: its training images.
        max_batches: stop each epoch after so many batches (rehearsals).
        late: which of the training images are stamped after augmentation, if any are.
        adversary: moves the images of every step against the model (adversarial training).
        objective: what is made small, beside the regularizer's penalty.
        objective_of: whose it is, for messages ("repair 'nad'").
        fresh: the model comes without training, as in the poison stage.
    """

    name: StageName
    seed: int
    epochs: int
    lr: float
    recipe: Optimization
    augmentation: Augmentation
    layers: Layers
    regularizer: Regularizer
    source: BatchSource
    test: TestSet
    num_classes: int
    normalize: Normalization
    compute: Compute
    max_batches: int | None = None
    late: LateStamps | None = None
    adversary: Adversary | None = None
    objective: Objective = field(default_factory=Objective)
    objective_of: str = ""
    fresh: bool = False

    @property
    def whole_epoch(self) -> int:
        """Batches that hold every image once: near-equal ones, none of a single image (batch statistics need two)."""
        images = len(self.source)
        return max(1, min(-(-images // self.recipe.batch_size), images // 2))

    @property
    def steps_per_epoch(self) -> int:
        """Batches an epoch."""
        return min(self.whole_epoch, self.max_batches or self.whole_epoch)

    def stream(self, name: Stream, epoch: int, device: torch.device | str = "cpu") -> torch.Generator:
        return stream(self.seed, name, self.name, epoch, device=device)

    @property
    def strong(self) -> Strong | None:
        """What is done to pictures on top of `augmentation`."""
        return self.recipe.strong

    def strong_stream(self, epoch: int) -> torch.Generator:
        """Of the stream `augment`, on the CPU; apart from that of crops, which thus stay what they are without."""
        return stream(self.seed, "augment", self.name, epoch, "strong")

    def augmented(
        self,
        images: torch.Tensor,
        generator: torch.Generator,
        strong: torch.Generator,
        flipped: torch.Tensor | None = None,
        counts: Sequence[int] | None = None,
    ) -> torch.Tensor:
        """`augment` of these, then what `strong` draws for."""
        pixels = augment(images, self.augmentation, generator, flipped, counts)
        if self.strong is None or self.strong == "cutmix":
            return pixels
        drawn = draw_strong(self.strong, counts or [len(images)], images.shape[-1], strong)
        # Zero in what the network sees, as DeVries and Taylor have it, but for rounding.
        fill = (self.normalize.mean * 255).round().flatten().to(torch.uint8)
        return strengthen(pixels, self.strong, drawn, fill)

    def draw_mixing(self, points: Sequence[str], batch_size: int, generator: torch.Generator) -> Mixing | None:
        """What a step mixes, on the device. `generator`: the epoch's stream `mixup`."""
        if self.strong == "cutmix":
            mixing: Mixing | None = draw_cutmix(batch_size, self.test.images.shape[-1], generator)
        else:
            mixing = self.regularizer.draw_mixing(tuple(points), batch_size, generator)
        device = self.compute.device
        return mixing and replace(mixing, permutation=to_device(mixing.permutation, device))

    def orders(self, generator: torch.Generator) -> list[torch.Tensor]:
        """The positions of each batch of an epoch: int64, on the CPU. `generator`: the epoch's stream `order`."""
        order = torch.randperm(len(self.source), generator=generator)
        return list(order.tensor_split(self.whole_epoch)[: self.steps_per_epoch])

    def flips(self, epoch: int, orders: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
        """Which images at `orders` are flipped: bool, on the device; None where that is drawn with the crops."""
        if self.recipe.flip == "random" or self.augmentation in ("none", "crop"):
            return [None] * len(orders)
        flipped = alternating_flips(len(self.source), epoch, self.stream("augment", 0))
        return [to_device(flipped[order], self.compute.device) for order in orders]

    def start(self, model: nn.Module, before: nn.Module | None = None) -> StageState:
        """A fresh state: chosen parameters unfrozen, optimizer without history, what a network takes from its training
        pictures taken (where it is fresh: later stages go on with it).

        Args:
            before: the model as the stage before left it; None: `model` is.
        """
        if self.fresh and isinstance(model, FromPictures):
            model.set_from_pictures(self._first_pictures())
        # A stage of no epoch leaves the model as it is, which an objective may begin by changing.
        objective = watched(self.objective, self.objective_of) if self.epochs else Objective()
        state = objective.begin(model, model if before is None else before, self.stream("repair", 0))
        parameters = select_layers(model, self.layers, objective.parameters(model, state))
        if state is not None:
            state.to(self.compute.device)
        own = self._regularizer_state()
        if own is not None:
            own.to(self.compute.device)
        undecayed = own.parameters() if own is not None else ()
        optimizer = make_optimizer(parameters, self.recipe, self.lr, undecayed, norm_biases=norm_biases_of(model))
        average = Lookahead(model) if self.recipe.lookahead else None
        return StageState(model, own, optimizer, average=average, objective_state=state)

    def _regularizer_state(self) -> nn.Module | None:
        """Layers draw their first weights from torch's global generator: they are those of a network's stream."""
        with forked_generators(self.compute.device):
            torch.manual_seed(self.stream("init", 0).initial_seed())
            return self.regularizer.watched(seeded=True).make_state()

    def _first_pictures(self) -> torch.Tensor:
        """Some training pictures as files, normalised."""
        order = torch.arange(min(FIRST_PICTURES, len(self.source)))
        ((pictures, _),) = batches(self.source, [order], self.compute.device)
        return self.normalize(pictures.float().div_(255))

    def evaluate(self, model: nn.Module, *, whole: bool = True) -> Evaluation:
        """Evaluate on the whole test set, or on what `evaluate.test_limit` leaves of it."""
        test = self.test if whole else self.test.sample(self.recipe.evaluate.test_limit)
        return evaluate(model, test, num_classes=self.num_classes, normalize=self.normalize, compute=self.compute)


def run_stage(
    stage: Stage,
    state: StageState,
    *,
    after_epoch: Callable[[StageState], None] = lambda state: None,
    on_batch: Callable[[int, int, int], None] = lambda epoch, batch, batches: None,
) -> StageState:
    """Train from where `state` stands to the last epoch.

    Args:
        after_epoch: called after every epoch (reporting, checkpoints); what it raises ends the stage.
        on_batch: called with (epoch, batch, batches) after every batch; must not synchronise with the device.

    Returns:
        `state` after the last epoch, or after the first whose loss is not finite, with one `EpochRecord` an epoch. The
        last one has no loss where the weights that it leaves are not finite.
    """
    compiled = CompiledParts(state.model) if stage.recipe.compile is True else None
    if state.history and state.history[-1].diverged:
        return state
    for epoch in range(state.epoch + 1, stage.epochs + 1):
        started = time.perf_counter()
        before = state.history[-1].stage_seconds if state.history else 0.0
        with _maybe_compiled(compiled):
            result = _train_epoch(stage, state, epoch, on_batch)
        last = epoch == stage.epochs or result.diverged
        evaluated = last or epoch % stage.recipe.evaluate.every == 0
        if evaluated:
            state.evaluation = stage.evaluate(state.model, whole=last)
        rates = state.evaluation.rates() if evaluated and state.evaluation else None
        seconds = before + time.perf_counter() - started
        state.history.append(result.model_copy(update={"rates": rates, "stage_seconds": seconds}))
        after_epoch(state)
        if result.diverged:
            break
    return state


def _maybe_compiled(parts: CompiledParts | None) -> AbstractContextManager[None]:
    return parts.active() if parts else nullcontext()


def _train_epoch(
    stage: Stage,
    state: StageState,
    epoch: int,
    on_batch: Callable[[int, int, int], None],
) -> EpochRecord:
    device = stage.compute.device
    generators = StepGenerators.of(stage, epoch)
    totals = torch.zeros(3, device=device)
    images, steps = 0, stage.steps_per_epoch
    state.model.train()
    started = time.perf_counter()
    with forked_generators(device):
        # Dropout and drop-path have no generator argument: they draw from the global one, seeded per epoch.
        torch.manual_seed(generators.dropout_seed)
        orders = stage.orders(generators.order)
        late = stage.late.rows(orders, device) if stage.late else [()] * steps
        coming = augmented_batches(stage, epoch, orders, generators.augment)
        for batch, ((pixels, labels), rows) in enumerate(zip(coming, late, strict=True)):
            step, all_steps = (epoch - 1) * steps + batch, stage.epochs * steps
            set_lr(state.optimizer, stage.lr * lr_factor(stage.recipe.schedule, step, all_steps))
            one = stage if batch else watched_stage(stage)
            totals += train_step(one, state, pixels, labels, generators, late_rows=rows)
            if state.average is not None:
                state.average.after_step(state.model, step, all_steps)
            images += len(labels)
            on_batch(epoch, batch + 1, steps)
    if epoch == stage.epochs:
        with torch.no_grad():
            watched(stage.objective, stage.objective_of).finish(state.model, state.objective_state)
    # A loss says nothing of the step that it is taken for; after the last one, no loss follows that would.
    sound = all_finite(state.model).to(totals) if epoch == stage.epochs else torch.ones_like(totals[:1])
    loss, penalty, correct, is_sound = torch.cat([totals, sound]).tolist()
    return EpochRecord(
        epoch=epoch,
        loss=finite(loss / images) if is_sound else None,
        penalty=finite(penalty / images),
        accuracy=correct / images,
        seconds=time.perf_counter() - started,
        images=images,
        peak_memory_bytes=_peak_memory(device),
        finished_ms=now_ms(),
    )


def all_finite(model: nn.Module) -> torch.Tensor:
    """Whether all weights are finite numbers: bool, `1`, on the device, without waiting for it."""
    weights = filter(torch.is_floating_point, (*model.parameters(), *model.buffers()))
    return torch.stack([values.isfinite().all() for values in weights]).all().reshape(1)


def watched_stage(stage: Stage) -> Stage:
    """The stage, its components from outside the package watched: once an epoch, because it takes time."""
    objective = watched(stage.objective, stage.objective_of)
    late = stage.late and LateStamps(tuple((watched(each, each.title), rows) for each, rows in stage.late.stamps))
    return replace(stage, regularizer=stage.regularizer.watched(), objective=objective, late=late)


@dataclass(frozen=True)
class StepGenerators:
    """The streams one epoch draws from."""

    order: torch.Generator
    augment: torch.Generator
    noise: torch.Generator
    mixup: torch.Generator
    trigger: torch.Generator
    adversary: torch.Generator
    objective: torch.Generator
    dropout_seed: int

    @classmethod
    def of(cls, stage: Stage, epoch: int) -> StepGenerators:
        device = stage.compute.device
        return cls(
            order=stage.stream("order", epoch),
            augment=stage.stream("augment", epoch, device),
            noise=stage.stream("noise", epoch, device),
            mixup=stage.stream("mixup", epoch),
            trigger=stage.stream("trigger", epoch),
            adversary=stage.stream("poison", epoch),
            objective=stage.stream("repair", epoch, device),
            dropout_seed=stage.stream("dropout", epoch).initial_seed(),
        )


def augmented_batches(
    stage: Stage, epoch: int, orders: Sequence[torch.Tensor], generator: torch.Generator
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches at `orders` (int64 positions, on the CPU), augmented: uint8 `N x 3 x S x S` and int64 `N`,
    on the device. Never waits for it.

    Args:
        generator: the epoch's stream `augment`.
    """
    batch_bytes = len(orders[0]) * stage.test.images.shape[1:].numel()
    at_once = max(1, JOINED_BYTES // batch_bytes)
    groups = [orders[first : first + at_once] for first in range(0, len(orders), at_once)]
    joined = [torch.cat(tuple(group)) for group in groups]
    coming, strong = batches(stage.source, joined, stage.compute.device), stage.strong_stream(epoch)
    for group, (images, labels), flipped in zip(groups, coming, stage.flips(epoch, joined), strict=True):
        counts = [len(order) for order in group]
        pixels = stage.augmented(images, generator, strong, flipped, counts)
        yield from zip(pixels.split(counts), labels.split(counts), strict=True)


def train_step(
    stage: Stage,
    state: StageState,
    images: torch.Tensor,
    labels: torch.Tensor,
    generators: StepGenerators,
    *,
    late_rows: tuple[torch.Tensor, ...] = (),
) -> torch.Tensor:
    """One optimizer step on uint8 `N x 3 x S x S` and int64 `N`, both on the device (`augmented_batches`).

    Args:
        late_rows: the rows to stamp (`LateStamps.rows`).

    Returns (summed loss, summed penalty, correct), float32, `3`, without leaving the device.
    """
    model, regularizer = state.model, stage.regularizer
    if stage.late is not None:
        images = stage.late.stamp(images, late_rows, generators.trigger)
    pixels = images.float().div_(255)
    pixels = regularizer.transform_inputs(pixels, generators.noise)
    if stage.adversary is not None:
        # In evaluation mode, so that running statistics see no image that is not trained on.
        model.eval()
        stage.compute.settle_tf32()
        pixels = stage.adversary(lambda moved: model(stage.normalize(moved)), pixels, labels, generators.adversary)
        model.train()
    pixels = stage.normalize(pixels)
    pixels = pixels.contiguous(memory_format=torch.channels_last)
    mixing = stage.draw_mixing(tuple(taps_of(model).points), len(labels), generators.mixup)
    capture = (*regularizer.capture, *stage.objective.capture(model))
    seen: list[tuple[Outputs, torch.Tensor, torch.Tensor | None]] = []
    edits, smoothing = _edits(mixing, len(labels)), stage.recipe.label_smoothing
    # Before any pass: an objective's other networks get the pictures that this one gets.
    if (mixed := edits.pop("input", None)) is not None:
        pixels = mixed(pixels)

    def beside(others: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with stage.compute.autocast():
            logits = forward_outputs(model, torch.cat([pixels, others]), edits=edits).logits.float()
        own = mixed_cross_entropy(logits[: len(labels)], labels, mixing, label_smoothing=smoothing)
        return own, logits[len(labels) :]

    def evaluate() -> torch.Tensor:
        with stage.compute.autocast():
            outputs = forward_outputs(model, pixels, edits=edits, capture=capture)
        cross_entropy = mixed_cross_entropy(outputs.logits.float(), labels, mixing, label_smoothing=smoothing)
        own, autocast = state.objective_state, stage.compute.autocast
        drawn, normalize = generators.objective, stage.normalize
        batch = Batch(model, pixels, labels, outputs, cross_entropy, own, drawn, autocast, normalize, beside)
        penalty = regularizer.penalty(outputs, labels, state.regularizer_state)
        loss = stage.objective.loss(batch)
        loss = loss if penalty is None else loss + penalty
        seen.append((outputs, loss, penalty))
        return loss

    stage.objective.step(model, state.optimizer, evaluate)
    outputs, loss, penalty = seen[0]
    with torch.no_grad():
        stage.objective.after_step(model, state.objective_state)
        correct = (outputs.logits.float().argmax(1) == labels).sum()
        shown = torch.zeros_like(loss) if penalty is None else penalty
        return torch.stack([loss * len(labels), shown * len(labels), correct.to(loss.dtype)]).detach()


def _edits(mixing: Mixing | None, rows: int) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    """What is mixed among the first `rows` of a forward pass."""
    if mixing is None:
        return {}

    def mixed(hidden: torch.Tensor) -> torch.Tensor:
        if mixing.box is not None:
            return paste(hidden, permutation=mixing.permutation, box=mixing.box)
        return mix(hidden, mixing.permutation, mixing.lam)

    def edit(hidden: torch.Tensor) -> torch.Tensor:
        return mixed(hidden) if len(hidden) == rows else torch.cat([mixed(hidden[:rows]), hidden[rows:]])

    return {mixing.point: edit}


def _peak_memory(device: torch.device) -> int:
    """Peak bytes: of the allocator on a GPU, resident bytes of the process on a CPU."""
    if is_gpu(device):
        return int(torch.cuda.max_memory_allocated(device))
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
