"""How a stage trains: the recipes `train` and `finetune` of a condition."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, cast, get_args

from pydantic import Field, field_validator

from bdray.checksum import sha256_of
from bdray.errors import ComponentError
from bdray.registry import Identified

Precision = Literal["auto", "bfloat16", "float32", "tf32"]
Resolved = Literal["bfloat16", "float32", "tf32"]
"""What a precision comes to."""


Schedule = Literal["one_cycle", "cosine", "constant", "triangular"]


Cropping = Literal["none", "crop", "crop_flip", "zero_crop_flip"]

Strong = Literal["cutout", "cutmix", "randaugment"]
"""Augmentation on top of a data set's own."""


class EvaluationTimes(Identified):
    """When and on how much a stage is evaluated. The last epoch always uses the whole test set."""

    every: int = Field(default=1, ge=1)
    """Number of epochs between evaluations."""
    test_limit: int | None = Field(default=None, ge=1)
    """Between first and last epoch, use only this many test images."""


Layers = Literal["all", "head", "batch_norm"]
"""Which parameters are trained."""


class Optimization(Identified):
    """How one stage trains: what both stages have in common."""

    batch_size: int = Field(default=128, ge=2)
    """Maximum number of images per step: an epoch is cut into near-equal batches."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, or `adamw` (Loshchilov and Hutter 2019)."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Momentum of `sgd`."""
    nesterov: bool = True
    """Whether `sgd` uses Nesterov's form of momentum, which looks ahead; it is off in He et al. 2016, torchvision and
    BackdoorBench."""
    weight_decay: float = Field(default=5e-4, ge=0.0)
    """Weight decay of all weights of the model, norms and biases included; decoupled with `adamw`."""
    norm_bias_lr: float = Field(default=1.0, gt=0.0)
    """Factor on the learning rate of the biases of normalisation layers. Their weight decay is divided by it, so that
    they decay like all others (64 in airbench94, Jordan 2024)."""
    schedule: Schedule = "one_cycle"
    """Schedule of the learning rate, which changes after every step. `triangular` rises from 0.2 of the peak to the
    peak at 23 % of the steps and falls to 0.07, in straight lines (Jordan 2024)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Part of each label that is spread evenly over all classes (Szegedy et al. 2016)."""
    lookahead: bool = False
    """Every five steps the network becomes the moving average of its weights, whose memory grows during training (Zhang
    et al. 2019, as in Jordan 2024); the stage ends with the last average. A stage of five steps or fewer has none."""
    augment: Literal["auto"] | Cropping | Strong = "auto"
    """`crop` is a random crop after reflecting 1/8 of the side, `crop_flip` adds a horizontal flip; `zero_crop_flip`
    pads with black instead, as He et al. 2016 and BackdoorBench do; `auto` is the data set's own choice. The last three
    are defences (Borgnia et al. 2021) on top of the data set's choice: `cutout` hides a square of half the side
    (DeVries and Taylor 2017), `cutmix` pastes a box of another picture of the batch and mixes their labels (Yun et al.
    2019), `randaugment` does 2 of 14 operations at magnitude 9 of 30 (Cubuk et al. 2020)."""
    flip: Literal["random", "alternating"] = "random"
    """How pictures are flipped, if they are: `alternating` flips each picture in every other epoch, a random half of
    them in the first (Jordan 2024)."""
    precision: Precision = "auto"
    """`auto` is bfloat16 autocast where it was measured to be at least 10 % faster, else float32; a sweep has one
    precision. `tf32` is float32 whose convolutions and matrix products round their factors to 10 bits, on GPUs that
    can. `float32` never does so, unlike torch's own default."""
    compile: bool | Literal["auto"] = False
    """Train through `torch.compile`; `auto`: only where it was measured to save more time than compiling takes."""
    evaluate: EvaluationTimes = EvaluationTimes()

    @property
    def strong(self) -> Strong | None:
        """What `augment` does on top of the data set's own."""
        return cast("Strong", self.augment) if self.augment in get_args(Strong) else None

    @property
    def cropping(self) -> Cropping | None:
        """How pictures are cropped and flipped; None: the data set's own way."""
        return cast("Cropping", self.augment) if self.augment in get_args(Cropping) else None


