"""Commands that look without running: `list`, `preview`, `doctor`."""

from __future__ import annotations

import argparse
import importlib.metadata
import io
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from bdray.commands.readers import require_folder_of, write_file
from bdray.commands.reference import REGISTRIES, SECTIONS, classes, option_table, options_of, scope
from bdray.data.folders import absolute
from bdray.errors import BdrayError, UserError, nearest
from bdray.inventory import NOT_INSTALLED, Finding, data_sets, devices, said_of, versions
from bdray.plugins import GROUP, PluginError, load_plugins
from bdray.poisoning.classes import class_sentences
from bdray.registry import Registry
from bdray.requirements import outdated
from bdray.space import SearchSpace, load_space
from bdray.space.grammar import roots_of_options
from bdray.terminal import Console

if TYPE_CHECKING:
    import torch

    from bdray.data.arrays import ImageData
    from bdray.poisoning.base import Poison

KINDS: dict[str, Registry[Any]] = {registry.plural: registry for registry in REGISTRIES.values()}
PREVIEW_IMAGES = 64


def read_space(options: argparse.Namespace) -> SearchSpace:
    """The search space that a command line names, with what it changes of it; says whose code was imported for it."""
    space = load_space(options.space, [*options.set, *options.data_root], options.only, options.seeds)
    say_plugins(space.plugins)
    return space


def list_components(options: argparse.Namespace) -> int:
    """Print what is registered, or the options of a section that is no component (`train`)."""
    kind = options.kind
    if kind is not None and kind not in (*KINDS, *SECTIONS):
        raise UserError(f"there is no kind '{kind}'; {nearest(kind, (*KINDS, *SECTIONS), limit=20)}")
    load_plugins(options.plugins)
    console = Console(highlight=False)
    if kind in SECTIONS:
        console.print(option_table(kind, options_of(SECTIONS[kind])))
        return 0
    for section, registry in REGISTRIES.items():
        if kind in (None, registry.plural):
            console.print(_listing(section, registry.plural))
            console.print()
    return 0


def _listing(section: str, title: str) -> Table:
    table = Table(title=f"[bold]{title}[/bold]", title_justify="left", show_edge=False, header_style="dim")
    table.add_column("name", style="bold", no_wrap=True)
    table.add_column("options (default)", ratio=3)
    table.add_column("source", ratio=2)
    if section in ("repair", "detect"):
        table.add_column("scores: sees" if section == "detect" else "sees", ratio=1)
    for name, cls in classes(section):
        options = (f"{option.name} ({option.default})" for option in options_of(cls) if option.name != "variant")
        said = scope(cls).values()
        table.add_row(name, escape(", ".join(options)), escape(cls.SOURCE), *([": ".join(said)] if said else []))
    return table


def say_plugins(names: Sequence[str]) -> None:
    """From where the code was imported that a search space names: on stderr."""
    for name in names:
        where = getattr(sys.modules.get(name), "__file__", None) or "?"
        Console(stderr=True, highlight=False).print(f"plugin {name} from {where}", markup=False, soft_wrap=True)


