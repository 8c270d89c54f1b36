"""A device that is not there: its tensors are computed on the CPU, and refuse to meet a tensor of the CPU.

    with pretend_device() as device: train(..., device=device)

So a tensor left on the wrong device fails without a GPU, and what is read back from the device can be counted, as each
reading makes a CPU wait for its GPU. Experimental in torch, hence `AVAILABLE`. In: the device. Not in: tests.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
NAME = "pretend"


class OnDevice(Tensor):
    """A tensor of the device; `held`: its values, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> OnDevice:
        made = Tensor._make_wrapper_subclass(
            cls, held.size(), strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            layout=held.layout, device=torch.device(NAME, 0),
        )  # fmt: skip
        made.held = held
        return made

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.detach()

    @data.setter
    def data(self, value: OnDevice) -> None:
        """torch would leave the old values with a tensor that is another from here on."""
        new = value.detach()
        is_parameter = isinstance(self, torch.nn.Parameter)
        torch.utils.swap_tensors(self, torch.nn.Parameter(new, self.requires_grad) if is_parameter else new)

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@dataclass
class Device:
    """Readings: where in the program values of the device were asked for, in order.

    Waits: the same for values that were sent there by a copy that a program waits for, as CUDA does unless it is told.
    """

    device: torch.device
    readings: list[str] = field(default_factory=list)
    waits: list[str] = field(default_factory=list)


class _Mode(TorchDispatchMode):
    """Takes the calls that make a tensor on the device out of none, and notes readings."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _reads(func, args, kwargs):
            self._device.readings.append(_asker())
        if _is_waited_for(func, args, kwargs):
            self._device.waits.append(_asker())
        return _run(func, args, kwargs)


class _Literals(TorchFunctionMode):
    """What goes past the other mode: `torch.tensor(values, device=...)`, `as_tensor` and `tolist`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor) and _is_ours(kwargs.get("device")):
            values = (args[0].cpu() if isinstance(args[0], OnDevice) else args[0], *args[1:])
            return func(*values, **{**kwargs, "device": "cpu"}).to(kwargs["device"])
        if func is Tensor.tolist and isinstance(args[0], OnDevice):
            return args[0].cpu().tolist()
        return func(*args, **kwargs)


def _asker() -> str:
    """The project's innermost function that is being run."""
    frame = sys._getframe()
    while frame.f_back is not None and "apt_train" not in frame.f_code.co_filename:
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}: {frame.f_code.co_name}"


def _reads(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether values of the device come to the CPU."""
    if not any(isinstance(one, OnDevice) for one in args):
        return False
    if func is torch.ops.aten._local_scalar_dense.default:
        return True
    if func is torch.ops.aten._to_copy.default:
        return not _is_ours(kwargs.get("device", NAME))
    return func is torch.ops.aten.copy_.default and not isinstance(args[0], OnDevice)


def _is_waited_for(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether values of the CPU go to the device, and the CPU does nothing until they are there."""
    if func is torch.ops.aten._to_copy.default:
        source, left_alone, sends = args[0], kwargs.get("non_blocking"), _is_ours(kwargs.get("device"))
    elif func is torch.ops.aten.copy_.default:
        source, left_alone, sends = args[1], [*args[2:], kwargs.get("non_blocking")][0], isinstance(args[0], OnDevice)
    else:
        return False
    return sends and not isinstance(source, OnDevice) and not left_alone


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [one for one in tree_flatten((args, kwargs))[0] if isinstance(one, Tensor)]
    ours = [one for one in flat if isinstance(one, OnDevice)]
    to = kwargs.get("device")
    _check(func, flat, ours)
    on_device = _is_ours(to) if to is not None else bool(ours)
    if func is torch.ops.aten.copy_.default:
        on_device = isinstance(args[0], OnDevice)
    if _is_ours(to):
        kwargs = {**kwargs, "device": torch.device("cpu")}
    plain_args, plain_kwargs = tree_map(_held, (args, kwargs))
    plain_kwargs.pop("pin_memory", None)
    result = func(*plain_args, **plain_kwargs)
    if func is torch.ops.aten._to_copy.default and any(result is one.held for one in ours):
        result = result.clone()
    if not on_device:
        return result
    wrapped = tree_map(lambda one: OnDevice(one) if isinstance(one, Tensor) else one, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def _held(one: Any) -> Any:
    return one.held if isinstance(one, OnDevice) else one


def _check(func: Any, tensors: list[Tensor], ours: list[OnDevice]) -> None:
    """As CUDA: a tensor of the CPU may meet one of the device where it is a single number, or in a copy."""
    copies = (torch.ops.aten.copy_.default, torch.ops.aten._to_copy.default)
    if not ours or func in copies:
        return
    strangers = [one for one in tensors if not isinstance(one, OnDevice) and one.dim() > 0]
    if strangers:
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {NAME}:0 and cpu")


_ready: list[bool] = []


def _backend() -> Any:
    """What torch asks of every device, and of its mixed precision, where activations are recomputed."""
    backend: Any = backend_registration._DummyBackendModule()
    backend.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    return backend


@contextlib.contextmanager
def pretend_device() -> Iterator[Device]:
    """Inside the block the device is there."""
    if not _ready:
        # From its first backward pass on, torch keeps a thread for each device that it knows by then, and refuses to
        # train in a process that is forked from such a one.
        torch.ones(1, requires_grad=True).sum().backward()
        backend_registration._setup_privateuseone_for_python_backend(NAME, _backend())
        _ready.append(True)
    found = Device(torch.device(NAME, 0))
    # On one thread: those that torch starts for a device ended the process where a Python device was theirs.
    with _Mode(found), _Literals(), torch.autograd.set_multithreading_enabled(False):
        yield found
