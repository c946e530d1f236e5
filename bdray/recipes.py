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
    """Evaluate after every so many epochs."""
    test_limit: int | None = Field(default=None, ge=1)
    """Between first and last epoch, use only this many test images."""


Layers = Literal["all", "head", "batch_norm"]
"""Which parameters are trained."""


class Optimization(Identified):
    """How one stage trains: what both stages have in common."""

    batch_size: int = Field(default=128, ge=2)
    """Images a step at most: an epoch is cut into near-equal batches."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`sgd` with momentum, or `adamw` (Loshchilov and Hutter 2019)."""
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)
    """Of `sgd`."""
    nesterov: bool = True
    """Of `sgd`: Nesterov's form of momentum, which looks ahead. He et al. 2016, torchvision and BackdoorBench: off."""
    weight_decay: float = Field(default=5e-4, ge=0.0)
    """Of all weights of the model, norms and biases included; decoupled with `adamw`."""
    norm_bias_lr: float = Field(default=1.0, gt=0.0)
    """Factor of the learning rate of normalisation layers' biases; their weight decay is divided by it, so that they
    decay as all others do (64 in airbench94, Jordan 2024)."""
    schedule: Schedule = "one_cycle"
    """Of the learning rate, moved after every step. `triangular`: from 0.2 up to the peak at 23 %, down to 0.07, all in
    straight lines (Jordan 2024)."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Part of each label that is spread evenly over all classes (Szegedy et al. 2016)."""
    lookahead: bool = False
    """Every five steps the network becomes the moving average of its weights, which starts to remember as training goes
    on (Zhang et al. 2019, as Jordan 2024 does it), and it ends as the last of them; a stage of five steps or fewer has
    none."""
    augment: Literal["auto"] | Cropping | Strong = "auto"
    """Random crop after reflecting 1/8 of the side (`zero_crop_flip`: after adding so much black, as He et al. 2016 and
    BackdoorBench do), and horizontal flip; `auto` is the data set's own choice. After that, as defences (Borgnia et
    al. 2021): `cutout` hides a square of half the side (DeVries and Taylor 2017), `cutmix` pastes a box of another
    picture of the batch and mixes their labels (Yun et al. 2019), `randaugment` does 2 of 14 operations at magnitude 9
    of 30 (Cubuk et al. 2020)."""
    flip: Literal["random", "alternating"] = "random"
    """Where pictures are flipped: `alternating` flips each picture in every other epoch, a random half of them in the
    first (Jordan 2024)."""
    precision: Precision = "auto"
    """`auto` is bfloat16 autocast where it was measured to be at least 10 % faster, else float32; one for a sweep.
    `tf32`: float32 whose convolutions and matrix products round their factors to 10 bits, on GPUs that can; float32 is
    float32 there too, which torch's own default is not."""
    compile: bool | Literal["auto"] = False
    """Train through `torch.compile`; `auto`: where it was measured to win back the time it takes to compile."""
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
    """A model that was trained elsewhere, instead of training one: a state dict (safetensors, or a PyTorch file of
    tensors only) with the network's names, such as `bdray import` writes. Its content, not its path, is part of what
    the condition is. Unpoisoned twins are trained. What else the condition says of poison decides how the model is
    tested, and which samples repairs and detectors of a training set get: other ones than it was trained on."""
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
    """0 leaves the stage out (but for the evaluation before it)."""
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
    """So many of the poison stage's pictures of classes that the attack is meant for, as they came, stamped anew; all
    of them where there are fewer."""
    clean: int = Field(default=950, ge=0)
    """So many others of them, with their true labels."""
    epochs: int = Field(default=1, ge=1)
    """Passes over all of these."""
    lr: float = Field(default=0.01, gt=0.0)
    """Learning rate."""
    batch_size: int = Field(default=128, ge=2)
    """Pictures a step; never more than in the poison stage, whose memory a trial has."""


class Evaluate(Identified):
    """What is measured of a model beside accuracy and attack. It changes no model."""

    probes: bool = False
    """After every stage also the attack success rate with the trigger off its place, with a part of it, and under the
    sweep's other triggers: what tells a model that learnt this trigger from one that reacts to anything bright."""
    select: Literal["clean_accuracy"] | None = "clean_accuracy"
    """By what tables mark the best setting of a repair (`selected`): the clean accuracy on the last fifth of
    `data.clean_pool`, which no repair uses; never by attack success, which a defender does not know. Null: by nothing.
    Where a clean set leaves less than that fifth, nothing is measured."""
    relearn: Relearn | None = None
    """Whether a repaired model gets its backdoor back: its rates after relearning, tabled as `relearnt`; `true` or
    options. Baselines that were repaired alike are given the same pictures: they have nothing to get back."""

    @field_validator("relearn", mode="before")
    @classmethod
    def _by_a_word(cls, value: Any) -> Any:
        return {True: Relearn(), False: None}[bool(value)] if isinstance(value, int) and value in (0, 1) else value
