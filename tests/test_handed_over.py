"""A sweep's folder in other hands: read, planned and gone on with where neither her files nor her trust are."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
from made_up import rates, record, stage

import bdray
from bdray.cli import main
from bdray.condition import Condition, attack_key
from bdray.record import Answer, Facts, FloorRecord, ProbeRecord, TrialRecord
from bdray.space import load_space
from bdray.store.labels import label_of
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, SweepInfo
from bdray.triggers.base import TRIGGERS
from bdray.triggers.image import ImageTrigger

PLUGIN = '''
from pathlib import Path

from bdray.triggers.base import TRIGGERS, Trigger

with Path({marker!r}).open("a") as marker:
    marker.write("imported\\n")

@TRIGGERS.register("handed_over")
class HandedOver(Trigger):
    """Her own."""

    def apply(self, images, generator):
        return 255 - images
'''
SPACE = """\
name: own
plugins: [her_own]
fixed:
  data: {name: digits, image_size: 16, train_limit: 64, test_limit: 40}
  model: resnet8
  trigger: handed_over
  train: {epochs: 1, batch_size: 32}
  finetune: {epochs: 1}
baselines: true
"""


STRIP = {"name": "strip"}


@pytest.fixture(autouse=True)
def _path(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = list(sys.path)
    yield
    sys.path[:] = before


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    """A line in it for every time her plugin was imported."""
    return tmp_path / "imported"


@pytest.fixture
def study(tmp_path: Path, marker: Path) -> Path:
    """Her search space, her plugin beside it."""
    (tmp_path / "study").mkdir()
    (tmp_path / "study" / "her_own.py").write_text(PLUGIN.format(marker=str(marker)))
    (tmp_path / "study" / "own.yaml").write_text(SPACE)
    return tmp_path / "study"


def forget_plugin(name: str = "handed_over", module: str = "her_own") -> None:
    """As in a process that never imported it."""
    TRIGGERS._classes.pop(name, None)
    sys.modules.pop(module, None)


def made_record(condition: Condition, floor_of: Condition | None = None) -> TrialRecord:
    """A finished record; a baseline's with the floor of an attack."""
    floors: tuple[FloorRecord, ...] = ()
    if floor_of is not None and floor_of.trigger is not None:
        content = floor_of.content()
        key = attack_key(floor_of.trigger, floor_of.poison)
        said = {"trigger": content["trigger"], "poison": content["poison"]}
        floors = (FloorRecord(probe=key, **said, poisoned=rates(0.03), repaired=rates(0.04)),)
    stages = (stage(0.9), stage(0.9, 0.2, name="finetune"))
    under = {"trigger": condition.content()["trigger"], "rates": {"poisoned": rates(0.5), "finetuned": rates(0.4)}}
    probes = () if condition.is_baseline else (ProbeRecord(probe="p", variation="whole", **under),)
    return record(condition, *stages, facts=Facts.of(condition), floors=floors, probes=probes)


@pytest.fixture
def sweep(tmp_path: Path, study: Path, marker: Path) -> Path:
    """The folder of her finished sweep; what this process learnt of her plugin is forgotten."""
    space = load_space(study / "own.yaml")
    folder = SweepFolder(Storage.open(tmp_path / "runs" / "own"))
    folder.storage.write_atomic("space.yaml", space.to_yaml())
    conditions = space.conditions()
    poisoned = next(condition for condition in conditions if not condition.is_baseline)
    for condition in conditions:
        one = folder.condition(condition.condition_id)
        one.write_condition(condition)
        one.write_record(made_record(condition, poisoned if condition.is_baseline else None))
        counts = {"result": "poisoned", "positives": 20, "negatives": 80}
        one.write_answers([Answer(key="k", detector=STRIP, auroc=0.9, tpr=0.5, fpr=0.1, **counts)])
    ids = tuple(condition.condition_id for condition in conditions)
    folder.write_info(SweepInfo(name="own", experiment="bdray-own", conditions=ids, detect=(STRIP,)))
    assert label_of(poisoned).startswith("handed_over")
    forget_plugin()
    marker.unlink()
    return tmp_path / "runs" / "own"


def read_by_results(sweep: Path) -> None:
    csv = sweep.parent / "own.csv"
    assert main(["results", str(sweep), "--csv", str(csv)]) == 0
    assert pd.read_csv(csv)["asr_floor_after"].dropna().tolist() == [0.04]


