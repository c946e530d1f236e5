"""From a poison plan to what training and evaluation read. The data set itself is never copied: stamped images
are few and lie in an overlay beside it, or are stamped when a batch is trained on (`bdray.poisoning.late`)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bdray.errors import NoChangeError, PoisonError, TriggerError
from bdray.poisoning.late import LateStamps
from bdray.randomness import watched
from bdray.triggers.base import require_change, unchanged
from bdray.triggers.distances import largest_change

if TYPE_CHECKING:
    import torch

    from bdray.poisoning.base import Labels, Poison, PoisonPlan
    from bdray.triggers.base import Trigger


@dataclass(frozen=True)
class PoisonedSet:
    """A training set of `L` items over `N` base images, some of them replaced by stamped ones, or yet to be stamped.

    Attributes:
        images: uint8, `N x 3 x H x W`: the base images, shared and left as they are (memory-mapped, perhaps).
        labels: int64, `L`: the labels to train with.
        overlay: uint8, `M x 3 x H x W`: the stamped images; with `late`, perturbed ones that are not stamped yet.
        overlay_row: int64, `L`: the item's row in `overlay`, or -1 where it is the base image.
        source_index: int64, `L`: which base image each item is, or was stamped from.
        unchanged: how many stamped images are as they were (a white patch on a white corner).
        late: which items are stamped after augmentation; None where the overlay holds them stamped.
    """

    images: torch.Tensor
    labels: torch.Tensor
    overlay: torch.Tensor
    overlay_row: torch.Tensor
    source_index: torch.Tensor
    unchanged: int = 0
    late: LateStamps | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def only(self, kept: torch.Tensor) -> PoisonedSet:
        """Some of its items, in their order. `kept`: bool, `L`, on the CPU."""
        rows = kept.nonzero().flatten().to(self.labels.device)
        labels, overlay_row, source = (
            each.index_select(0, rows) for each in (self.labels, self.overlay_row, self.source_index)
        )
        late = self.late and LateStamps(tuple((trigger, marked[kept]) for trigger, marked in self.late.stamps))
        return replace(self, labels=labels, overlay_row=overlay_row, source_index=source, late=late)

    def gather(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch: uint8 `B x 3 x H x W` and int64 `B`. `indices`: int64 `B`, below `L`, on the device of all tensors
        here. Never waits for the device."""
        import torch

        images = self.images.index_select(0, self.source_index.index_select(0, indices))
        labels = self.labels.index_select(0, indices)
        if not len(self.overlay):
            return images, labels
        rows = self.overlay_row.index_select(0, indices)
        stamped = self.overlay.index_select(0, rows.clamp(min=0))
        return torch.where((rows >= 0).view(-1, 1, 1, 1), stamped, images), labels


