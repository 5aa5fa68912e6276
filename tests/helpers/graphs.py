"""CUDA graphs on a CPU: a stand-in that records torch's operations and repeats them on the same tensors."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Stream:
    """Stands for torch.cuda.Stream. Operations on a CPU end before the next begins, so nothing waits."""

    def __init__(self, device: object = None) -> None:
        self.waited_for: list[Stream] = []

    def wait_stream(self, other: "Stream") -> None:
        self.waited_for.append(other)


class Graph(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph. What a replay reads, it reads where it lay when it was recorded."""

    def __init__(self) -> None:
        super().__init__()
        self._steps: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self._ended = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        self._steps.append((func, args, kwargs or {}, found))
        return found

    def capture_end(self) -> None:
        self._ended = True

    def pool(self) -> object:
        assert self._ended
        return self

    def replay(self) -> None:
        assert self._ended
        for func, args, kwargs, found in self._steps:
            for place, tensor in zip(tree_leaves(found), tree_leaves(func(*args, **kwargs)), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != tensor.data_ptr():
                    place.copy_(tensor)


def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the stand-ins in the place of torch.cuda's streams and graphs."""
    threads, underway = threading.local(), threading.Semaphore()

    def current_stream(device: object = None) -> Stream:
        if not hasattr(threads, "stream"):
            threads.stream = Stream()
        return threads.stream

    @contextmanager
    def stream(other: Stream) -> Iterator[None]:
        before, threads.stream = current_stream(), other
        try:
            yield
        finally:
            threads.stream = before

    class Capture:
        """As torch.cuda.graph: where the end of a capture fails, its stream stays the current one."""

        def __init__(self, graph: Graph, *, pool: object, stream: Stream, capture_error_mode: str) -> None:
            assert capture_error_mode == "thread_local"
            self._graph, self._stream = graph, stream

        def __enter__(self) -> None:
            # torch would wait for the device, which fails while another thread captures.
            assert underway.acquire(blocking=False)
            self._before, threads.stream = current_stream(), self._stream
            threads.captures = True
            self._graph.__enter__()

        def __exit__(self, *of_error: Any) -> None:
            self._graph.__exit__(*of_error)
            threads.captures = False
            underway.release()
            self._graph.capture_end()
            threads.stream = self._before

    names: dict[str, Callable[..., Any]] = {
        "Stream": Stream,
        "CUDAGraph": Graph,
        "graph": Capture,
        "stream": stream,
        "current_stream": current_stream,
        "device": lambda device: nullcontext(),
        "is_current_stream_capturing": lambda: getattr(threads, "captures", False),
    }
    for name, value in names.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: self)