def read_by_report(sweep: Path) -> None:
    assert main(["report", str(sweep)]) == 0
    page = (sweep / "report.html").read_text()
    assert "handed_over, all_to_one, rate" in page
    assert "Did the models learn this trigger?" in page


def read_in_python(sweep: Path) -> None:
    found = bdray.load_results(sweep)
    assert found["asr_floor_after"].notna().sum() == 1
    assert len(bdray.load_curves(sweep)) == 6


def read_by_compare(sweep: Path) -> None:
    assert main(["compare", str(sweep), str(sweep)]) == 0


@pytest.mark.parametrize(
    "read",
    [
        lambda sweep: main(["status", str(sweep)]),
        lambda sweep: main(["results", str(sweep)]),
        read_by_results,
        read_by_report,
        read_in_python,
        read_by_compare,
    ],
    ids=["status", "results", "csv", "report", "python", "compare"],
)
def test_whoever_reads_a_sweep_runs_none_of_its_code(sweep: Path, marker: Path, read: Callable[[Path], object]) -> None:
    read(sweep)
    assert not marker.exists()


def test_records_of_before_have_their_floors_without_facts(sweep: Path) -> None:
    """Those of kept sweeps: of components that come with bdray."""
    baseline = Condition.parse({"data": "digits", "model": "resnet8", "trigger": "patch"})
    from bdray.results.controls import controls_of

    old = [made_record(baseline), made_record(baseline.baseline(), floor_of=baseline)]
    old = [each.model_copy(update={"facts": None}) for each in old]
    (control,) = controls_of(old).values()
    assert control.floor is not None and control.floor.poisoned.attack_success_rate == 0.03
    assert json.loads(old[0].model_dump_json())["facts"] is None


PICTURES = """\
name: own
plugins: [her_own]
seeds: [0]
fixed:
  data: {name: image_folder, root: pictures_of_hers, image_size: 16}
  model: resnet8
  train: {epochs: 1, batch_size: 8, augment: none}
  finetune: {epochs: 1, fraction: 0.2}
  poison: {rate: 0.2, target: class1}
parameters:
  trigger: {values: [handed_over, {name: image, path: cat.png}]}
baselines: true
"""


