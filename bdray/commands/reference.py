"""What can be written in a search space, told by the models that check it: `bdray explain` and two pages of `docs/`.

`make docs` (`python -m bdray.commands.reference docs`) writes the pages; a test holds them to the models.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.markup import escape
from rich.table import Table

from bdray.condition import COMPONENTS
from bdray.data.clean import Clean
from bdray.detectors import DETECTORS, Detector
from bdray.errors import UserError, nearest
from bdray.plugins import load_plugins
from bdray.recipes import Evaluate, Finetune, Train
from bdray.registry import Component, Registry, model_in, said_sight
from bdray.repairs import Repair
from bdray.searches import SEARCHES
from bdray.space.grammar import KEYS, Tracking
from bdray.space.resources import Defaults, Override
from bdray.terminal import Console
from bdray.values import show

REGISTRIES: dict[str, Registry[Any]] = {**COMPONENTS, "detect": DETECTORS, "search": SEARCHES}
"""What is chosen by name: the components of a condition, detectors, and the method of a search."""

SECTIONS: dict[str, type[BaseModel]] = {
    "train": Train,
    "finetune": Finetune,
    "clean": Clean,
    "evaluate": Evaluate,
    "resources": Defaults,
    "resources.overrides[]": Override,
    "tracking": Tracking,
}
"""What is written in a search space and is no component. `train`, `finetune` and `clean` are part of a condition."""

KEY_TEXTS = {
    "name": "Name of the sweep and of its folder in the storage; by default the file's name.",
    "description": "One or two sentences, shown by the plan, the report and MLflow.",
    "seeds": "Replicates of every cell (a setting without its seed): a list of whole numbers from 0, by default `[0]`. "
    "Or `{min, max, until: {metric, half_width, above}}`: more seeds where they are needed (`docs/search-methods.md`).",
    "fixed": "Values that all conditions share, by condition path, nested or dotted.",
    "parameters": "The axes, by condition path: `{value: ...}`, `{values: [...]}`, or `{min, max, distribution, q}` "
    "with `search.method: random`, `optuna` or `boundary` (`uniform`, `log_uniform`, `int_uniform`, `int_log_uniform`; "
    "values are multiples of `q`, and whole numbers if min, max and q are); `when: {path: value}` says under which "
    "values of another axis an axis exists.",
    "zip": "Groups of axes that advance together: a list of lists of paths.",
    "exclude": "Partial matches (`{path: value}` or `{path: [value, ...]}`) that are taken out of the grid.",
    "include": "Cells that are added, each over `fixed`; no rule takes them out.",
    "only": "Partial matches, all of which a condition must meet; with `baselines: true` their twins stay.",
    "baselines": "`true` adds the unpoisoned twin of every condition, which is the control and gives the floors. By "
    "default `false`.",
    "search": "How conditions are chosen from the axes.",
    "resources": "What trials ask Ray for, and what the sweep may keep; `overrides: [{when: {model.name: resnet50}, "
    "cpu: 2}]` for some conditions (`bdray explain resources.overrides`).",
    "tracking": "Where measurements are mirrored to.",
    "detect": "Detectors that are applied to every poisoned model and baseline: names, or mappings with options "
    "(`docs/components.md`). They are part of no id: a detector that is added later is applied to the kept models and "
    "trains nothing. Detectors that need clean pictures get the clean set of `finetune`, even if the repair uses none.",
    "evaluate": "What else is measured of models. It changes no model and is part of no id.",
    "data_roots": "The folder of each data set, by its name, in place of the file's `data.root`: `{flowers: DIR}`; on "
    "the command line `--data-root flowers=DIR`. `--set data.root=DIR` overrides both in the file. Where none "
    "is given, the environment variable `BDRAY_ROOT_FLOWERS` counts.",
    "plugins": "Modules that register components of your own.",
    "plugin_path": "Folders in which these modules are looked for, besides the folder of the space.",
}
"""What each key of a search space is for."""


@dataclass(frozen=True)
class Option:
    """One value that can be set.

    Attributes:
        name: its path below its owner ("size", "evaluate.every").
        kind: its type and what is allowed.
        default: as YAML writes it; "required" where there is none.
        text: what it means, with units.
    """

    name: str
    kind: str
    default: str
    text: str


def options_of(cls: type[BaseModel]) -> list[Option]:
    """The options of a model, nested ones by dotted path, in the order of its fields."""
    schema = cls.model_json_schema()
    return list(_options(cls, schema, schema.get("$defs", {})))


def _options(cls: type[BaseModel], schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Iterator[Option]:
    for name, field in cls.model_fields.items():
        below = schema["properties"][name]
        text = " ".join((field.description or "").split())
        nested = model_in(field.annotation)
        is_any = nested is not None and not nested.model_fields
        if nested is None or nested is not field.annotation or is_any:
            default = "required" if field.is_required() else _shown(field.get_default(call_default_factory=True))
            yield Option(name, kind_of(below), default, text)
        if nested is not None:
            for option in _options(nested, definitions[nested.__name__], definitions):
                yield Option(f"{name}.{option.name}", option.kind, option.default, option.text)


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else show(value) if value != "" else '""'


def kind_of(schema: Mapping[str, Any]) -> str:
    """The type that a JSON schema describes, in words: `integer from 1`, `number above 0, at most 1`, `a | b`."""
    if schema.get("class"):
        return "a class: its name as text, or its index as a number"
    if "anyOf" in schema:
        return " or ".join(map(kind_of, schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        return " | ".join(map(show, schema.get("enum", [schema.get("const")])))
    kind = "object" if "$ref" in schema else schema.get("type", "any value")
    if kind == "array":
        items = schema.get("prefixItems") or [schema.get("items", {})]
        fewest = schema.get("minItems", 0)
        count = f"{fewest} x " if fewest and fewest == schema.get("maxItems") else ""
        return f"list of {count}{kind_of(items[0])}"
    names = {"string": "text", "boolean": "true | false", "object": "mapping"}
    return f"{names.get(kind, kind)}{_bounds(schema)}"


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f" {low:g} to {high:g}"
    words = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "at most"), ("exclusiveMaximum", "below"))
    said = [f"{word} {schema[key]:g}" for key, word in words if key in schema]
    return f" {', '.join(said)}" if said else ""


def classes(section: str) -> list[tuple[str, type[Component]]]:
    """The components of a kind by name, families (`timm/<name>`) included."""
    registry = REGISTRIES[section]
    families = [name for name in registry.names() if name.endswith("<name>")]
    return [*registry, *((name, registry.get(name.replace("<name>", "any"))) for name in families)]


def explain(options: argparse.Namespace) -> int:
    """Print what a path may be: a key, a section, a component (`trigger.patch`) or an option (`trigger.size`).

    Raises:
        UserError: there is nothing of this name; names the nearest.
    """
    load_plugins(options.plugins)
    path, console = options.path, Console(highlight=False)
    head, _, rest = path.partition(".")
    if path in KEY_TEXTS:
        console.print(f"[bold]{path}[/bold]  {escape(KEY_TEXTS[path])}")
    if section := _section_of(path):
        cls, option = SECTIONS[section], path.replace("[]", "")[len(section.replace("[]", "")) + 1 :]
        if option:
            _explain_option(console, section, option, {section: cls})
        else:
            console.print(option_table("", options_of(cls)))
    elif head in REGISTRIES:
        _explain_component(console, head, rest)
    elif path not in KEY_TEXTS:
        known = [*REGISTRIES, *SECTIONS, *KEY_TEXTS]
        raise UserError(f"there is no '{path}' in a search space; {nearest(path, known, limit=30)}")
    return 0


def _section_of(path: str) -> str | None:
    """The innermost of `SECTIONS` that a path lies in; what is in a list is named with its brackets or without."""
    bare = f"{path.replace('[]', '')}."
    return max((name for name in SECTIONS if bare.startswith(f"{name.replace('[]', '')}.")), key=len, default=None)


def _explain_component(console: Console, section: str, rest: str) -> None:
    known = dict(classes(section))
    key = REGISTRIES[section].name_key
    if rest in ("", key):
        table = _table(f"{section}.{key}", ("name", "what it is", "source"))
        for name, cls in known.items():
            table.add_row(name, escape(summary(cls)), escape(cls.SOURCE))
        console.print(table)
    elif rest in known:
        cls = known[rest]
        console.print(f"[bold]{section} '{escape(rest)}'[/bold]\n{escape(inspect.getdoc(cls) or '')}\n")
        for word, said in scope(cls).items():
            console.print(f"{word}: {said}", soft_wrap=True)
        console.print(f"source: {escape(cls.SOURCE)}\n", soft_wrap=True)
        console.print(option_table("", options_of(cls)))
    else:
        _explain_option(console, section, rest, known)


def _explain_option(console: Console, section: str, name: str, owners: Mapping[str, type[BaseModel]]) -> None:
    found: dict[Option, list[str]] = {}
    for owner, cls in owners.items():
        for option in options_of(cls):
            if option.name == name or option.name.startswith(f"{name}."):
                found.setdefault(option, []).append(owner)
    if not found:
        names = dict.fromkeys([*owners, *(option.name for cls in owners.values() for option in options_of(cls))])
        raise UserError(f"there is no '{section}.{name}'; {nearest(name, names, limit=30)}")
    for option, owned in found.items():
        console.print(f"[bold]{section}.{option.name}[/bold]" + (f" of {', '.join(owned)}" if len(owners) > 1 else ""))
        console.print(f"  {escape(option.kind)}; default: {escape(option.default)}", soft_wrap=True)
        if option.text:
            console.print(f"  {escape(option.text)}", soft_wrap=True)


def option_table(title: str, options: Sequence[Option]) -> Table:
    """Options for a terminal."""
    table = _table(title, ("option", "allowed", "default", "meaning"))
    for option in options:
        table.add_row(option.name, escape(option.kind), escape(option.default), escape(option.text))
    return table


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(
        title=f"[bold]{title}[/bold]" if title else None,
        title_justify="left",
        show_edge=False,
        header_style="dim",
    )
    for index, column in enumerate(columns):
        table.add_column(
            column, style="bold" if index == 0 else "", no_wrap=index == 0, ratio=1 if index == 3 else None
        )
    return table


def summary(cls: type) -> str:
    """The first sentence of a class's docstring."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def scope(cls: type[Component]) -> dict[str, str]:
    """What a detector scores, and what it or a repair has to see, in words; nothing of other components."""
    scored = {"scores": cls.SCORES} if issubclass(cls, Detector) else {}
    return {**scored, "sees": said_sight(cls.SEES)} if issubclass(cls, Repair | Detector) else {}


