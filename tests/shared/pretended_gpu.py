"""A pretended GPU with real numbers: its tensors wrap tensors on the CPU, and the CPU computes for them.

Made of PyTorch's `PrivateUse1` hooks, so that autograd, optimizers and modules take it for a device like any other.
Tensors of two devices do not meet, and what waits for the device is counted. Unlike the fake tensors of `tests/cuda` it
has values and a backward pass: whole trials run on it, and their records can be compared with the CPU's, bit for bit.
It has no streams and no kernels of its own, and its memory is as full as its largest tensor is large.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_positions import TAKE_HOST_POSITIONS
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

NAME = "pretended"
CPU = torch.device("cpu")
ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}
READS = {ATEN._local_scalar_dense.default, ATEN.is_nonzero.default, ATEN.equal.default, ATEN.nonzero.default}
"""What waits for the device because the host wants to know a value or a size."""
ASSERT = "CUDA error: device-side assert triggered"
REAL_GENERATOR, REAL_FORK = torch.Generator, torch.random.fork_rng


class MixedDevices(Exception):  # noqa: N818 - named after what happened
    """Tensors of two devices met."""


class OnDevice(torch.Tensor):
    """A tensor of the pretended device; `raw` has its values."""

    raw: torch.Tensor

    @staticmethod
    def __new__(cls, raw: torch.Tensor) -> OnDevice:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            layout=raw.layout,
            device=torch.device(NAME, 0),
        )
        made.raw = raw
        GPU.hold(raw.untyped_storage().nbytes())
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({self.raw})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _compute(func, args, kwargs or {})

    def tolist(self) -> Any:
        GPU.wait()
        return self.raw.detach().tolist()

    def __reduce_ex__(self, protocol: Any) -> Any:
        """In a file it is what reading with `map_location="cpu"` makes of it."""
        return self.raw.detach().__reduce_ex__(protocol)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("a tensor on a device has no array")


class PretendedGpu:
    """What happens on the device.

    Attributes:
        name: of the card.
        waits: how often the host waited for it.
        before: called with every operation before it is computed; what it raises, the operation raises.
        total_bytes: of the card; a tensor that is larger than the process's share of them does not fit.
        peak_bytes: of the largest tensor so far.
        sync: what a wait is, as of `torch.cuda.set_sync_debug_mode`.
        broken: nothing can be computed any more in this process.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """As it was when nothing had happened."""
        self.name, self.total_bytes, self.share, self.peak_bytes = "pretended", 2**34, 1.0, 0
        self.waits, self.sync, self.broken = 0, "default", False
        self.before: Callable[[Any], None] = lambda func: None

    def wait(self, *, waits: bool = True) -> None:
        """The host waits for the device."""
        self.waits += waits
        if waits and self.sync == "error":
            raise RuntimeError("called a synchronizing CUDA operation")

    def hold(self, size: int) -> None:
        """A tensor of so many bytes is made."""
        if size > self.share * self.total_bytes:
            raise torch.OutOfMemoryError(f"CUDA out of memory. Tried to allocate {size} bytes. GPU 0 has less")
        self.peak_bytes = max(self.peak_bytes, size)

    @property
    def alive(self) -> int:
        """Tensors that somebody still holds."""
        return len(self._tensors())

    @property
    def bytes_alive(self) -> int:
        """What they hold."""
        return sum(one.raw.nbytes for one in self._tensors())

    def _tensors(self) -> list[OnDevice]:
        gc.collect()
        return [one for one in gc.get_objects() if type(one) is OnDevice]


GPU = PretendedGpu()


def _raw(value: Any) -> Any:
    if isinstance(value, OnDevice):
        return value.raw
    return CPU if isinstance(value, torch.device) and value.type == NAME else value


def _wrapped(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, torch.Tensor) and not isinstance(value, OnDevice) else value


def _compute(func: Any, args: Any, kwargs: Any) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    here = any(isinstance(tensor, OnDevice) for tensor in tensors)
    to = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    if not here and to in (None, "cpu"):
        return func(*args, **kwargs)
    if GPU.broken:
        raise torch.AcceleratorError(ASSERT)
    GPU.before(func)
    if func in COPIES:
        return _copy(func, args, kwargs, to or NAME)
    GPU.wait(waits=func in READS)
    if any(not isinstance(tensor, OnDevice) and tensor.dim() for tensor in tensors):
        if func.overloadpacket.__name__ not in TAKE_HOST_POSITIONS:
            raise MixedDevices(f"{func} of tensors on the host and on the device")
        GPU.wait()
    try:
        made = tree_map(_wrapped, func(*tree_map(_raw, args), **tree_map(_raw, kwargs)))
    except IndexError as error:
        GPU.broken = True
        raise torch.AcceleratorError(ASSERT) from error
    return return_and_correct_aliasing(func, args, kwargs, made) if here and made is not None else made


def _copy(func: Any, args: Any, kwargs: Any, to: str) -> Any:
    if func is ATEN.copy_.default:
        target, source = args[:2]
        GPU.wait(waits=isinstance(source, OnDevice) and not isinstance(target, OnDevice))
        _raw(target).copy_(_raw(source))
        return target
    (source,) = args
    made = func(_raw(source), **{**kwargs, "device": CPU})
    if to == "cpu":
        GPU.wait()
        return made
    is_pinned = getattr(source, "pinned", False) and kwargs.get("non_blocking")
    GPU.wait(waits=not isinstance(source, OnDevice) and not is_pinned)
    return OnDevice(made)


