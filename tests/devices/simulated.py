"""A simulated ``cuda`` device for machines without one.

Its tensors hold their values in a tensor on the CPU, report the device ``cuda:0`` and are computed
with on the CPU. What CUDA refuses is refused: operands on two devices, conversion to numpy, a
result on another device than its operands. The rules are those of torch's kernels:
``TensorIterator`` for elementwise operators, ``TensorAdvancedIndexing.cpp`` for indexing,
``TensorCompare.cpp`` for ``where``. CUDA's rounding, memory and time are not simulated.

Autograd's engine needs a device that exists; :mod:`.gradients` does without it.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, NoReturn
from unittest.mock import patch

import detectron2
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vild

CUDA = torch.device("cuda", 0)
# the host waits for their result: it has a size or a value that it needs
WAITING = {
    *("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "bincount"),
    *("equal", "_local_scalar_dense", "nms", "repeat_interleave"),
}
# elementwise without torch's tag for it
ELEMENTWISE = {"fill", "fill_", "masked_fill", "masked_fill_"}
PACKAGES = {
    name: str(Path(module.__file__ or "").parent)
    for name, module in (("ours", vild), ("detectron2", detectron2))
}


class MixedDevicesError(RuntimeError):
    """Operands on two devices, which CUDA refuses."""


class Wait(NamedTuple):
    """Something that a GPU's host waits for.

    Attributes:
        kind: the operator's name, ``to device`` for a copy from the host's memory, which is not
            pinned, or ``to host``.
        package: ``ours``, ``detectron2`` or ``other``, of the line that called it.
        line: file and line that called it.
    """

    kind: str
    package: str
    line: str


class SimulatedTensor(Tensor):
    """A tensor that reports ``cuda:0``; ``values`` are on the CPU."""

    __torch_function__ = torch._C._disabled_torch_function_impl
    values: Tensor

    @staticmethod
    def __new__(cls, values: Tensor) -> SimulatedTensor:
        made = Tensor._make_wrapper_subclass(
            cls,
            values.shape,
            values.stride(),
            values.storage_offset(),
            dtype=values.dtype,
            device=CUDA,
        )
        made.values = values
        return made

    @classmethod
    def __torch_dispatch__(cls, function: Any, *_: Any) -> NoReturn:
        raise RuntimeError(f"{function} outside of simulated_cuda()")

    def numpy(self, *, force: bool = False) -> Any:
        """As CUDA's tensors do."""
        if force:
            return self.detach().cpu().numpy()
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        """Tensor's own refuses subclasses."""
        return self.cpu().tolist()

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"simulated_cuda({self.values!r})"