# The pages of docs/.

_GENERATED = "<!-- Written by `make docs` from the models that check a search space; a test compares. -->\n"


def components_page() -> str:
    """`docs/components.md`: every registered component with its options."""
    parts = [
        _GENERATED,
        "# Components",
        "Every value of every named axis. `bdray list KIND` and `bdray explain trigger.patch` print the same in a "
        "terminal, with your own plugins. A condition's id is made of the options that differ from their defaults: to "
        "write a default out changes no id, and a new option of a later version moves none.",
    ]
    for section, registry in REGISTRIES.items():
        parts.append(f"## {registry.plural.capitalize()}: `{section}.{registry.name_key}`")
        for name, cls in classes(section):
            parts += [f"### `{name}`", _cell(inspect.getdoc(cls) or ""), f"Source: {_cell(cls.SOURCE)}."]
            parts += [f"{word.capitalize()}: {said}." for word, said in scope(cls).items()]
            if options := options_of(cls):
                parts.append(_markdown(f"{section}.", options))
    return "\n\n".join(parts) + "\n"


def search_space_page() -> str:
    """`docs/search-space.md`: every key of a search space."""
    parts = [
        _GENERATED,
        "# The search space",
        "A search space is a YAML file with these keys. Options of conditions have dotted paths (`trigger.size`) and "
        "may be written nested or dotted; `docs/components.md` lists the options of `data`, `model`, `trigger`, "
        "`poison`, `regularizer` and `repair`. The message about a mistake has file, line, key path, what is wrong, "
        "and the nearest valid name.",
        "\n".join(["| key | what it is for |", "|---|---|", *(f"| `{key}` | {KEY_TEXTS[key]} |" for key in KEYS)]),
    ]
    for section, cls in SECTIONS.items():
        parts += [f"## `{section}`", _cell(inspect.getdoc(cls) or ""), _markdown(f"{section}.", options_of(cls))]
    return "\n\n".join(parts) + "\n"


def _markdown(prefix: str, options: Sequence[Option]) -> str:
    rows = ["| path | allowed | default | meaning |", "|---|---|---|---|"]
    for option in options:
        cells = (f"`{prefix}{option.name}`", _cell(option.kind), f"`{option.default}`", _cell(option.text))
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _cell(text: str) -> str:
    """Text for a Markdown table. Inside backticks a `<` stands for itself."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    return "`".join(piece if index % 2 else piece.replace("<", "&lt;") for index, piece in enumerate(pieces))


PAGES = {"components.md": components_page, "search-space.md": search_space_page}
"""Generated pages by file name."""


def write_pages(folder: str | Path) -> None:
    """Write the generated pages into `folder`."""
    for name, page in PAGES.items():
        (Path(folder) / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_pages(sys.argv[1])
