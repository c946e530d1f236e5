"""Tables of sweeps on the terminal: what `results` prints, and `compare`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.markup import escape
from rich.table import Table

from bdray.errors import UserError, nearest
from bdray.poisoning.classes import class_sentences
from bdray.record import TrialRecord
from bdray.report.comparison import Comparison, compare, comparison_listing
from bdray.results.controls import Control
from bdray.results.listing import DEFINITIONS, MEANS, Fit, fit_of, latex_of, listing_of, markdown_of, table_of
from bdray.results.surroundings import mixtures, trained_on_tests
from bdray.results.unmeasured import unmeasured
from bdray.results.varied import told_apart_by_classes
from bdray.space.overrides import parse_rules_of_options
from bdray.terminal import Console
from bdray.values import show

if TYPE_CHECKING:
    from bdray.report.searching import Part


TOOK = (
    "took: in how many trainings the backdoor adds more than {:g} % of what the floor leaves, which is the attack"
    " success rate of an unpoisoned model; what is unclear, diverged or collapsed counts as either (0-1 of 1)"
)


DIFFERENCES = "Percentage points; means over pairs after the last epoch (of several seeds: lowest to highest)"


def chosen(records: Sequence[TrialRecord], where: Sequence[str]) -> list[TrialRecord]:
    """The records that match every `PATH=VALUE` of `where`; the value may be a list.

    Raises:
        UserError: one is no such text, names a path that no record has, or leaves nothing.
    """
    for text, rule in zip(where, parse_rules_of_options(where, "--where"), strict=True):
        flats = [record.flat for record in records]
        paths = dict.fromkeys(path for flat in flats for path in flat)
        for path in rule.paths:
            if path not in paths:
                raise UserError(f"--where {text}: no condition has '{path}'; {nearest(path, paths)}")
        kept = [record for record, flat in zip(records, flats, strict=True) if rule.matches(flat)]
        if not kept:
            values = dict.fromkeys(show(flat.get(rule.paths[0])) for flat in flats)
            raise UserError(f"--where {text}: no condition matches; '{rule.paths[0]}' is one of {', '.join(values)}")
        records = kept
    return list(records)


def show_results(
    records: Sequence[TrialRecord],
    options: argparse.Namespace,
    controls: Mapping[str, Control],
    selected: Mapping[str, bool],
) -> None:
    """Print the cells, or the groups of `--by`, in the form asked for."""
    by = [name for text in options.by for name in text.split(",")]
    listing = listing_of(records, by, options.took_at, controls, selected)
    if options.sort:
        listing = listing.sorted_by(options.sort)
    if options.md:
        sys.stdout.write(f"{markdown_of(listing)}\n")
        return
    said = [f"{MEANS[0].upper()}{MEANS[1:]}{listing.said}."]
    if "took" in listing.heads:
        said.append(f"{TOOK.format(100 * options.took_at)}; in brackets the exact 95 % interval of their share.")
    if options.latex:
        sys.stdout.write(latex_of(listing, " ".join([DEFINITIONS, *said])))
    else:
        console = Console(highlight=False)
        fit = fit_of(listing, console.width)
        console.print(table_of(listing, console.width, fit))
        said[0] += wider(fit)
        for sentence in said:
            console.print(sentence, markup=False, soft_wrap=True)
        sentences = [*said_of_classes(records), *mixtures(records), *trained_on_tests(records)]
        for sentence in [*sentences, *unmeasured(records)]:
            console.print(f"note: {sentence}", markup=False, soft_wrap=True)


def wider(fit: Fit) -> str:
    """What to say where a terminal has no room for ranges and intervals."""
    return "" if fit.intervals else " Ranges and intervals: in a wider terminal, or --md."


def said_of_classes(records: Sequence[TrialRecord]) -> list[str]:
    """What the classes are that poisoned conditions name by index."""
    return class_sentences(told_apart_by_classes(records))


def said_of_outside(count: int) -> str:
    """Of the conditions that only earlier commands asked for."""
    where = "lie outside the last command's plan; results and report hold what was measured of them"
    return f"note: {count} conditions of earlier commands {where}"


def show_search(parts: Sequence[Part], console: Console) -> None:
    """Print what a search found: the tables of its part of the page."""
    for part in parts:
        console.print(f"\n{part.title}", markup=False, style="bold")
        table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_edge=False, padding=(0, 2, 0, 0))
        for index, head in enumerate(part.head):
            table.add_column(head, justify="right" if index > 0 else "left")
        for row in part.rows:
            table.add_row(*map(escape, row))
        console.print(table)


def show_comparison(
    names: tuple[str, str],
    sides: tuple[Sequence[TrialRecord], Sequence[TrialRecord]],
    *,
    md: bool = False,
    latex: bool = False,
) -> None:
    """Print the paired differences of two sweeps.

    Raises:
        UserError: no condition of the one has a partner in the other.
    """
    found = compare(*sides)
    if not found.pairs:
        said = unclear_pairs(names, found)
        alike = f"no condition of {names[0]} differs from one of {names[1]} only in what tells the two apart"
        raise UserError(said or alike)
    listing = comparison_listing(found, names)
    what = f"{names[1]} minus {names[0]}"
    said = f"{DIFFERENCES}{listing.said}."
    if md:
        sys.stdout.write(f"{what}\n\n{markdown_of(listing)}\n")
    elif latex:
        sys.stdout.write(latex_of(listing, f"{what}. {said} {DEFINITIONS}"))
    else:
        console = Console(highlight=False)
        console.print(f"{what}: {len(found.pairs)} pairs of conditions", markup=False)
        _say_apart(console, names, found)
        fit = fit_of(listing, console.width)
        console.print(table_of(listing, console.width, fit))
        console.print(f"{said}{wider(fit)}", markup=False, soft_wrap=True)


def _say_apart(console: Console, names: tuple[str, str], found: Comparison) -> None:
    for path, values in found.apart.items():
        one, two = (", ".join(map(show, side)) or "-" for side in values)
        console.print(f"  {path}: {one} in {names[0]}, {two} in {names[1]}", markup=False, soft_wrap=True)
    if not found.apart:
        console.print("  the same conditions in both", markup=False)
    for name, alone in zip(names, found.alone, strict=True):
        if alone:
            console.print(f"  {alone} of {name} have no partner", markup=False)
    if said := unclear_pairs(names, found):
        console.print(f"  {said}", markup=False, soft_wrap=True)


def unclear_pairs(names: tuple[str, str], found: Comparison) -> str:
    """Which conditions are in no pair for want of one partner; empty where all are clear."""
    if not any(found.unclear):
        return ""
    left_out = " and ".join(f"{count} of {name}" for count, name in zip(found.unclear, names, strict=True))
    return (
        f"{left_out} are left out: several of each differ only in {', '.join(found.within)}, and what belongs to what"
        " is not known"
    )
