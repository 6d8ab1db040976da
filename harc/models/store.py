"""Where hidden states of many tokens are kept, and how the next of them are fetched while the current ones compute."""

import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")
Result = TypeVar("Result")


class Store:
    """Makes large tensors in memory, or in memory-mapped files once `budget_gb` is spent (None: always memory).

    pinned: whether memory is page-locked, so that copies to an accelerator run beside its work.
    """

    def __init__(
        self, budget_gb: float | None = None, folder: str | Path | None = None, *, pinned: bool = False
    ) -> None:
        self._left = float("inf") if budget_gb is None else budget_gb * 1e9
        self._folder = folder
        self._pinned = pinned

    def empty(self, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """An uninitialised (rows, columns) tensor; a mapped file disappears with the last tensor that uses it."""
        size = rows * columns * dtype.itemsize
        if size <= self._left:
            self._left -= size
            return torch.empty(rows, columns, dtype=dtype, pin_memory=self._pinned and size > 0)
        with tempfile.NamedTemporaryFile(dir=self._folder) as file:
            file.truncate(size)
            return torch.from_file(file.name, shared=True, size=rows * columns, dtype=dtype).view(rows, columns)


class Transfer:
    """Reads the next block and writes the last one in a thread, while the current one computes.

    To an accelerator, blocks go through page-locked memory on a stream of their own; on a CPU, what the thread hides is
    waiting for memory-mapped files.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def blocks(self, items: Iterable[Item], fetch: Callable[[Item], Tensor]) -> Iterator[tuple[Item, Tensor, "Writer"]]:
        """Yields (item, its block on the device, a writer) with the next item's block already under way.

        fetch: gathers an item's block in the host's memory; called in a thread, in the order of the items.
        """
        with ThreadPoolExecutor(max_workers=1) as thread:
            writer = Writer(thread)
            waiting: deque[tuple[Item, Future]] = deque()
            for item in items:
                waiting.append((item, thread.submit(self._send, fetch, item)))
                if len(waiting) > 1:
                    yield self._receive(*waiting.popleft(), writer)
            if waiting:
                yield self._receive(*waiting.popleft(), writer)
            writer.wait()

    def _send(self, fetch: Callable[[Item], Tensor], item: Item) -> tuple[Tensor, "torch.cuda.Event | None"]:
        block = fetch(item)
        if self._stream is None:
            return block, None
        with torch.cuda.stream(self._stream):
            sent = block.pin_memory().to(self.device, non_blocking=True)
            return sent, self._stream.record_event()

    def _receive(self, item: Item, future: Future, writer: "Writer") -> tuple[Item, Tensor, "Writer"]:
        block, arrived = future.result()
        if arrived is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(arrived)
            block.record_stream(current)
        return item, block, writer


class Writer:
    """Stores results in a thread, one behind at most."""

    def __init__(self, thread: ThreadPoolExecutor) -> None:
        self._thread = thread
        self._last: Future | None = None

    def __call__(self, store: Callable[[Tensor], object], result: Tensor) -> None:
        """Brings a result to the host and stores it there; the one before is stored when this returns."""
        self.wait()
        self._last = self._thread.submit(lambda: store(result.to("cpu")))

    def wait(self) -> None:
        """Waits for the last result; raises what storing it raised."""
        if self._last is not None:
            self._last.result()
            self._last = None