def preview(options: argparse.Namespace) -> int:
    """Draw every trigger of the space on pictures of its first data set."""
    from bdray.report.preview import draw_preview

    space, output = read_space(options), options.output
    require_folder_of(output)
    console = Console(highlight=False)
    conditions = space.shown()
    carried = [one for c in conditions if not c.is_baseline for one in (c.trigger, c.test_trigger) if one]
    triggers = {trigger.model_dump_json(): trigger for trigger in carried}
    if not triggers:
        raise UserError("the space has no trigger to draw")
    data = conditions[0].data.load()
    poisons = {c.poison.model_dump_json(): c.poison for c in conditions if not c.is_baseline}
    pictures = _attacked(data, poisons.values())
    picture = io.BytesIO()
    draw_preview(
        pictures[:: max(1, len(pictures) // PREVIEW_IMAGES)], [(t.label, t) for t in triggers.values()], picture
    )
    write_file(Path(output), picture.getvalue())
    console.print(f"{len(triggers)} trigger{'s' if len(triggers) > 1 else ''} drawn to {output}")
    for sentence in class_sentences(space.flat(c) for c in conditions if not c.is_baseline):
        console.print(sentence, markup=False, soft_wrap=True)
    if data.duplicates:
        where, name = f"data.drop_duplicates of {conditions[0].data.name}", "training images are test images too"
        console.print(f"{len(data.duplicates)} {name} ({where} leaves them out):", soft_wrap=True)
        for each in data.duplicates:
            console.print(f"  {each}", markup=False, soft_wrap=True)
    return 0


def _attacked(data: ImageData, poisons: Iterable[Poison]) -> torch.Tensor:
    """The test pictures that all of these stamp, or all there are: a set of given ones may lack those of the target."""
    import numpy as np

    labels = data.test_labels.numpy()
    chosen = np.logical_and.reduce([poison.attacked(labels, data.num_classes) for poison in poisons])
    return data.test_images[chosen.nonzero()[0]] if chosen.any() else data.test_images


def doctor(options: argparse.Namespace) -> int:
    """Say what bdray has to work with here, or on every node of a cluster; downloads nothing. Exits with 1 when
    something is missing here.

    What is missing: a package or a newer version of it, a plugin that does not load, a tracking server that was named
    and does not answer, a data set whose folder is set and wrong; and with a search space, any of its data sets.

    Raises:
        UserError: no cluster answers at `address`.
    """
    console = Console(highlight=False)
    space = load_space(options.space, options.data_root) if options.space else None
    roots = space.data_roots if space else roots_of_options(options.data_root)
    asked = {condition.data.name for condition in space.shown()} if space else ()
    here = {
        "versions": _versions(),
        "plugins": _plugins(),
        "devices": [Finding(*row) for row in devices()],
        "data sets": data_sets(roots, but=asked),
        **({f"data sets of {space.name}": _data_sets_of(space)} if space else {}),
    }
    missing = 0
    if options.address is None:
        missing += _tell(console, here)
    else:
        _tell_nodes(console, options.address, roots)
    missing += _tell(console, {"tracking": _tracking(options.tracking_uri, space.tracking.uri if space else None)})
    if missing:
        console.print(f"[red]{missing} missing[/red]")
    return int(missing > 0)


def _versions() -> list[Finding]:
    old = outdated()
    return [
        *(Finding(name, said, is_missing=said == NOT_INSTALLED) for name, said in versions() if name not in old),
        *(Finding(name, said, is_missing=True) for name, said in old.items()),
    ]


def _tell(console: Console, sections: Mapping[str, Iterable[Finding]], indent: str = "") -> int:
    """How many things are missing."""
    missing = 0
    for title, findings in sections.items():
        console.print(f"{indent}[bold]{escape(title)}[/bold]")
        for finding in findings:
            mark = "  (missing)" if finding.is_missing else ""
            console.print(f"{indent}  {finding.name:<14} {finding.said}{mark}", markup=False, soft_wrap=True)
            missing += finding.is_missing
    return missing


def _tell_nodes(console: Console, address: str, roots: Mapping[str, str]) -> None:
    from bdray.cluster import ClusterRun, ClusterSettings

    places = {name: str(absolute(folder)) for name, folder in roots.items()}
    with ClusterRun(ClusterSettings(address=address)) as cluster:
        console.print("asking every node ...", style="dim")
        for node in cluster.inventory(places):
            console.print(f"[bold]{escape(node.title)}[/bold]")
            if node.problem:
                console.print(f"  {node.problem}", markup=False, soft_wrap=True)
            found = {title: [Finding(*row) for row in rows] for title, rows in node.sections.items()}
            _tell(console, found, indent="  ")


def _plugins() -> list[Finding]:
    try:
        load_plugins()
    except PluginError as error:
        return [Finding("broken", str(error), is_missing=True)]
    entries = importlib.metadata.entry_points(group=GROUP)
    return [Finding(entry.name, entry.value) for entry in entries] or [Finding("none", "")]


def _data_sets_of(space: SearchSpace) -> list[Finding]:
    """Those that a search space uses, as it uses them: whatever of them is not here is missing."""
    findings = []
    for data in dict.fromkeys(condition.data for condition in space.shown()):
        try:
            missing = data.would_download()
            said = "not here; the sweep would download it" if missing else f"{said_of(data)}, {data.image_size} pixels"
            findings.append(Finding(data.name, said, is_missing=missing))
        except BdrayError as error:
            findings.append(Finding(data.name, str(error), is_missing=True))
    return [*findings, *_clean_folders_of(space)]


def _clean_folders_of(space: SearchSpace) -> Iterator[Finding]:
    """Those that clean sets are drawn from, where the classes of the data set are known."""
    pools = dict.fromkeys((one.clean, one.data.class_names()) for one in space.shown() if one.clean.root is not None)
    for clean, names in pools:
        if names is None:
            continue
        try:
            (classes,) = clean.check_classes(names).splits.values()
            yield Finding("clean.root", f"{sum(map(len, classes.values()))} pictures, from {clean.root}")
        except BdrayError as error:
            yield Finding("clean.root", str(error), is_missing=True)


def _tracking(*given: str | None) -> list[Finding]:
    from bdray.tracking import check_tracking, named_tracking_uri

    uri = named_tracking_uri(*given)
    if uri is None:
        said = "a SQLite file beside every sweep, unless --tracking-uri or MLFLOW_TRACKING_URI names a server"
        return [Finding("mlflow", said)]
    said = check_tracking(uri)
    return [Finding("mlflow", said, is_missing=said.startswith("not usable"))]
