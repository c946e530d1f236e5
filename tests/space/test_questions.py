"""`detect` and `evaluate` of a search space: in no id, and every mistake is told where it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdray.errors import SpaceError
from bdray.questions import Questions
from bdray.recipes import Relearn
from bdray.space import load_space

PLAIN = """\
fixed:
  data: {name: digits}
  model: {name: resnet8}
  trigger: {name: patch}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "space.yaml"
    path.write_text(text)
    return path


def test_a_question_moves_no_id(tmp_path: Path) -> None:
    asked = f"{PLAIN}detect: [spectral_signatures, {{name: strip, overlays: 5}}]\nevaluate: {{probes: true}}\n"
    plain, asking = (load_space(write(tmp_path, text)) for text in (PLAIN, asked))
    assert [c.condition_id for c in asking.conditions()] == [c.condition_id for c in plain.conditions()]
    assert [c.stages for c in asking.conditions()] == [c.stages for c in plain.conditions()]
    assert [detector.label for detector in asking.detect] == ["spectral_signatures", "strip overlays=5"]
    assert (asking.evaluate.probes, plain.evaluate.probes, plain.detect) == (True, False, ())


def test_questions_survive_the_frozen_space_and_the_way_to_a_worker(tmp_path: Path) -> None:
    text = f"{PLAIN}detect: [{{name: scale_up, factors: [2, 4]}}, mm_bd]\nevaluate: {{probes: true}}\n"
    space = load_space(write(tmp_path, text))
    again = load_space(write(tmp_path, space.to_yaml()))
    assert again.questions == space.questions == Questions.parse(space.questions.dump())


@pytest.mark.parametrize(
    ("more", "line", "path", "said"),
    [
        ("detect: [strp]\n", 5, "detect[0].name", "did you mean 'strip'?"),
        ("detect:\n  - strip\n  - {name: mm_bd, stps: 3}\n", 7, "detect[1].stps", "did you mean 'steps'?"),
        ("detect: [strip, strip]\n", 5, "detect[1]", "'strip' is asked twice"),
        ("detect: [3]\n", 5, "detect[0]", "must be a detector's name or a mapping, got 3"),
        ("evaluate: {prbes: true}\n", 5, "evaluate.prbes", "did you mean 'probes'?"),
        (
            "evaluate:\n  relearn:\n    clean: 3\n    trigered: 5\n",
            8,
            "evaluate.relearn.trigered",
            "evaluate.relearn has no option 'trigered'; did you mean 'triggered'?",
        ),
        ("evaluate: {relearn: often}\n", 5, "evaluate.relearn", "must be a mapping of options (got 'often')"),
        ("evaluate: {relearn: {triggered: 0}}\n", 5, "evaluate.relearn.triggered", "greater than or equal to 1"),
        ("  evaluate: {relearn: true}\n", 5, "evaluate", "write `evaluate: {relearn: true}` at the top of the file"),
        ("  strategy: all_to_all\n", 5, "strategy", "did you mean 'poison.strategy'?"),
        ("  epochs: 3\n", 5, "epochs", "did you mean 'train.epochs' or 'finetune.epochs'?"),
        ("parameters:\n  evaluate.probes: {values: [true, false]}\n", 6, "evaluate.probes", "at the top"),
        ("include:\n  - {evaluate.probes: true}\n", 6, "evaluate.probes", "at the top"),
    ],
)
def test_a_mistake_is_told_where_it_stands(tmp_path: Path, more: str, line: int, path: str, said: str) -> None:
    with pytest.raises(SpaceError) as caught:
        load_space(write(tmp_path, PLAIN + more))
    assert (caught.value.line, caught.value.path) == (line, path)
    assert said in str(caught.value)


def test_relearning_is_asked_by_a_word_or_with_options(tmp_path: Path) -> None:
    plain = load_space(write(tmp_path, PLAIN))
    for said, recipe in (
        ("true", Relearn()),
        ("{triggered: 5, epochs: 5}", Relearn(triggered=5, epochs=5)),
        ("false", None),
        ("0", None),
    ):
        space = load_space(write(tmp_path, f"{PLAIN}evaluate: {{relearn: {said}}}\n"))
        assert space.evaluate.relearn == recipe
        assert load_space(write(tmp_path, space.to_yaml())).questions == space.questions
        assert Questions.parse(space.questions.dump()) == space.questions
        assert [c.condition_id for c in space.conditions()] == [c.condition_id for c in plain.conditions()]


def test_a_detector_without_clean_pictures_is_refused_before_anything_runs(tmp_path: Path) -> None:
    """A repair that uses none leaves detectors as many, if they are none that the poison stage is trained on."""
    text = f"{PLAIN}  finetune: {{epochs: 0, fraction: 0.2}}\ndetect: [spectral_signatures, strip]\n"
    pool = r"data\.clean_pool 0\.1 is less than finetune\.fraction 0\.2"
    refusal = f"strip needs a clean set, .* its repair 'finetune' uses none, and {pool}"
    with pytest.raises(SpaceError, match=refusal) as caught:
        load_space(write(tmp_path, text))
    assert (caught.value.line, caught.value.path) == (6, "detect")
    for change in (("0.2", "0.1"), ("epochs: 0", "epochs: 0, split: train_clean")):
        assert len(load_space(write(tmp_path, text.replace(*change))).conditions()) == 1
    fewer = load_space(write(tmp_path, text.replace(", strip", ", mm_bd")))
    assert len(fewer.conditions()) == 1


def test_the_command_line_asks_too(tmp_path: Path) -> None:
    space = load_space(write(tmp_path, PLAIN), ["detect=[mm_bd]", "evaluate.probes=true"])
    assert ([detector.name for detector in space.detect], space.evaluate.probes) == (["mm_bd"], True)
