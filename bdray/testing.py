"""What every component must keep, for the tests of those who write one:

    from bdray.testing import check_component

    def test_my_trigger():
        check_component(TRIGGERS.build({"name": "corner_dot", "level": 200}))

bdray's own tests call it for every component that is registered.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast, get_args

from pydantic import TypeAdapter, ValidationError

from bdray.condition import COMPONENTS
from bdray.detectors import DETECTORS, Detector, InputDetector, ModelDetector, TrainingSetDetector
from bdray.detectors.tools import DetectorTools
from bdray.models.base import Architecture
from bdray.poisoning.base import Poison
from bdray.randomness import GlobalRandomnessError, Watched, no_global_randomness
from bdray.recipes import Finetune
from bdray.registry import Component, Registry, Sight
from bdray.regularizers.base import REGULARIZERS, Regularizer
from bdray.repairs.base import Operation, Repair, RepairStage, Training
from bdray.repairs.objective import Objective
from bdray.repairs.tools import Tools
from bdray.triggers.base import Trigger

if TYPE_CHECKING:
    import torch
    from torch import nn

SIDE, CLASSES = 32, 4
"""Of the images that components are tried on."""


def check_component(component: Component) -> None:
    """Try what bdray relies on, for a component of any kind.

    Of all: it says what it is and where it comes from, and survives JSON and pickling with the same identity. Of a
    trigger, strategy, architecture, regularizer, repair or detector: what its base class promises (shapes, types,
    determinism, no use of the global random generator, and of a detector that it changes nothing). A data set is not
    loaded.

    Raises:
        AssertionError: what is not kept, in a sentence.
    """
    registry = _registry_of(component)
    assert type(component).__doc__, "it has no docstring: `bdray explain` has nothing to show"
    assert getattr(component, "SOURCE", ""), "it has no SOURCE: a paper, or 'our choice'"
    read = registry.build(json.loads(json.dumps(component.model_dump(mode="json"))))
    assert read == component, "it is another one after a round trip through JSON"
    assert read.identity() == component.identity(), "its identity does not survive JSON"
    assert pickle.loads(pickle.dumps(component)) == component, "it is another one after pickling"
    for base, check in _CHECKS.items():
        if isinstance(component, base):
            try:
                check(component)
            except GlobalRandomnessError as error:
                raise AssertionError(str(error)) from None


def _registry_of(component: Component) -> Registry[Any]:
    for registry in (*COMPONENTS.values(), DETECTORS):
        if isinstance(component, registry.base):
            return registry
    raise AssertionError(f"{type(component).__name__} extends the base class of no kind of component")


def noise(count: int) -> torch.Tensor:
    """The images that components are tried on: uint8, `count x 3 x SIDE x SIDE`."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def _resnet8() -> nn.Module:
    import torch

    from bdray.models import build_model

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_model("resnet8", CLASSES, SIDE)


def check_trigger(trigger: Trigger) -> None:
    """Shape and type stay, the images given stay as they are, one seed gives one result."""
    import torch

    images = noise(5)
    before = images.clone()

    def stamped() -> torch.Tensor:
        return trigger.stamp(images, generator=torch.Generator().manual_seed(1))

    first = trigger.apply(images, torch.Generator().manual_seed(1))
    assert first.shape == images.shape, f"it makes {tuple(first.shape)} of {tuple(images.shape)}"
    assert first.dtype == torch.uint8, f"it makes {first.dtype} of uint8"
    assert torch.equal(images, before), "it changes the images it is given"
    assert torch.equal(stamped(), stamped()), "one seed gives two results"
    with no_global_randomness(trigger.title):
        stamped()
        trigger.check(SIDE)
        cover = trigger.cover_trigger
        assert isinstance(cover, Trigger), "its cover_trigger is no trigger"
        cover.stamp(images, generator=torch.Generator().manual_seed(1))
    assert trigger.stamp(images[:0]).shape == images[:0].shape, "it fails without images"


def check_poison(poison: Poison) -> None:
    """Masks and labels have the right shape and type, and who is attacked is not already what is wanted; what is moved
    with a surrogate's help stays a picture."""
    with no_global_randomness(poison.title):
        _check_poison(poison)


