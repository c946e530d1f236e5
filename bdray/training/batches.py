"""Where a stage's pictures lie while it runs: on the device, or on the host with a thread that fetches ahead.

On the device a batch is one gather. A data set that does not fit stays memory-mapped on the host: a thread gathers the
next batches while the device computes, and on a GPU copies them from pinned memory on a stream of its own. Both give
the same batches, bit for bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Generic, Literal, Protocol, TypeVar, cast

import torch

from bdray.gpu import is_gpu, to_device

DataPlace = Literal["device", "host"]

T = TypeVar("T", bound=tuple[torch.Tensor, ...])

DEVICE_SHARE = 0.5
"""A data set lies on the GPU when it takes no more than this share of what is free there (our choice)."""

BATCHES_AHEAD = 3
"""Batches fetched ahead of the one that is computed."""


class BatchSource(Protocol):
    """Training images that can be gathered by position."""

    def __len__(self) -> int: ...

    def gather(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """uint8 `N x 3 x S x S` and int64 `N`, for int64 `positions`; all where the source lies."""
        ...


@dataclass(frozen=True)
class FromHost:
    """A source on the host for a device that need not be the host; `batches` fetches from it ahead of time."""

    source: BatchSource

    def __len__(self) -> int:
        return len(self.source)

    def gather(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As the source does: on the host."""
        return self.source.gather(positions)


def choose_place(needed_bytes: int, device: torch.device) -> DataPlace:
    """Where `needed_bytes` of pictures should lie for `device`.

    A CPU's own memory is the host's, where the arrays are mapped and never copied: that counts as the device.
    """
    if not is_gpu(device):
        return "device"
    return "device" if needed_bytes <= DEVICE_SHARE * _free_bytes(device) else "host"


def batches(
    source: BatchSource, orders: Iterable[torch.Tensor], device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches at `orders` (int64 positions, on the CPU), in order, on `device`: uint8 `N x 3 x S x S`, int64 `N`.

    Never waits for the device.
    """
    if isinstance(source, FromHost):
        yield from fetch_ahead((partial(source.gather, order) for order in orders), device)
        return
    parts = list(orders)
    for order in to_device(torch.cat(parts), device).split([len(part) for part in parts]):
        yield source.gather(order)


def image_batches(images: torch.Tensor, batch_size: int, device: torch.device) -> Iterator[torch.Tensor]:
    """`images` in order, `batch_size` at a time, on `device`; fetched ahead where they lie on the host of a GPU."""
    parts = images.split(batch_size)
    if images.device.type == device.type:
        yield from parts
        return
    for (batch,) in fetch_ahead((partial(_one, part) for part in parts), device):
        yield batch


def fetch_ahead(fetches: Iterable[Callable[[], T]], device: torch.device) -> Iterator[T]:
    """What the `fetches` give, in order, on `device`; a thread runs up to `BATCHES_AHEAD` of them ahead.

    What a fetch raises is raised here. A consumer that stops early leaves no thread behind.
    """
    road = _CudaRoad(device) if is_gpu(device) else _NoRoad()
    coming: deque[Future[_Sent[T]]] = deque()
    thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="bdray-fetch")
    try:
        for fetch in fetches:
            coming.append(thread.submit(_fetch_and_send, fetch, road))
            if len(coming) > BATCHES_AHEAD:
                yield road.receive(coming.popleft().result())
        while coming:
            yield road.receive(coming.popleft().result())
    finally:
        thread.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Sent(Generic[T]):
    """Tensors on their way, and the event after which they have arrived."""

    tensors: T
    arrived: torch.cuda.Event | None = None


class _NoRoad:
    """From the host to the host."""

    def send(self, tensors: T) -> _Sent[T]:
        return _Sent(tensors)

    def receive(self, sent: _Sent[T]) -> T:
        return sent.tensors


class _CudaRoad:
    """From the host to a GPU, on a stream of its own, so that copying and computing go on side by side."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def send(self, tensors: T) -> _Sent[T]:
        """In the fetching thread. The pinned allocator keeps its blocks until their copies are done."""
        with torch.cuda.stream(self._stream):
            sent = tuple(to_device(tensor, self._device) for tensor in tensors)
            return _Sent(cast(T, sent), self._stream.record_event())

    def receive(self, sent: _Sent[T]) -> T:
        """In the computing thread: its stream waits, the host does not."""
        current = torch.cuda.current_stream(self._device)
        assert sent.arrived is not None
        current.wait_event(sent.arrived)
        for tensor in sent.tensors:
            # Memory of the copying stream must not be given away while this one still reads it.
            tensor.record_stream(current)
        return sent.tensors


def _fetch_and_send(fetch: Callable[[], T], road: _NoRoad | _CudaRoad) -> _Sent[T]:
    return road.send(fetch())


def _one(tensor: torch.Tensor) -> tuple[torch.Tensor]:
    return (tensor,)


def _free_bytes(device: torch.device) -> float:
    """Bytes this process may still take on a GPU: what is free, within its own share of the card."""
    free, total = torch.cuda.mem_get_info(device)
    own = torch.cuda.get_per_process_memory_fraction(device) * total - torch.cuda.memory_reserved(device)
    return min(float(free), own)
