"""A search space: the YAML file that says which conditions there are, checked down to every condition.

`load_space` reads, checks and expands in one go, so that every `SearchSpace` is a good one; all it raises
is `SpaceError`, which names the file, the line, the key path, what is wrong and the nearest valid name.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bdray.condition import Condition
from bdray.errors import SpaceError
from bdray.questions import Questions
from bdray.record import TrialRecord
from bdray.searches import Asker, Planned
from bdray.searches.domain import Flat, locate
from bdray.searches.metrics import Metric
from bdray.searches.random import Random
from bdray.searches.replication import Replicator
from bdray.space.axes import Rule, deepest, values_of
from bdray.space.building import Flats, located, no_match, placing
from bdray.space.expansion import MAX_DRAWS, Expansion, expand, twins_of
from bdray.space.feasibility import infeasible
from bdray.space.grammar import Grammar, load_named_plugins, read_grammar
from bdray.space.overrides import parse_seed_list
from bdray.space.reachable import unreachable
from bdray.space.resources import Resources
from bdray.space.source import dump_yaml, load_yaml
from bdray.store.storage import Storage


@dataclass(frozen=True)
class SearchSpace(Grammar):
    """What a sweep runs. Made by `load_space`.

    Attributes:
        expansion: the conditions, and counts of how they came about.
    """

    expansion: Expansion = field(repr=False, compare=False)
    _flats: Flats = field(default_factory=Flats, repr=False, compare=False)

    def conditions(self) -> list[Condition]:
        """Every condition, unique by `condition_id`, by seed and then in the order of the axes."""
        return list(self.expansion.conditions)

    @property
    def is_open(self) -> bool:
        """Whether its conditions only become known as results come in; `conditions` are those that are known before."""
        return self.replication is not None or not isinstance(self.search, Planned)

    def shown(self) -> list[Condition]:
        """The conditions, or where they are not known yet, examples of them too."""
        return [*self.expansion.conditions, *self.expansion.examples]

    def start(self, sweep: Storage, others: Iterable[TrialRecord]) -> Asker:
        """Its search; see `bdray.searches.base.SearchMethod.start`."""
        if self.replication is not None:
            return Replicator(self.replication, self.expansion.conditions)
        return self.search.start(self.expansion.domain, sweep, others)

    def holds(self, condition: Condition) -> bool:
        """Whether the search might ask for this condition, with whatever seed; of more seeds, also as a twin."""
        domain = self.expansion.domain
        if self.replication is not None:
            return condition.cell_id in {planned.cell_id for planned in self.expansion.conditions}
        is_inside = domain.wanted(condition) and locate(domain, condition) is not None
        return is_inside and self.search.may_ask(domain, condition)

    def twins(self, conditions: Sequence[Condition]) -> list[Condition]:
        """The unpoisoned twins that the sweep runs beside these conditions."""
        if not (self.baselines or self.search.needs_baselines):
            return []
        return twins_of(self.search.twinned(self.expansion.domain, conditions))

    def flat(self, condition: Condition) -> Mapping[str, Any]:
        """`condition.flat()`, remembered section by section: for callers that ask for thousands."""
        return self._flats(condition)

    @property
    def questions(self) -> Questions:
        """What is asked of the models."""
        return Questions(self.detect, self.evaluate)

    def resources_for(self, condition: Condition) -> Resources:
        """What the trial of `condition` asks for: CPUs, and GPUs (rounded up to 1/n) or "auto"."""
        return self.resources.resolve(self.flat(condition) if self.resources.overrides else {})

    def to_yaml(self) -> str:
        """`resolved()` as text: the sweep folder's `space.yaml`."""
        return dump_yaml(self.resolved())


def load_space(
    path: str | Path,
    overrides: Sequence[str] = (),
    only: Sequence[str] = (),
    seeds: Sequence[int] | str | None = None,
    *,
    text: str | None = None,
) -> SearchSpace:
    """The search space in the YAML file `path`.

    Args:
        overrides: `path=value` texts. A condition path takes the place of whatever the file says for it, and of no
            other option of an axis (`train: {values: [{epochs: 2, lr: 0.1}, ...]}`); another component's name that of
            a whole axis of components. A top-level one (`search.method=random`, `baselines=false`) changes that
            section.
        only: `path=value` texts; conditions that do not match are left out. The value may be a list.
        seeds: instead of the file's; a sequence, or text such as "0,1,2" or "0-4".
        text: what the file holds, where no file is to be read; none of its plugins is imported then.

    Raises:
        SpaceError: whatever is wrong, with file, line and key path.
    """
    listed = parse_seed_list(seeds) if isinstance(seeds, str) else seeds
    expansion = expand(read_grammar(path, overrides, only, listed, text))
    space = SearchSpace(**vars(expansion.grammar), expansion=expansion)
    found = infeasible([*expansion.conditions, *expansion.examples])
    if found:
        condition, error = found
        flat = space.flat(condition)
        beside = Path(space.root.where.file).parent
        cells = [cell for cell in space.include if Rule(cell, space.root.where, beside).matches(flat)]
        raise located(error, dict(flat), space, cells[-1] if cells else {})
    _check_clean_share(space)
    _check_metrics(space)
    if not isinstance(space.search, Planned):
        # Whatever does not fit together is said here.
        with placing(space):
            space.search.bound(expansion.domain)
    return _with_used_resources(space)


