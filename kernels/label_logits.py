"""Reference of `label_logits`: logits of the two label tokens from hidden states; and what all tokens take."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Rows of the output embedding whose logits are held at once.
_CHUNK = 8192


def label_logits_reference(
    hidden_TD: Tensor,
    rows_L: Tensor,
    label_weight_2D: Tensor,
    norm_weight_D: Tensor | None,
    eps: float,
) -> Tensor:
    """`label_logits` in plain PyTorch: gather, RMSNorm (arXiv 1910.07467) where a weight is given, two dot products."""
    hidden_LD = final_hidden(hidden_TD, rows_L, norm_weight_D, eps)
    return hidden_LD @ label_weight_2D.to(hidden_LD.dtype).T


def final_hidden(hidden_TD: Tensor, rows_L: Tensor, norm_weight_D: Tensor | None, eps: float) -> Tensor:
    """What the output embedding is multiplied with: gathered rows, normalised where a weight is given -> [L, D]."""
    compute = torch.promote_types(hidden_TD.dtype, torch.float32)
    hidden_LD = hidden_TD[rows_L].to(compute)
    if norm_weight_D is not None:
        hidden_LD = hidden_LD * torch.rsqrt(hidden_LD.pow(2).mean(dim=-1, keepdim=True) + eps) * norm_weight_D
    return hidden_LD


def log_probabilities(
    hidden_LD: Tensor,
    output_VD: Tensor,
    token_ids: Sequence[int],
    bias_V: Tensor | None = None,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Computes the log softmax of hidden_LD @ output_VD.T + bias_V, in float32, at these tokens -> float32 [L, K].

    `transform`: what the model makes of these products, element by element, before they are its logits.
    """
    hidden_LD = hidden_LD.float()
    total_L = torch.full((len(hidden_LD),), float("-inf"), device=hidden_LD.device)

    def logits(rows: Sequence[int] | slice) -> Tensor:
        found_LC = hidden_LD @ output_VD[rows].float().T
        found_LC = found_LC if bias_V is None else found_LC + bias_V[rows].float()
        return found_LC if transform is None else transform(found_LC)

    for begin in range(0, len(output_VD), _CHUNK):
        total_L = torch.logaddexp(total_L, logits(slice(begin, begin + _CHUNK)).logsumexp(1))
    return logits(list(token_ids)) - total_L[:, None]
