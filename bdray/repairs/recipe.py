"""The recipe `finetune` with options of a repair's own."""

from __future__ import annotations

from typing import Any

from bdray.recipes import Finetune


def with_options(recipe: Finetune, **options: Any) -> Finetune:
    """The same recipe but for some options."""
    # Not model_copy: that would carry the cached identity over.
    kept = {name: getattr(recipe, name) for name in Finetune.model_fields}
    return Finetune.model_validate({**kept, **options})