def _check_clean_share(space: SearchSpace) -> None:
    """Raises `SpaceError` where a detector needs clean pictures that a condition does not set aside."""
    needing = [detector.name for detector in space.detect if "clean share" in detector.SEES]
    without = next((condition for condition in space.shown() if not condition.asked_fraction), None)
    if needing and without is not None:
        pool, share = f"data.clean_pool {without.data.clean_pool:g}", f"finetune.fraction {without.finetune.fraction:g}"
        asked = f"{' and '.join(needing)} {'needs' if len(needing) == 1 else 'need'} a clean set"
        problem = (
            f"{asked}, and a condition has none: its repair '{without.repair.name}' uses none, and {pool} is less than "
            f"{share}; lower the latter or raise the former"
        )
        raise space.root.mapping("")["detect"].error(problem, "detect", at_key=True)


def _check_metrics(space: SearchSpace) -> None:
    """Raises `SpaceError` where the search looks at what no condition has."""
    looked_at = [(f"search.{option}", metric) for option, metric in space.search.looks_at]
    if space.replication is not None:
        looked_at += [("seeds.until.metric", Metric(space.replication.until.metric))]
    shown = space.shown()
    for path, metric in looked_at:
        if shown and (problem := metric.lacking(shown)) and not _is_seldom(metric, space):
            raise deepest(space.root, path).error(problem, path)


def _is_seldom(metric: Metric, space: SearchSpace) -> bool:
    """Whether a search that looks at results may ask for a condition with this metric, though none is shown."""
    if isinstance(space.search, Planned):
        return False
    drawn = Random(max_trials=MAX_DRAWS).conditions(space.expansion.domain)
    return any(metric.lacking([condition]) is None for condition in drawn)


def load_plugins_of(file: Path) -> tuple[str, ...]:
    """Load the plugins that a search space names, and return their names; nothing else of it is read.

    Raises:
        SpaceError: they cannot be imported, or it is no YAML.
    """
    return load_named_plugins(load_yaml(file).mapping(""), file.absolute().parent)[0]


def _with_used_resources(space: SearchSpace) -> SearchSpace:
    """The space without resource overrides about paths that the command line replaced; others must match, or at least
    be such as a condition may match that is not known yet."""
    kept = []
    owner, problem = "resources.overrides.when", "matches no condition"
    conditions = (*space.expansion.unfiltered, *space.expansion.examples)
    for rule, needs in space.resources.overrides:
        error: SpaceError | None = None
        if not any(rule.matches(flat) for flat in _flats_of(conditions, rule, space)):
            if space.search.IS_EXHAUSTIVE:
                error = no_match(rule, conditions, owner, problem)
            else:
                known = (*conditions, *space.twins(space.shown()))
                error = unreachable(rule, space, known, owner, problem, crossed=_with_twins(space))
        if error is None:
            kept.append((rule, needs))
        elif space.loosened.isdisjoint(rule.paths):
            raise error
    return replace(space, resources=replace(space.resources, overrides=tuple(kept)))


def _flats_of(conditions: Iterable[Condition], rule: Rule, space: SearchSpace) -> Iterator[Mapping[str, Any]]:
    """Flat content of conditions, also with those seeds that a rule names and that they may get later."""
    named = values_of(rule.entries["seed"].plain()) if space.replication and "seed" in rule.entries else []
    later = [
        seed for seed in named if space.replication and seed in range(space.replication.min, space.replication.max)
    ]
    for condition in conditions:
        flat = space.flat(condition)
        yield flat
        yield from ({**flat, "seed": seed} for seed in later)


def _with_twins(space: SearchSpace) -> Collection[Flat]:
    """`Expansion.crossed`; where twins are run, without the attacks, which these have not."""
    if not (space.baselines or space.search.needs_baselines):
        return space.expansion.crossed
    attack = ("trigger.", "poison.")
    twins = [{path: flat[path] for path in flat if not path.startswith(attack)} for flat in space.expansion.crossed]
    return (*space.expansion.crossed, *({**twin, "trigger": None} for twin in twins))
