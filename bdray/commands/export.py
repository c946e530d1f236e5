"""`bdray export model`: a kept model as a file of its own."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors

from bdray.commands.inspection import say_plugins
from bdray.commands.readers import require_folder_of, write_file
from bdray.condition import COMPONENTS, Condition
from bdray.data.roots import root_of
from bdray.errors import ComponentError, UserError, nearest
from bdray.models.networks.exported import About, NormalizedModel, exported, load_model
from bdray.plugins import load_plugins
from bdray.recipes import Finetune
from bdray.record import StageRecord, TrialRecord
from bdray.repairs import REPAIRS, Operation
from bdray.shipped import is_file
from bdray.space import load_plugins_of
from bdray.space.grammar import roots_of_options
from bdray.store.condition_folder import KeptRecord
from bdray.store.file_names import CONDITION, MODEL, SPACE, picture_name
from bdray.store.scratch import scratch_folder
from bdray.store.storage import Storage
from bdray.store.sweep_folder import SweepFolder, find_sweep, sweeps_in
from bdray.terminal import Console
from bdray.trial.stage_store import StageStore


def export(options: argparse.Namespace) -> int:
    """Write a condition's model as files; see `export_model`, `export_backdoorbench` and `export_trojai`."""
    from bdray.commands.backdoorbench import export_backdoorbench
    from bdray.commands.trojai import export_trojai

    load_plugins(options.plugins)
    say_plugins(options.plugins)
    sweep = folder_of_models(options.sweep, options.storage)
    if options.what == "model":
        return export_model(sweep, options.id, options.stage, options.output)
    write = {"backdoorbench": export_backdoorbench, "trojai": export_trojai}[options.what]
    return write(sweep, options.id, options.stage, options.output, roots_of_options(options.data_root))


def folder_of_models(name: str, storage: str) -> Storage:
    """A sweep, or a folder of conditions that is none: `bdray trial --output` makes such.

    Raises:
        UserError: there is neither.
    """
    try:
        return find_sweep(name, storage)
    except UserError:
        folder = Storage.open(name)
        if not SweepFolder(folder).condition_ids():
            raise
        return folder


def export_model(sweep: Storage, prefix: str, stage: str | None, output: str | None) -> int:
    """Write a condition's model as safetensors, with all that is needed to use it (`bdray.load_model`).

    Args:
        prefix: of the condition's id.
        stage: after which stage (`poison`), or what it is then (`poisoned`); None: after the last.

    Raises:
        UserError: there is no such condition, stage or model, or it cannot be written.
    """
    kept = kept_record(sweep, prefix)
    record = kept.record
    chosen = named_stage(record, stage)
    file = output or f"{record.condition_id}-{chosen.result}.safetensors"
    require_folder_of(file)
    write_file(Path(file), model_file(sweep, kept, chosen))
    say_model(file, chosen, record)
    return 0


def say_model(file: str, stage: StageRecord, record: TrialRecord) -> None:
    """Where a model was written, and its warning."""
    console = Console(highlight=False)
    console.print(f"model    {file} ({stage.result})", markup=False, soft_wrap=True)
    console.print(record.warning, markup=False, soft_wrap=True, style="yellow" if record.role == "poisoned" else "")


def model_file(sweep: Storage, kept: KeptRecord, stage: StageRecord) -> bytes:
    """A condition's model after a stage, as safetensors that say what it is.

    Raises:
        UserError: it was not kept, or is no plain network.
    """
    record = kept.record
    weights, about = weights_of(sweep, kept, stage), _about(record, stage)
    _require_components(sweep, record)
    network = about.network()
    for step in REPAIRS.build(record.condition["repair"]).stages(Finetune(**record.condition["finetune"])):
        if isinstance(step, Operation) and record.stages.index(stage) > 0:
            step.prepare(network)
        if step.name == stage.name:
            break
    network.load_state_dict(weights)
    return exported(network, about, record.warning)


def plain_model(sweep: Storage, kept: KeptRecord, stage: StageRecord) -> NormalizedModel:
    """The same as `bdray.load_model` gives it: of its architecture's own parameters, in their order.

    Raises:
        UserError: as `model_file`.
    """
    with scratch_folder() as scratch:
        (scratch / "model").write_bytes(model_file(sweep, kept, stage))
        return load_model(scratch / "model")


def kept_record(sweep: Storage, prefix: str) -> KeptRecord:
    """Of the one condition whose id begins so.

    Raises:
        UserError: there is none, or it has not finished.
    """
    folder = SweepFolder(sweep)
    ids = folder.condition_ids()
    found = [condition_id for condition_id in ids if condition_id.startswith(prefix)]
    if len(found) != 1:
        said = f"{len(found)} conditions' ids start with" if found else "no condition's id starts with"
        raise UserError(f"{sweep.uri}: {said} '{prefix}'; {nearest(prefix, ids)}")
    kept = folder.condition(found[0]).record()
    if kept is None or not kept.record.stages:
        raise UserError(f"{found[0]} has no model: it has not finished")
    return kept