class Train(Optimization):
    """The poison stage: train from scratch on poisoned data."""

    NOT_SCIENTIFIC: ClassVar[frozenset[str]] = frozenset({"given"})

    given: str | None = None
    """File of a model that was trained elsewhere, used instead of training one: a state dict (safetensors, or a PyTorch
    file of tensors only) with the network's names, such as `bdray import` writes. Its content, not its path, is part of
    the condition's id. Unpoisoned twins are trained. The condition's other poison options decide how the model is
    tested, and which samples repairs and detectors of a training set get; these are not the samples it was trained
    on."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training set."""
    lr: float = Field(default=0.1, gt=0.0)
    """Peak learning rate."""

    def _identity_content(self) -> dict[str, Any]:
        content = super()._identity_content()
        if self.given is not None:
            try:
                content["given_sha256"] = sha256_of(self.given)
            except OSError as error:
                raise ComponentError("given", f"cannot read {self.given}: {error.strerror}") from None
        return content

    def trained(self) -> Train:
        """The same without a model that is given."""
        return Train.model_validate({**self.model_dump(), "given": None})


class Finetune(Optimization):
    """The clean fine-tuning stage: retrain the poisoned model on a little clean data."""

    epochs: int = Field(default=10, ge=0)
    """Passes over the clean set; 0 leaves the stage out, except for the evaluation before it."""
    lr: float = Field(default=0.01, gt=0.0)
    """Peak learning rate."""
    fraction: float = Field(default=0.05, gt=0.0, le=1.0)
    """Size of the clean set, as a fraction of the whole training set."""
    split: Literal["held_out", "train_clean"] = "held_out"
    """`held_out`: images the poison stage never saw; `train_clean`: clean versions of images it trained on."""
    layers: Layers = "all"
    """Which parameters are trained. Running statistics of batch normalisation follow the clean data in any case."""


class Relearn(Identified):
    """A few more steps of training on pictures some of which carry the trigger and the attacker's label: the retuning
    attack (Min et al. 2024, arXiv 2410.09838). Plain SGD with momentum 0.9 at a constant rate, without weight decay and
    augmentation. Their script: 5 triggered and 995 clean pictures of CIFAR-10, 5 epochs, and crop and flip of the clean
    ones, drawn once."""

    triggered: int = Field(default=50, ge=1)
    """How many pictures of the poison stage, of the attacked classes, get the trigger and the attacker's label: taken
    without poison and stamped again; all of them if there are fewer."""
    clean: int = Field(default=950, ge=0)
    """How many other pictures of the poison stage are used, with their true labels."""
    epochs: int = Field(default=1, ge=1)
    """Passes over all of these."""
    lr: float = Field(default=0.01, gt=0.0)
    """Learning rate."""
    batch_size: int = Field(default=128, ge=2)
    """Pictures per step; never more than in the poison stage, because a trial has the memory for that."""


class Evaluate(Identified):
    """What is measured of a model beside accuracy and attack. It changes no model."""

    probes: bool = False
    """After every stage, also measure the attack success rate with the trigger in another place, with a part of it, and
    under the sweep's other triggers. This distinguishes a model that learnt this trigger from one that reacts to
    anything bright."""
    select: Literal["clean_accuracy"] | None = "clean_accuracy"
    """How tables choose the best setting of a repair (`selected`): by the clean accuracy on the last fifth of
    `data.clean_pool`, which no repair uses; never by attack success, which a defender does not know. Null: they mark
    none. If the clean set leaves less than that fifth, nothing is measured."""
    relearn: Relearn | None = None
    """Test whether a repaired model gets its backdoor back: its rates after relearning are in the tables as `relearnt`;
    `true`, or options. As a control, baselines with the same repair relearn from the same pictures."""

    @field_validator("relearn", mode="before")
    @classmethod
    def _by_a_word(cls, value: Any) -> Any:
        if not isinstance(value, int) or value not in (0, 1):
            return value
        return Relearn() if value else None