def _check_poison(poison: Poison) -> None:
    import numpy as np
    import torch

    poison.check(CLASSES)
    labels = np.arange(2 * CLASSES) % CLASSES
    before = labels.copy()
    for name in ("eligible", "attacked", "coverable"):
        mask = getattr(poison, name)(labels, CLASSES)
        assert mask.shape == labels.shape, f"{name} has the shape {mask.shape}"
        assert mask.dtype == np.bool_, f"{name} is {mask.dtype}, not bool"
    for name in ("poisoned_labels", "wanted_labels"):
        given = getattr(poison, name)(labels, CLASSES)
        assert given.shape == labels.shape, f"{name} has the shape {given.shape}"
        assert given.dtype == np.int64, f"{name} is {given.dtype}, not int64"
        assert ((given >= 0) & (given < CLASSES)).all(), f"{name} names a class that does not exist"
    attacked = poison.attacked(labels, CLASSES)
    assert attacked.any(), "nothing is attacked"
    assert (poison.wanted_labels(labels, CLASSES) != labels)[attacked].all(), "attacked images have the wanted label"
    assert np.array_equal(labels, before), "it changes the labels it is given"
    if poison.surrogate_recipe is not None:
        images, device = noise(4), torch.device("cpu")
        flat = torch.linspace(-1, 1, 3 * SIDE**2 * CLASSES).reshape(-1, CLASSES)
        moved = poison.perturb(
            lambda pixels: pixels.flatten(1) @ flat,
            images,
            torch.arange(4),
            generator=torch.Generator().manual_seed(0),
            device=device,
        )
        assert moved.shape == images.shape, f"perturb makes {tuple(moved.shape)} of {tuple(images.shape)}"
        assert moved.dtype == torch.uint8, f"perturb makes {moved.dtype} of uint8"


def check_architecture(architecture: Architecture) -> None:
    """One seed gives one network, its taps are those announced, and all of it gets a gradient."""
    import torch

    from bdray.models.networks.taps import forward_outputs, taps_of

    def build(seed: int) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            with no_global_randomness(architecture.title, seeded=True):
                return architecture.build(CLASSES, SIDE)

    model, again = build(0), build(0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items()), "one seed, two networks"
    points = architecture.MIXING_POINTS
    assert points is None or tuple(taps_of(model).points) == points, "its taps are not its MIXING_POINTS"
    outputs = forward_outputs(model.train(), noise(4).float() / 255)
    assert outputs.logits.shape == (4, CLASSES), f"its logits have the shape {tuple(outputs.logits.shape)}"
    assert outputs.features.ndim == 2, "its features are not N x D"
    outputs.logits.sum().backward()
    idle = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not idle, f"no gradient reaches {', '.join(idle[:3])}"


