"""`bdray compare SWEEP --published FILE`: how rows find cells, what differs, and every mistake in the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from bdray.cli import main
from bdray.commands.published import COLUMNS, read_published
from bdray.errors import SpaceError
from bdray.record import TrialRecord
from bdray.report.published import Beside, PublishedRow, beside, beside_listing, is_within
from bdray.results.listing import texts_of
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo

MakeRecord = Callable[..., TrialRecord]

HEAD = "model,attack,poison_rate,repair,clean_accuracy,attack_success_rate,robust_accuracy"
TABLE = f"""{HEAD}
PreActResNet-18,BadNet,0.1,none,89.5,96.00,2.00
PreActResNet-18,BadNet,0.1,FT,91.6,5.00,N/A
PreActResNet-18,BadNet,0.05,none,91.3,90.00,9.00
PreActResNet-18,TrojanNN,0.1,none,91.0,99.00,1.00
PreActResNet-18,TrojanNN,0.1,FT,91.0,9.00,
"""
NET = {"name": "preact_resnet18", "final_norm": False, "init": "torch"}


def row(**said: Any) -> PublishedRow:
    """Of BadNet at 10 % before any repair, unless said otherwise."""
    known = {"model": "PreActResNet-18", "attack": "BadNet", "repair": "none"}
    names = {kind: said.pop(kind, name) for kind, name in known.items()}
    return PublishedRow(
        **{
            "line": 2,
            "names": names,
            "poison_rate": 0.1,
            "rates": {"clean_accuracy": 0.9},
            **said,
            "settings": said.get("settings", {}),
        }
    )


def cells(found: Beside) -> list[tuple[int, str]]:
    return [(pair.row.line, pair.cell.cell_id) for pair in found.pairs]


@pytest.fixture
def trained(make_record: MakeRecord) -> Callable[..., list[TrialRecord]]:
    """Three seeds of BadNet on PreAct-ResNet18: before fine-tuning ASR 95, 96 and 97 %, after it 5 %."""

    def make(**options: Any) -> list[TrialRecord]:
        known = {"data": "cifar10", "model": NET, "rate": 0.1, **options}
        return [make_record((0.95 + 0.01 * seed, 0.05), seed=seed, **known) for seed in (0, 1, 2)]

    return make


def sweep_of(root: Path, records: Sequence[TrialRecord], planned: Sequence[str] = ()) -> list[str]:
    """A sweep's folder with these records and the conditions that it still has to run; the command that reads it."""
    folder = SweepFolder(Storage.open(root / "runs").child("ours"))
    ids = (*(record.condition_id for record in records), *planned)
    folder.write_info(SweepInfo("ours", "ours", conditions=ids))
    for record in records:
        folder.condition(record.condition_id).write_record(record)
    return ["compare", "ours", "--storage", str(root / "runs")]


