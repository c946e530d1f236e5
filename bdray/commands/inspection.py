"""Commands that look without running: `list`, `preview`, `doctor`."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from bdray.commands.readers import require_folder_of
from bdray.commands.reference import SECTIONS, classes, option_table, options_of
from bdray.condition import COMPONENTS
from bdray.errors import UserError, nearest
from bdray.inventory import data_sets, devices, versions
from bdray.plugins import GROUP, PluginError, load_plugins
from bdray.registry import Registry
from bdray.searches import SEARCHES
from bdray.space import SearchSpace
from bdray.terminal import Console
from bdray.trial.attacks import probes_of

KINDS: dict[str, Registry[Any]] = {registry.plural: registry for registry in (*COMPONENTS.values(), SEARCHES)}
PREVIEW_IMAGES = 64


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


def doctor(tracking_uri: str | None, address: str | None) -> int:
    """Say what bdray has to work with on this machine, or on every node of the cluster at `address`. Exits with 0
    whatever it finds: it measures, it does not judge.

    Raises:
        UserError: no cluster answers at `address`.
    """
    console = Console(highlight=False)
    if address is None:
        _tell(console, {"versions": versions(), "plugins": _plugins(), "devices": devices(), "data sets": data_sets()})
    else:
        _tell_nodes(console, address)
    _tell(console, {"tracking": _tracking(tracking_uri)})
    return 0


def _tell(console: Console, sections: Mapping[str, Iterable[tuple[str, str]]], indent: str = "") -> None:
    for title, rows in sections.items():
        console.print(f"{indent}[bold]{title}[/bold]")
        for name, value in rows:
            console.print(f"{indent}  {name:<14} {value}", markup=False, soft_wrap=True)


def _tell_nodes(console: Console, address: str) -> None:
    from bdray.cluster import ClusterRun, ClusterSettings

    with ClusterRun(ClusterSettings(address=address)) as cluster:
        console.print("asking every node ...", style="dim")
        for node in cluster.inventory():
            console.print(f"[bold]{escape(node.title)}[/bold]")
            if node.problem:
                console.print(f"  {node.problem}", markup=False, soft_wrap=True)
            _tell(console, node.sections, indent="  ")


def _plugins() -> list[tuple[str, str]]:
    try:
        load_plugins()
    except PluginError as error:
        return [("broken", str(error))]
    return [(entry.name, entry.value) for entry in importlib.metadata.entry_points(group=GROUP)] or [("none", "")]


def _tracking(uri: str | None) -> list[tuple[str, str]]:
    from bdray.tracking import check_tracking

    if uri is None:
        return [("mlflow", "a SQLite file beside every sweep, unless --tracking-uri names a server")]
    return [("mlflow", check_tracking(uri))]