def check_regularizer(regularizer: Regularizer) -> None:
    """A finite float32 penalty, with gradients, of features of either sign; nothing drawn from the global generator,
    but a state's first weights."""
    import torch

    from bdray.models.networks.taps import forward_outputs, taps_of
    from bdray.regularizers import mix

    model = _resnet8().train()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with no_global_randomness(regularizer.title, seeded=True):
            state = regularizer.watched(seeded=True).make_state()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    points = tuple(taps_of(model).points)
    with no_global_randomness(regularizer.title):
        regularizer.watched().check(points)

    def penalty(regularizer: Regularizer = regularizer) -> torch.Tensor | None:
        images = regularizer.transform_inputs(noise(6).float() / 255, torch.Generator().manual_seed(1))
        mixing = regularizer.draw_mixing(points, 6, torch.Generator().manual_seed(2))
        edits = {mixing.point: lambda hidden: mix(hidden, mixing.permutation, mixing.lam)} if mixing else {}
        outputs = forward_outputs(model, images, edits=edits, capture=regularizer.capture)
        return regularizer.penalty(outputs, labels, state)

    first = penalty()
    with no_global_randomness(regularizer.title):
        penalty(regularizer.watched())
    if first is None:
        return
    assert first.shape == (), f"its penalty has the shape {tuple(first.shape)}"
    assert first.dtype == torch.float32, f"its penalty is {first.dtype}"
    assert first.isfinite(), "its penalty is not finite"
    default = type(regularizer).model_fields["weight"].default
    assert default != 0, "its `weight` is 0 by default, which trains the control: give it a default of its own"
    weight = regularizer.weight or 1.0
    light, heavy = (penalty(regularizer.model_copy(update={"weight": factor * weight})) for factor in (1.0, 2.0))
    is_proportional = light is not None and heavy is not None and torch.allclose(2 * light, heavy, rtol=1e-3)
    assert is_proportional, "twice the `weight` is not twice its penalty"
    gradients = torch.autograd.grad(first, list(model.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    assert found, "its penalty has no gradient"
    assert all(gradient.isfinite().all() for gradient in found), "a gradient of its penalty is not finite"


def check_repair(repair: Repair) -> None:
    """Stages have names and results of their own, say what they are, and do it: a small network goes through all of
    them, twice with the same outcome, and a fresh network takes what they leave behind."""
    stages = repair.stages(Finetune())
    assert all(isinstance(stage, (Training, Operation)) for stage in stages), (
        "a stage is neither a Training nor an Operation"
    )
    names, results = ["poison", *(s.name for s in stages)], ["poisoned", *(s.result for s in stages)]
    assert len(set(names)) == len(names), f"two stages have one name: {', '.join(names)}"
    assert len(set(results)) == len(results), f"two stages have one result: {', '.join(results)}"
    for stage in stages:
        said = stage.identity()
        assert json.loads(json.dumps(said)) == said, f"the identity of '{stage.name}' is not JSON"
    assert set(get_args(Sight)) >= repair.SEES, f"it SEES what is not known: {', '.join(sorted(repair.SEES))}"
    _go_through(repair, stages)


def _go_through(repair: Repair, stages: Sequence[RepairStage]) -> None:
    import torch

    poisoned = weights = _network(repair, ()).state_dict()
    for index, stage in enumerate(stages):
        done, again = (_done(repair, stages[: index + 1], weights, poisoned) for _ in range(2))
        same = all(torch.equal(value, again[name]) for name, value in done.items())
        assert same, f"one seed, two results of '{stage.name}'"
        try:
            _network(repair, stages[: index + 1]).load_state_dict(done)
        except RuntimeError as error:
            raise AssertionError(f"a fresh network does not take what '{stage.name}' leaves behind: {error}") from None
        weights = done


def _network(repair: Repair, stages: Sequence[RepairStage]) -> nn.Module:
    """A network that `stages` of a repair have prepared, on the CPU."""
    model = _resnet8()
    # Behind a fresh one the next starts anew.
    last = max((at for at, stage in enumerate(stages) if _starts_elsewhere(stage)), default=0)
    with no_global_randomness(repair.title):
        for stage in stages[last:]:
            stage.prepare(model)
    return model


def _starts_elsewhere(stage: RepairStage) -> bool:
    return isinstance(stage, Training) and stage.start != "current"


def _done(
    repair: Repair,
    stages: Sequence[RepairStage],
    weights: Mapping[str, torch.Tensor],
    poisoned: Mapping[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """The weights after the last of the `stages`, done to a network that has gone through the others."""
    import torch

    stage = stages[-1]
    before = model = _network(repair, stages[:-1])
    model.load_state_dict(weights)
    if _starts_elsewhere(stage):
        model = _network(repair, ())
        if isinstance(stage, Training) and stage.start == "poisoned":
            model.load_state_dict(poisoned)
    with no_global_randomness(repair.title):
        stage.prepare(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(stage, Training):
            _train(repair, stage, model, before)
        else:
            _operate(repair, stage, model)
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _operate(repair: Repair, operation: Operation, model: nn.Module) -> None:
    import torch

    from bdray.training.device import Compute
    from bdray.training.evaluation import CleanSet, Normalization

    device = torch.device("cpu")
    normalize = Normalization.of((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), device)
    clean = CleanSet(noise(8), torch.arange(8) % CLASSES, normalize, Compute(device, bfloat16=False))
    generator = torch.Generator().manual_seed(0)
    tools = Tools(generator, clean, normalize, nullcontext, lambda done, total, *, point=False: None, max_batches=3)
    with no_global_randomness(repair.title):
        details = operation.operate(model, clean, tools)
    try:
        TypeAdapter(dict[str, float | list[int]]).validate_python(details)
    except ValidationError as error:
        raise AssertionError(f"what '{operation.name}' says of itself is no record: {error}") from None


def _train(repair: Repair, training: Training, model: nn.Module, before: nn.Module) -> None:
    import torch

    from bdray.poisoning.stamping import PoisonedSet
    from bdray.training.device import Compute
    from bdray.training.evaluation import Normalization, TestSet
    from bdray.training.loop import Stage, run_stage

    device, images, labels = torch.device("cpu"), noise(8), torch.arange(8) % CLASSES
    nowhere = torch.full((8,), -1)
    stage = Stage(
        name=training.name,
        seed=0,
        epochs=1,
        lr=training.recipe.lr,
        recipe=training.recipe.model_copy(update={"batch_size": 4}),
        augmentation="none",
        layers=training.recipe.layers,
        regularizer=REGULARIZERS.build("none"),
        source=PoisonedSet(images, labels, images[:0], nowhere, torch.arange(8)),
        test=TestSet(images, labels, images, labels, (labels + 1) % CLASSES),
        num_classes=CLASSES,
        normalize=Normalization.of((0.5, 0.5, 0.5), (0.25, 0.25, 0.25), device),
        compute=Compute(device, bfloat16=False),
        objective=cast(Objective, Watched(training.objective, repair.title)),
    )
    state = run_stage(stage, stage.start(model, before))
    assert not state.history[-1].diverged, f"the loss of '{training.name}' is not finite"


@dataclass(frozen=True)
class _Clean:
    images: torch.Tensor
    labels: torch.Tensor


def check_detector(detector: Detector) -> None:
    """It says what it sees; its scores are float64, as many as asked for, finite and the same for one seed; model,
    pictures and the global generator are left as they were."""
    import torch

    assert detector.SEES, "it does not say what it sees"
    assert set(get_args(Sight)) >= detector.SEES, f"it SEES what is not known: {', '.join(sorted(detector.SEES))}"
    model = _resnet8().eval()
    clean = _Clean(noise(12), torch.arange(12) % CLASSES)
    images, weights = clean.images.clone(), {name: value.clone() for name, value in model.state_dict().items()}

    def scores() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        tools = DetectorTools(
            generator, CLASSES, torch.device("cpu"), normalize=lambda pixels: pixels * 4 - 2, clean=clean
        )
        if isinstance(detector, InputDetector):
            found = detector.fit(model, clean, tools)(clean.images)
            assert isinstance(detector.threshold(found), float), "its threshold is no float"
        elif isinstance(detector, TrainingSetDetector):
            found = detector.score(model, clean, tools)
            _is(detector.flagged(found, clean.labels), 12, torch.bool, "flags")
        else:
            assert isinstance(detector, ModelDetector), "it extends none of the three kinds of detector"
            found = detector.score(model, clean, tools)
            _is(detector.flagged(found), CLASSES, torch.bool, "flags")
        return found

    first = scores()
    _is(first, CLASSES if isinstance(detector, ModelDetector) else 12, torch.float64, "scores")
    assert first.isfinite().all(), "a score is not finite"
    assert torch.equal(scores(), first), "one seed gives two results"
    with no_global_randomness(detector.title):
        scores()
    assert torch.equal(clean.images, images), "it changes the pictures it is given"
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items()), "it changes the model"
    assert not model.training, "it leaves the model in training mode"
    assert all(value.grad is None for value in model.parameters()), "it leaves gradients in the model"


def _is(values: torch.Tensor, count: int, dtype: torch.dtype, name: str) -> None:
    assert values.shape == (count,), f"its {name} have the shape {tuple(values.shape)}, not ({count},)"
    assert values.dtype == dtype, f"its {name} are {values.dtype}, not {dtype}"


_CHECKS: dict[type[Component], Callable[[Any], None]] = {
    Trigger: check_trigger,
    Poison: check_poison,
    Architecture: check_architecture,
    Regularizer: check_regularizer,
    Repair: check_repair,
    Detector: check_detector,
}