class SimulatedCuda(TorchDispatchMode):
    """Computes with simulated tensors.

    Attributes:
        waits: all that the host waited for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def number_of_waits(self) -> Counter[str]:
        """Of each package."""
        return Counter(wait.package for wait in self.waits)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        leaves = [*_leaves(args), *_leaves([*kwargs.values()])]
        operands = [x for x in leaves if isinstance(x, Tensor)]
        simulated = [x for x in operands if isinstance(x, SimulatedTensor)]
        if not simulated and not any(
            isinstance(x, torch.device) and x.type == "cuda" for x in leaves
        ):
            return function(*args, **kwargs)
        if function._can_decompose():  # in inference mode torch leaves this to us
            with self:
                return function.decompose(*args, **kwargs)
        name = function._schema.name.split("::")[1]
        self._check(name, function, args, kwargs, operands)
        wanted = kwargs.get("device")
        if wanted is not None:
            kwargs["device"] = torch.device("cpu")
        found = function(*_map(_values, args), **{k: _map(_values, v) for k, v in kwargs.items()})
        if wanted is not None and wanted.type == "cpu":
            return found
        if name == "copy_" and not isinstance(args[0], SimulatedTensor):
            return args[0]
        if torch.Tag.inplace_view in function.tags:
            with torch._C._DisableTorchDispatch():
                return function(*args, **kwargs)  # the shape of the simulated one
        own = {id(x.values): x for x in simulated}  # what was changed in place stays what it was
        # a view is an inference tensor where its base is one, whatever the mode
        view = function.is_view and isinstance(args[0], SimulatedTensor)
        with torch.inference_mode(args[0].is_inference()) if view else nullcontext():
            made = _map(lambda x: own[id(x)] if id(x) in own else _simulated(x), found)
        for tensor in simulated:
            assert tensor.shape == tensor.values.shape, f"{function} changes shapes in place"
        return made

    def _check(
        self,
        name: str,
        function: Any,
        args: Any,
        kwargs: dict[str, Any],
        operands: Sequence[Tensor],
    ) -> None:
        """Raise MixedDevicesError for what CUDA refuses; note what it waits for."""
        hosts = [x for x in operands if not isinstance(x, SimulatedTensor)]
        if name == "_to_copy":
            if (wanted := kwargs.get("device")) is not None:
                self._copy(args[0], wanted)
        elif name == "copy_":
            self._copy(args[1], args[0].device)
        elif name in ("index", "index_put_", "_index_put_impl_", "index_put"):
            self._check_indexing(function, args)
        elif hosts:
            elementwise = torch.Tag.pointwise in function.tags or name in ELEMENTWISE
            changed = [
                value
                for value, argument in zip(args, function._schema.arguments, strict=False)
                if argument.alias_info is not None and argument.alias_info.is_write
            ]
            out = kwargs.get("out")
            numbers = elementwise and all(x.ndim == 0 for x in hosts)
            if not numbers or any(x is y for x in (*changed, out) for y in hosts):
                raise _mixed(function, operands)
            if name == "where":
                self._note("to device")
        if name in WAITING and not (name == "repeat_interleave" and kwargs.get("output_size")):
            self._note(name)
        if name.startswith("masked_fill") and isinstance(args[2], SimulatedTensor):
            self._note(name)  # the value to fill in

    def _check_indexing(self, function: Any, args: Any) -> None:
        indexed, given, *values = args
        indices = [x for x in given if x is not None]
        values = values[:1] if values and isinstance(values[0], Tensor) else []
        if not isinstance(indexed, SimulatedTensor):
            raise _mixed(function, [indexed, *indices, *values])
        masks = [x for x in indices if x.dtype in (torch.bool, torch.uint8)]
        number = bool(values) and not isinstance(values[0], SimulatedTensor)
        if number and values[0].ndim:
            raise _mixed(function, [indexed, *indices, *values])
        for index in indices:
            if not isinstance(index, SimulatedTensor):
                self._note("to device")
        if number and len(masks) == len(indices) == 1 and isinstance(masks[0], SimulatedTensor):
            return  # masked_fill_
        if number:
            self._note("to device")
        for mask in masks:
            if isinstance(mask, SimulatedTensor):
                self._note("mask")

    def _copy(self, source: Tensor, target: torch.device) -> None:
        if source.device.type != target.type:
            self._note("to host" if source.is_cuda else "to device")

    def _note(self, kind: str) -> None:
        self.waits.append(Wait(kind, *_caller(sys._getframe())))


@contextmanager
def simulated_cuda() -> Iterator[SimulatedCuda]:
    """A context in which torch seems to have one GPU.

    Enter it only where there is none: torch notes that CUDA was initialised, in the whole process.
    """
    lift = torch._C._only_lift_cpu_tensors()
    convert = torch.__future__.get_overwrite_module_params_on_conversion()
    replaced = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "synchronize": lambda *_: None,
        "_lazy_init": lambda: None,
    }
    torch._C._ensureCUDADeviceGuardSet()  # autograd and autocast look at the current device
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") copies from here
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with (
            patch.multiple(torch.cuda, **replaced),
            patch.object(Tensor, "pin_memory", lambda self, *_: self),  # there is no driver
            torch.backends.cudnn.flags(enabled=False),
            SimulatedCuda() as device,
        ):
            yield device
    finally:
        torch._C._set_only_lift_cpu_tensors(lift)
        torch.__future__.set_overwrite_module_params_on_conversion(convert)


def _leaves(x: Any) -> Iterator[Any]:
    """What is in nested lists and tuples, which is all that operators take and give."""
    if isinstance(x, list | tuple):
        for part in x:
            yield from _leaves(part)
    else:
        yield x


def _map(function: Callable[[Any], Any], x: Any) -> Any:
    """Replace what is in nested lists and tuples."""
    if isinstance(x, list | tuple):
        return type(x)([_map(function, part) for part in x])
    return function(x)


def _values(x: Any) -> Any:
    return x.values if isinstance(x, SimulatedTensor) else x


def _simulated(x: Any) -> Any:
    return SimulatedTensor(x) if isinstance(x, Tensor) else x


def _mixed(function: Any, operands: Sequence[Tensor]) -> MixedDevicesError:
    found = ", ".join(f"{tuple(x.shape)} on {x.device}" for x in operands)
    return MixedDevicesError(f"expected the operands of {function} on one device, got {found}")


def _caller(frame: FrameType | None) -> tuple[str, str]:
    """Package and line of the innermost frame in Detectron2 or in this project."""
    while frame is not None:
        file = frame.f_code.co_filename
        for package, folder in PACKAGES.items():
            if file.startswith(folder):
                return package, f"{file[len(folder) + 1 :]}:{frame.f_lineno}"
        frame = frame.f_back
    return "other", ""
