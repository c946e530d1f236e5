"""Commands that look without running: `list`, `preview`, `doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from bdray.commands.readers import require_folder_of
from bdray.commands.reference import SECTIONS, classes, option_table, options_of
from bdray.condition import COMPONENTS
from bdray.data.base import DATASETS, DataSet
from bdray.data.roots import root_of, variable_of
from bdray.errors import BdrayError, UserError, nearest
from bdray.plugins import GROUP, PluginError, load_plugins
from bdray.registry import Registry
from bdray.searches import SEARCHES
from bdray.space import SearchSpace
from bdray.space.grammar import roots_of_options
from bdray.terminal import Console
from bdray.trial.attacks import probes_of

KINDS: dict[str, Registry[Any]] = {registry.plural: registry for registry in (*COMPONENTS.values(), SEARCHES)}
PREVIEW_IMAGES = 64
PACKAGES = ("bdray", "ray", "torch", "torchvision", "timm", "mlflow", "optuna")


def list_components(kind: str | None, plugins: Sequence[str] = ()) -> int:
    """Print what is registered, or the options of a section that is no component (`train`)."""
    if kind is not None and kind not in (*KINDS, *SECTIONS):
        raise UserError(f"there is no kind '{kind}'; {nearest(kind, (*KINDS, *SECTIONS), limit=20)}")
    load_plugins(plugins)
    console = Console(highlight=False)
    if kind in SECTIONS:
        console.print(option_table(kind, options_of(SECTIONS[kind])))
        return 0
    for section, registry in COMPONENTS.items():
        if kind in (None, registry.plural):
            console.print(_listing(section, registry.plural))
            console.print()
    return 0


def _listing(section: str, title: str) -> Table:
    table = Table(title=f"[bold]{title}[/bold]", title_justify="left", show_edge=False, header_style="dim")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("options (default)", ratio=3)
    table.add_column("source", ratio=2)
    for name, cls in classes(section):
        options = (f"{option.name} ({option.default})" for option in options_of(cls) if option.name != "variant")
        table.add_row(name, escape(", ".join(options)), escape(cls.SOURCE))
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
    draw_preview(data.test_images[::step], [(t.label, t) for t in triggers.values()], output)
    console.print(f"{len(triggers)} triggers drawn to {output}")
    if data.duplicates:
        where, name = f"data.drop_duplicates of {conditions[0].data.name}", "training images are test images too"
        console.print(f"{len(data.duplicates)} {name} ({where} leaves them out):", soft_wrap=True)
        for each in data.duplicates:
            console.print(f"  {each}", markup=False, soft_wrap=True)
    return 0


@dataclass(frozen=True)
class _Finding:
    """One line of `bdray doctor`. `is_missing`: a sweep would need it."""

    name: str
    said: str
    is_missing: bool = False


def doctor(tracking_uri: str | None, space_file: str | None = None, overrides: Sequence[str] = ()) -> int:
    """Say what bdray has to work with on this machine, downloading nothing; exit with 1 when something is missing.

    What is missing: a package, a plugin that does not load, a tracking server that was named and does not answer, a
    data set whose folder is set and wrong; and with a search space, any of its data sets.

    Args:
        space_file: the search space whose needs are looked at, too.
        overrides: of it; see `load_space`.
    """
    from bdray.space import load_space

    console = Console(highlight=False)
    space = load_space(space_file, overrides) if space_file else None
    missing = 0
    for title, findings in (
        ("versions", _versions()),
        ("plugins", _plugins()),
        ("devices", _devices()),
        ("data sets", _data_sets(overrides)),
        *([(f"data sets of {space.name}", _data_sets_of(space))] if space else []),
        ("tracking", _tracking(tracking_uri or (space.tracking.uri if space else None))),
    ):
        console.print(f"[bold]{escape(title)}[/bold]")
        for finding in findings:
            mark = "  (missing)" if finding.is_missing else ""
            console.print(f"  {finding.name:<14} {finding.said}{mark}", markup=False, soft_wrap=True)
        missing += sum(finding.is_missing for finding in findings)
    if missing:
        console.print(f"[red]{missing} missing[/red]")
    return int(missing > 0)


def _versions() -> list[_Finding]:
    def version(package: str) -> _Finding:
        try:
            return _Finding(package, importlib.metadata.version(package))
        except importlib.metadata.PackageNotFoundError:
            return _Finding(package, "not installed", is_missing=True)

    return [_Finding("python", platform.python_version()), *map(version, PACKAGES)]


def _plugins() -> list[_Finding]:
    try:
        load_plugins()
    except PluginError as error:
        return [_Finding("broken", str(error), is_missing=True)]
    entries = importlib.metadata.entry_points(group=GROUP)
    return [_Finding(entry.name, entry.value) for entry in entries] or [_Finding("none", "")]


def _devices() -> list[_Finding]:
    import psutil
    import torch

    from bdray.machine import Machine

    memory = psutil.virtual_memory()
    free = shutil.disk_usage(".").free
    bfloat16 = Machine.here().bfloat16 or "no bfloat16 arithmetic: float32 is used"
    rows = [
        _Finding("cpu", f"{os.cpu_count()} cores, {bfloat16}"),
        _Finding("memory", f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB free"),
        _Finding("disk", f"{free / 2**30:.0f} GiB free here"),
    ]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        rows.append(_Finding(f"gpu {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return rows if torch.cuda.device_count() else [*rows, _Finding("gpu", "none")]


def _data_sets(overrides: Sequence[str]) -> list[_Finding]:
    """All that are registered: missing are those that were given a folder which does not hold them."""
    given = roots_of_options(overrides)
    return [_looked_at(name, root_of(name, given)) for name, _ in DATASETS]


def _looked_at(name: str, root: str | None) -> _Finding:
    try:
        data = DATASETS.build({"name": name, **({} if root is None else {"root": root})})
        if data.would_download():
            said = f"not here; a sweep downloads it, or set {variable_of(name)} or data_roots.{name}"
            return _Finding(name, said, is_missing=root is not None)
        return _Finding(name, _loaded(data))
    except BdrayError as error:
        return _Finding(name, str(error), is_missing=root is not None)
    except Exception as error:
        # A component of somebody's plugin may do anything; the other rows are still worth reading.
        return _Finding(name, f"cannot be loaded: {_in_one_line(error)}")


def _loaded(data: DataSet) -> str:
    images = data.load()
    where = "" if data.root is None else f", from {data.root}"
    return f"{len(images.train_images)} training, {len(images.test_images)} test images{where}"


def _data_sets_of(space: SearchSpace) -> list[_Finding]:
    """Those that a search space uses, as it uses them: whatever of them is not here is missing."""
    findings = []
    for data in {condition.data for condition in space.shown()}:
        try:
            missing = data.would_download()
            said = "not here; the sweep would download it" if missing else f"{_loaded(data)}, {data.image_size} pixels"
            findings.append(_Finding(data.name, said, is_missing=missing))
        except BdrayError as error:
            findings.append(_Finding(data.name, str(error), is_missing=True))
    return findings


def _in_one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")


def _tracking(uri: str | None) -> list[_Finding]:
    from bdray.tracking import check_tracking

    if uri is None:
        return [_Finding("mlflow", "a SQLite file beside every sweep, unless --tracking-uri names a server")]
    said = check_tracking(uri)
    return [_Finding("mlflow", said, is_missing=said.startswith("not usable"))]
