"""Commands that look without running: `list`, `preview`, `doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from typing import Any

from rich.table import Table

from bdray.commands.readers import require_folder_of
from bdray.condition import COMPONENTS
from bdray.data.base import DATASETS
from bdray.errors import BdrayError, UserError, nearest
from bdray.plugins import GROUP, PluginError, load_plugins
from bdray.registry import Registry
from bdray.space import SearchSpace
from bdray.terminal import Console
from bdray.trial.attacks import probes_of

KINDS: dict[str, Registry[Any]] = {registry.plural: registry for registry in COMPONENTS.values()}
PREVIEW_IMAGES = 64
PACKAGES = ("bdray", "ray", "torch", "torchvision", "timm", "mlflow", "optuna")


def list_components(kind: str | None) -> int:
    """Print what is registered."""
    if kind is not None and kind not in KINDS:
        raise UserError(f"there is no kind '{kind}'; {nearest(kind, KINDS)}")
    load_plugins()
    console = Console(highlight=False)
    for name, registry in KINDS.items():
        if kind in (None, name):
            console.print(_listing(name, registry))
            console.print()
    return 0


def _listing(title: str, registry: Registry[Any]) -> Table:
    table = Table(title=f"[bold]{title}[/bold]", title_justify="left", show_edge=False, header_style="dim")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("options (default)", ratio=3)
    table.add_column("source", ratio=2)
    for name, cls in registry:
        options = ", ".join(
            f"{field} (required)"
            if info.is_required()
            else f"{field} ({info.get_default(call_default_factory=True)!r})"
            for field, info in cls.model_fields.items()
        )
        table.add_row(name, options, cls.SOURCE)
    for name in registry.names():
        if name.endswith("<name>"):
            table.add_row(name, "", registry.get(name.replace("<name>", "any")).SOURCE)
    return table


def preview(space: SearchSpace, output: str) -> int:
    """Draw every trigger of the space on pictures of its first data set."""
    from bdray.report.preview import draw_preview

    require_folder_of(output)
    console = Console(highlight=False)
    conditions = space.conditions()
    triggers = {probe.trigger.model_dump_json(): probe.trigger for probe in probes_of(conditions)}
    if not triggers:
        raise UserError("the space has no trigger to draw")
    data = conditions[0].data.load()
    step = max(1, len(data.test_images) // PREVIEW_IMAGES)
    draw_preview(data.test_images[::step], [(_trigger_label(t), t) for t in triggers.values()], output)
    console.print(f"{len(triggers)} triggers drawn to {output}")
    return 0


def _trigger_label(trigger: Any) -> str:
    changed = {
        field: getattr(trigger, field)
        for field, info in type(trigger).model_fields.items()
        if not info.is_required() and getattr(trigger, field) != info.get_default(call_default_factory=True)
    }
    return " ".join([trigger.name, *(f"{field}={value}" for field, value in changed.items())])


def doctor(tracking_uri: str | None) -> int:
    """Say what bdray has to work with on this machine. Always exits with 0: it measures, it does not judge."""
    console = Console(highlight=False)
    for title, rows in (
        ("versions", _versions()),
        ("plugins", _plugins()),
        ("devices", _devices()),
        ("data sets", _data_sets()),
        ("tracking", _tracking(tracking_uri)),
    ):
        console.print(f"[bold]{title}[/bold]")
        for name, value in rows:
            console.print(f"  {name:<14} {value}", markup=False, soft_wrap=True)
    return 0


def _versions() -> list[tuple[str, str]]:
    def version(package: str) -> str:
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            return "not installed"

    return [("python", platform.python_version()), *((package, version(package)) for package in PACKAGES)]


def _plugins() -> list[tuple[str, str]]:
    try:
        load_plugins()
    except PluginError as error:
        return [("broken", str(error))]
    return [(entry.name, entry.value) for entry in importlib.metadata.entry_points(group=GROUP)] or [("none", "")]


def _devices() -> list[tuple[str, str]]:
    import psutil
    import torch

    from bdray.training.device import computes_bfloat16

    memory = psutil.virtual_memory()
    free = shutil.disk_usage(".").free
    bfloat16 = "native bfloat16" if computes_bfloat16(torch.device("cpu")) else "no native bfloat16: float32 is used"
    rows = [
        ("cpu", f"{os.cpu_count()} cores, {bfloat16}"),
        ("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        ("disk", f"{free / 2**30:.0f} GiB free here"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append((f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return rows if torch.cuda.device_count() else [*rows, ("gpu", "none")]


def _data_sets() -> list[tuple[str, str]]:
    rows = []
    for name, _ in DATASETS:
        try:
            data = DATASETS.build(name).load()
            rows.append((name, f"{len(data.train_images)} training, {len(data.test_images)} test images"))
        except BdrayError as error:
            rows.append((name, str(error)))
        except Exception as error:
            # A component of somebody's plugin may do anything; the other rows are still worth reading.
            rows.append((name, f"cannot be loaded: {_in_one_line(error)}"))
    return rows


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _tracking(uri: str | None) -> list[tuple[str, str]]:
    from bdray.tracking import check_tracking

    if uri is None:
        return [("mlflow", "a SQLite file beside every sweep, unless --tracking-uri names a server")]
    return [("mlflow", check_tracking(uri))]