class _Operations(TorchDispatchMode):
    """Sees what makes a tensor on the device of none."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Lists(TorchFunctionMode):
    """Sees tensors made of Python's values, which are no operation."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is torch.tensor and torch.device(kwargs.get("device") or CPU).type == NAME:
            GPU.wait()
            return OnDevice(func(*args, **{**kwargs, "device": CPU}))
        return func(*args, **kwargs)


class _Generator(torch.Generator):
    """On the device: draws what the CPU's would."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        kind = cls if torch.device(device).type == NAME else REAL_GENERATOR
        return REAL_GENERATOR.__new__(kind, "cpu")  # type: ignore[call-arg]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return torch.device(NAME, 0)


class _Stream:
    def __init__(self, device: object = None) -> None: ...

    def record_event(self) -> _Stream:
        return self

    def wait_event(self, event: object) -> None: ...

    def wait_stream(self, stream: object) -> None: ...


class _Graph:
    """Keeps nothing of what is captured, which is computed meanwhile."""

    def replay(self) -> None: ...


class _AtOnce:
    """A pool whose work is done when it is handed in: modes hold for one thread only."""

    def __init__(self, **options: object) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self, **options: object) -> None: ...


def _pinned(tensor: torch.Tensor) -> torch.Tensor:
    copy = tensor.clone()
    copy.pinned = True  # type: ignore[attr-defined]
    return copy


CUDA: dict[str, Any] = {
    "is_available": lambda: True,
    "is_current_stream_capturing": lambda: False,
    "device_count": lambda: 1,
    "get_device_capability": lambda device: (9, 0),
    "get_device_name": lambda device=None: GPU.name,
    "get_device_properties": lambda device: SimpleNamespace(total_memory=GPU.total_bytes),
    "max_memory_allocated": lambda device: GPU.peak_bytes,
    "max_memory_reserved": lambda device: GPU.peak_bytes,
    "memory_allocated": lambda device: GPU.bytes_alive,
    "memory_reserved": lambda device: 0,
    "mem_get_info": lambda device: (GPU.total_bytes, GPU.total_bytes),
    "get_per_process_memory_fraction": lambda device: GPU.share,
    "set_per_process_memory_fraction": lambda share, device: setattr(GPU, "share", share),
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda device: setattr(GPU, "peak_bytes", 0),
    "set_sync_debug_mode": lambda mode: setattr(GPU, "sync", mode),
    "synchronize": lambda device: None,
    "CUDAGraph": _Graph,
    "graph": lambda graph: nullcontext(),
    "Stream": _Stream,
    "stream": lambda stream: nullcontext(),
    "current_stream": _Stream,
}
"""What bdray and its benchmarks ask of `torch.cuda`."""


def _backend() -> tuple[torch.library.Library, ...]:
    """The device, told to torch: how its tensors are made and copied where no mode sees it."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    # Regularizers switch autocast off where they must; there are no operations that it would cast here.
    getattr(torch, NAME).get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    every = torch.library.Library("_", "IMPL")
    every.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    library = torch.library.Library("aten", "IMPL")

    def strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> torch.Tensor:
        return OnDevice(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))

    def empty(size: Any, *, dtype: Any = None, memory_format: Any = None, **_: Any) -> torch.Tensor:
        layout = memory_format or torch.contiguous_format
        return OnDevice(torch.empty(size, dtype=dtype, device="cpu", memory_format=layout))

    def copied(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        _raw(target).copy_(_raw(source))
        return target

    library.impl("empty_strided", strided, "PrivateUse1")
    library.impl("empty.memory_format", empty, "PrivateUse1")
    library.impl("_copy_from", copied, "PrivateUse1")
    return library, every


HAS_BACKEND = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
if HAS_BACKEND:
    LIBRARIES = _backend()  # Before any backward pass: see `tests/test_pretended_gpu.py`.


@contextmanager
def one_gpu() -> Iterator[PretendedGpu]:
    """Inside, this is a machine with one GPU."""
    GPU.reset()
    converts = torch.__future__.get_overwrite_module_params_on_conversion()
    threads, tf32, matmul = (
        torch.get_num_threads(),
        torch.backends.cudnn.allow_tf32,
        torch.get_float32_matmul_precision(),
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, stand_in in CUDA.items():
            patch.setattr(torch.cuda, name, stand_in)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.random, "fork_rng", lambda devices=(): REAL_FORK(devices=[]))
        patch.setattr(torch.Tensor, "pin_memory", _pinned)
        patch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
        # Tensors that wrap others have no version counter in inference mode.
        patch.setattr(torch, "inference_mode", torch.no_grad)
        patch.setattr("bdray.training.batches.ThreadPoolExecutor", _AtOnce)
        patch.setattr("bdray.trial.run.pick_device", lambda name: torch.device(NAME, 0))
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        try:
            with _Operations(), _Lists():
                yield GPU
        finally:
            torch.__future__.set_overwrite_module_params_on_conversion(converts)
            torch.use_deterministic_algorithms(False)
            torch.set_num_threads(threads)
            torch.set_float32_matmul_precision(matmul)
            torch.backends.cudnn.allow_tf32 = tf32
            GPU.reset()


_FOR_EVER = ExitStack()


def begin() -> None:
    """From now on this process is on a machine with one GPU."""
    _FOR_EVER.enter_context(one_gpu())
