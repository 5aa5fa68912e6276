"""What the softmax of the Triton kernels of attention is made of beside sums: soft caps of scores, and sinks.

Both are in base 2: e^x is 2^(x log2 e). Shape letters: M rows of queries, N keys of a block.
"""

# mypy: allow-untyped-decorators, allow-untyped-defs
import triton
import triton.language as tl

LOG2_E = 1.4426950408889634
_LOG2_E = tl.constexpr(LOG2_E)


def scales(scale: float, softcap: float | None) -> tuple[float, float | None]:
    """The factor that makes exponents of 2 of scores, and that within the tangent of a soft cap, if there is one."""
    return (scale * LOG2_E, None) if softcap is None else (softcap * LOG2_E, scale / softcap)


@triton.jit
def capped_scores(scores_MN, inner_scale):
    """tanh(scores * inner_scale), within a few units in the last place: the one of Cephes.

    PTX has an instruction for it, whose error of 2^-11 would be that of the scores: 0.02 of a soft cap of 50.
    """
    x_MN = scores_MN * inner_scale
    square_MN = x_MN * x_MN
    p_MN = -5.70498872745e-3 * square_MN + 2.06390887954e-2
    p_MN = p_MN * square_MN - 5.37397155531e-2
    p_MN = p_MN * square_MN + 1.33314422036e-1
    p_MN = p_MN * square_MN - 3.33332819422e-1
    small_MN = p_MN * square_MN * x_MN + x_MN
    large_MN = 1 - 2 / (tl.exp2(x_MN * (2 * _LOG2_E)) + 1)
    return tl.where(square_MN < 0.390625, small_MN, large_MN)


@triton.jit
def with_sinks(peak_M, total_M, sink_M):
    """The factor of the sums, and the sum of all weights, where a key without a value has the score of a sink."""
    # The largest floats are no exponents of 2 any more.
    sink_M = tl.minimum(sink_M.to(tl.float32), 1.0e38) * _LOG2_E
    new_peak_M = tl.maximum(peak_M, sink_M)
    shrink_M = tl.exp2(peak_M - new_peak_M)
    return shrink_M, total_M * shrink_M + tl.exp2(sink_M - new_peak_M)