def test_cell_by_cell(
    trained: Callable[..., list[TrialRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.csv").write_text(TABLE)
    argv = [
        *sweep_of(tmp_path, [*trained(), *trained(trigger="blend")], ["0" * 12]),
        "--published",
        str(tmp_path / "theirs.csv"),
    ]
    assert main([*argv, "--md"]) == 0
    said = capsys.readouterr().out
    first = "| PreActResNet-18 | BadNet | 0.1 | "
    # The mean of 95, 96 and 97 % is theirs; ours has (1 - ASR) / 2 of robust accuracy.
    assert f"{first}none | C-Acc | 3 | 90.0% (90.0 to 90.0) | 89.5% | +0.5 | yes |  |" in said
    assert f"{first}none | ASR | 3 | 96.0% (95.0 to 97.0) | 96.0% | +0.0 | yes |  |" in said
    assert f"{first}FT | C-Acc | 3 | 91.0% (91.0 to 91.0) | 91.6% | -0.6 | no |  |" in said
    assert f"{first}FT | ASR | 3 | 5.0% (5.0 to 5.0) | 5.0% | +0.0 | yes |  |" in said
    assert said.count("| R-Acc |") == 1, "theirs has none after the repair"
    assert "6 of 7 conditions have finished" in said
    assert "within 0.5 points of theirs: C-Acc 1 of 2, ASR 2 of 2, R-Acc 1 of 1 cells" in said
    assert "2 of our 4 cells have no row there" in said
    assert "3 of their 5 rows have no cell here" in said
    assert "mean nothing here: attack TrojanNN (2 rows)" in said
    assert "their rows state no setting of the recipe" in said
    assert main([*argv, "--md", "--tolerance", "0.6"]) == 0
    assert "C-Acc 2 of 2" in capsys.readouterr().out
    assert main([*argv, "--latex"]) == 0
    assert r"BadNet & 0.1 & FT & C-Acc & 3 & 91.0\% (91.0 to 91.0) & 91.6\% & -0.6 & no" in capsys.readouterr().out
    assert main(argv) == 0
    assert "Nothing is tuned until it does: a difference is a result." in capsys.readouterr().out


def test_what_differs_in_the_recipe_is_said_cell_by_cell(
    trained: Callable[..., list[TrialRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "theirs.csv").write_text(
        f"{HEAD},train.epochs,finetune.lr,data.name,model.final_norm,poison.target,trigger.alpha\n"
        "preactresnet18,badnet,0.1,none,90,96,2,100,0.01,cifar10,false,0,0.2\n"
        "preactresnet18,badnet,0.1,ft,91,5,,1e2,1e-2,cifar10,false,0,\n"
    )
    records = trained(train={"epochs": 100}, finetune={"lr": 0.02})
    assert main([*sweep_of(tmp_path, records), "--published", str(tmp_path / "theirs.csv"), "--md"]) == 0
    said = capsys.readouterr().out
    assert "1 in the recipe: trigger.alpha is - here and 0.2 there (1 of 2 cells)" in said
    # `finetune.lr` says nothing of a model that was not repaired yet.
    assert "2 in the recipe: finetune.lr is 0.02 here and 0.01 there (1 of 2 cells)" in said
    assert "3 in the recipe" not in said and "state no setting" not in said
    assert "none | ASR | 3 | 96.0% (95.0 to 97.0) | 96.0% | +0.0 | yes | 1 |" in said
    assert "ft | ASR | 3 | 5.0% (5.0 to 5.0) | 5.0% | +0.0 | yes | 2 |" in said


@pytest.mark.parametrize(
    ("published", "options"),
    [
        ({"model": "ConvNext_tiny"}, {"model": "timm/convnext_tiny.fb_in1k"}),
        (
            {"model": "ViT_b_16"},
            {"model": "timm/vit_base_patch16_224.augreg_in1k", "data": {"name": "cifar10", "image_size": 224}},
        ),
        ({"model": "VGG19_BN"}, {"model": "timm/vgg19_bn"}),
        ({"model": "ResNet-18"}, {"model": "resnet18"}),
        ({"attack": "Blended"}, {"trigger": "blend"}),
        ({"attack": "WaNet"}, {"trigger": "warp"}),
        ({"attack": "BPP"}, {"trigger": "bpp"}),
        ({"attack": "SIG"}, {"trigger": "sinusoid", "poison": {"strategy": "clean_label", "rate": 0.1}}),
        ({"attack": "LC"}, {"poison": {"strategy": "clean_label", "rate": 0.1}}),
        ({"attack": "noise_patch"}, {"trigger": "noise_patch"}),
        ({"repair": "FP"}, {"repair": "fine_pruning"}),
        ({"repair": "i-BAU"}, {"repair": "i_bau"}),
        ({"repair": "FT-SAM"}, {"repair": "ft_sam"}),
        ({"repair": "MBNS"}, {"repair": "bnp"}),
        ({"repair": "AC"}, {"repair": {"name": "filtered", "detector": "activation_clustering"}}),
    ],
)
def test_names_of_the_field(
    published: dict[str, str], options: dict[str, Any], trained: Callable[..., list[TrialRecord]]
) -> None:
    theirs = row(**published)
    found = beside(trained(**options), [theirs])
    assert [line for line, _ in cells(found)] == [2]
    assert not found.unknown
    others = beside(trained(trigger="filter", model="resnet20", repair="clp"), [theirs])
    assert (others.pairs, others.unknown) == ((), {}), "a name is known where no cell has it"


def test_badnets_with_clean_labels_is_another_attack(trained: Callable[..., list[TrialRecord]]) -> None:
    found = beside(trained(poison={"strategy": "clean_label", "rate": 0.1}), [row()])
    assert (found.pairs, found.cells, dict(found.unknown)) == ((), 2, {})


def test_a_rate_of_a_class_is_counted_in_pictures(trained: Callable[..., list[TrialRecord]]) -> None:
    from bdray.record import DataRecord

    poison = {"strategy": "clean_label", "rate": 0.5, "rate_of": "eligible"}
    counted = DataRecord(
        fingerprint="f",
        class_names=(),
        train_images=45_000,
        clean_images=0,
        test_images=0,
        poisoned_images=2247,
        cover_images=0,
    )
    records = [record.model_copy(update={"data": counted}) for record in trained(poison=poison)]
    assert len(beside(records, [row(attack="LC", poison_rate=0.05)]).pairs) == 1
    assert len(beside(records, [row(attack="LC", poison_rate=0.5)]).pairs) == 0
    failed = trained(poison=poison, status="failed")[0]
    (pair,) = beside([failed, *records[1:]], [row(attack="LC", poison_rate=0.05)]).pairs
    assert pair.cell.marks == "1 of 3 failed", "Found: no pair, where the first seed had failed before its data"


def test_cells_that_share_a_row_are_told_apart(trained: Callable[..., list[TrialRecord]]) -> None:
    records = [record for size in (3, 4) for record in trained(trigger={"name": "patch", "size": size})]
    listing = beside_listing(beside(records, [row()]), 0.5)
    assert listing.axes == ("model", "attack", "poison_rate", "repair", "size", "metric")
    assert [each["size"] for each in listing.rows] == [3, 4]


def test_a_model_that_repairs_share_is_one_cell(trained: Callable[..., list[TrialRecord]]) -> None:
    # Of one repair a seed is missing: the sweep is not over.
    records = [*trained(), *trained(repair="clp")[:2]]
    found = beside(records, [row(), row(line=3, repair="CLP"), row(line=4, repair="FT")])
    assert found.cells == 3
    assert [each["n"] for each in beside_listing(found, 0.5).rows] == [3, 2, 3]


def test_of_several_rows_the_nearest_recipe_counts(trained: Callable[..., list[TrialRecord]]) -> None:
    rows = [
        row(line=number, settings={"train.epochs": epochs}) for number, epochs in enumerate((60, 100, 200), start=2)
    ]
    (pair,) = beside(trained(train={"epochs": 100}), rows).pairs
    assert (pair.row.line, pair.differs) == (3, ())


def test_what_collapsed_is_no_mean_and_is_marked(make_record: MakeRecord) -> None:
    known = {"data": "cifar10", "model": NET, "rate": 0.1}
    records = [make_record((0.9, 0.1), seed=seed, collapsed=seed == 0, **known) for seed in (0, 1)]
    (shown,) = beside_listing(beside(records, [row()]), 0.5).rows
    assert (shown["n"], shown[""]) == (1, "1 of 2 collapsed")
    (alone,) = beside_listing(beside(records[:1], [row()]), 0.5).rows
    assert (alone["n"], alone["ours"], alone["within"], alone[""]) == (0, None, None, "collapsed")
    assert texts_of(beside_listing(beside(records[:1], [row()]), 0.5), intervals=True)[0][-6:] == [
        *("0", "-", "90.0%", "-", "-", "collapsed")
    ]


def test_within_is_of_what_is_shown() -> None:
    assert is_within(0.0054, 0.5) and is_within(-0.0054, 0.5) and is_within(0.003, 0.3)
    assert not is_within(0.0056, 0.5) and not is_within(-0.01, 0.5)
    # Two careful runs of one recipe, as the default tolerance says of them.
    assert is_within(0.9184 - 0.9132, 0.5) and is_within(0.9452 - 0.9503, 0.5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "theirs.csv:1: there is no column 'model'"),
        ("\0", "theirs.csv"),
        ("model,attack,repair\n", "theirs.csv:1: there is no column 'poison_rate'"),
        (
            f"{HEAD},clean_acuracy\n",
            "no column 'clean_acuracy', nor is it a condition path; did you mean 'clean_accuracy'?",
        ),
        (f"{HEAD},train.epoch\n", "no column 'train.epoch', nor is it a condition path; did you mean 'train.epochs'?"),
        (f"{HEAD},model\n", "theirs.csv:1: two columns are called 'model'"),
        (f"{HEAD}\nn,a,0.1,none,90,90\n", "theirs.csv:2: has not as many cells as there are columns"),
        (f"{HEAD}\nn,a,0.1,none,90,90,9,9\n", "theirs.csv:2: has not as many cells as there are columns"),
        (f"{HEAD}\nn,a,10,none,90,90,9\n", "theirs.csv:2: poison_rate: '10' is no number from 0 to 1"),
        (f"{HEAD}\nn,a,0.1,none,much,90,9\n", "theirs.csv:2: clean_accuracy: 'much' is no number from 0 to 100"),
        (f"{HEAD}\nn,a,0.1,none,nan,90,9\n", "theirs.csv:2: clean_accuracy: 'nan' is no number from 0 to 100"),
        (f"{HEAD}\nn,a,0.1,,90,90,9\n", "theirs.csv:2: repair: is empty"),
        (f"{HEAD}\nn,a,0.1,none,0.91,0.9,0.1\n", "clean_accuracy: no value is above 1: rates are in percent"),
        (f"{HEAD}\nn,a,0.1,none,90,9,9\nn,a,0.1,none,91,9,9\n", "theirs.csv:3: is of the same cell as line 2"),
        (f"{HEAD},train.epochs\nn,a,0.1,none,90,9,9,'\n", "theirs.csv:2: train.epochs: is not valid YAML"),
        (f'{HEAD}\n"n,a', "theirs.csv: cannot be read as CSV"),
    ],
)
def test_a_mistake_in_the_table_is_named(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text(text)
    with pytest.raises(SpaceError) as wrong:
        read_published(str(tmp_path / "theirs.csv"))
    assert said in str(wrong.value)


def test_what_is_typed_wrong_is_named(
    trained: Callable[..., list[TrialRecord]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = sweep_of(tmp_path, trained())
    assert main(argv) == 2
    assert "compare wants a second sweep, or --published FILE, and not both" in capsys.readouterr().err
    assert main([*argv, "--published", str(tmp_path)]) == 2
    assert "cannot be read as CSV: Is a directory" in capsys.readouterr().err
    (tmp_path / "theirs.csv").write_text(f"{HEAD}\nPreActResNet-18,DBD,0.1,none,90,90,9\n")
    assert main([*argv, "--published", str(tmp_path / "theirs.csv")]) == 2
    assert "has no row for a cell of ours; 2 of our 2 cells have no row there" in capsys.readouterr().err


def test_the_documentation_names_the_columns() -> None:
    page = (Path(__file__).parents[2] / "docs" / "results.md").read_text()
    section = page.split("\n## Beside a published table\n")[1].split("\n## ")[0]
    assert [column for column in COLUMNS if f"| `{column}` |" not in section] == []
