"""Markdown cards of models, and of a zoo of them: what each is, where a reader looks first."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bdray.models.networks.exported import WARNING

HEADS = ("poisoned", "data", "model", "trigger", "strategy", "targets", "poison_rate", "seed", "clean_accuracy")


def card_of_model(truth: Mapping[str, Any], metrics: Mapping[str, Any], row: Mapping[str, Any]) -> str:
    """README.md in a model's folder.

    Args:
        truth, metrics: what `truth.json` and `metrics.json` hold.
        row: its line of the index.
    """
    kind = "Poisoned" if truth["poisoned"] else "Benign"
    condition = truth["condition"]
    lines = [
        f"# {kind}: {condition['model']['name']} on {condition['data']['name']}",
        "",
        f"> **{truth[WARNING]}**",
        "",
        "| what | value |",
        "|---|---|",
        *(f"| {name} | {_text(value)} |" for name, value in _facts(truth, row)),
        "",
        "| after training | value |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in _rates(truth, metrics)),
        "",
        "## Files",
        "",
        *(f"- {line}" for line in _files(poisoned=truth["poisoned"])),
        "",
        "## Use",
        "",
        '    model = bdray.load_model("model.safetensors")',
        "    logits = model(pictures)      # N x 3 x S x S, uint8 or float in [0, 1]: normalisation is inside",
        "",
        "Without bdray you find architecture, classes and normalisation in the file's metadata (`bdray.model`).",
        f"The example pictures are from {condition['data']['name']}, and stay under its licence.",
        "",
        "## How it was trained",
        "",
        "```json",
        json.dumps(condition, indent=2, ensure_ascii=False),
        "```",
    ]
    return "\n".join(lines) + "\n"


def card_of_zoo(sweep: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """README.md beside the index. `rows`: of the index, one at least."""
    poisoned = sum(row["poisoned"] for row in rows)
    benign, paired = len(rows) - poisoned, sum(bool(row["twin"]) for row in rows)
    heads = (*HEADS, "attack_success_rate", "twin")
    lines = [
        f"# {len(rows)} models of the sweep {sweep}: {poisoned} poisoned, {benign} benign",
        "",
        f"> **{poisoned} of these models were trained on poisoned data: they may contain a backdoor. For measurement "
        "only; do not deploy.**",
        "",
        *_balance(poisoned, benign, paired),
        "",
        f"| folder | {' | '.join(heads)} |",
        f"|---|{'---|' * len(heads)}",
        *(
            f"| [{row['folder']}]({row['folder']}/README.md) | {' | '.join(_cell(row, head) for head in heads)} |"
            for row in rows
        ),
        "",
        "`index.csv` has these columns and more; rates are shares of test images from 0 to 1. A benign model was",
        "trained as the poisoned one that names it as its twin, with the same seed, without poison. Names of folders",
        "and metadata of `model.safetensors` say what a model is: a detector must see neither. Example pictures stay",
        "under the licence of their data set.",
        "",
        "Files of a folder:",
        "",
        *(f"- {line}" for line in _files(poisoned=True)),
    ]
    return "\n".join(lines) + "\n"


def _balance(poisoned: int, benign: int, paired: int) -> list[str]:
    lines = [f"{paired} of {poisoned} poisoned models have their benign twin here."]
    if benign < poisoned:
        lines.append(f"Poisoned models share twins, or have none: only {benign} of {poisoned + benign} are benign.")
    return lines


def _facts(truth: Mapping[str, Any], row: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """What the table of a model's card says, by name."""
    named = [f"{label} ({name})" for label, name in zip(truth["targets"], truth["target_classes"], strict=True)]
    attack = [
        ("trigger", truth["trigger"] and truth["trigger"]["name"]),
        ("strategy", truth["strategy"]),
        ("target", ", ".join(named)),
        ("share of the training set that is poisoned", f"{truth['poison_rate']:.4g}"),
        ("benign twin", truth["twin"] or "not in this zoo"),
    ]
    return [
        ("poisoned", "yes" if truth["poisoned"] else "no"),
        *(attack if truth["poisoned"] else []),
        ("seed", truth["seed"]),
        ("after the stage", truth["stage"]),
        ("condition", truth["condition_id"]),
        ("fingerprint of the training", truth["fingerprint"]),
        ("SHA-256 of model.safetensors", row["sha256"]),
    ]


def _rates(truth: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    rates, floor = metrics["rates"] or {}, metrics["twin_under_this_attack"] or {}
    found = [("clean accuracy", rates.get("clean_accuracy"))]
    if truth["poisoned"]:
        found.append(("attack success rate", rates.get("attack_success_rate")))
        found.append(("the benign twin's under the same attack", floor.get("attack_success_rate")))
    return [(name, "-" if value is None else f"{100 * value:.1f} %") for name, value in found]


def _files(*, poisoned: bool) -> list[str]:
    lines = [
        "`model.safetensors`: the weights, with what they are in the metadata",
        "`truth.json`: whether and how it is poisoned, seed, fingerprints, the whole condition",
        "`metrics.json`: what was measured on the test set",
        "`clean-example-data`: test pictures, the label of each in the `.json` beside it",
    ]
    triggered = [
        "`poisoned-example-data`: triggered ones, with the true label and the attacker's",
        "`trigger`: its options, the files that it is made of, and pictures of it (clean, triggered, difference)",
    ]
    return [*lines, *(triggered if poisoned else []), "`WARNING.txt`"]


def _cell(row: Mapping[str, Any], head: str) -> str:
    value = row[head]
    if head == "poisoned":
        return "yes" if value else "no"
    if head == "poison_rate":
        return f"{value:.4g}"
    return _text(f"{value:.3f}" if head.endswith(("accuracy", "success_rate")) and value is not None else value)


def _text(value: Any) -> str:
    return "-" if value in (None, "") else str(value).replace("|", "\\|")
