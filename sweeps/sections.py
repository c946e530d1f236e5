"""Parts of `README.md` that scripts make from records, each between two marks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

from bdray.record import TrialRecord
from bdray.results.detections import Detections


def marks(name: str, script: str) -> tuple[str, str]:
    """Where the part of a sweep begins and ends. `script`: what makes it, a file beside this one."""
    return f"<!-- {name}: by sweeps/{script} -->", f"<!-- end of {name} -->"


def written(text: str, ends: tuple[str, str], part: str) -> str:
    """A page with the part between two marks replaced.

    Raises:
        SystemExit: it has no such marks.
    """
    begin, end = ends
    if begin not in text or end not in text:
        raise SystemExit(f"the page has no part between '{begin}' and '{end}'")
    before, _, rest = text.partition(begin)
    return f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of Markdown."""
    return [f"| {' | '.join(head)} |", "|" + "---|" * len(head), *(f"| {' | '.join(row)} |" for row in rows)]


def recipe(records: Sequence[TrialRecord], attack_of: Callable[[TrialRecord], str]) -> str:
    """What the trainings of a study have in common, and which attacks are stamped after crop and flip."""
    poisoned = [record for record in records if record.role == "poisoned"]
    content = poisoned[0].condition
    model = f"`{content['model']['name']}`, width {content['model']['width']}"
    pictures = {record.data.train_images for record in poisoned if record.data}
    rates = sorted({record.condition["poison"]["rate"] for record in poisoned})
    stamped: dict[str, dict[str, None]] = defaultdict(dict)
    for record in poisoned:
        stamped[record.condition["poison"]["stamp"].removesuffix("_augmentation")][attack_of(record)] = None
    (order, _), *others = sorted(stamped.items(), key=lambda each: -len(each[1]))
    but = "".join(f" ({', '.join(attacks)}: {other})" for other, attacks in others)
    share = f"{100 * rates[0]:g} % poisoned" if len(rates) == 1 else "rates as the rows say"
    return (
        f"{model}; {' to '.join(f'{count:,}' for count in sorted(pictures))} training pictures, "
        f"{content['train']['epochs']} epochs; {share}; stamped {order} crop and flip{but}."
    )


def answered(found: Detections | None) -> str:
    """What a detector said, in a cell of a table: AUROC, and the true and false positive rate at its own threshold; of
    models how many it flagged rightly."""
    if found is None:
        return "–"
    if found.is_of_models:
        return f"{found.hits if found.true is not None else found.flagged} of {found.models}"
    own = [f"{100 * rate:.0f} %" for rate in (found.true, found.false) if rate is not None]
    return ", ".join([*([f"{found.auroc:.2f}"] if found.auroc is not None else []), " / ".join(own)])
