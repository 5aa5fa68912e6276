"""Reference of `merge_states`: merge of two attention results over disjoint sets of keys."""

import torch
from torch import Tensor


def merge_states_reference(out_THE: Tensor, lse_TH: Tensor, other_out_THE: Tensor, other_lse_TH: Tensor) -> None:
    """`merge_states` in plain PyTorch, also in place.

    With weights exp(lse) and exp(other_lse): out = weighted mean, lse = log of the sum of weights
    (arXiv 1805.02867). Where both lse are -inf there is no key, and `out` does not change.
    """
    merged_lse_TH = torch.logaddexp(lse_TH, other_lse_TH)
    has_keys_TH = merged_lse_TH > float("-inf")
    weight_TH1 = (lse_TH - merged_lse_TH).exp()[..., None]
    other_weight_TH1 = (other_lse_TH - merged_lse_TH).exp()[..., None]
    merged_THE = weight_TH1 * out_THE + other_weight_TH1 * other_out_THE.to(out_THE.dtype)
    out_THE.copy_(torch.where(has_keys_TH[..., None], merged_THE, out_THE))
    lse_TH.copy_(merged_lse_TH)
