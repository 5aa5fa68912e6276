"""Checks of gram-fast doctor: installed versions, usable backends, and a checkpoint's logits on a known pair."""

import platform
from collections.abc import Iterator
from importlib import metadata

import torch

import gram_fast
from gram_fast.comparing.label_comparer import LabelComparer
from gram_fast.comparing.replicas import Replicas
from gram_fast.extension import _C
from gram_fast.models.next_tokens import NextTokens
from gram_fast.ops import BACKENDS, backend_problem

_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "triton")


def installation() -> Iterator[tuple[str, str]]:
    """Reports versions, devices, the extension and the attention backends -> (item, status)."""
    yield "gram_fast", gram_fast.__version__
    yield "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for package in _PACKAGES:
        try:
            yield package, metadata.version(package)
        except metadata.PackageNotFoundError:
            yield package, "not installed"
    yield "extension", f"built, {'with' if _C.has_cuda else 'without'} its CUDA part"
    yield "cpu", f"{torch.get_num_threads()} threads"
    devices = [torch.device("cpu")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(torch.device("cuda", index))
        yield f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if len(devices) == 1:
        yield "cuda", "torch sees no GPU"
    for device in devices:
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        for backend in BACKENDS["tree_attention"]:
            problem = backend_problem("tree_attention", backend, device, dtype)
            yield f"attention {backend} on {device}", problem or "can run"


def checkpoint(comparer: LabelComparer | Replicas[LabelComparer]) -> Iterator[tuple[str, str]]:
    """Reports a judge's model, template, labels and check on a known pair -> (item, status).

    With several devices, of the first; every replica was checked when it was made.
    """
    first = comparer.comparers[0] if isinstance(comparer, Replicas) else comparer
    runner, tokenizer = first.runner, first.tokenizer
    chosen = f"attention {runner.attention}, products {runner.products}"
    yield "model", f"{type(runner).__name__} on {runner.device}, {runner.dtype}, {chosen}"
    yield "longest pair", f"{first.max_length} tokens"
    yield "modes", ", ".join(first.modes)
    yield "tokenizer", tokenizer.changes or "samples of text come back from their token ids"
    yield (
        "template",
        f"composed of pieces behind {len(tokenizer.head_ids)} shared tokens"
        if tokenizer.frames
        else ("tokenized whole for every pair: this tokenizer has no safe place to cut it"),
    )
    if tokenizer.date_remedy is not None:
        yield "date", f"today's is in the prompt: fix it, as with chat_template_kwargs={dict(tokenizer.date_remedy)}"
    labels = zip(tokenizer.template.labels, tokenizer.label_ids, strict=True)
    yield "labels", ", ".join(f"{label} = {label_id}" for label, label_id in labels)
    yield "prompt ends in", repr(tokenizer.prompt_end) + (", inside thinking" if tokenizer.ends_in_thinking else "")
    found = NextTokens.of(tokenizer, runner)
    begins, label = "a rationale begins there", f"the likelier label is number {found.rank + 1}"
    yield "next tokens", f"{found.shown}, by likelihood; {begins if tokenizer.template.reasons else label}"
    shown = ("response 1", "response 2") if first.verifies else ("order ab", "order ba")
    for what, answer in zip(shown, first.known_answers, strict=True):
        # Always right: a judge with wrong logits is refused when it is made.
        yield (
            f"known answer, {what}",
            f"right: logits {answer.logits[0]:.5f} {answer.logits[1]:.5f}, plain forward "
            f"{answer.plain_logits[0]:.5f} {answer.plain_logits[1]:.5f}, off by {answer.difference:.1e} of "
            f"{answer.tolerance:.0e} allowed",
        )
