"""A model divided among processes: two of them over gloo against one alone."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import tensor_parallel
from helpers.dense import save_in_shards
from helpers.small_models import tiny_tokenizer

from gram_fast.errors import BackendError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.checkpoint import load_config
from gram_fast.models.dense.weights import read_dense_model
from gram_fast.scoring.processes import ALONE, Processes

# Head norms; biases of every product, those behind a sum too; biases of the projections alone and an untied output.
FAMILIES = {
    "qwen3": {"tie_word_embeddings": True},
    "llama": {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 2},
    "qwen2": {"num_attention_heads": 8, "num_key_value_heads": 4},
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """Folders by family, with what two processes said of each."""
    tokenizer = tiny_tokenizer()
    folders = {family: tmp_path_factory.mktemp(family) for family in FAMILIES}
    for family, folder in folders.items():
        save_in_shards(folder, family, vocab_size=len(tokenizer), max_position_embeddings=4096, **FAMILIES[family])
        tokenizer.save_pretrained(folder)
    folders["fp8"] = shutil.copytree(folders["qwen3"], tmp_path_factory.mktemp("quantized") / "fp8")
    script = Path(tensor_parallel.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, *map(str, folders.values())], env=environment, check=True, timeout=120)
    return folders


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_say_what_one_says(family, checkpoints, one_thread):
    first, second = (json.loads((checkpoints[family] / f"answers-{rank}.json").read_text()) for rank in (0, 1))
    alone = tensor_parallel.answers(tensor_parallel.load(checkpoints[family]))
    assert first["p"] == second["p"]
    assert first["order"] == second["order"] == list(alone["order"])
    assert first["p"] == pytest.approx(alone["p"], abs=1e-5)
    # Each holds half of all but norms, and of the biases behind sums one has all and the other none.
    assert 2 * first["qkv"][0] == alone["qkv"][0]
    assert second["numbers"] <= first["numbers"] < 0.6 * alone["numbers"]


def test_two_processes_say_what_one_says_in_fp8(checkpoints, one_thread):
    """Each rounds its part of the columns with factors of its own: about as near to float32 as one process is."""
    first, second = (json.loads((checkpoints["fp8"] / f"answers-{rank}.json").read_text()) for rank in (0, 1))
    assert first["products"] == "fp8"
    assert first["p"] == second["p"]
    folders = ("fp8", "qwen3")
    alone, exact = (tensor_parallel.answers(tensor_parallel.load(checkpoints[name]))["p"] for name in folders)
    # A knockout may go on with others once a pair turns: its first pair is that of all.
    errors = [abs(found[0] - exact[0]) for found in (first["p"], alone)]
    assert errors[0] < 2 * errors[1] + 0.01


def test_parts_make_the_whole(checkpoints):
    config = save_in_shards(checkpoints["qwen3"].parent / "again", "qwen3").config
    name = str(checkpoints["qwen3"].parent / "again")
    whole, *halves = (
        read_dense_model(name, config, (1, 2), torch.device("cpu"), torch.float32, processes).layers[0]
        for processes in (ALONE, Processes(0, 2), Processes(1, 2))
    )
    assert torch.equal(torch.cat([half.out.weight for half in halves], dim=1), whole.out.weight)
    assert torch.equal(torch.cat([half.down.weight for half in halves], dim=1), whole.down.weight)
    of_rows = (  # queries are as many as keys and values together
        (lambda layer: layer.gate_up.weight, 2),
        (lambda layer: layer.qkv[0].weight, 4),
    )
    for fused, parts in of_rows:
        pieces = [fused(half).chunk(parts) for half in halves]
        in_order = torch.cat([half[part] for part in range(parts) for half in pieces])
        assert torch.equal(in_order.sort(dim=0).values, fused(whole).sort(dim=0).values)
    ups = [half.gate_up.weight.chunk(2)[1] for half in halves]
    assert torch.equal(torch.cat(ups), whole.gate_up.weight.chunk(2)[1])


def test_what_cannot_be_divided_is_refused(checkpoints, monkeypatch):
    folder = checkpoints["qwen3"]
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(BackendError, match="tensor_parallel=True: expected processes that torchrun started"):
        PairwiseJudge.from_pretrained(folder, tensor_parallel=True)
    with pytest.raises(BackendError, match="tensor_parallel=True: expected one device a process, got 2"):
        PairwiseJudge.from_pretrained("nowhere", tensor_parallel=True, device=["cpu", "cpu"])
    with pytest.raises(BackendError, match="tensor_parallel=True needs runner 'dense'"):
        PairwiseJudge.from_pretrained("nowhere", tensor_parallel=True, runner="transformers")
    config = load_config(str(folder))
    with pytest.raises(BackendError, match="2 key/value heads: they cannot be divided among 3 processes"):
        read_dense_model(str(folder), config, (1, 2), torch.device("cpu"), None, Processes(0, 3))
