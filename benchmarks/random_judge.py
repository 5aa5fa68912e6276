"""Writes a judge of Qwen3's architecture with random weights, a real tokenizer and a chat template: a model to time.

    python -m benchmarks.random_judge FOLDER [--shape NAME] [--dtype DTYPE]

The model has the sizes of a known one, but a vocabulary of 8,192 tokens: "small" has 13.5 M parameters. Its verdicts
mean nothing. The tokenizer is trained on this repository's text, so token counts shift a little whenever that changes.
FOLDER appears when all is written. Does not need the extension: run_gpu.sh builds it at the same time.
"""

import argparse
import runpy
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
DTYPES = ("float32", "bfloat16")
# By path, without the package, which run_gpu.sh builds at the same time.
make_qwen_tokenizer = runpy.run_path(str(ROOT / "training/small_judge/tokenizer.py"))["make_qwen_tokenizer"]


class ModelSizes(NamedTuple):
    """The sizes of a model of Qwen3's architecture."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int


SMALL = ModelSizes(hidden=384, intermediate=1152, layers=6, heads=6, kv_heads=2, head_width=64)
SHAPES = {
    "small": SMALL,
    "smollm2-135m": ModelSizes(576, 1536, 30, 9, 3, 64),
    "qwen3-0.6b": ModelSizes(1024, 3072, 28, 16, 8, 128),
    "qwen3-1.7b": ModelSizes(2048, 6144, 28, 16, 8, 128),
    "qwen3-8b": ModelSizes(4096, 12288, 36, 32, 8, 128),
}


def repository_texts() -> list[str]:
    """Reads this repository's pages, presets and sources, in a fixed order."""
    patterns = (
        "*.md",
        "docs/*.md",
        "gram_fast/presets/*.txt",
        "gram_fast/**/*.py",
        "kernels/*.py",
        "csrc/**/*.cpp",
        "csrc/**/*.h",
    )
    paths = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    return [path.read_text("utf-8") for path in paths]


def random_model(
    sizes: ModelSizes,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float32,
    vocab_size: int = 8192,
    **special_tokens: int | None,
) -> Qwen3ForCausalLM:
    """Makes a model with random weights, the same in every run, on the device that it is to be made on."""
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.intermediate,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        head_dim=sizes.head_width,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        **special_tokens,
    )
    torch.manual_seed(0)
    with device:
        model: Any = Qwen3ForCausalLM._from_config(config, dtype=dtype)
    return model


def write_random_judge(
    folder: Path, sizes: ModelSizes = SMALL, device: torch.device = CPU, dtype: torch.dtype = torch.float32
) -> None:
    """Writes model and tokenizer in transformers' format into `folder`."""
    tokenizer = make_qwen_tokenizer(repository_texts())
    special_tokens = {
        "eos_token_id": tokenizer.convert_tokens_to_ids("<|im_end|>"),
        "pad_token_id": tokenizer.convert_tokens_to_ids("<|endoftext|>"),
        "bos_token_id": None,
    }
    random_model(sizes, device, dtype, **special_tokens).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def parser() -> argparse.ArgumentParser:
    """Makes what reads the command line."""
    found = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    found.add_argument("folder", type=Path)
    found.add_argument("--shape", choices=SHAPES, default="small")
    found.add_argument("--dtype", choices=DTYPES, default="float32")
    return found


def main() -> None:
    """Writes the judge that the command line asks for, on the GPU where there is one."""
    options = parser().parse_args()
    if options.folder.exists():
        parser().error(f"{options.folder} is there already")
    device = torch.device("cuda") if torch.cuda.is_available() else CPU
    partial = options.folder.with_name(f"{options.folder.name}.partial")
    write_random_judge(partial, SHAPES[options.shape], device, getattr(torch, options.dtype))
    partial.rename(options.folder)


if __name__ == "__main__":
    main()