@pytest.fixture
def whole(tmp_path: Path, study: Path, marker: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep with a plugin, a picture and a folder of pictures, moved to where none of them is."""
    from PIL import Image

    from bdray.sweeping.freezing import write_space

    for number in range(24):
        place = study / "pictures_of_hers" / f"class{number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((16, 16), 20 + 3 * number).convert("RGB").save(place / f"{number}.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 255)).save(study / "cat.png")
    (study / "own.yaml").write_text(PICTURES)
    monkeypatch.chdir(study)
    space = load_space("own.yaml")
    sweep = Storage.open(tmp_path / "hers" / "own")
    write_space(sweep, space, space.conditions(), None)
    for condition in space.conditions():
        SweepFolder(sweep).condition(condition.condition_id).write_condition(condition)
    (tmp_path / "colleague").mkdir()
    monkeypatch.chdir(tmp_path / "colleague")
    (tmp_path / "hers" / "own").rename(tmp_path / "colleague" / "own")
    study.rename(tmp_path / "elsewhere")
    forget_plugin()
    sys.path[:] = [folder for folder in sys.path if not folder.startswith(str(tmp_path))]
    return tmp_path / "colleague" / "own"


def ids_in(sweep: Path) -> set[str]:
    return {path.parent.name for path in sweep.glob("conditions/*/condition.json")}


def test_a_folder_is_planned_where_plugin_picture_and_data_are_not(
    whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", "own/space.yaml", "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "3 conditions" in said.out
    assert "1 (class1)" in said.out
    assert f"plugin her_own from {whole / 'plugins'}" in said.err
    assert {one.condition_id for one in load_space("own/space.yaml").conditions()} == ids_in(whole)
    text = (whole / "space.yaml").read_text()
    assert "hers/" not in text and "study" not in text and str(whole.parent) not in text
    assert main(["preview", "own/space.yaml"]) == 2
    assert "--data-root image_folder=DIR" in capsys.readouterr().err


def test_a_folder_goes_on_as_a_folder(whole: Path) -> None:
    """What is frozen of a frozen space is the same."""
    from bdray.sweeping.freezing import write_space

    space = load_space("own/space.yaml")
    again = Storage.open(whole.parent / "again")
    write_space(again, space, space.conditions(), None)
    assert again.read_text("space.yaml") == (whole / "space.yaml").read_text()
    for kind in ("plugins", "pictures"):
        mine, theirs = (sorted(p.name for p in (folder / kind).iterdir()) for folder in (whole, whole.parent / "again"))
        assert mine == theirs


def chosen(*argv: str) -> Condition:
    """What `bdray trial` would run."""
    from bdray.cli import make_parser
    from bdray.commands.trial import choose_condition

    return choose_condition(make_parser("bdray").parse_args(["trial", *argv]))[0]


def of(sweep: Path, trigger: str) -> Path:
    """The `condition.json` with this trigger."""
    paths = sweep.glob("conditions/*/condition.json")
    return next(path for path in paths if f'"name": "{trigger}"' in path.read_text())


@pytest.mark.parametrize("trigger", ["image", "handed_over"])
@pytest.mark.parametrize("how", ["option", "set", "variable"])
def test_a_condition_is_run_from_its_record_with_data_from_elsewhere(
    whole: Path, monkeypatch: pytest.MonkeyPatch, trigger: str, how: str
) -> None:
    path, folder = of(whole, trigger), str(whole.parents[1] / "elsewhere" / "pictures_of_hers")
    argv = {"option": ["--data-root", f"image_folder={folder}"], "set": ["--set", f"data.root={folder}"]}
    if how == "variable":
        monkeypatch.setenv("BDRAY_ROOT_IMAGE_FOLDER", folder)
    condition = chosen(str(path), *argv.get(how, []))
    assert condition.data.root == folder
    assert condition.condition_id == path.parent.name
    if trigger == "image":
        assert isinstance(condition.trigger, ImageTrigger)
        assert Path(condition.trigger.path).parent == whole / "pictures"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--set", "search.method=random"], "search: is for a search space"),
        (["--set", "parameters.train.lr={values: [1]}"], "is for a search space"),
        (["--only", "seed=0"], "is one condition"),
        (["--id", "ab"], "is one condition"),
        (["--seeds", "0-2"], "seeds: is for a search space"),
        (["--set", "train.epoch=1"], "train has no option 'epoch'; did you mean"),
    ],
)
def test_what_makes_no_sense_for_one_condition_is_said(
    whole: Path, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["trial", str(of(whole, "image")), *argv]) == 2
    assert said in capsys.readouterr().err


def test_options_change_a_condition_of_a_record(whole: Path) -> None:
    condition = chosen(str(of(whole, "handed_over")), "--set", "train.epochs=3", "--seeds", "7")
    assert (condition.train.epochs, condition.seed) == (3, 7)
    patched = chosen(str(of(whole, "handed_over")), "--set", "trigger={name: patch, size: 2}")
    assert patched.trigger is not None and patched.trigger.label == "patch size=2"


def test_a_condition_is_reproduced_from_its_record_bit_for_bit(whole: Path) -> None:
    folder = str(whole.parents[1] / "elsewhere" / "pictures_of_hers")
    found = []
    for place in ("one", "two"):
        argv = ["--data-root", f"image_folder={folder}", "--threads", "1", "--output", place]
        source = of(whole, "image") if place == "one" else of(Path("one"), "image")
        assert main(["trial", str(source), *argv]) == 0
        record = json.loads(of(Path(place), "image").with_name("record.json").read_text())
        found.append([[epoch["loss"], epoch["rates"]] for stage in record["stages"] for epoch in stage["epochs"]])
        # The picture went along.
        (whole / "pictures").rename(whole / "hidden") if place == "one" else None
    assert found[0] == found[1]


def test_a_list_of_runs_names_what_is_not_ordinary() -> None:
    plain = {"data": "digits", "model": "resnet8", "trigger": "patch", "poison": {"rate": 0.05}}
    ordinary = Condition.parse(plain)
    other = Condition.parse({**plain, "regularizer": "manifold_mixup", "repair": "fine_pruning"})
    assert label_of(ordinary) == f"patch-0.05-resnet8-s0-{ordinary.condition_id[:6]}"
    assert label_of(other) == f"patch-0.05-resnet8-manifold_mixup-fine_pruning-s0-{other.condition_id[:6]}"
    assert label_of(ordinary.baseline()).startswith("baseline-resnet8-s0-")
