"""`bdray stages`: kept models of a sweep, and pruning them."""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

from rich import box
from rich.table import Table

from bdray.errors import UserError
from bdray.store.file_names import DRIVER_LOCK, MANIFEST
from bdray.store.records import read_records
from bdray.store.stage_cache import StageCache
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, find_sweep
from bdray.terminal import Console

GIGABYTE = 1e9


def stages(options: argparse.Namespace) -> int:
    """List the stages that a sweep keeps, the longest unused first; with `--prune` forget those until the rest fits.

    A stage that is forgotten is computed again when a condition needs it; no result is lost.

    Raises:
        UserError: the sweep is running.
    """
    console = Console(highlight=False)
    sweep = find_sweep(options.sweep, options.storage)
    if options.prune is not None:
        _prune(sweep, options.prune, console)
    sizes: dict[str, int] = {}
    used: dict[str, float] = {}
    finished: set[str] = set()
    for file in sweep.child("stages").files():
        fingerprint, _, name = file.path.partition("/")
        sizes[fingerprint] = sizes.get(fingerprint, 0) + file.size
        used[fingerprint] = max(used.get(fingerprint, 0.0), file.modified_s)
        if name == MANIFEST:
            finished.add(fingerprint)
    needed: dict[str, list[str]] = {}
    for record in read_records(sweep):
        for stage in record.stages:
            needed.setdefault(stage.fingerprint, []).append(record.condition_id)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
    for name in ("stage", "state", "MB", "last used (UTC)", "conditions"):
        table.add_column(name, justify="right" if name == "MB" else "left", no_wrap=name != "conditions")
    for fingerprint in sorted(sizes, key=lambda name: used[name]):
        users = needed.get(fingerprint, [])
        table.add_row(
            fingerprint,
            "kept" if fingerprint in finished else "unfinished",
            f"{sizes[fingerprint] / 1e6:.1f}",
            datetime.fromtimestamp(used[fingerprint], UTC).strftime("%Y-%m-%d %H:%M"),
            ", ".join(users[:3]) + (f" and {len(users) - 3} more" if len(users) > 3 else ""),
        )
    console.print(table)
    console.print(f"{len(sizes)} stages, {sum(sizes.values()) / GIGABYTE:.3f} GB")
    return 0


def _prune(sweep: Storage, keep_gb: float, console: Console) -> None:
    def busy(holder: str) -> UserError:
        return UserError(f"the sweep in {sweep.uri} is running ({holder}): it keeps its stages in order by itself")

    with SweepFolder(sweep).locked(DRIVER_LOCK, 0, busy):
        cache = StageCache(sweep, int(keep_gb * GIGABYTE), {})
        before = cache.total_bytes
        cache.shrink()
    freed = (before - cache.total_bytes) / GIGABYTE
    console.print(f"{len(cache.evicted)} stages forgotten, {freed:.3f} GB freed")
