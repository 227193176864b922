"""A pretend accelerator: a device of torch's PrivateUse1 whose tensors are computed on the CPU.

It refuses what a GPU refuses, tensors of two devices in one operation, and counts what a GPU waits for: results that
the host reads, and copies from the host. Its numbers are those of the CPU, to the bit. It counts operations too, a
lower bound of the kernels that a GPU would be given.

Importing this module registers the device, for good, and replaces `torch.tensor` and `torch.as_tensor`, whose copies
happen below all modes. So it is imported by processes that do nothing else, before torch's first backward pass.
"""

from __future__ import annotations

import collections
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NoReturn, Self

import torch
from frames import innermost
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretend"
COPIES = ("_to_copy", "to")
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")
CHECKED = (
    *("_linalg_check_errors", "linalg_pinv", "linalg_lstsq", "allclose", "linspace", "logspace", "normal", "histc"),
    *("multinomial",),
)
"""Operations that look at the numbers of a tensor to tell whether, or over which range, they can be done."""
WAITS = (
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2", "unique_consecutive"),
    *("unique_dim", "bincount", "repeat_interleave", "_linalg_svd", "_linalg_eigh", "linalg_eig", *CHECKED),
)
"""Operations whose result, or its size, the host has to know."""
POINTWISE = ("where", "lerp", "clamp", "addcmul", "addcdiv", "fill_", "fill", "masked_fill", "masked_fill_", "pow")
"""Operations that take a number from the host, beside those that torch tags as pointwise."""
VIEWS = (
    *("view", "_unsafe_view", "expand", "transpose", "t", "permute", "slice", "select", "unsqueeze", "squeeze"),
    *("detach", "alias", "split", "split_with_sizes", "unbind", "as_strided", "diagonal", "_reshape_alias"),
    *("lift_fresh", "lift_fresh_copy", "unfold"),
)
"""Operations that launch nothing."""


class MixedDevices(RuntimeError):
    """Tensors of two devices in one operation."""


class HiddenCopy(RuntimeError):
    """Numbers of Python that torch copies to the device below all modes: an index that is a list, or `new_tensor`."""


class Counts:
    """What has happened since counting began, by the operation and the line of this project that asked for it."""

    def __init__(self) -> None:
        self.waits: collections.Counter[str] = collections.Counter()
        self.copies: collections.Counter[str] = collections.Counter()
        self.operations = 0


_counts: Counts | None = None


@contextmanager
def counting() -> Iterator[Counts]:
    """Count waits, copies and operations within a block."""
    global _counts
    _counts = Counts()
    try:
        yield _counts
    finally:
        _counts = None


def _count(kind: str, what: str) -> None:
    if _counts is not None:
        getattr(_counts, kind)[f"{what} at {_line()}"] += 1


def _line() -> str:
    """Return the innermost line of the project's code that is running."""
    return innermost(frame for frame in traceback.extract_stack() if frame.filename != __file__)


class _Backend(_DummyBackendModule):
    """The functions that torch expects in the module of a device."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def synchronize(self, device: object = None) -> None: ...

    def init(self) -> None: ...

    _lazy_init = init


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend())
torch.__future__.set_overwrite_module_params_on_conversion(True)  # the device of a parameter cannot be set in place
DEVICE = torch.device(NAME, 0)
LIBRARY = torch.library.Library("aten", "IMPL")


def _refuse_to_allocate(*_: Any, **__: Any) -> NoReturn:
    raise HiddenCopy(f"a list is copied to the device; at {_line()}")


LIBRARY.impl("empty_strided", _refuse_to_allocate, "PrivateUse1")


class PretendTensor(Tensor):
    """A tensor that says it is on the device. `inner` is the tensor of the CPU that holds its numbers."""

    inner: Tensor

    @staticmethod
    def __new__(cls: type[Self], inner: Tensor) -> Self:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        _count("waits", "tolist")
        return self.inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"cannot convert a tensor of {DEVICE} to numpy")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError(f"cannot convert a tensor of {DEVICE} to numpy")

    def __repr__(self, **_: Any) -> str:
        return f"{self.inner!r} on {DEVICE}"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = PretendTensor(self.inner.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied


class PretendDevice(TorchDispatchMode):
    """Mode in which tensors can be made on, and moved to, the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _call(func, args, kwargs or {})

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


def on_cpu(value: Tensor) -> Tensor:
    """Return the tensor of the CPU that holds the numbers."""
    return value.inner if isinstance(value, PretendTensor) else value