def named_stage(record: TrialRecord, wanted: str | None) -> StageRecord:
    """The stage of this name or result; None: the last. Raises `UserError` where there is none."""
    for stage in reversed(record.stages):
        if wanted in (None, stage.name, stage.result):
            return stage
    known = [name for stage in record.stages for name in (stage.name, stage.result)]
    raise UserError(f"--stage: {record.condition_id} has no stage '{wanted}'; {nearest(str(wanted), known)}")


def with_kept_files(content: Any, sweep: Path) -> Any:
    """With the files that the sweep's folder holds in place of those that triggers were made of."""
    if isinstance(content, list):
        return [with_kept_files(item, sweep) for item in content]
    if not isinstance(content, dict):
        return content
    path, sha256 = content.get("path"), content.get("sha256")
    if isinstance(path, str) and isinstance(sha256, str) and is_file(kept := sweep / picture_name(path, sha256)):
        content = {**content, "path": str(kept)}
    return {key: with_kept_files(value, sweep) for key, value in content.items()}


def condition_of(sweep: Storage, record: TrialRecord, roots: Mapping[str, str] | None = None) -> Condition:
    """Of a record, with the sweep's copies of the files that triggers are made of, and with its plugins where a
    component is one of theirs.

    Args:
        roots: folders of data sets by their names, in place of where they lay when it was trained.

    Raises:
        UserError: a component is unknown.
    """
    folder = sweep.local_path("")
    content = with_kept_files(record.condition, folder) if folder else record.condition
    data = content["data"]
    if root := root_of(data["name"], roots or {}, data.get("root")):
        content = {**content, "data": {**data, "root": root}}
    try:
        return Condition.parse(content)
    except UserError as error:
        _load_plugins(sweep, error)
        return Condition.parse(content)


def weights_of(sweep: Storage, kept: KeptRecord, stage: StageRecord) -> dict[str, torch.Tensor]:
    """As they were kept: with the condition, in its sweep's stages, or in those of the sweep they were taken from.

    Raises:
        UserError: they were not.
    """
    record = kept.record
    if stage is record.stages[-1] and MODEL in kept.files:
        folder = SweepFolder(sweep).condition(record.condition_id)
        data = folder.read_listed(MODEL, kept.files, "run the condition again for it")
        if data is not None:
            return load_safetensors(data)
    fingerprint = record.data.fingerprint if record.data else ""
    if (found := kept_stage(sweep, stage.fingerprint, fingerprint)) is not None:
        return found
    said = f"{record.condition_id}: the model after '{stage.name}' was not kept"
    if stage is record.stages[-1] and len(record.stages) > 1:
        shared = ", ".join(f"--stage {one.name}" for one in record.stages[:-1])
        advice = f"{shared} may be there; `resources: {{keep_models: true}}` keeps this one, too"
    else:
        advice = "`resources.stage_cache_gb` says how many are"
    again = f"`{trial_of(sweep, record)}` makes it again"
    raise UserError(f"{said}; {advice}. {again}, for `bdray export model DIR {record.condition_id}`")


def kept_stage(sweep: Storage, fingerprint: str, data_fingerprint: str) -> dict[str, torch.Tensor] | None:
    """The weights of a stage, of this sweep or of the one they were taken from; None where neither keeps them."""
    for place in (sweep, *sweeps_in(sweep.parent)):
        if found := StageStore(place).finished(fingerprint, data_fingerprint):
            return found.weights
    return None


def trial_of(sweep: Storage, record: TrialRecord) -> str:
    """The command that runs a condition again, into the folder `DIR`."""
    # The condition, not the space with its id: a search may have asked for it.
    content = sweep.child("conditions", record.condition_id).uri_of(CONDITION)
    return shlex.join(["bdray", "trial", content, "--output", "DIR"])


def _about(record: TrialRecord, stage: StageRecord) -> About:
    data = record.data
    if data is None or data.mean is None or data.std is None:
        raise UserError(f"{record.condition_id}: an older bdray ran it, which did not note how pictures are normalised")
    model = record.condition["model"]
    return About(
        architecture={name: value for name, value in model.items() if not name.startswith("weights")},
        class_names=data.class_names,
        image_size=record.condition["data"]["image_size"],
        mean=data.mean,
        std=data.std,
        condition_id=record.condition_id,
        stage=stage.name,
        result=stage.result,
        precision=str(stage.environment.get("precision", "float32")),
        bdray=str(record.environment.get("bdray", "")),
    )


def _require_components(sweep: Storage, record: TrialRecord) -> None:
    """Load the sweep's plugins where its architecture or repair is one of theirs."""
    try:
        for section in ("model", "repair"):
            COMPONENTS[section].get(record.condition[section]["name"])
    except ComponentError as error:
        _load_plugins(sweep, error)


def _load_plugins(sweep: Storage, missed: UserError) -> None:
    """Those that its search space names, as a file. Raises `UserError` where there is none."""
    space = sweep.local_path(SPACE)
    if space is None or not space.is_file():
        raise UserError(f"{missed} (no {SPACE} here names plugins; --plugins MODULE does)") from missed
    say_plugins(load_plugins_of(space))
