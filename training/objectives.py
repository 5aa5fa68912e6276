"""Training objectives: losses of the two stages of GRAM (arXiv 2506.14175) and of the scalar reward baseline.

A batch holds packed sequences: int64 input_ids and position_ids [1, T]; the tables of `gram_fast.ops.Spans`, which say
what a token attends to; and labels [R] with the index of the packed token that predicts each, label_positions [R]. The
loss is a sum over all labels divided by `num_items_in_batch`, the number of labels in the whole optimizer step on all
processes, so that accumulation and data parallelism do not change it.

A batch may have next tokens to predict beside the labels: next_tokens, next_positions and float32 next_weights [N]. The
sum then has -log P(next token) with these weights as well: the regularisation of reward models by language modelling
of arXiv 2406.10216.

Shape letters: T packed tokens, R labels, N next tokens, D model width, V vocabulary size.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gram_fast.errors import UnsupportedModelError
from gram_fast.training.packed_attention import Packing

Loss = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(hidden states that predict labels [R, D], labels [R]) -> {"loss": sum over all labels, further outputs ...}."""

# Most logits that the chunked cross entropy holds at a time: 64 MiB in float32.
_CHUNK_ELEMENTS = 2**24


def set_objective(model: Any, loss: Loss) -> None:
    """Replaces a model's forward by one that takes a packed batch and returns the loss.

    The loss is computed inside the model's own call, where sharded parameters (FSDP2, ZeRO-3) are gathered when it
    reads the output embedding. The forward raises UnsupportedModelError as `hidden_states`.
    """

    def forward(
        self: Any,
        input_ids: Tensor,
        position_ids: Tensor,
        spans_N2: Tensor,
        range_offsets: Tensor,
        ranges_R2: Tensor,
        label_positions: Tensor,
        labels: Tensor,
        next_positions: Tensor | None = None,
        next_tokens: Tensor | None = None,
        next_weights: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        hidden_TD = hidden_states(self, input_ids, position_ids, spans_N2, range_offsets, ranges_R2)
        outputs = loss(hidden_TD[label_positions], labels)
        if next_tokens is not None:
            head = unbiased_head(self)
            next_loss = linear_cross_entropy(hidden_TD[next_positions], head.weight, next_tokens, next_weights)
            outputs["loss"] = outputs["loss"] + next_loss
        count = len(labels) if num_items_in_batch is None else num_items_in_batch
        return {**outputs, "loss": outputs["loss"] / count}

    model.forward = MethodType(forward, model)
    # Makes transformers' Trainer count the labels of all accumulated batches and processes and pass the count.
    model.accepts_loss_kwargs = True
    # None of transformers' losses: of that of language models the Trainer would not count the first label of a batch.
    model.loss_type = None


def hidden_states(
    model: Any, input_ids: Tensor, position_ids: Tensor, spans_N2: Tensor, range_offsets: Tensor, ranges_R2: Tensor
) -> Tensor:
    """Last hidden states of a packed batch, by a model that attends with PACKED_ATTENTION -> [T, D].

    Raises UnsupportedModelError when a layer does not attend through transformers' attention interface.
    """
    packing = Packing(spans_N2, range_offsets, ranges_R2)
    hidden_1TD: Tensor = model.base_model(
        input_ids=input_ids, position_ids=position_ids, use_cache=False, packing=packing
    ).last_hidden_state
    if len(packing.layers_seen) != model.config.num_hidden_layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be trained on packed sequences: {len(packing.layers_seen)} of its "
            f"{model.config.num_hidden_layers} layers attend through transformers' attention interface"
        )
    return hidden_1TD[0]


def language_modelling(model: Any) -> Loss:
    """Loss of stage 1: the sum of -log P(next token); labels are next tokens.

    Raises UnsupportedModelError for an output embedding with a bias.
    """
    head = unbiased_head(model)

    def loss(hidden_RD: Tensor, labels_R: Tensor) -> dict[str, Tensor]:
        return {"loss": linear_cross_entropy(hidden_RD, head.weight, labels_R)}

    return loss


