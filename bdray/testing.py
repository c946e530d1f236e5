"""What every component must keep, for the tests of whoever writes one:

    from bdray.testing import check_component

    def test_my_trigger():
        check_component(TRIGGERS.build({"name": "corner_dot", "level": 200}))

bdray's own tests call it for every component that is registered.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bdray.condition import COMPONENTS
from bdray.detectors import DETECTORS, Detector, InputDetector, ModelDetector, TrainingSetDetector
from bdray.detectors.tools import DetectorTools
from bdray.models.base import Architecture
from bdray.poisoning.base import Poison
from bdray.recipes import Finetune
from bdray.registry import Component, Registry
from bdray.regularizers.base import Regularizer
from bdray.repairs.base import Operation, Repair, Training
from bdray.triggers.base import Trigger

if TYPE_CHECKING:
    import torch

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
            check(component)


def _registry_of(component: Component) -> Registry[Any]:
    for registry in (*COMPONENTS.values(), DETECTORS):
        if isinstance(component, registry.base):
            return registry
    raise AssertionError(f"{type(component).__name__} extends the base class of no kind of component")


def _noise(count: int) -> torch.Tensor:
    import torch

    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)


def _leaves_global_generator_alone(act: Callable[[], object], problem: str) -> None:
    import torch

    before = torch.random.get_rng_state()
    act()
    assert torch.equal(torch.random.get_rng_state(), before), problem


def check_trigger(trigger: Trigger) -> None:
    """Shape and type stay, the images given stay as they are, one seed gives one result."""
    import torch

    images = _noise(5)
    before = images.clone()

    def stamped() -> torch.Tensor:
        return trigger.stamp(images, generator=torch.Generator().manual_seed(1))

    first = trigger.apply(images, torch.Generator().manual_seed(1))
    assert first.shape == images.shape, f"it makes {tuple(first.shape)} of {tuple(images.shape)}"
    assert first.dtype == torch.uint8, f"it makes {first.dtype} of uint8"
    assert torch.equal(images, before), "it changes the images it is given"
    assert torch.equal(stamped(), stamped()), "one seed gives two results"
    _leaves_global_generator_alone(stamped, "it draws from the global random generator instead of the one given")
    assert trigger.stamp(images[:0]).shape == images[:0].shape, "it fails without images"


def check_poison(poison: Poison) -> None:
    """Masks and labels have the right shape and type, and who is attacked is not already what is wanted."""
    import numpy as np

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


def check_architecture(architecture: Architecture) -> None:
    """One seed gives one network, its taps are those announced, and all of it gets a gradient."""
    import torch

    from bdray.models.networks.taps import forward_outputs

    def build(seed: int) -> torch.nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return architecture.build(CLASSES, SIDE)

    model, again = build(0), build(0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in model.state_dict().items()), "one seed, two networks"
    points = architecture.MIXING_POINTS
    assert points is None or tuple(model.taps.points) == points, "its taps are not its MIXING_POINTS"  # type: ignore[union-attr, arg-type]
    outputs = forward_outputs(model.train(), _noise(4).float() / 255)
    assert outputs.logits.shape == (4, CLASSES), f"its logits have the shape {tuple(outputs.logits.shape)}"
    assert outputs.features.ndim == 2, "its features are not N x D"
    outputs.logits.sum().backward()
    idle = [name for name, value in model.named_parameters() if value.requires_grad and value.grad is None]
    assert not idle, f"no gradient reaches {', '.join(idle[:3])}"


def check_regularizer(regularizer: Regularizer) -> None:
    """A finite float32 penalty, with gradients, of features of either sign; nothing drawn from the global generator."""
    import torch

    from bdray.models import build_model
    from bdray.models.networks.taps import forward_outputs
    from bdray.regularizers import mix

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet8", CLASSES, SIDE).train()
        state = regularizer.make_state()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])

    def penalty() -> torch.Tensor | None:
        images = regularizer.transform_inputs(_noise(6).float() / 255, torch.Generator().manual_seed(1))
        mixing = regularizer.draw_mixing(tuple(model.taps.points), 6, torch.Generator().manual_seed(2))  # type: ignore[arg-type, union-attr]
        edits = {mixing.point: lambda hidden: mix(hidden, mixing.permutation, mixing.lam)} if mixing else {}
        outputs = forward_outputs(model, images, edits=edits, capture=regularizer.capture)
        return regularizer.penalty(outputs, labels, state)

    first = penalty()
    _leaves_global_generator_alone(penalty, "it draws from the global random generator instead of the one given")
    if first is None:
        return
    assert first.shape == (), f"its penalty has the shape {tuple(first.shape)}"
    assert first.dtype == torch.float32, f"its penalty is {first.dtype}"
    assert first.isfinite(), "its penalty is not finite"
    gradients = torch.autograd.grad(first, list(model.parameters()), allow_unused=True)
    found = [gradient for gradient in gradients if gradient is not None]
    assert found, "its penalty has no gradient"
    assert all(gradient.isfinite().all() for gradient in found), "a gradient of its penalty is not finite"


def check_repair(repair: Repair) -> None:
    """Stages have names and results of their own, and say what they are."""
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


@dataclass(frozen=True)
class _Clean:
    images: torch.Tensor
    labels: torch.Tensor


def check_detector(detector: Detector) -> None:
    """It says what it sees; its scores are float64, as many as asked for, finite and the same for one seed; model,
    pictures and the global generator are left as they were."""
    import torch

    from bdray.models import build_model

    assert detector.SEES, "it does not say what it sees"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("resnet8", CLASSES, SIDE).eval()
    clean = _Clean(_noise(12), torch.arange(12) % CLASSES)
    images, weights = clean.images.clone(), {name: value.clone() for name, value in model.state_dict().items()}

    def scores() -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        tools = DetectorTools(generator, CLASSES, torch.device("cpu"), normalize=lambda pixels: pixels * 4 - 2)
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
    _leaves_global_generator_alone(scores, "it draws from the global random generator instead of the one given")
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
