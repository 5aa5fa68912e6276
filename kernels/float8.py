"""What Triton kernels share that write rows of float8."""

# mypy: allow-untyped-decorators, allow-untyped-defs, allow-incomplete-defs
import triton
import triton.language as tl

from gram_fast.kernels.quantize_rows import LARGEST, SMALLEST_ROW

_LARGEST = tl.constexpr(LARGEST)
_SMALLEST_ROW = tl.constexpr(SMALLEST_ROW)


@triton.jit
def store_quantized(x_D, values, scale, column_D, is_column_D):
    """Writes a row, float32 with zeros beyond its columns, as float8 numbers, and its factor."""
    # The reference rounds both quotients; Triton's "/" may be off by two units in the last place.
    largest = tl.maximum(tl.max(tl.abs(x_D)), _SMALLEST_ROW)
    tl.store(scale, tl.math.div_rn(largest, _LARGEST))
    value_D = x_D * tl.math.div_rn(_LARGEST, largest)
    tl.store(values + column_D, value_D.to(values.dtype.element_ty), mask=is_column_D)
