"""The set that training reads, against one that is built item by item."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bdray.errors import PoisonError, TriggerError
from bdray.poisoning import STRATEGIES, PoisonPlan, apply_plan, attack_set, make_poison_plan
from bdray.triggers import Trigger, build_trigger


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randint(0, 256, (120, 3, 16, 16), dtype=torch.uint8, generator=generator(9))


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.randint(0, 5, (120,), generator=generator(8))


def plan_of(labels: torch.Tensor, **options: Any) -> PoisonPlan:
    options = {"strategy": "all_to_one", "rate": 0.2, "num_classes": 5, "generator": generator(), **options}
    return make_poison_plan(labels, **options)


@pytest.mark.parametrize("mode", ["replace", "append"])
@pytest.mark.parametrize("part", [False, True])
def test_equals_a_set_built_item_by_item(images: torch.Tensor, labels: torch.Tensor, mode: str, part: bool) -> None:
    members = torch.randperm(120, generator=generator(7))[:80] if part else torch.arange(120)
    plan = plan_of(labels[members], cover_rate=0.1, mode=mode).relocated(members.numpy())
    trigger = build_trigger("patch")
    made = apply_plan(images, labels, plan, trigger, generator=generator(), members=members)

    new = dict(zip(plan.indices.tolist(), plan.new_labels.tolist(), strict=True))
    new |= {index: int(labels[index]) for index in plan.cover_indices.tolist()}
    stamp = lambda index: trigger.stamp(images[index : index + 1])[0]  # noqa: E731
    expected = []
    for index in members.tolist():
        replaced = mode == "replace" and index in new
        expected.append((stamp(index), new[index]) if replaced else (images[index], int(labels[index])))
    if mode == "append":
        expected += [(stamp(index), label) for index, label in new.items()]

    batch, batch_labels = made.gather(torch.arange(len(made)))
    assert len(made) == len(expected)
    assert torch.equal(batch, torch.stack([image for image, _ in expected]))
    assert batch_labels.tolist() == [label for _, label in expected]
    assert made.source_index.tolist() == members.tolist() + (list(new) if mode == "append" else [])
    assert made.unchanged == 0


def test_gather_takes_any_order_and_repeats(images: torch.Tensor, labels: torch.Tensor) -> None:
    made = apply_plan(images, labels, plan_of(labels), build_trigger("patch"), generator=generator())
    whole, whole_labels = made.gather(torch.arange(len(made)))
    order = torch.tensor([3, 119, 3, 0, 57])
    batch, batch_labels = made.gather(order)
    assert torch.equal(batch, whole[order])
    assert torch.equal(batch_labels, whole_labels[order])


def test_shares_the_base_images_and_leaves_them(images: torch.Tensor, labels: torch.Tensor) -> None:
    before, before_labels = images.clone(), labels.clone()
    made = apply_plan(images, labels, plan_of(labels), build_trigger("blend"), generator=generator())
    made.gather(torch.arange(120))[0].zero_()
    assert made.images.data_ptr() == images.data_ptr()
    assert torch.equal(images, before)
    assert torch.equal(labels, before_labels)
    assert len(made.overlay) == 24


def test_reads_memory_mapped_images(images: torch.Tensor, labels: torch.Tensor, tmp_path: Any) -> None:
    np.save(tmp_path / "images.npy", images.numpy())
    mapped = torch.from_numpy(np.load(tmp_path / "images.npy", mmap_mode="c"))
    made = [
        apply_plan(base, labels, plan_of(labels), build_trigger("patch"), generator=generator())
        for base in (images, mapped)
    ]
    assert torch.equal(made[0].gather(torch.arange(120))[0], made[1].gather(torch.arange(120))[0])


def test_an_empty_plan_needs_no_trigger(images: torch.Tensor, labels: torch.Tensor) -> None:
    made = apply_plan(images, labels, plan_of(labels, rate=0.0), None, generator=generator())
    batch, batch_labels = made.gather(torch.arange(120))
    assert torch.equal(batch, images)
    assert torch.equal(batch_labels, labels)


def test_perturbed_images_are_stamped_in_place_of_the_originals(images: torch.Tensor, labels: torch.Tensor) -> None:
    plan = plan_of(labels, strategy="clean_label", rate=0.1, cover_rate=0.1)
    perturbed = 255 - images[torch.from_numpy(plan.indices)]
    trigger = build_trigger("patch")
    made = apply_plan(images, labels, plan, trigger, generator=generator(), perturbed=perturbed)
    batch, batch_labels = made.gather(torch.arange(120))
    assert torch.equal(batch[plan.indices], trigger.stamp(perturbed))
    assert torch.equal(batch[plan.cover_indices], trigger.stamp(images[plan.cover_indices]))
    assert torch.equal(batch_labels, labels)
    with pytest.raises(PoisonError, match="11 perturbed images do not fit a plan of 12"):
        apply_plan(images, labels, plan, trigger, generator=generator(), perturbed=perturbed[:11])


def test_same_seed_same_places(images: torch.Tensor, labels: torch.Tensor) -> None:
    trigger = build_trigger("patch", position="random")
    made = [apply_plan(images, labels, plan_of(labels), trigger, generator=generator(s)).overlay for s in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_counts_images_that_the_trigger_leaves(images: torch.Tensor, labels: torch.Tensor) -> None:
    plan = plan_of(labels)
    images[plan.indices[:2], :, 10:, 10:] = 255
    assert apply_plan(images, labels, plan, build_trigger("patch"), generator=generator()).unchanged == 2


class _Broken(Trigger):
    """Overrides `stamp` itself, as a user's trigger may, and breaks its promises."""

    how: str = "nothing"

    def stamp(self, images: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        return {"nothing": images.clone(), "dtype": images.float() + 1, "shape": images[:, :1] + 1}[self.how]


@pytest.mark.parametrize(
    ("how", "problem"),
    [("nothing", "changes no pixel"), ("dtype", "must return what it got"), ("shape", "must return")],
)
def test_a_trigger_of_the_users_own_is_checked(
    images: torch.Tensor, labels: torch.Tensor, how: str, problem: str
) -> None:
    with pytest.raises(TriggerError, match=problem):
        apply_plan(images, labels, plan_of(labels), _Broken(how=how), generator=generator())


def test_problems_are_said(images: torch.Tensor, labels: torch.Tensor) -> None:
    with pytest.raises(PoisonError, match="stamps 24 images, but there is no trigger"):
        apply_plan(images, labels, plan_of(labels), None, generator=generator())
    with pytest.raises(PoisonError, match="touches 24 images that are not part"):
        plan = plan_of(labels)
        members = torch.from_numpy(np.setdiff1d(np.arange(120), plan.indices))
        apply_plan(images, labels, plan, build_trigger("patch"), generator=generator(), members=members)


def test_gather_never_waits_for_the_device(images: torch.Tensor, labels: torch.Tensor) -> None:
    made = apply_plan(images, labels, plan_of(labels), build_trigger("patch"), generator=generator())
    on_meta: dict[str, Any] = {
        name: value.to("meta") for name, value in vars(made).items() if isinstance(value, torch.Tensor)
    }
    moved = dataclasses.replace(made, **on_meta)
    # On the meta device nothing can be read back, so this shows that a gather never waits for the device.
    batch, batch_labels = moved.gather(torch.arange(7, device="meta"))
    assert (batch.shape, batch_labels.shape) == ((7, 3, 16, 16), (7,))


@pytest.mark.parametrize(
    "content",
    [
        {"strategy": "all_to_one", "target": 2},
        {"strategy": "one_to_one", "source": 1, "target": 3},
        {"strategy": "all_to_all"},
        {"strategy": "clean_label", "target": 4},
    ],
    ids=lambda content: content["strategy"],
)
def test_attack_set_is_every_attacked_image_stamped(
    images: torch.Tensor, labels: torch.Tensor, content: dict[str, Any]
) -> None:
    poison, trigger = STRATEGIES.build(content), build_trigger("sinusoid")
    attack = attack_set(images, labels, poison, trigger, num_classes=5, generator=generator())
    wanted = lambda y: (y + 1) % 5 if content["strategy"] == "all_to_all" else content["target"]  # noqa: E731
    chosen = [
        i
        for i, y in enumerate(labels.tolist())
        if wanted(y) != y and (content["strategy"] != "one_to_one" or y == content["source"])
    ]
    assert torch.equal(attack.images, trigger.stamp(images[chosen]))
    assert attack.true_labels.tolist() == labels[chosen].tolist()
    assert attack.wanted_labels.tolist() == [wanted(int(labels[i])) for i in chosen]
    assert len(attack) == len(chosen)
    others = sorted({*range(len(labels))} - {*chosen})
    if content["strategy"] == "one_to_one":
        assert attack.already is None, "images of other classes are neither attacked nor of the wanted class"
    else:
        assert attack.already is not None
        pictures, own = attack.already
        assert torch.equal(pictures, trigger.stamp(images[others]) if others else images[:0])
        assert own.tolist() == [wanted(int(labels[i])) for i in others]


def test_what_counts_is_stamped_as_if_the_rest_were_not(images: torch.Tensor, labels: torch.Tensor) -> None:
    poison, trigger = STRATEGIES.build("all_to_one"), build_trigger("patch", position="random")
    attack = attack_set(images, labels, poison, trigger, num_classes=5, generator=generator())
    assert torch.equal(attack.images, trigger.stamp(images[labels != 0], generator=generator()))


def test_a_trigger_that_changes_none_of_the_wanted_class_is_no_mistake(labels: torch.Tensor) -> None:
    # A white patch on white pictures: those of class 0.
    images = torch.where(labels.view(-1, 1, 1, 1) == 0, 255, 0).to(torch.uint8).expand(-1, 3, 16, 16).contiguous()
    attack = attack_set(
        images, labels, STRATEGIES.build("all_to_one"), build_trigger("patch"), num_classes=5, generator=generator()
    )
    assert attack.already is not None and torch.equal(attack.already[0], images[labels == 0])


def test_pictures_stamped_elsewhere_need_not_hold_those_of_the_wanted_class(
    images: torch.Tensor, labels: torch.Tensor, tmp_path: Path
) -> None:
    """As BackdoorBench publishes them. What they do under the trigger is then unknown, and not what they do without."""
    path, clean = tmp_path / "pairs.npz", images[labels != 0].permute(0, 2, 3, 1).contiguous().numpy()
    np.savez(path, clean=clean, stamped=255 - clean)
    trigger = build_trigger("given", path=str(path))
    attack = attack_set(images, labels, STRATEGIES.build("all_to_one"), trigger, num_classes=5, generator=generator())
    assert torch.equal(attack.images, 255 - images[labels != 0])
    assert attack.already is None


def test_attack_set_without_images_is_an_error(images: torch.Tensor) -> None:
    poison = STRATEGIES.build({"strategy": "one_to_one", "source": 3, "target": 0})
    labels = torch.zeros(120, dtype=torch.int64)
    with pytest.raises(PoisonError, match="'one_to_one' attacks none of the 120 test images"):
        attack_set(images, labels, poison, build_trigger("patch"), num_classes=5, generator=generator())


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_stamped_late_is_stamped_on_what_it_has_become(images: torch.Tensor, labels: torch.Tensor, mode: str) -> None:
    plan = plan_of(labels, strategy="clean_label", rate=0.1, cover_rate=0.1, mode=mode)
    perturbed = 255 - images[torch.from_numpy(plan.indices)]
    trigger = build_trigger("patch")
    options: dict[str, Any] = {"generator": generator(), "perturbed": perturbed}
    early = apply_plan(images, labels, plan, trigger, **options)
    late = apply_plan(images, labels, plan, trigger, **options, late=True)
    stamped = [i for i, row in enumerate(early.overlay_row.tolist()) if row >= 0]
    assert late.unchanged == early.unchanged
    assert late.late is not None

    orders = torch.randperm(len(late), generator=generator(4)).split(50)
    for order, rows in zip(orders, late.late.rows(orders, torch.device("cpu")), strict=True):
        batch, batch_labels = late.gather(order)
        assert torch.equal(batch_labels, early.gather(order)[1])
        is_stamped = torch.isin(order, torch.tensor(stamped))
        assert torch.equal(batch[~is_stamped], early.gather(order)[0][~is_stamped])
        turned = batch.flip(3)
        before = turned.clone()
        after = late.late.stamp(turned, rows, generator())
        assert torch.equal(turned, before)
        assert torch.equal(after[is_stamped], trigger.stamp(turned[is_stamped]))
        assert torch.equal(after[~is_stamped], turned[~is_stamped])
    # Unturned, it is what would have been stamped as a file: perturbed, appended or covering images too.
    (rows,) = late.late.rows([torch.arange(len(late))], torch.device("cpu"))
    whole = late.late.stamp(late.gather(torch.arange(len(late)))[0], rows, generator())
    assert torch.equal(whole, early.gather(torch.arange(len(late)))[0])


@pytest.mark.parametrize("content", [{"name": "patch"}, {"name": "blend"}, {"name": "warp"}, {"name": "filter"}])
def test_late_stamping_never_waits_for_the_device(
    images: torch.Tensor, labels: torch.Tensor, content: dict[str, Any]
) -> None:
    late = apply_plan(images, labels, plan_of(labels), build_trigger(**content), generator=generator(), late=True).late
    assert late is not None
    (rows,) = late.rows([torch.arange(120)], torch.device("meta"))
    # On the meta device nothing can be read back.
    assert late.stamp(images.to("meta"), rows, generator()).shape == images.shape


def test_nothing_is_stamped_late_where_nothing_is_stamped(images: torch.Tensor, labels: torch.Tensor) -> None:
    plan = plan_of(labels, rate=0.0)
    for trigger in (None, build_trigger("patch")):
        assert apply_plan(images, labels, plan, trigger, generator=generator(), late=True).late is None


@pytest.mark.parametrize("late", [False, True])
def test_cover_images_are_stamped_with_the_trigger_for_covers(
    images: torch.Tensor, labels: torch.Tensor, late: bool
) -> None:
    plan = plan_of(labels, cover_rate=0.3)
    noisy, plain = build_trigger("warp", covers="noise", strength=2.0), build_trigger("warp", strength=2.0)
    made = [apply_plan(images, labels, plan, trigger, generator=generator(), late=late) for trigger in (noisy, plain)]
    batches = [one.gather(torch.arange(120))[0] for one in made]
    if late:
        stamps = [one.late for one in made]
        batches = [
            stamp.stamp(batch, next(stamp.rows([torch.arange(120)], torch.device("cpu"))), generator())
            for stamp, batch in zip(stamps, batches, strict=True)
            if stamp
        ]
    different = (batches[0] != batches[1]).flatten(1).any(1).nonzero().flatten().tolist()
    assert different == plan.cover_indices.tolist()
    expected = noisy.cover_trigger.stamp(images[plan.cover_indices], generator=generator())
    assert torch.equal(batches[0][plan.cover_indices], expected)
