"""Run Triton kernels on the CPU with right bf16 and fp8 arithmetic.

Triton's own interpreter (3.6 to 3.9) holds bf16 and fp8 as raw bits and computes on the bits: dot products,
sums and comparisons are silently wrong, float32 to bf16 truncates, float32 to fp8 rounds wrongly when the
mantissa carries. It is also chosen for good at decoration time by an environment variable. `interpreted()`
instead diverts launches for as long as it is entered, whatever was imported before, and puts everything back.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter as stock
from triton.runtime.jit import JITFunction

_TORCH = {
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e4b8: torch.float8_e4m3fnuz,
    tl.float8e5: torch.float8_e5m2,
}
# Largest finite values: OCP 8-bit Floating Point Specification (e4m3fn, e5m2), AMD CDNA3 ISA (e4m3fnuz).
_FP8_MAX = {tl.float8e4nv: 448.0, tl.float8e4b8: 240.0, tl.float8e5: 57344.0}
# By bits.
_UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}

_convert_stock = stock._convert_float
_binary_stock = stock.InterpreterBuilder.binary_op
_unary_stock = stock.InterpreterBuilder.unary_op
_ternary_stock = stock.InterpreterBuilder.ternary_op
_load_stock = stock.InterpreterBuilder.create_masked_load
_sum_stock = stock.ReduceOps.sum
_min_max_stock = stock.ReduceOps.min_max
_patch_tensor_stock = stock._patch_lang_tensor


def _decode(data: np.ndarray, dtype: Any) -> np.ndarray:
    """Raw bits of a narrow float to float32; anything else as it is."""
    if dtype not in _TORCH:
        return data
    if dtype == tl.bfloat16:
        return (data.astype(np.uint32) << 16).view(np.float32)
    return torch.from_numpy(np.array(data)).view(_TORCH[dtype]).float().numpy()


def _encode(values: np.ndarray, dtype: Any) -> np.ndarray:
    """Float32 to raw bits, rounding to nearest even; fp8 saturates and keeps NaN, as cvt.rn.satfinite
    does.
    """
    tensor = torch.from_numpy(np.array(values, dtype=np.float32))
    if dtype in _FP8_MAX:
        limit = _FP8_MAX[dtype]
        tensor = torch.where(torch.isnan(tensor), tensor, tensor.clamp(-limit, limit))
    bits = torch.uint8 if dtype in _FP8_MAX else torch.uint16
    return tensor.to(_TORCH[dtype]).view(bits).numpy()


def _handle(values: np.ndarray, dtype: Any) -> Any:
    if values.dtype == np.bool_:
        return stock.TensorHandle(values, tl.int1)
    return stock.TensorHandle(_encode(values, dtype) if dtype in _TORCH else values, dtype)


def _convert_float(data: np.ndarray, source: Any, target: Any, rounding_mode: Any) -> np.ndarray:
    if source not in _TORCH and target not in _TORCH:
        return _convert_stock(data, source, target, rounding_mode)
    values = _decode(data, source).astype(np.float32, copy=False)
    if target in _TORCH:
        return _encode(values, target)
    return values.astype(stock._get_np_dtype(target)).view(_UINT[target.primitive_bitwidth])


def _dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    left, right = _decode(a.data, a.dtype.scalar), _decode(b.data, b.dtype.scalar)
    product = np.matmul(left.astype(np.float32, copy=False), right.astype(np.float32, copy=False))
    return stock.TensorHandle((product + d.data).astype(d.data.dtype, copy=False), d.dtype.scalar)


def _cast(self: Any, source: Any, target: Any) -> Any:
    """Every cast of the builder (stock: only float32 <-> bf16 is not a plain numpy cast)."""
    old, new = source.dtype.scalar, target.scalar
    values = _decode(source.data, old)
    if new in _TORCH:
        return stock.TensorHandle(_encode(values, new), new)
    with np.errstate(over="ignore", invalid="ignore"):  # a GPU gives inf, or the nearest integer, without a word
        return stock.TensorHandle(values.astype(stock._get_np_dtype(new)), new)


def _binary(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
    dtype = lhs.dtype.scalar
    if dtype not in _TORCH:
        out = _binary_stock(self, lhs, rhs, op)
        # Stock gives a comparison the type of its operands; spread to a block that is no longer a mask (3.9).
        return _handle(out.data, dtype) if out.data.dtype == np.bool_ else out
    return _handle(op(_decode(lhs.data, dtype), _decode(rhs.data, rhs.dtype.scalar)), dtype)


def _unary(self: Any, arg: Any, op: Any) -> Any:
    dtype = arg.dtype.scalar
    return _unary_stock(self, arg, op) if dtype not in _TORCH else _handle(op(_decode(arg.data, dtype)), dtype)


def _ternary(self: Any, first: Any, second: Any, third: Any, op: Any) -> Any:
    dtype = third.dtype.scalar
    if dtype not in _TORCH or op is np.where:  # a select moves bits, it does not compute
        return _ternary_stock(self, first, second, third, op)
    return _handle(op(*(_decode(arg.data, arg.dtype.scalar) for arg in (first, second, third))), dtype)


def _masked_load(self: Any, ptrs: Any, mask: Any, other: Any, *rest: Any, **hints: Any) -> Any:
    """A lane masked off without `other` is undefined on a GPU: poison it (NaN, or a huge integer)."""
    if other is None:
        dtype = ptrs.get_element_ty()
        if not isinstance(dtype, tl.pointer_type) and dtype != tl.int1:
            np_dtype = stock._get_np_dtype(dtype)
            poison = np.full((ptrs.data.size, np_dtype.itemsize), 0x7F, np.uint8)
            if dtype in (tl.float16, tl.float32, tl.float64, tl.bfloat16):
                poison[:] = 0xFF  # every IEEE type: NaN
            other = stock.TensorHandle(poison.view(np_dtype).reshape(ptrs.data.shape), dtype)
    return _load_stock(self, ptrs, mask, other, *rest, **hints)


def _sum(self: Any, value: Any) -> Any:
    dtype = value.dtype
    if dtype.scalar not in _TORCH:
        return _sum_stock(self, value)
    raise TypeError(f"tl.sum of {dtype} is rounded differently by each backend; cast to float32 before it")


def _min_max(self: Any, value: Any, val_reduce_op: Any, idx_reduce_op: Any = None) -> Any:
    first = value[0] if isinstance(value, tuple) else value
    if first.dtype.scalar in _TORCH:
        raise TypeError(f"reduction of {first.dtype}: cast to float32 before it")
    return _min_max_stock(self, value, val_reduce_op, idx_reduce_op)


def _patch_tensor(tensor: Any, scope: Any) -> None:
    """Triton 3.6 with numpy >= 2.4: int() of a one-element array raises, so no run-time loop bound works."""
    _patch_tensor_stock(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))


_builtins: dict[Any, list[str]] = {}


def _patch_builtin(package: Any, builder: Any, scope: Any) -> None:
    """As the stock function, but the members are looked up once a process instead of at every launch."""
    if package not in _builtins:
        members = stock.inspect.getmembers(package)
        _builtins[package] = [name for name, member in members if tl.core.is_builtin(member)]
    for name in _builtins[package]:
        member = getattr(package, name)
        if tl.core.is_builtin(member):
            stock._patch_attr(package, name, member, builder, scope)


def _patch_language(fn: Any) -> Any:
    """Patch all of triton.language for one launch, so that device functions need not do it again."""
    scope = stock._LangPatchScope()
    builder = stock.interpreter_builder
    for module in (tl, tl.core):
        _patch_builtin(module, builder, scope)
        stock._patch_lang_core(module, scope)
    for package in (tl.tensor, tl.math, tl.core.tensor_descriptor_base):
        _patch_builtin(package, builder, scope)
    _patch_tensor(tl.tensor, scope)
    return scope


_interpreted: dict[Callable[..., Any], Any] = {}


def _twin(kernel: JITFunction) -> Any:
    if kernel.fn not in _interpreted:  # keyed by the Python function: hashing a JITFunction reads its source
        _interpreted[kernel.fn] = stock.InterpretedFunction(kernel.fn)
    return _interpreted[kernel.fn]


def _run(self: JITFunction, *args: Any, grid: Any, warmup: bool = False, **kwargs: Any) -> Any:
    return _twin(self).run(*args, grid=grid, warmup=warmup, **kwargs)


def _call(self: JITFunction, *args: Any, **kwargs: Any) -> Any:
    return _twin(self).rewrite()(*args, **kwargs)


@contextmanager
def interpreted() -> Iterator[None]:
    """Within the block, launches of @triton.jit kernels take CPU tensors and run in the interpreter."""
    builder = stock.InterpreterBuilder
    replacements: list[tuple[Any, str, Callable[..., Any]]] = [
        (stock, "_convert_float", _convert_float),
        (stock, "_patch_builtin", _patch_builtin),
        (stock, "_patch_lang", _patch_language),
        (stock, "_patch_lang_tensor", _patch_tensor),
        (stock.ReduceOps, "sum", _sum),
        (stock.ReduceOps, "min_max", _min_max),
        (builder, "create_dot", _dot),
        (builder, "cast_impl", _cast),
        (builder, "binary_op", _binary),
        (builder, "unary_op", _unary),
        (builder, "ternary_op", _ternary),
        (builder, "create_masked_load", _masked_load),
        (JITFunction, "run", _run),
        (JITFunction, "__call__", _call),
    ]
    patches = [patch.object(target, name, new) for target, name, new in replacements]
    for entry in patches:
        entry.start()
    try:
        yield
    finally:
        for entry in reversed(patches):
            entry.stop()
