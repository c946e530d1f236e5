"""`bdray narcissus`: a trigger made with a clean model, as a file for the trigger `additive`."""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import numpy as np
import torch

from bdray.commands.readers import require_folder_of, write_file
from bdray.commands.trial import TerminalReporter, choose_condition
from bdray.errors import UserError
from bdray.poisoning.base import Surrogate
from bdray.poisoning.narcissus import universal_noise
from bdray.progress import Bar
from bdray.seeds import stream
from bdray.terminal import Console
from bdray.trial import TrialOptions
from bdray.trial.run import train_surrogate


def narcissus(options: argparse.Namespace) -> int:
    """Train a clean model as a condition says, and write the perturbation that leads to the condition's target.

    Raises:
        UserError: the condition's strategy has no target, or the file cannot be written.
    """
    require_folder_of(options.output)
    console = Console(highlight=False)
    condition, _ = choose_condition(options)
    target = getattr(condition.poison, "target", None)
    if target is None:
        raise UserError(f"poison.strategy: '{condition.poison.name}' has no target; set it to clean_label")
    recipe = getattr(condition.poison, "surrogate", Surrogate())
    trial_options = TrialOptions(device=options.device, threads=options.threads)
    with TerminalReporter(console) as reporter:
        experiment, model = train_surrogate(condition, recipe, reporter=reporter, options=trial_options)
    # What the owner's clean set holds is not the attacker's.
    members = torch.from_numpy(experiment.split.train_indices)
    chosen = members[experiment.data.train_labels[members] == target]
    with Bar(console) as bar:
        noise = universal_noise(
            lambda images: model(experiment.normalize(images)),
            experiment.data.train_images[chosen],
            target,
            epsilon=options.levels / 255,
            epochs=options.epochs,
            lr=0.005,
            generator=stream(condition.seed, "poison", "narcissus"),
            device=experiment.compute.device,
            tick=lambda done, total, loss: bar.show(
                "noise", done, total, line=f"noise {done}/{total}  loss {loss:.3g}"
            ),
        )
    buffer = io.BytesIO()
    np.save(buffer, 255 * noise.numpy())
    write_file(Path(options.output), buffer.getvalue())
    name = experiment.data.class_names[target]
    console.print(f"noise    {options.output}, of {len(chosen)} pictures of {name}", markup=False, soft_wrap=True)
    # JSON is YAML, and quotes a path that needs it.
    trigger = json.dumps({"name": "additive", "path": options.output}, ensure_ascii=False)
    console.print(f"  trigger: {trigger}", markup=False, soft_wrap=True)
    console.print(f"  poison: {{strategy: clean_label, target: {target}, test_trigger: {{strength: 3}}}}", markup=False)
    return 0