def _call(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Make one operation: check its devices, count it, compute it on the CPU."""
    name, changes = _schema(func)
    tensors = list(_tensors((*args, *kwargs.values())))
    pretend = [tensor for tensor in tensors if isinstance(tensor, PretendTensor)]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    to_device = target is not None and target.type == NAME
    if not pretend and not to_device:
        return func(*args, **kwargs)
    if any(isinstance(value, torch.Generator) for value in (*args, *kwargs.values())):
        raise MixedDevices(f"{func}: a generator of the host draws numbers on the device; at {_line()}")
    if name in COPIES and tensors:
        _count_copy(tensors[0], to_device, target is not None and target.type == "cpu")
    elif name == "copy_":
        _count_copy(args[1], isinstance(args[0], PretendTensor), not isinstance(args[0], PretendTensor))
    elif len(tensors) > len(pretend) > 0:
        _check_devices(func, name, args, tensors)
    if pretend and (name in WAITS or (name in INDEXED and any(_is_mask(index) for index in args[1]))):
        _count("waits", name)
    if _counts is not None and name not in VIEWS:
        _counts.operations += 1
    kwargs_on_cpu = {key: _map(on_cpu, value) for key, value in kwargs.items()}
    if to_device:
        kwargs_on_cpu |= {"device": torch.device("cpu")}
        kwargs_on_cpu.pop("pin_memory", None)
    if name == "_efficientzerotensor":  # it has no memory, which the CPU's operations below would read
        func = torch.ops.aten.zeros.default
    result = func(*_map(on_cpu, args), **kwargs_on_cpu)
    if target is not None and target.type == "cpu":
        return result
    if name == "_to_copy" and any(result is tensor.inner for tensor in pretend):
        result = result.clone()
    arguments = [args[index] if index < len(args) else kwargs.get(key) for index, key in changes]
    changed = {id(on_cpu(argument)): argument for argument in arguments if isinstance(argument, Tensor)}
    return _map(lambda tensor: _wrapped(tensor, changed), result)


@cache
def _schema(func: Any) -> tuple[str, list[tuple[int, str]]]:
    """Return an operation's name, and index and name of each argument that it changes in place."""
    arguments = enumerate(func._schema.arguments)
    changes = [(index, a.name) for index, a in arguments if a.alias_info is not None and a.alias_info.is_write]
    return func._schema.name.partition("::")[2], changes


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Yield the tensors among arguments, and in their lists."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)


def _map(act: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Return an argument, or a result, with a function of each of its tensors in their place."""
    if isinstance(value, Tensor):
        return act(value)
    return type(value)([_map(act, each) for each in value]) if isinstance(value, list | tuple) else value


def _wrapped(result: Tensor, changed: dict[int, Tensor]) -> Tensor:
    if isinstance(result, PretendTensor):
        return result
    return changed[id(result)] if id(result) in changed else PretendTensor(result)


def _count_copy(source: Tensor, to_device: bool, to_cpu: bool) -> None:
    if isinstance(source, PretendTensor):
        if to_cpu:
            _count("waits", "a copy to the host")
    elif to_device:
        _count("copies", "a copy from the host")


def _check_devices(func: Any, name: str, args: tuple[Any, ...], tensors: list[Tensor]) -> None:
    """Raise MixedDevices where tensors of the host take part, other than as one number or as an index."""
    host = [tensor for tensor in tensors if not isinstance(tensor, PretendTensor)]
    if name in INDEXED:
        values = [args[0]] if name in ("index", "_unsafe_index") else [args[0], args[2]]
        refused = any(not isinstance(value, PretendTensor) and (value.ndim or value is args[0]) for value in values)
        _count("copies", "an index of the host")
    else:
        pointwise = torch.Tag.pointwise in func.tags or name in POINTWISE
        result_on_host = func._schema.is_mutable and not isinstance(args[0], PretendTensor)
        refused = result_on_host or any(tensor.ndim or not pointwise for tensor in host)
    if refused:
        devices = ", ".join(f"{tuple(tensor.shape)} on {tensor.device}" for tensor in tensors)
        raise MixedDevices(f"{func}: {devices}; at {_line()}")


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _copying(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `torch.tensor` or `torch.as_tensor` that can make tensors on the device."""

    def made(data: Any, *, dtype: torch.dtype | None = None, device: Any = None, **further: Any) -> Tensor:
        if device is None or torch.device(device).type != NAME:
            return make(data, dtype=dtype, device=device, **further)
        if isinstance(data, Tensor):
            return data.to(device=device, dtype=data.dtype if dtype is None else dtype)
        _count("copies", f"torch.{make.__name__}")
        with _disable_current_modes(), torch._C._DisableFuncTorch():
            return PretendTensor(make(data, dtype=dtype))

    return made


torch.tensor, torch.as_tensor = _copying(torch.tensor), _copying(torch.as_tensor)


def _refused(act: Callable[[], object]) -> bool:
    try:
        act()
    except (MixedDevices, HiddenCopy):
        return True
    return False


def check() -> None:
    """Check that the device refuses and counts, operation by operation."""
    host = torch.arange(4.0)
    with PretendDevice():
        device = host.to(DEVICE)
        assert device.device == DEVICE
        assert (device + device).device == DEVICE
        assert (device * torch.tensor(2.0)).device == DEVICE  # one number of the host is an argument
        assert _refused(lambda: device + host)
        assert _refused(lambda: torch.cat([device, host]))
        assert _refused(lambda: host[device.long()])
        assert _refused(lambda: host.add_(device))
        assert _refused(lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()))
        assert _refused(lambda: device[[0, 1]])
        assert _refused(lambda: device.new_tensor([1.0]))
        acts: list[tuple[Callable[[], object], int, int]] = [
            (lambda: device.sum().item(), 1, 0),
            (lambda: device.tolist(), 1, 0),
            (lambda: device.cpu(), 1, 0),
            (lambda: bool((device > 1).any()), 1, 0),
            (lambda: device[device > 1], 1, 0),
            (lambda: torch.linalg.inv(device.diag() + 1), 1, 0),
            (lambda: torch.allclose(device, device), 1, 0),
            (lambda: torch.normal(device, device), 1, 0),
            (lambda: device[torch.tensor([0])], 0, 1),
            (lambda: torch.tensor([1.0], device=DEVICE), 0, 1),
            (lambda: host.to(DEVICE), 0, 1),
            (lambda: torch.full((3,), 1.0, device=DEVICE), 0, 0),
            (lambda: device[1:] * 2, 0, 0),
        ]
        for act, waits, copies in acts:
            with counting() as counts:
                act()
            assert (counts.waits.total(), counts.copies.total()) == (waits, copies), counts.__dict__
        leaf = torch.nn.Parameter(device.clone())
        (leaf * device).sum().backward()
        assert leaf.grad is not None
        assert torch.equal(on_cpu(leaf.grad), host)


def leave() -> NoReturn:
    """End the process successfully, at once: torch's thread for the device would abort it on the way out."""
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    check()
    leave()