def label_preference(model: Any, label_ids: tuple[int, int], smoothing: float) -> Loss:
    """Loss of stage 2: cross entropy over the two label logits at the last token of each sequence.

    With the margin z = logit of the right label minus logit of the other and smoothing s (torch's, over two classes),

        loss = -(1 - s/2) log sigmoid(z) - s/2 log sigmoid(-z) = -log sigmoid(z) + s/2 z

    the pairwise ranking loss of Bradley and Terry with a penalty on the margin: the regularised form that the GRAM
    paper derives (arXiv 2506.14175), whose epsilon is s/2. Labels are 0 for A and 1 for B, two for each pair;
    `label_ids` are the token ids of A and B. Only these two rows of the output embedding are read.
    """
    head = model.get_output_embeddings()
    rows = torch.tensor(label_ids)

    def loss(hidden_RD: Tensor, labels_R: Tensor) -> dict[str, Tensor]:
        indices = rows.to(head.weight.device)
        bias = None if getattr(head, "bias", None) is None else head.bias[indices].float()
        # Outside autocast, like the judge: bfloat16 logits near 24 are 0.125 apart, and margins can be smaller.
        with torch.autocast(hidden_RD.device.type, enabled=False):
            logits_R2 = F.linear(hidden_RD.float(), head.weight[indices].float(), bias)
        return {
            "loss": F.cross_entropy(logits_R2, labels_R, label_smoothing=smoothing, reduction="sum"),
            # [pairs, 2]: one row for each pair, the unit in which the Trainer counts samples.
            "is_right": (logits_R2.argmax(-1) == labels_R).float().view(-1, 2),
        }

    return loss


def bradley_terry_loss(model: Any) -> Loss:
    """Loss of the scalar baseline: the Bradley-Terry likelihood, -log sigmoid(r(chosen) - r(rejected)).

    The reward r is a linear function of the hidden state of the last token. Labels alternate between 1, chosen, and 0,
    rejected: every pair has two, and its loss counts for each.
    """

    def loss(hidden_RD: Tensor, labels_R: Tensor) -> dict[str, Tensor]:
        with torch.autocast(hidden_RD.device.type, enabled=False):
            rewards_R = F.linear(hidden_RD.float(), model.score.weight.float())[:, 0]
        margins = rewards_R[0::2] - rewards_R[1::2]
        return {"loss": -2 * F.logsigmoid(margins).sum(), "is_right": (margins > 0).float()}

    return loss


def unbiased_head(model: Any) -> Any:
    """Returns the output embedding, of which language modelling reads the weight alone.

    Raises UnsupportedModelError for one with a bias.
    """
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None:
        raise UnsupportedModelError(f"{type(model).__name__} has an output embedding with a bias")
    return head


def linear_cross_entropy(
    hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, row_weights_R: Tensor | None = None
) -> Tensor:
    """Cross entropy of the logits hidden @ weight.T, summed over R rows with their weights -> float32 scalar.

    The [R, V] logits are never in memory at once. On CUDA, without weights, this is Liger-Kernel's fused op.
    """
    if hidden_RD.is_cuda and row_weights_R is None:
        from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

        return torch.as_tensor(
            liger_fused_linear_cross_entropy(
                hidden_RD, weight_VD.to(hidden_RD.dtype), targets_R, reduction="sum", accum_dtype=torch.float32
            )
        )
    if row_weights_R is None:
        row_weights_R = torch.ones(len(targets_R), device=targets_R.device)
    apply: Any = _ChunkedCrossEntropy.apply
    # Within its forward, gradients are off in any case.
    loss: Tensor = apply(hidden_RD, weight_VD, targets_R, row_weights_R, torch.is_grad_enabled())
    return loss


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Cross entropy that computes its gradients in the forward, chunk by chunk, as Liger-Kernel does."""

    @staticmethod
    def forward(
        ctx: Any, hidden_RD: Tensor, weight_VD: Tensor, targets_R: Tensor, row_weights_R: Tensor, differentiates: bool
    ) -> Tensor:
        device = hidden_RD.device
        total = torch.zeros((), dtype=torch.float32, device=device)
        # Under autocast, products are bfloat16; sums stay in float32, so that none is written as a product.
        weight = weight_VD.to(hidden_RD.dtype)
        wants_hidden, wants_weight = (differentiates and needed for needed in ctx.needs_input_grad[:2])
        grad_hidden = torch.empty_like(hidden_RD) if wants_hidden else None
        grad_weight = torch.zeros_like(weight_VD, dtype=torch.float32) if wants_weight else None
        for rows in torch.arange(len(hidden_RD), device=device).split(max(1, _CHUNK_ELEMENTS // len(weight_VD))):  # type: ignore[no-untyped-call]
            hidden, targets, row_weights = hidden_RD[rows], targets_R[rows], row_weights_R[rows]
            log_p = F.log_softmax(F.linear(hidden, weight), dim=-1, dtype=torch.float32)
            total -= (log_p.gather(1, targets[:, None])[:, 0] * row_weights).sum()
            if not (wants_hidden or wants_weight):
                continue
            grad = log_p.exp_()
            grad[torch.arange(len(rows), device=device), targets] -= 1
            grad = grad.mul_(row_weights[:, None]).to(hidden.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = (grad @ weight).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad.T @ hidden
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = (None if saved is None else grads[0] * saved for saved in ctx.saved_tensors)
        return grad_hidden, grad_weight, None, None, None
