"""A pretended GPU: what runs on `cuda` runs on fake tensors, which have a shape, a type and a device but no values.

torch's `FakeTensorMode` raises where tensors of two devices meet. It cannot say where a program waits for its GPU, and
CUDA's generators, streams and pinned memory do not exist without one: stand-ins here do both. Tensors on the CPU stay
real, so that loading, planning and stamping run as always. What torch's own backward pass does is not looked at: a
torch that was built for CUDA refuses to run it without a driver. Its stand-in gives every parameter that the loss
depends on a gradient.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from host_positions import TAKE_HOST_POSITIONS
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.cuda._utils import _get_device_index
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda:0")

COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.to.dtype_layout, torch.ops.aten.copy_.default}
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default}
"""What gives Python a value of a tensor."""
SIZED_BY_VALUES = {"nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "unique_consecutive"}
"""How much they return is known only when the device has counted."""


class HiddenWait(Exception):  # noqa: N818 - named after what happened
    """The program waits for the device where it must not."""


class MixedDevices(Exception):  # noqa: N818
    """Tensors, or a tensor and a generator, of two devices met."""


class PretendedGpu:
    """What is noticed of a program that uses the pretended GPU.

    Attributes:
        waits_allowed: whether values may be read back; they are all 1.
        read_back: the functions that called `tolist` on a tensor of the device.
    """

    HiddenWait, MixedDevices = HiddenWait, MixedDevices

    def __init__(self) -> None:
        self.waits_allowed = True
        self.read_back: list[str] = []

    @contextmanager
    def no_waiting(self) -> Iterator[None]:
        """Inside, only `tolist` may wait for the device."""
        self.waits_allowed = False
        try:
            yield
        finally:
            self.waits_allowed = True

    def waits(self, what: object) -> None:
        if not self.waits_allowed:
            raise HiddenWait(f"{what} waits for the device")


class _FakeCuda(FakeTensorMode):
    """Never asks for the device, although `torch.cuda.is_available` says that there is one."""

    @property
    def avoid_device_init(self) -> bool:
        return True


class _Devices(TorchDispatchMode):
    """Lets operations on real CPU tensors run, and looks at all others before they reach the fake tensors."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        to = kwargs.get("device")
        fake = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if not fake and (to is None or torch.device(to).type == "cpu"):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func in COPIES:
            return self._copy(func, args, kwargs, tensors)
        if func in READS or func.overloadpacket.__name__ in SIZED_BY_VALUES:
            self._gpu.waits(func)
            if func in READS:
                return func is not torch.ops.aten.equal.default
        if any(tensor.device.type == "cpu" and tensor.dim() for tensor in tensors):
            if func.overloadpacket.__name__ not in TAKE_HOST_POSITIONS:
                raise MixedDevices(f"{func} of tensors on the host and on the device")
            self._gpu.waits(f"{func} with positions on the host")
        if func.overloadpacket.__name__.startswith("_fused_"):
            return None  # optimizers work in place, and torch has no fake version of these
        if "grid_sampler" in func.overloadpacket.__name__:
            pixels, places = tensors  # nor of this one
            return pixels.new_empty((*pixels.shape[:2], *places.shape[1:3]))
        return func(*args, **kwargs)

    def _copy(self, func: Any, args: Any, kwargs: Any, tensors: list[torch.Tensor]) -> Any:
        """Copies between the host and the device. To the host: ones, as many as there are values."""
        if func is torch.ops.aten.copy_.default:
            target, source = tensors[0].device.type, tensors[1].device.type
        else:
            target, source = torch.device(kwargs.get("device") or tensors[0].device).type, tensors[0].device.type
        if target == source:
            return func(*args, **kwargs)
        if target == "cpu":
            self._gpu.waits(f"{func} to the host")
            with unset_fake_temporarily():
                values = torch.ones(tensors[-1].shape, dtype=kwargs.get("dtype") or tensors[-1].dtype)
                return tensors[0].copy_(values) if func is torch.ops.aten.copy_.default else values
        if not getattr(tensors[-1], "pinned", False) or not kwargs.get("non_blocking"):
            self._gpu.waits(f"{func} from pageable memory")
        return func(*args, **kwargs)


