"""A broken or hostile checkpoint is one sentence, before memory is taken for what it claims to be."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from helpers.small_models import CONFIGS, tiny_model, tiny_tokenizer, write_judge
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gram_fast.errors import GramFastError, InputError, NumericalError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.checkpoint import load_config
from gram_fast.models.loading import find_runner
from gram_fast.models.options import JudgeOptions
from gram_fast.models.sizes import check_fits

RUNNERS = ("auto", "transformers")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="module")
def in_shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    tiny_tokenizer().save_pretrained(folder)
    tiny_model("qwen3", vocab_size=len(tiny_tokenizer())).save_pretrained(folder, max_shard_size="60KB")
    return folder


def copied(source: Path, folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(source, folder)


def change(file: Path, **values) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


ROPE = {"rope_type": "default", "rope_theta": 10000.0}


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_size": -1}, "hidden_size is -1, expected at least 1"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, expected at least 1"),
        ({"intermediate_size": -2}, "intermediate_size is -2"),
        ({"hidden_size": 10**12}, "hidden_size is 1000000000000, more than the 25 weights of its files hold"),
        ({"vocab_size": 10**30}, "vocab_size is 10+, expected at most"),
        ({"num_hidden_layers": 10**12, "layer_types": None}, "num_hidden_layers is 10+, expected at most 65536"),
        ({"num_hidden_layers": 40, "layer_types": None}, "num_hidden_layers is 40, more than the 25 weights"),
        ({"num_labels": 10**12}, "num_labels is 10+, expected at most 65536"),
        ({"head_dim": 14}, r"expected shape \[(14|56, 32|32, 56)\], got"),
        ({"intermediate_size": 3000}, r"expected shape|describes \d+ numbers, its files have \d+ bytes"),
        ({"rope_parameters": {**ROPE, "rope_type": "nope"}}, "no rope_type 'nope': expected one of default, linear"),
        ({"rope_parameters": {**ROPE, "rope_theta": 0}}, "rope_theta of the rotary embedding is 0"),
        ({"rope_parameters": {**ROPE, "partial_rotary_factor": -2.0}}, "partial_rotary_factor .* is -2.0"),
    ],
)
def test_a_configuration_that_no_model_can_have_is_named(whole, tmp_path, values, message, runner):
    folder = copied(whole, tmp_path / "copy")
    change(folder / "config.json", **values)
    with pytest.raises(InputError, match=message) as caught:
        PairwiseJudge.from_pretrained(folder, runner=runner)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object, got a list"),
        ("nope", "it is no JSON"),
        ("[" * 100_000, "it is no JSON"),
        ("{}", "expected a 'weight_map' from weights to files"),
        ('{"weight_map": []}', "expected a 'weight_map' from weights to files"),
        ('{"weight_map": {"a": 5}}', "expected names of files beside it, got 5"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "expected names of files beside it, got '/etc/passwd'"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "expected names of files beside it"),
        ('{"weight_map": {"a": "gone.safetensors"}}', r"there is no file 'gone\.safetensors'"),
    ],
)
def test_a_broken_index_is_named(in_shards, tmp_path, text, message, runner):
    folder = copied(in_shards, tmp_path / "copy")
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match=message):
        PairwiseJudge.from_pretrained(folder, runner=runner)


def change_header(file: Path, key: str, **values) -> None:
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header[key] |= values
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


@pytest.mark.parametrize("runner", RUNNERS)
def test_weights_that_are_whole_numbers_are_refused(whole, tmp_path, runner):
    folder = copied(whole, tmp_path / "copy")
    change_header(folder / "model.safetensors", "model.norm.weight", dtype="I32")
    with pytest.raises(InputError, match=r"model\.norm\.weight: expected floating-point numbers, got I32"):
        PairwiseJudge.from_pretrained(folder, runner=runner)


def refusal(folder: Path, runner: str) -> str:
    """Why a checkpoint is refused; nothing where it is taken. Any other exception goes through."""
    try:
        PairwiseJudge.from_pretrained(folder, runner=runner)
    except GramFastError as error:
        return str(error)
    return ""


VALUES = st.sampled_from([-1, 0, 1, 2, 7, 10**6, 10**12, 10**30, -0.5, "x", None, True, [], {}, [1], {"a": 1}])
KEYS = st.sampled_from(sorted(json.loads(CONFIGS["qwen3"](vocab_size=580).to_json_string(use_diff=False))))


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(key=KEYS, value=VALUES, runner=st.sampled_from(RUNNERS))
def test_any_value_of_a_configuration_is_taken_or_refused(whole, tmp_path, key, value, runner):
    folder = copied(whole, tmp_path / "copy")
    change(folder / "config.json", **{key: value})
    assert "\n" not in refusal(folder, runner)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    file=st.sampled_from(["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]),
    place=st.floats(0, 1, exclude_max=True),
    byte=st.none() | st.integers(0, 255),
    runner=st.sampled_from(RUNNERS),
)
def test_a_file_cut_or_with_another_byte_is_taken_or_refused(whole, tmp_path, file, place, byte, runner):
    path = copied(whole, tmp_path / "copy") / file
    content = bytearray(path.read_bytes())
    # The header of the weights, rather than the numbers behind it.
    end = min(len(content), 3000)
    content = content[: int(place * len(content))] if byte is None else content
    if byte is not None:
        content[int(place * end)] = byte
    path.write_bytes(content)
    assert "\n" not in refusal(path.parent, runner)


def test_no_memory_is_taken_for_what_the_files_cannot_hold(tmp_path):
    """Eleven weights of a million numbers each, and layers that would have 64 times the numbers."""
    from safetensors.torch import save_file

    config = CONFIGS["llama"](hidden_size=2**20, vocab_size=2**20, intermediate_size=2**20, num_key_value_heads=4)
    config.save_pretrained(tmp_path)
    save_file(
        {f"{n}.weight": torch.zeros(2**20, dtype=torch.float16) for n in range(11)}, tmp_path / "model.safetensors"
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"describes \d+ numbers, its files have \d+ bytes"):
        check_fits(config, transformers.AutoModelForCausalLM, [tmp_path / "model.safetensors"], "it")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024
    assert find_runner(str(tmp_path), config, JudgeOptions()) == "transformers"


def test_zero_3_makes_no_model_without_weights(tmp_path, monkeypatch):
    """It divides the weights of every model that is made; those on the meta device have none."""
    folder = write_judge(tmp_path / "model")
    config = transformers.AutoConfig.from_pretrained(folder)
    monkeypatch.setattr("gram_fast.models.sizes.is_deepspeed_zero3_enabled", lambda: True)
    check_fits(config, None, [folder / "model.safetensors"], "it")
    config.vocab_size = 10**9
    with pytest.raises(InputError, match="it: vocab_size is 1000000000, more than"):
        check_fits(config, None, [folder / "model.safetensors"], "it")


WITHOUT_ATTENTION = {
    "rwkv": (transformers.RwkvConfig(), "no attention"),
    "mamba": (transformers.MambaConfig(), "no attention"),
    "mamba2": (transformers.Mamba2Config(), "no attention"),
    "falcon_mamba": (transformers.FalconMambaConfig(), "no attention"),
    "xlstm": (transformers.xLSTMConfig(), "no attention"),
    "recurrent_gemma": (transformers.RecurrentGemmaConfig(), "(recurrent|linear_attention) layers"),
    "deepseek_v32": (transformers.DeepseekV32Config(), "deepseek_sparse_attention layers"),
}


@pytest.mark.parametrize("runner", ["auto", "dense", "transformers"])
@pytest.mark.parametrize("name", WITHOUT_ATTENTION)
def test_models_without_attention_that_is_known_are_refused_before_they_are_loaded(name, runner, tmp_path):
    config, reason = WITHOUT_ATTENTION[name]
    config.save_pretrained(tmp_path)
    said = rf"^model type '{name}' cannot be scored by prefix sharing: it has {reason}"
    with pytest.raises(UnsupportedModelError, match=said):
        find_runner(str(tmp_path), load_config(str(tmp_path)), JudgeOptions(runner=runner))


def test_attention_of_a_models_own_is_named(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(tiny_tokenizer())}
    model = transformers.FalconForCausalLM(transformers.FalconConfig(alibi=False, **shape))
    with pytest.raises(UnsupportedModelError, match="do not attend through transformers' attention interface"):
        PairwiseJudge.from_model(model.eval(), tiny_tokenizer())


@pytest.mark.parametrize("runner", ["dense", "transformers"])
@pytest.mark.parametrize(
    ("dtype", "value", "message"),
    [
        ("float32", float("nan"), r"its weight '.*layers\.1\..*' is not finite$"),
        ("float16", 1e6, r"its weight '.*layers\.1\..*' is not finite in torch\.float16: try bfloat16 or float32$"),
        ("float16", 6e4, r"what it computes is not finite in torch\.float16: try bfloat16 or float32$"),
    ],
)
def test_logits_that_are_not_finite_name_the_weight_or_the_dtype(whole, tmp_path, dtype, value, message, runner):
    from safetensors.torch import load_file, save_file

    folder = copied(whole, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"].fill_(value)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(NumericalError, match=r"gives label logits \(nan, nan\) in a plain forward: " + message):
        PairwiseJudge.from_pretrained(folder, runner=runner, dtype=dtype, device="cpu")


def test_little_memory_is_enough_to_refuse_a_large_claim(whole, tmp_path):
    """In a process of its own, which could not hold what the configuration claims."""
    folder = copied(whole, tmp_path / "copy")
    change(folder / "config.json", vocab_size=18_000, intermediate_size=18_000, hidden_size=18_000, head_dim=128)
    script = (
        "import resource, sys, gram_fast\n"
        "for runner in sys.argv[2:]:\n"  # what loading imports needs memory of its own
        "    gram_fast.PairwiseJudge.from_pretrained('small', runner=runner)\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**29,) * 2)\n"
        "for runner in sys.argv[2:]:\n"
        "    try:\n        gram_fast.PairwiseJudge.from_pretrained(sys.argv[1], runner=runner)\n"
        "    except gram_fast.InputError as error:\n        print(error)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, folder, *RUNNERS], capture_output=True, text=True, timeout=120)
    dense, transformers_said = run.stdout.splitlines()
    assert "expected shape" in dense
    assert "its configuration describes" in transformers_said
