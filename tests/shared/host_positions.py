"""What both pretended GPUs know of CUDA; importing one of them makes it a device of the process."""

from __future__ import annotations

TAKE_HOST_POSITIONS = {"index", "index_put", "index_put_", "_index_put_impl_"}
"""Indexing with brackets: CUDA copies positions from the host first; `index_select` and its like refuse them."""
