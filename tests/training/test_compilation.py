"""Compiled parts against the same network in plain Python.

Traced and differentiated as `train.compile` does it, but run without generated kernels, which take minutes to build.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn
from torch.nn.functional import cross_entropy

from bdray.condition import Condition
from bdray.models.base import build_model
from bdray.models.networks.taps import Outputs, forward_outputs
from bdray.store.storage import Storage
from bdray.training.compilation import CompiledParts, parts_between_taps
from bdray.trial import TrialOptions, run_trial


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_model("resnet8", 10, 16).to(memory_format=torch.channels_last).train()


def mix_with(lam: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda hidden: lam * hidden + (1 - lam) * hidden.flip(0)


STEPS: dict[str, dict[str, Any]] = {
    "plain": {},
    "captured": {"capture": ("stage1", "stage3", "input")},
    "mixed early": {"edits": {"stage1": mix_with(0.3)}},
    "mixed otherwise": {"edits": {"stage1": mix_with(0.9)}},
    "mixed late and captured": {"edits": {"stage2": mix_with(0.6)}, "capture": ("stage2",)},
    "mixed input": {"edits": {"input": mix_with(0.7)}},
    "plain again": {},
}


def step(model: nn.Module, images: torch.Tensor, options: dict[str, Any]) -> tuple[Outputs, list[torch.Tensor]]:
    model.zero_grad()
    outputs = forward_outputs(model, images, **options)
    labels = torch.arange(len(images)) % 10
    hidden = sum((h.square().mean() for h in outputs.hidden.values()), start=outputs.features.square().mean())
    (cross_entropy(outputs.logits, labels) + hidden).backward()
    return outputs, [p.grad.clone() for p in model.parameters() if p.grad is not None]


def test_a_compiled_network_forgets_no_edit_and_no_capture() -> None:
    plain, compiled = network(), network()
    parts = CompiledParts(compiled, backend="aot_eager")
    images = torch.randn(12, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    images = images.contiguous(memory_format=torch.channels_last)
    for name, options in STEPS.items():
        expected, gradients = step(plain, images, options)
        with parts.active():
            assert all("forward" in part.__dict__ for part in parts_between_taps(compiled))
            outputs, compiled_gradients = step(compiled, images, options)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=1e-4, atol=1e-4, msg=name)
        torch.testing.assert_close(outputs.features, expected.features, rtol=1e-4, atol=1e-4, msg=name)
        assert outputs.hidden.keys() == expected.hidden.keys()
        for point, hidden in expected.hidden.items():
            torch.testing.assert_close(outputs.hidden[point], hidden, rtol=1e-4, atol=1e-4, msg=name)
        torch.testing.assert_close(compiled_gradients, gradients, rtol=1e-3, atol=1e-3, msg=name)
    torch.testing.assert_close(dict(compiled.named_buffers()), dict(plain.named_buffers()))


def test_nothing_of_it_stays_on_the_network() -> None:
    model = network()
    names = list(model.state_dict())
    with CompiledParts(model).active():
        assert list(model.state_dict()) == names
    assert not any("forward" in module.__dict__ for module in model.modules())
    assert list(copy.deepcopy(model).state_dict()) == names


@pytest.mark.parametrize("name", ["resnet8", "resnet18", "nasnet_mobile", "airbench", "timm/efficientnet_b0"])
def test_no_tap_lies_inside_a_compiled_part_and_most_of_the_network_does(name: str) -> None:
    """Found: of NASNet, whose taps compute nothing, nothing was compiled."""
    model = build_model(name, 10, 32)
    parts = parts_between_taps(model)
    taps: Any = model.taps
    tapped = {model.get_submodule(path) for path in (*taps.points.values(), taps.head)}
    assert parts
    for part in parts:
        assert not (set(part.modules()) - {part}) & tapped
    inside = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert inside > 0.85 * sum(parameter.numel() for parameter in model.parameters())


def test_a_compiled_trial_keeps_published_names(tmp_path: Path) -> None:
    content: dict[str, Any] = {
        "data": {"name": "digits", "train_limit": 120, "test_limit": 40, "image_size": 16},
        "model": "resnet8",
        "trigger": "patch",
        "regularizer": "manifold_mixup",
        "train": {"epochs": 1, "batch_size": 32, "compile": True},
        "finetune": {"epochs": 1, "batch_size": 8, "compile": True},
    }
    condition = Condition.parse(content)
    sweep = Storage.open(tmp_path / "sweep")
    with torch.compiler.set_stance("force_eager"):
        record = run_trial(condition, sweep=sweep, options=TrialOptions(cache=tmp_path / "cache"))
    assert record.status == "finished"
    model = Path(sweep.uri_of(f"stages/{condition.poison_fingerprint}/model.safetensors"))
    with safe_open(model, "pt") as kept:
        assert set(kept.keys()) == set(network().state_dict())


@pytest.mark.parametrize("given", [None, "3"])
def test_no_more_processes_compile_than_the_trial_has_threads(
    given: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    if given is None:
        monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    else:
        monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", given)
    before, threads = config.compile_threads, torch.get_num_threads()
    assert before is not None
    try:
        torch.set_num_threads(before + 1)
        with CompiledParts(network(), backend="aot_eager").active():
            assert config.compile_threads == before + (given is None)
    finally:
        torch.set_num_threads(threads)
    assert config.compile_threads == before
