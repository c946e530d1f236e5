"""Lookahead against its formula, in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bdray.training.averaging import Lookahead
from bdray.training.loop import Stage, StageState, run_stage


@pytest.mark.parametrize("steps", [17, 20])
def test_it_is_the_published_average_as_it_was_before_the_last_step(steps: int) -> None:
    model = nn.Linear(1, 1, bias=False).double()
    nn.init.constant_(model.weight, 2.0)
    average, slow, fast = Lookahead(model), 2.0, 2.0
    for step in range(steps):
        fast += 1.0 + step
        with torch.no_grad():
            model.weight.fill_(fast)
        average.after_step(model, step, steps)
        done = step + 1
        if done == steps:
            fast = slow
        elif done % 5 == 0:
            kept = 0.95**5 * (done / steps) ** 3
            slow = kept * slow + (1 - kept) * fast
            fast = slow
        assert model.weight.item() == pytest.approx(fast, rel=1e-12)


def test_running_statistics_are_averaged_and_counters_are_not() -> None:
    model = nn.BatchNorm1d(1)
    average, reached = Lookahead(model), 0.0
    assert model.running_mean is not None and model.num_batches_tracked is not None
    for step in range(7):
        model(torch.full((4, 1), 10.0) * (step + 1))
        average.after_step(model, step, 7)
        reached = model.running_mean.item() if step == 4 else reached
    assert model.running_mean.item() == reached > 0.0
    assert model.num_batches_tracked.item() == 7


@pytest.mark.parametrize("steps", [1, 4, 5])
def test_a_stage_too_short_for_an_average_keeps_what_it_learnt(steps: int) -> None:
    """Found: it was put back to where it began, and so a repair of one batch an epoch had repaired nothing."""
    model = nn.Linear(1, 1, bias=False)
    average = Lookahead(model)
    for step in range(steps):
        with torch.no_grad():
            model.weight.fill_(1.0 + step)
        average.after_step(model, step, steps)
    assert model.weight.item() == steps


def test_a_stage_ends_with_the_average(make_stage: Callable[..., Stage], new_model: Callable[..., nn.Module]) -> None:
    ends = {}
    for lookahead in (False, True):
        stage = make_stage(recipe={"lookahead": lookahead})
        ends[lookahead] = run_stage(stage, stage.start(new_model())).model.state_dict()
    assert not torch.equal(ends[False]["fc.weight"], ends[True]["fc.weight"])


def test_a_stage_continued_from_its_state_is_the_same(
    make_stage: Callable[..., Stage], new_model: Callable[..., nn.Module]
) -> None:
    recipe = {"lookahead": True, "flip": "alternating", "norm_bias_lr": 8.0, "label_smoothing": 0.1}
    stage = make_stage(recipe=recipe, epochs=3)
    whole = run_stage(stage, stage.start(new_model()))

    class Stop(Exception):  # noqa: N818
        pass

    state = stage.start(new_model())

    def stop(state: StageState) -> None:
        raise Stop

    with pytest.raises(Stop):
        run_stage(stage, state, after_epoch=stop)
    resumed = stage.start(new_model(1))
    resumed.model.load_state_dict(state.model.state_dict())
    resumed.optimizer.load_state_dict(state.optimizer.state_dict())
    assert resumed.average and state.average
    resumed.average.load_state_dict(state.average.state_dict())
    resumed.history[:] = state.history
    run_stage(stage, resumed)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
