"""What a trigger is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from bdray.errors import ComponentError, NoChangeError, TriggerError
from bdray.randomness import watching
from bdray.registry import Component, Registry
from bdray.seeds import stream

if TYPE_CHECKING:
    import torch

_FIXED_SEED = 0
"""Seeds random places where the caller names no stream, so that `stamp` is a function of the images alone."""

_CHUNK_VALUES = 1 << 24
"""Values stamped at once: 64 MiB as float32, whatever the size of the set."""


class Trigger(Component):
    """A pure function that stamps images. Sizes are given for 32 x 32 images and scale with the image.

    A new trigger writes `apply`; users call `stamp`, which guards what a trigger promises.
    """

    LENGTHS: ClassVar[tuple[str, ...]] = ()
    """Options that are whole numbers of pixels at 32 x 32 (`bdray.triggers.placement.scaled`)."""
    ONLY_ORIGINALS: ClassVar[bool] = False
    """Whether it stamps the data set's own pictures alone, and none that was cropped, moved or perturbed before."""

    @property
    def cover_trigger(self) -> Trigger:
        """What cover images are stamped with: the trigger itself, unless the attack has another idea of covers."""
        return self

    @property
    def test_trigger(self) -> Trigger:
        """What test images are stamped with where `poison.test_trigger` says nothing: the trigger itself, unless the
        attack shows more of it at test time."""
        return self

    @property
    def members(self) -> tuple[Trigger, ...]:
        """The triggers it consists of, itself where it is a single one."""
        return (self,)

    def apply(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Stamped copies of `images` (uint8, `N x 3 x H x W`, `N >= 1`, left as they are); the same shape, dtype and
        device. `generator` is a CPU generator, for what is drawn anew for every image. The training loop calls it where
        images are stamped after augmentation: it must not wait for the device (`bdray.gpu.to_device`)."""
        raise NotImplementedError

    def check(self, image_size: int) -> None:
        """Raises `ComponentError` for what cannot be laid over images of this size, as far as that is known unseen."""

    def stamp(self, images: torch.Tensor, *, generator: torch.Generator | None = None) -> torch.Tensor:
        """Stamped copies of `images`.

        One image may come out as it was (a white patch on a corner that is white already); `unchanged` finds those.

        Args:
            images: uint8, `N x 3 x H x W`, on any device; left as they are.
            generator: draws what is random in every image (the place of a `random` patch); a CPU generator.
                Triggers with nothing random ignore it; without one, random triggers use a fixed seed.

        Returns:
            uint8, `N x 3 x H x W`, on the device of `images`.

        Raises:
            TriggerError: the images have the wrong shape or dtype, the trigger does not fit into them, or it changes
                no pixel of any of them.
        """
        import torch

        _check_images(images)
        if generator is None:
            generator = stream(_FIXED_SEED, "trigger", "places")
        stamped = torch.empty_like(images, memory_format=torch.contiguous_format)
        step = max(1, _CHUNK_VALUES // max(1, images[:1].numel()))
        with watching(self, self.title):
            for start in range(0, len(images), step):
                stamped[start : start + step] = self.apply(images[start : start + step], generator)
        require_change(self, images, stamped)
        return stamped


TRIGGERS: Registry[Trigger] = Registry("trigger", "triggers", Trigger, "bdray.triggers")


def embedded(content: Any, option: str) -> Trigger:
    """A trigger that is an option of another component, from `{name: ..., option: ...}`.

    Raises:
        ComponentError: there is no such trigger or option; the path begins with `option`.
    """
    if not isinstance(content, (Mapping, str, Trigger)):
        raise ComponentError(option, f"must be a mapping, got {content!r}")
    try:
        return TRIGGERS.build(content)
    except ComponentError as error:
        raise ComponentError(f"{option}.{error.path}" if error.path else option, error.problem) from None


def build_trigger(name: str, **options: Any) -> Trigger:
    """The trigger registered as `name`, with these options.

    Raises:
        ComponentError: unknown name or option, wrong type or value; names the nearest.
    """
    return TRIGGERS.build({"name": name, **options})


def pattern_stream(pattern_seed: int) -> torch.Generator:
    """What a fixed pattern is drawn from. A stream of its own: a plain generator with the same seed draws the random
    images of many a test, and a pattern that equals an image changes nothing."""
    return stream(pattern_seed, "trigger", "pattern")


def unchanged(images: torch.Tensor, stamped: torch.Tensor) -> torch.Tensor:
    """Which images the trigger left as they were. uint8 `N x 3 x H x W` both; bool, `N`, on their device."""
    return (images == stamped).flatten(1).all(dim=1)


def require_change(trigger: Trigger, images: torch.Tensor, stamped: torch.Tensor) -> None:
    """Raises `NoChangeError` when `stamped` equals `images` in every pixel (and there is an image at all)."""
    import torch

    if len(images) and torch.equal(images, stamped):
        count = "the one image" if len(images) == 1 else f"any of the {len(images)} images"
        raise NoChangeError(
            f"the trigger '{trigger.name}' changes no pixel of {count}; make it larger, stronger or of another colour"
        )


def _check_images(images: torch.Tensor) -> None:
    import torch

    if images.dtype != torch.uint8:
        raise TriggerError(f"triggers stamp uint8 images, got {str(images.dtype).removeprefix('torch.')}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise TriggerError(f"triggers stamp images of shape N x 3 x H x W, got {' x '.join(map(str, images.shape))}")