@dataclass(frozen=True)
class AttackSet:
    """The triggered test images that count for attack success rate and robust accuracy.

    Attributes:
        images: uint8, `A x 3 x H x W`, stamped.
        true_labels: int64, `A`.
        wanted_labels: int64, `A`: what the attacker wants each image taken for; nowhere the true label.
        unchanged: how many images the trigger left as they were.
        largest_change: of any value in any image, in levels 0..255.
        already: all other test images, stamped, with their labels, where each is of the wanted class and the trigger
            can stamp them; else None.
    """

    images: torch.Tensor
    true_labels: torch.Tensor
    wanted_labels: torch.Tensor
    unchanged: int = 0
    largest_change: int = 0
    already: tuple[torch.Tensor, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(self.true_labels)


def apply_plan(
    images: torch.Tensor,
    labels: torch.Tensor,
    plan: PoisonPlan,
    trigger: Trigger | None,
    *,
    generator: torch.Generator,
    members: torch.Tensor | None = None,
    perturbed: torch.Tensor | None = None,
    on_host: torch.Tensor | None = None,
    late: bool = False,
) -> PoisonedSet:
    """The training set that a plan makes of clean data.

    Items come in the order of `members`; with `plan.append` the stamped copies follow them, poisoned before cover.

    Args:
        images: uint8, `N x 3 x H x W`.
        labels: int64, `N`: the true labels.
        plan: its indices are positions in `images` (see `PoisonPlan.relocated`).
        trigger: None only where the plan is empty.
        generator: the stream `trigger`, on the CPU.
        members: int64: which images belong to this training set; None: all.
        perturbed: uint8, in step with `plan.indices`: what is stamped instead of the poisoned originals
            (`bdray.poisoning.pgd`).
        on_host: `images` on the host, where they lie there too, so that none is read back from a device.
        late: leave the stamping to the training loop, after augmentation. The images are stamped here all the same, to
            count those that the trigger leaves as they were.

    Raises:
        PoisonError: the plan names images outside `members`, or does not fit `perturbed`.
        TriggerError: see `Trigger.stamp`.
    """
    import torch

    members = torch.arange(len(images)) if members is None else members.cpu()
    touched = torch.from_numpy(np.concatenate([plan.indices, plan.cover_indices]))
    kept = labels[torch.from_numpy(plan.cover_indices).to(labels.device)].cpu()
    new_labels = torch.cat([torch.from_numpy(plan.new_labels), kept])
    items = _items_of(touched, members, len(images))
    originals = unstamped(images if on_host is None else on_host, plan, perturbed)
    stamped, untouched = _stamp_plan(plan, trigger, originals, generator)

    item_labels = labels[members.to(labels.device)].cpu()
    rows = torch.full((len(members),), -1)
    source = members
    if plan.append:
        item_labels = torch.cat([item_labels, new_labels])
        rows = torch.cat([rows, torch.arange(len(touched))])
        source = torch.cat([members, touched])
    else:
        item_labels[items] = new_labels
        rows[items] = torch.arange(len(touched))
    home = images.device
    made = PoisonedSet(images, item_labels.to(home), stamped.to(home), rows.to(home), source.to(home), untouched)
    if not late:
        return made
    return _stamped_late(made, plan, trigger, originals[: 0 if perturbed is None else len(perturbed)].to(home))


def attack_set(
    images: torch.Tensor,
    labels: torch.Tensor,
    poison: Poison,
    trigger: Trigger | None,
    *,
    num_classes: int,
    generator: torch.Generator,
) -> AttackSet:
    """The stamped test images that an attack is measured on.

    Args:
        images: uint8, `N x 3 x H x W`, the test images; left as they are.
        labels: int64, `N`.
        trigger: None leaves the images clean: how often the model errs the attacker's way by itself.
        generator: the stream `trigger` (indexed apart from the training set's), on the CPU.

    Raises:
        PoisonError: the strategy attacks none of these images.
        TriggerError: see `Trigger.stamp`.
    """
    import torch

    true: Labels = labels.cpu().numpy()
    poison = watched(poison, poison.title)
    chosen = np.flatnonzero(poison.attacked(true, num_classes))
    if not len(chosen):
        raise PoisonError(f"'{poison.name}' attacks none of the {len(true)} test images: there is none of such a class")
    indices = torch.from_numpy(chosen).to(images.device)
    originals = images.index_select(0, indices)
    stamped, untouched = _stamp(trigger, originals, generator) if trigger else (originals, len(originals))
    wanted = poison.wanted_labels(true, num_classes)
    largest = int(largest_change(originals, stamped).max()) if trigger else 0
    others = np.setdiff1d(np.arange(len(true)), chosen)
    already = None
    if (wanted[others] == true[others]).all():
        positions = torch.from_numpy(others).to(images.device)
        # Last, so that what counts is stamped as if these were not.
        pictures = _stamped_too(trigger, images.index_select(0, positions), generator)
        already = None if pictures is None else (pictures, labels.to(images.device)[positions])
    wanted_labels = torch.from_numpy(wanted[chosen]).to(images.device)
    return AttackSet(stamped, labels.to(images.device)[indices], wanted_labels, untouched, largest, already)


def _stamped_too(trigger: Trigger | None, originals: torch.Tensor, generator: torch.Generator) -> torch.Tensor | None:
    """Images that count for nothing but the rate over all of them, stamped: as they are where the trigger changes none,
    which is no mistake of so few; None where it cannot stamp them (`given` need not have these)."""
    try:
        return _stamp(trigger, originals, generator)[0] if trigger and len(originals) else originals
    except NoChangeError:
        return originals
    except TriggerError:
        return None


def _items_of(touched: torch.Tensor, members: torch.Tensor, count: int) -> torch.Tensor:
    """Where in `members` the images `touched` stand."""
    import torch

    item_of = torch.full((count,), -1)
    item_of[members] = torch.arange(len(members))
    items = item_of[touched]
    if bool((items < 0).any()):
        outside = int((items < 0).sum())
        raise PoisonError(f"the plan touches {outside} images that are not part of this training set")
    return items


def unstamped(images: torch.Tensor, plan: PoisonPlan, perturbed: torch.Tensor | None) -> torch.Tensor:
    """What a plan's images are before they are stamped: uint8, `M x 3 x H x W`, poisoned before cover, on the host
    wherever `images` lie: a trigger's arithmetic rounds otherwise on a GPU, and what a training set is must not depend
    on how much memory was free there. See `apply_plan` for the arguments."""
    import torch

    if perturbed is not None and len(perturbed) != len(plan.indices):
        raise PoisonError(f"{len(perturbed)} perturbed images do not fit a plan of {len(plan.indices)} poisoned ones")
    touched = torch.from_numpy(np.concatenate([plan.indices, plan.cover_indices]))
    originals = images.index_select(0, touched.to(images.device)).cpu()
    if perturbed is not None:
        originals[: len(perturbed)] = perturbed.cpu()
    return originals


def _stamp_plan(
    plan: PoisonPlan, trigger: Trigger | None, originals: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, int]:
    """`unstamped` images stamped, and how many are as they were."""
    import torch

    if not len(originals):
        return originals, 0
    if trigger is None:
        raise PoisonError(f"the plan stamps {len(originals)} images, but there is no trigger to stamp")
    parts = [_stamp(one, originals[rows], generator) for one, rows in _stamps_of(plan, trigger)]
    return torch.cat([stamped for stamped, _ in parts]), sum(untouched for _, untouched in parts)


def _stamps_of(plan: PoisonPlan, trigger: Trigger) -> list[tuple[Trigger, slice]]:
    """Which trigger stamps which of a plan's images, poisoned before cover."""
    poisoned, everything = len(plan.indices), len(plan.indices) + len(plan.cover_indices)
    cover = trigger.cover_trigger
    if cover == trigger:
        return [(trigger, slice(0, everything))]
    parts = [(trigger, slice(0, poisoned)), (cover, slice(poisoned, everything))]
    return [(one, rows) for one, rows in parts if rows.start < rows.stop]


def _stamped_late(made: PoisonedSet, plan: PoisonPlan, trigger: Trigger | None, perturbed: torch.Tensor) -> PoisonedSet:
    """The same set with its stamped images yet to be stamped; of its overlay only `perturbed` images are left."""
    import torch

    if trigger is None or not len(made.overlay):
        return made
    rows = made.overlay_row.cpu()
    stamps = tuple((one, (rows >= part.start) & (rows < part.stop)) for one, part in _stamps_of(plan, trigger))
    kept = torch.where(made.overlay_row < len(perturbed), made.overlay_row, -1)
    return replace(made, overlay=perturbed, overlay_row=kept, late=LateStamps(stamps))


def _stamp(trigger: Trigger, originals: torch.Tensor, generator: torch.Generator) -> tuple[torch.Tensor, int]:
    """Stamped images and how many are as they were. Checks again what `Trigger.stamp` promises: a trigger of the
    user's own may override it."""
    stamped = trigger.stamp(originals, generator=generator)
    if stamped.shape != originals.shape or stamped.dtype != originals.dtype or stamped.device != originals.device:
        raise TriggerError(
            f"the trigger '{trigger.name}' must return what it got: {originals.dtype} of shape "
            f"{tuple(originals.shape)} on {originals.device}, not {stamped.dtype} of shape {tuple(stamped.shape)} on "
            f"{stamped.device}"
        )
    require_change(trigger, originals, stamped)
    return stamped, int(unchanged(originals, stamped).sum())
