"""Calls of compiled kernels, taken down once and made again in one: between two of them stands no Python.

A recording is right for as long as the same calls follow each other with the same addresses. So whatever else computes
in between, or asks for memory, is noticed: then there is no recording, and nothing is lost but the attempt.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kvtool.kernels.cpu.structs import Call
from kvtool.kernels.interface import Replay

LINE_BYTES = 64


class Stretch:
    """Memory of so many bytes, from a line of the cache on, and who uses it."""

    def __init__(self, size: int) -> None:
        self._type = ctypes.c_ubyte * size
        self._memory = (ctypes.c_ubyte * (size + LINE_BYTES))()
        self._start = -ctypes.addressof(self._memory) % LINE_BYTES
        self._user: Callable[[], Any] = lambda: None

    @property
    def is_free(self) -> bool:
        """Whether no tensor lies in it, nor a view of one."""
        return self._user() is None

    def take(self) -> Any:
        """The memory, for as long as what is returned lives."""
        user = self._type.from_buffer(self._memory, self._start)
        self._user = weakref.ref(user)
        return user


class Arena:
    """Memory for the tensors of a recording, which stays. A stretch is handed out again once no tensor lies in it, as
    it was when the calls were taken down."""

    def __init__(self) -> None:
        self._stretches: dict[int, list[Stretch]] = {}

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A tensor of memory of its own, on a line of the cache."""
        size = max(1, prod(shape)) * dtype.itemsize
        alike = self._stretches.setdefault(size, [])
        stretch = next((one for one in alike if one.is_free), None)
        if stretch is None:
            alike.append(stretch := Stretch(size))
        return torch.frombuffer(stretch.take(), dtype=dtype)[: prod(shape)].view(*shape)


class Recorder(TorchDispatchMode):
    """Takes down calls while it is entered, and sees all that torch does meanwhile."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.arena = Arena()
        self.is_whole = True
        self._calls: list[tuple[Call, ctypes.Structure]] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and to make sure of it torch would import its compiler, which takes seconds."""
        return False

    def add(self, call: Call, arguments: ctypes.Structure) -> None:
        self._calls.append((call, arguments))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        # A collective of another library gives back what it was given, and yet has written to it.
        looks = func.namespace == "aten" and not func._schema.is_mutable
        self.is_whole = self.is_whole and looks and _are_views(found, (args, kwargs))
        return found

    def replay(self, run: Callable[..., None]) -> Replay | None:
        """The calls in one; None where something else was done."""
        if not self.is_whole:
            return None
        calls = (Call * len(self._calls))(*(call for call, _ in self._calls))

        def again(held: object = (self.arena, self._calls)) -> None:
            run(calls, len(calls), 1)

        return again


def _are_views(found: Any, given: Any) -> bool:
    """Whether all tensors of `found` lie in memory of those `given`."""
    before, after = ([tensor for tensor in tree_leaves(tree) if isinstance(tensor, Tensor)] for tree in (given, found))
    if not after or any(tensor.layout != torch.strided for tensor in (*before, *after)):
        return False  # a weight in a layout of oneDNN's own has no address
    known = {tensor.untyped_storage().data_ptr() for tensor in before}
    return all(tensor.untyped_storage().data_ptr() in known for tensor in after)
