"""Measures a kind of training: its need of memory by a short trial, its speed by real steps on a real batch.

How fast bfloat16 is cannot be told from a processor's flags: with AVX-512's it was 2.5 times as fast as float32 on one
machine and slower on another.

The need of a GPU is what the allocator had reserved at its peak (data, models, optimizers, activations, a surrogate and
the perturbation of pictures, every stage of the repair, evaluation), a margin, and the context, which lies outside the
allocator. It is rounded up to 1/n of the smallest card it may land on, and the trial's allocator is capped at that
share less the context. How many trials a card computes well side by side is not measured, so no share is below 1 /
`bdray.gpu.MOST_ON_ONE_GPU`.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bdray.condition import Condition
from bdray.errors import BdrayError, TrialInterrupted
from bdray.gpu import CONTEXT_BYTES, is_gpu
from bdray.gpu_errors import gpu_error
from bdray.machine import Machine
from bdray.recipes import Resolved
from bdray.record import StageName
from bdray.training.batches import batches
from bdray.training.compilation import CompiledParts
from bdray.training.device import Compute, deterministically, forked_generators, make_compute, prepare_process
from bdray.training.loop import Stage, StageState, StepGenerators, train_step
from bdray.training.reporter import Reporter
from bdray.trial.measurements import AT_MOST, PARTS, ROUNDS, Answer, Measurement, Part, TrainingKind, way
from bdray.trial.options import TrialOptions
from bdray.trial.setup import Experiment

MEASURED_STEPS = 3
"""Training steps of each stage: after the first, the optimizer has its buffers."""

LEAST_SECONDS = 20.0
"""What compiling takes at least: shorter than that even the smallest network has not been."""

_LONG_S = 5.0
"""A step that takes longer is measured well by one."""

_STILL = 1e-9
"""A learning rate with which nothing diverges, so that every stage is reached."""

_NEVER = 10**9
"""Epochs; after the last one, a stage is tested in any case."""

_ENOUGH_S = 60.0
"""After so long an operation of a repair has taken all the memory that it takes."""

_FORMATS: tuple[Resolved, ...] = ("float32", "bfloat16")


@dataclass(frozen=True)
class Stepper:
    """Takes real training steps on one real batch and says how long they take. Leaves all random streams as they were.

    Attributes:
        images: of the batch.
    """

    stage: Stage
    state: StageState
    batch: tuple[torch.Tensor, torch.Tensor]

    @classmethod
    def of(cls, experiment: Experiment) -> Stepper:
        """Steps of the poison stage, at a learning rate of 0: no weights grow out of range."""
        stage = replace(experiment.untouched_stage(), lr=0.0)
        (batch,) = batches(stage.source, [torch.arange(len(stage.source))], stage.compute.device)
        return cls(stage, stage.start(experiment.build_model().train()), batch)

    @property
    def images(self) -> int:
        return len(self.batch[1])

    def seconds(self, compute: Compute) -> float:
        """Of one step, computed like this."""
        stage = replace(self.stage, compute=compute)
        generators = StepGenerators.of(stage, 0)
        with forked_generators(compute.device):
            started = time.perf_counter()
            images, labels = self.batch
            images = stage.augmented(images, generators.augment, stage.strong_stream(0))
            # The sums are read: until they are there, nothing is finished.
            train_step(stage, self.state, images, labels, generators).tolist()
            return time.perf_counter() - started

    def fastest(self, compute: Compute) -> float:
        """Images a second. A step is held up by whatever else runs on the machine and hurried by nothing."""
        best = self.seconds(compute)
        if best < _LONG_S:
            # The first one counts only where it is all there is: it also warms up.
            best = min(self.seconds(compute) for _ in range(ROUNDS))
        return self.images / best


class _Patience(Reporter):
    """Ends a trial in an operation that takes long."""

    def __init__(self) -> None:
        self._begun: dict[StageName, float] = {}

    def batch(self, stage: StageName, epoch: int, epochs: int, batch: int, batches: int) -> None:
        begun = self._begun.setdefault(stage, time.monotonic())
        if batch > MEASURED_STEPS and time.monotonic() - begun > _ENOUGH_S:
            raise TrialInterrupted("its memory is measured")


@dataclass
class Bench:
    """Measures all that is asked of a kind of training, one part after the other.

    Attributes:
        threads: of the CPU.
        cache: folder of decoded data sets; None: the user's.
        trial: runs a condition (`bdray.trial.run_trial`), to measure memory.
        set_up: what a process does first that takes the same steps beside this one.
    """

    kind: TrainingKind
    machine: Machine
    device: torch.device
    threads: int
    cache: Path | None = None
    experiment: Experiment | None = None
    trial: Callable[..., object] | None = None
    set_up: Callable[[], object] | None = None
    _step: Stepper | None = field(default=None, init=False)

    def answer(self) -> Answer:
        """What fails costs none of the other parts."""
        new = Measurement(machine=self.machine.name, on_gpu=self.machine.gpu, threads=self.threads)
        known, problems = self.kind.known or new, dict[Part, str]()
        for part in (part for part in PARTS if part in self.kind.parts):
            try:
                known = known.updated(deterministically(partial(self._run, part, known)))
            except Exception as error:
                said = str(error).strip().partition("\n")[0]
                problems[part] = said if isinstance(error, BdrayError) else f"{type(error).__name__}: {said}"
        return Answer(known, problems)

    def _run(self, part: Part, known: Measurement) -> Measurement:
        prepare_process(self.device, self.threads)
        found: Measurement = getattr(self, part)(known)
        return found

    @property
    def step(self) -> Stepper:
        self.experiment = self.experiment or Experiment.prepare(self.kind.example, self.device, self.cache)
        self._step = self._step or Stepper.of(self.experiment)
        return self._step

    def memory(self, known: Measurement) -> Measurement:
        """What the allocator had reserved at the peak of a short trial; in both formats where one is still to be
        chosen. A trial that does not fit on the card needs all of it: its own run will say so. Nothing on a CPU, where
        resident memory also counts libraries and mapped pages."""
        if not is_gpu(self.device):
            return Measurement()
        undecided = self.kind.precision is None and "precision" in self.kind.parts
        found = Measurement(total_bytes=torch.cuda.get_device_properties(self.device).total_memory, context_bytes=0)
        for precision in _FORMATS if undecided else (self.kind.auto_by(known),):
            try:
                self.run_short(precision)
                peak = torch.cuda.max_memory_reserved(self.device)
            except RuntimeError as error:
                if (problem := gpu_error(error)) is None or problem.kind != "memory":
                    raise
                peak = found.total_bytes
            context = max(found.context_bytes, context_bytes(self.device))
            found = found.updated(Measurement(peaks={precision: peak}, context_bytes=context))
            gc.collect()
            torch.cuda.empty_cache()
        return found

    def run_short(self, precision: Resolved) -> None:
        """The whole trial, `MEASURED_STEPS` an epoch and an epoch a stage (but for repairs with epochs of their own),
        tested once a stage, up to an operation that takes long; nothing is written."""
        content = self.kind.example.content()
        for stage in ("train", "finetune"):
            content[stage] |= {"epochs": min(1, content[stage]["epochs"]), "lr": _STILL, "evaluate": {"every": _NEVER}}
        options = TrialOptions(str(self.device), self.threads, precision, (), self.cache, max_batches=MEASURED_STEPS)
        assert self.trial is not None
        with suppress(TrialInterrupted):
            self.trial(Condition.parse(content), options=options, reporter=_Patience())

    def precision(self, known: Measurement) -> Measurement:
        """float32 and bfloat16 in turns, beside as many others as will share the device."""
        step, beside = self.step, self.kind.beside(known)
        computes = {one: make_compute(one, self.device) for one in _FORMATS}
        took: dict[str, list[float]] = {one: [] for one in _FORMATS}
        for compute in computes.values():
            step.seconds(compute)
        with self._others(beside) as tell:
            for _ in range(ROUNDS):
                for one, compute in computes.items():
                    tell(one)
                    if beside:
                        step.seconds(compute)
                    took[one].append(step.seconds(compute))
                if not beside and min(took["bfloat16"]) > 2 * min(took["float32"]):
                    break  # No further round will turn that around.
        # Beside others, being held up is what is measured.
        seconds = {one: sum(each) / len(each) if beside else min(each) for one, each in took.items()}
        return Measurement(rates={way(one, beside=beside): step.images / seconds[one] for one in _FORMATS})

    def cost(self, known: Measurement) -> Measurement:
        """As the conditions are trained, alone on the device."""
        precision, weights = self.kind.precision_by(known), self.step.state.model.state_dict().values()
        rate = known.rates.get(way(precision)) or self.step.fastest(make_compute(precision, self.device))
        size = sum(weight.numel() * weight.element_size() for weight in weights)
        return Measurement(rates={way(precision): rate}, image_s=1 / rate, model_bytes=size)

    def compile(self, known: Measurement) -> Measurement:
        """Without and with `torch.compile`; nothing where a try takes too much of the time of all that is trained."""
        step, precision = self.step, self.kind.precision_by(known)
        compute = make_compute(precision, self.device)
        plain = step.fastest(compute)
        if self.kind.images / plain * AT_MOST < LEAST_SECONDS:
            return Measurement()
        with CompiledParts(step.state.model).active():
            first = step.seconds(compute)
            compiled = step.fastest(compute)
        rates = {way(precision): plain, way(precision, compiled=True): compiled}
        return Measurement(rates=rates, compiling_s={precision: max(0.0, first - step.images / compiled)})

    @contextmanager
    def _others(self, count: int) -> Iterator[Callable[[Resolved], None]]:
        """Inside, so many other processes take the same steps, computed in what the yielded function is told."""
        context = multiprocessing.get_context("spawn")
        told, ready = context.Value("b", 0), context.Semaphore(0)
        # Unpickled there when users' components can be imported.
        alike = pickle.dumps(Bench(self.kind, self.machine, self.device, self.threads, self.cache))
        work = partial(_keep_stepping, self.set_up, alike, os.getpid())
        others = [context.Process(target=work, args=(told, ready), daemon=True) for _ in range(count)]
        try:
            for other in others:
                other.start()
            for _ in others:
                while not ready.acquire(timeout=1.0):
                    if not all(other.is_alive() for other in others):
                        raise RuntimeError("a training beside it has ended")
            yield lambda precision: setattr(told, "value", _FORMATS.index(precision))
        finally:
            for other in others:
                other.kill()
                other.join()


def _keep_stepping(set_up: Callable[[], object] | None, alike: bytes, parent: int, told: Any, ready: Any) -> None:
    """What a process beside does, until it is ended or `parent` is gone."""
    if set_up:
        set_up()
    bench: Bench = pickle.loads(alike)
    prepare_process(bench.device, bench.threads)
    computes = [make_compute(one, bench.device) for one in _FORMATS]
    for compute in computes:
        bench.step.seconds(compute)
    ready.release()
    while os.getppid() == parent:
        bench.step.seconds(computes[told.value])


def context_bytes(device: torch.device) -> int:
    """What this process takes on its GPU beside torch's tensors, with whatever others hold there: they share it with
    trials too. `CONTEXT_BYTES` where the driver tells nothing."""
    free, total = torch.cuda.mem_get_info(device)
    taken = total - free - torch.cuda.memory_reserved(device)
    return taken if taken > 0 else CONTEXT_BYTES