class _Calls(TorchFunctionMode):
    """What can only be seen in Python: generators, pinned memory, `tolist`, tensors made of lists."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        generator = kwargs.get("generator")
        first = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)), None)
        device = torch.device(kwargs.get("device") or (first.device if first is not None else "cpu"))
        if generator is not None:
            if generator.device.type != device.type:
                raise MixedDevices(f"{func.__name__} draws on {device} with a generator on {generator.device}")
            if device.type == "cuda":
                kwargs["generator"] = None
        if func is torch.tensor and device.type == "cuda":
            self._gpu.waits("torch.tensor of Python values")
        if func is torch.Tensor.pin_memory:
            pinned = args[0].clone()
            pinned.pinned = True
            return pinned
        if func is torch.Tensor.backward:
            for leaf in _leaves(args[0]):
                leaf.grad = torch.zeros_like(leaf)
            return None
        return func(*args, **kwargs)


def _caller() -> str:
    """The function of bdray that called what is being looked at."""
    frame = sys._getframe()
    while frame.f_back and not frame.f_globals.get("__name__", "").startswith("bdray."):
        frame = frame.f_back
    return frame.f_code.co_name


def _leaves(loss: torch.Tensor) -> list[torch.Tensor]:
    """The tensors that a loss depends on and that want a gradient; all on its device."""
    waiting, seen, leaves = [loss.grad_fn], set(), []
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        waiting += [following for following, _ in node.next_functions]
    for leaf in leaves:
        if leaf.device.type != loss.device.type:
            raise MixedDevices(f"a loss on {loss.device} depends on a parameter on {leaf.device}")
    assert leaves
    return leaves


def _gradient(
    loss: torch.Tensor, of: Any, *, create_graph: bool = False, allow_unused: bool = False, **_: Any
) -> tuple[torch.Tensor, ...]:
    wanted, leaves = (of if isinstance(of, (list, tuple)) else [of]), _leaves(loss)
    assert allow_unused or all(any(leaf is one for leaf in leaves) for one in wanted)
    # A gradient that is differentiated again depends on all that the loss does.
    return tuple(torch.zeros_like(one) + (0 * loss.sum() if create_graph else 0) for one in wanted)


class CudaGenerator(torch.Generator):
    """Draws nothing; says that it lies on a GPU. On the CPU: a real one."""

    def __new__(cls, device: torch.device | str = "cpu") -> Any:
        on_gpu = torch.device(device).type == "cuda"
        return super().__new__(cls, "cpu") if on_gpu else REAL_GENERATOR(device)  # type: ignore[call-arg]

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    def manual_seed(self, seed: int) -> CudaGenerator:
        return self


class _Stream:
    def __init__(self, device: object = None) -> None: ...

    def record_event(self) -> _Stream:
        return self

    def wait_event(self, event: object) -> None: ...


class _AtOnce:
    """A pool whose work is done when it is handed in: modes hold for one thread only."""

    def __init__(self, **options: object) -> None: ...

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*arguments))
        return done

    def shutdown(self, **options: object) -> None: ...


def _strict(*arguments: Any) -> float:
    """For functions of torch.cuda that take no device without an index, unlike all others."""
    _get_device_index(arguments[-1])
    return 1.0


REAL_GENERATOR, REAL_FORK = torch.Generator, torch.random.fork_rng

STAND_INS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "is_bf16_supported": lambda *_args, **_options: True,
    "get_device_capability": lambda _device: (9, 0),
    "is_current_stream_capturing": lambda: False,
    "manual_seed_all": lambda _seed: None,
    "max_memory_allocated": lambda _device: 0,
    "mem_get_info": lambda _device: (2**30, 2**30),
    "memory_reserved": lambda _device: 0,
    "get_per_process_memory_fraction": _strict,
    "set_per_process_memory_fraction": _strict,
    "get_device_properties": lambda _device: SimpleNamespace(total_memory=2**30),
    "get_device_name": lambda _device: "pretended",
    "empty_cache": lambda: None,
    "reset_peak_memory_stats": lambda _device: None,
    "max_memory_reserved": lambda _device: 2**20,
    "Stream": _Stream,
    "stream": lambda _stream: nullcontext(),
    "current_stream": _Stream,
}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[PretendedGpu]:
    """A machine with one GPU, for as long as the test runs."""
    for name, stand_in in STAND_INS.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(torch, "Generator", CudaGenerator)
    monkeypatch.setattr(torch.random, "fork_rng", lambda devices: REAL_FORK(devices=[]))
    monkeypatch.setattr(torch.autograd, "grad", _gradient)
    # Stand-ins of gradients are zero, so that no network would see anything.
    for module in ("bdray.models.networks.coverage", "bdray.trial.preflight"):
        monkeypatch.setattr(f"{module}.pixels_seen", lambda _, size: torch.ones(size, size, dtype=torch.bool))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda _tensor, _stream: None)
    monkeypatch.setattr(torch.utils, "swap_tensors", lambda kept, other: setattr(kept, "data", other.data))
    monkeypatch.setattr("bdray.training.batches.ThreadPoolExecutor", _AtOnce)
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    pretended = PretendedGpu()

    def tolist(tensor: FakeTensor) -> Any:
        pretended.read_back.append(_caller())
        return torch.ones(tensor.shape, dtype=tensor.dtype, device="cpu").tolist()

    monkeypatch.setattr(FakeTensor, "tolist", tolist)
    try:
        with _FakeCuda(allow_non_fake_inputs=True), _Devices(pretended), _Calls(pretended):
            yield pretended
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)
