"""What a sweep would run, before anything runs: counts, stages, resources, and the first rows. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

from bdray.condition import Condition
from bdray.data.folders import said_unread
from bdray.gpu import show_gpu
from bdray.poisoning.classes import class_options, in_common, misleading_numbers, said_classes
from bdray.questions import Questions
from bdray.searches.domain import MISSING, lookup
from bdray.space.feasibility import without_effect
from bdray.space.load import SearchSpace
from bdray.space.resources import Resources
from bdray.space.written import NAME_KEYS
from bdray.terminal import Console
from bdray.trial.surrogate import surrogate_of
from bdray.values import freeze, show_cell

_SHOWN_ROWS = 8
_SHOWN_VALUES = 12


@dataclass(frozen=True)
class Axis:
    """A path that takes more than one value.

    Attributes:
        path: dotted condition path.
        counts: each value with how many conditions have it, in order of appearance; None where the path is null or
            the condition has no such path.
    """

    path: str
    counts: tuple[tuple[Any, int], ...]


@dataclass(frozen=True)
class Plan:
    """What a sweep would run.

    Attributes:
        name, description: the search space's.
        conditions: all of them, in order.
        axes: every path that varies.
        baselines: unpoisoned conditions among them; `added_baselines` of these were added as twins.
        excluded: each `exclude` rule as text, with how many assignments of the grid it matches.
        duplicates: assignments that meant a condition which was there already.
        filtered: conditions that `only` left out.
        stages: each kind of stage with how many of it are computed; conditions share them where nothing differs.
        asked: what is asked of the models beside their rates: ("detectors", "strip, mm_bd starts=5").
        classes: options that hold a class, with what they stand for: ("target", "0 (airplane)").
        resources: what trials ask for, with how many of them do.
        notes: what the user should know.
        rows: the values of `axes` for the first conditions.
        bound: where conditions only become known as results come in: how much the search asks for.
        are_examples: `conditions` are such as the search might ask for.
    """

    name: str
    description: str
    conditions: tuple[Condition, ...]
    axes: tuple[Axis, ...]
    baselines: int
    added_baselines: int
    excluded: tuple[tuple[str, int], ...]
    duplicates: int
    filtered: int
    stages: tuple[tuple[str, int], ...]
    asked: tuple[tuple[str, str], ...]
    classes: tuple[tuple[str, str], ...]
    resources: tuple[tuple[Resources, int], ...]
    notes: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    bound: str = ""
    are_examples: bool = False


def make_plan(space: SearchSpace) -> Plan:
    """The plan of a search space."""
    conditions, expansion = space.shown(), space.expansion
    axes = _axes(space, conditions)
    kept = {condition.condition_id for condition in conditions}
    shown = conditions[:_SHOWN_ROWS]
    return Plan(
        name=space.name,
        description=space.description,
        conditions=tuple(conditions),
        axes=axes,
        baselines=sum(condition.is_baseline for condition in conditions),
        added_baselines=len(kept & expansion.twins),
        excluded=tuple((str(rule), count) for rule, count in zip(space.exclude, expansion.excluded, strict=True)),
        duplicates=expansion.duplicates,
        filtered=len(expansion.unfiltered) - len(expansion.conditions),
        stages=_stages(conditions),
        asked=tuple(_asked(space.questions)),
        classes=tuple(said_classes(map(space.flat, (c for c in conditions if not c.is_baseline))).items()),
        resources=tuple(Counter(map(space.resources_for, conditions)).most_common()),
        notes=(*_notes(space, conditions), *space.resources.notes()),
        rows=tuple(tuple(_value(space, condition, axis.path) for axis in axes) for condition in shown),
        bound=_bound(space),
        are_examples=bool(expansion.examples),
    )


def _bound(space: SearchSpace) -> str:
    """How much is asked for, where that is not known yet."""
    rule = space.replication
    if rule is None:
        return space.search.bound(space.expansion.domain) if space.is_open else ""
    cells = len({condition.cell_id for condition in space.conditions() if not condition.is_baseline})
    more = (
        f"{_count(len(space.conditions()), 'condition')}, then up to {rule.max - rule.min} more seeds of {cells} cells"
    )
    return f"{more}; {rule.max} seeds know {rule.until.metric} to ±{rule.until.reach(rule.max):.2f} at best"


def _stages(conditions: Sequence[Condition]) -> tuple[tuple[str, int], ...]:
    """Kinds of stages in the order they run, each with its distinct fingerprints; surrogates are poison stages of
    baselines."""
    found: dict[str, set[str]] = {}
    for condition in conditions:
        for stage in condition.stages:
            found.setdefault(stage.name, set()).add(stage.fingerprint)
        if (surrogate := surrogate_of(condition)) is not None:
            found["poison"].add(surrogate.stage.fingerprint)
    return tuple((name, len(fingerprints)) for name, fingerprints in found.items())


def _asked(questions: Questions) -> Iterator[tuple[str, str]]:
    if questions.detect:
        yield "detectors", ", ".join(detector.label for detector in questions.detect)
    if questions.evaluate.relearn:
        yield "after each repair", "relearning"


def _axes(space: SearchSpace, conditions: Sequence[Condition]) -> tuple[Axis, ...]:
    paths: Iterable[str] = dict.fromkeys(
        [
            *space.varied,
            "trigger.name",
            "poison.rate",
            "seed",
        ]
    )
    axes = []
    for path in paths:
        values: dict[Any, Any] = {}
        counts: Counter[Any] = Counter()
        for condition in conditions:
            value = _value(space, condition, path)
            counts[freeze(value)] += 1
            values[freeze(value)] = in_common([values.get(freeze(value), value), value])
        if len(values) > 1:
            axes.append(Axis(path, tuple((value, counts[key]) for key, value in values.items())))
    return tuple(axes)


def _value(space: SearchSpace, condition: Condition, path: str) -> Any:
    value = lookup(space.flat(condition), path)
    return None if value is MISSING else value


def _notes(space: SearchSpace, conditions: Sequence[Condition]) -> list[str]:
    notes = []
    wanted = space.search.max_trials
    drawn = len(space.expansion.unfiltered) - len(space.expansion.twins)
    if wanted is not None and drawn < wanted and not space.is_open:
        notes.append(f"the space holds only {drawn} distinct conditions: fewer than max_trials ({wanted})")
    if len(space.seeds) == 1:
        notes.append("one seed: results will have no interval across replicates")
    if not conditions:
        notes.append("no condition that was drawn meets `only`: the search may have nothing to run")
    if not any(condition.is_baseline for condition in conditions) and not (
        space.is_open and (space.baselines or space.search.needs_baselines)
    ):
        notes.append("no baselines: nothing to compare clean accuracy with (set `baselines: true`)")
    return [*notes, *without_effect(conditions), *dict.fromkeys(_data_notes(conditions))]


def _data_notes(conditions: Sequence[Condition]) -> Iterator[str]:
    """What is odd about the pictures, as far as they are here."""
    sets = {id(condition.data): condition.data for condition in conditions}.values()
    places = Counter(name for name, _ in {(data.name, data.root) for data in sets})
    for data in sets:
        source = data.looked_at()
        if source and source.unread:
            where = f" in {data.root}" if places[data.name] > 1 else ""
            yield f"{data.name}{where}: {said_unread(source.unread)}"
        numbers = misleading_numbers(data.class_names() or ())
        if numbers and any(class_options(c.poison.name) for c in conditions if c.data is data):
            yield (
                f"{data.name} has numbers for names, sorted as text: class {numbers}; "
                'a number means an index, a name has quotes (poison.target: "10", or --set poison.target=name:10)'
            )


def render_plan(plan: Plan, console: Console) -> None:
    """Prints the plan; fits 80 columns, in a terminal or a file."""
    count = plan.bound or _count(len(plan.conditions), "condition")
    console.print(f"[bold]{escape(plan.name)}[/bold]: {escape(count)}", highlight=False)
    if plan.description:
        console.print(f"[dim]{escape(plan.description.strip())}[/dim]", highlight=False)
    if plan.are_examples:
        console.print(f"{len(plan.conditions)} conditions that it might ask for, as examples:", highlight=False)
    console.print(_summary(plan))
    if plan.axes:
        console.print(_axis_table(plan, console.width))
        console.print(_first_rows(plan, console.width))
        if len(plan.conditions) > len(plan.rows):
            console.print(f"  [dim]... and {len(plan.conditions) - len(plan.rows):,} more[/dim]", highlight=False)
    for note in plan.notes:
        console.print(f"[yellow]note:[/yellow] {escape(note)}", highlight=False)


def _summary(plan: Plan) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    poisoned = len(plan.conditions) - plan.baselines
    table.add_row("poisoned", f"{poisoned:,}")
    table.add_row("baselines", f"{plan.baselines:,}" + (f" ({plan.added_baselines:,} added)" if plan.baselines else ""))
    for option, classes in plan.classes:
        table.add_row(f"{option} class", escape(classes))
    for name, count in plan.stages:
        table.add_row(f"{name} stages", f"{count:,}")
    for what, questions in plan.asked:
        table.add_row(what, escape(questions))
    for rule, count in plan.excluded:
        table.add_row("excluded", f"{count:,} by {escape(rule)}")
    if plan.duplicates:
        table.add_row("duplicates dropped", f"{plan.duplicates:,}")
    if plan.filtered:
        table.add_row("left out by --only", f"{plan.filtered:,}")
    for resources, count in plan.resources:
        gpu = "gpu auto" if resources.gpu == "auto" else f"{show_gpu(resources.gpu)} gpu"
        cpu = resources.cpu if resources.cpu == "auto" else f"{resources.cpu:g}"
        table.add_row("resources", f"{cpu} cpu, {gpu}: {_count(count, 'trial')}")
    return table


def _axis_table(plan: Plan, width: int) -> Table:
    table = Table(box=box.SIMPLE, padding=(0, 1), show_edge=False, title_justify="left")
    table.add_column("axis", no_wrap=True)
    table.add_column("values (conditions)", overflow="fold")
    longest = max(len(axis.path) for axis in plan.axes)
    for axis in plan.axes:
        pieces = [f"{show_cell(value)} ({count:,})" for value, count in axis.counts]
        if len(pieces) > _SHOWN_VALUES:
            pieces = [*pieces[:3], "...", pieces[-1], f"[{len(pieces)} values]"]
        table.add_row(axis.path, escape(_filled(pieces, width - longest - 5)))
    return table


def _filled(pieces: Iterable[str], width: int) -> str:
    """Pieces two spaces apart, in lines of up to `width`, none broken."""
    lines: list[str] = []
    for piece in pieces:
        if lines and len(lines[-1]) + 2 + len(piece) <= width:
            lines[-1] += f"  {piece}"
        else:
            lines.append(piece)
    return "\n".join(lines)


def _labels(axes: Sequence[Axis]) -> list[str]:
    """Short column heads: `model`, `size`; `train.lr` only where there is a `finetune.lr` beside it."""
    short = []
    for axis in axes:
        head, _, option = axis.path.partition(".")
        named = _is_name(axis)
        short.append(option if named and head == "poison" else head if named else option or head)
    return [axis.path if short.count(label) > 1 else label for axis, label in zip(axes, short, strict=True)]


def _is_name(axis: Axis) -> bool:
    """Whether it names a component (`trigger.name`, `poison.strategy`)."""
    head, _, option = axis.path.partition(".")
    return NAME_KEYS.get(head) == option


def _first_rows(plan: Plan, width: int) -> Table:
    """The first conditions, with as many of the varying axes as fit beside each other: rather those in which they
    differ, of these rather the seed and names of components than options, and rather a narrow one than a wide one (a
    path), in whose place there is room for several."""
    table = Table(box=box.SIMPLE, padding=(0, 2, 0, 0), show_edge=False, caption_justify="left")
    table.add_column("id", no_wrap=True)
    cells = [[show_cell(row[index]) for row in plan.rows] for index in range(len(plan.axes))]
    labels = _labels(plan.axes)
    columns = dict(zip(labels, cells, strict=True))
    options = {
        label for label, axis in zip(labels, plan.axes, strict=True) if not _is_name(axis) and axis.path != "seed"
    }
    needed = {label: max(map(len, (label, *column))) + 3 for label, column in columns.items()}
    left, fitting = width - 11, set()
    for label in sorted(columns, key=lambda label: (len(set(columns[label])) == 1, label in options, needed[label])):
        if needed[label] <= left:
            left -= needed[label]
            fitting.add(label)
    for label in filter(fitting.__contains__, columns):
        table.add_column(label, no_wrap=True)
    for index, condition in enumerate(plan.conditions[: len(plan.rows)]):
        shown = (escape(column[index]) for label, column in columns.items() if label in fitting)
        table.add_row(condition.condition_id[:8], *shown)
    if hidden := [label for label in columns if label not in fitting]:
        table.caption = escape(f"not shown for want of room: {', '.join(hidden)}")
    return table


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
