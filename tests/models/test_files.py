"""What is loaded where a folder holds more than one set of weights, or an adapter."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from helpers.small_models import tiny_model, tiny_tokenizer, write_judge

from gram_fast.errors import GramFastError, InputError, NumericalError, UnsupportedModelError
from gram_fast.judge import PairwiseJudge
from gram_fast.models.checkpoint import load_model
from gram_fast.models.tokenizer import load_tokenizer
from gram_fast.models.transformers_runner import TransformersRunner

PAIR = ("Which?", "a longer answer", "no")
RUNNERS = ("auto", "dense", "transformers")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp("base"))


@pytest.fixture
def folder(base, tmp_path):
    return shutil.copytree(base, tmp_path / "copy")


def write_adapter(base: Path, folder: Path, **options) -> torch.Tensor:
    """A random adapter on a base -> what both together say about some ids."""
    from peft import LoraConfig, get_peft_model

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    config = LoraConfig(init_lora_weights=False, **{"target_modules": ["q_proj", "up_proj"], **options})
    adapted = get_peft_model(model, config).eval()
    adapted.save_pretrained(folder)
    return logits_of(adapted)


def logits_of(model):
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(3, 40)[None]).logits


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"])
def test_an_adapter_beside_whole_weights_is_refused(folder, file, runner):
    (folder / file).write_text("{}")
    with pytest.raises(InputError, match=rf"holds model\.safetensors and {file}: move the adapter away"):
        PairwiseJudge.from_pretrained(folder, runner=runner)


def test_an_adapter_in_a_folder_below_is_left_alone(folder, base):
    write_adapter(base, folder / "adapter")
    assert torch.equal(logits_of(load_model(str(folder), "float32")), logits_of(load_model(str(base), "float32")))


def test_an_adapter_alone_is_merged_into_its_base(base, tmp_path):
    expected = write_adapter(base, tmp_path)
    model = load_model(str(tmp_path), "float32")
    torch.testing.assert_close(logits_of(model), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(logits_of(load_model(str(base), "float32")), expected, atol=1e-2)
    judge = PairwiseJudge.from_pretrained(tmp_path, device="cpu")
    assert isinstance(judge.comparer.runner, TransformersRunner)
    expected_judge = PairwiseJudge.from_model(model, tiny_tokenizer())
    assert judge.compare(*PAIR).p == pytest.approx(expected_judge.compare(*PAIR).p, abs=1e-5)
    with pytest.raises(UnsupportedModelError, match=r"runner 'dense' cannot run .* it is an adapter on a base"):
        PairwiseJudge.from_pretrained(tmp_path, runner="dense")


def test_an_adapter_may_bring_its_tokenizer(base, tmp_path):
    write_adapter(base, tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }} ->"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path)).chat_template == tokenizer.chat_template
    assert load_tokenizer(str(base)).chat_template != tokenizer.chat_template


def test_an_adapter_on_a_tied_embedding_leaves_the_output_alone(tmp_path):
    write_judge(tmp_path / "base", tie_word_embeddings=True)
    with pytest.warns(UserWarning, match="tie"):
        expected = write_adapter(tmp_path / "base", tmp_path / "adapter", target_modules=["embed_tokens"])
    torch.testing.assert_close(logits_of(load_model(str(tmp_path / "adapter"), "float32")), expected, atol=1e-4, rtol=0)


def test_an_adapter_whose_merge_is_another_model_is_refused(base, tmp_path, monkeypatch):
    write_adapter(base, tmp_path)
    monkeypatch.setattr("peft.tuners.lora.layer.Linear.merge", lambda *args, **options: None)
    with pytest.raises(NumericalError, match=r"adapter .* merges into another model: its logits differ by"):
        load_model(str(tmp_path), "float32")


def test_an_adapter_on_a_gguf_file_is_refused(base, tmp_path):
    write_adapter(base, tmp_path)
    gguf = tmp_path / "base" / "model.gguf"
    gguf.parent.mkdir()
    gguf.write_bytes(b"GGUF")
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": str(gguf)}))
    with pytest.raises(InputError, match=r"model\.gguf' is a GGUF file, expected a checkpoint of whole weights$"):
        PairwiseJudge.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "./nothing"}, r"adapter .*: its base: there is no checkpoint folder './nothing'"),
        ({"base_model_name_or_path": "SELF"}, "adapter"),
        ({"r": 3}, "cannot load adapter"),
        ({"peft_type": "NOPE"}, "cannot load adapter"),
    ],
)
def test_a_broken_adapter_is_named(base, tmp_path, change, message):
    write_adapter(base, tmp_path)
    file = tmp_path / "adapter_config.json"
    values = json.loads(file.read_text()) | change
    if values["base_model_name_or_path"] == "SELF":
        other = shutil.copytree(tmp_path, tmp_path / "other")
        values["base_model_name_or_path"], message = str(other), "is an adapter, expected a checkpoint of whole"
    file.write_text(json.dumps(values))
    with pytest.raises(GramFastError, match=message):
        load_model(str(tmp_path), "float32")


def test_parts_of_an_adapter_are_named(base, tmp_path):
    write_adapter(base, tmp_path)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(InputError, match=r"adapter_config\.json without adapter_model\.safetensors"):
        PairwiseJudge.from_pretrained(tmp_path)


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_old_file_beside_newer_shards_is_refused(folder, runner):
    tiny_model("qwen3", seed=1, vocab_size=len(tiny_tokenizer())).save_pretrained(folder, max_shard_size="20KB")
    with pytest.raises(InputError, match=r"holds model\.safetensors and model-00001-of-.* two sets of weights"):
        PairwiseJudge.from_pretrained(folder, runner=runner)


@pytest.mark.parametrize("runner", RUNNERS)
def test_an_index_whose_files_are_gone_is_no_second_set(folder, base, runner):
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "model-00001-of-00002.safetensors"}}')
    expected = PairwiseJudge.from_pretrained(base).compare(*PAIR).p
    assert PairwiseJudge.from_pretrained(folder, runner=runner).compare(*PAIR).p == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("runner", RUNNERS)
def test_a_weight_in_two_files_is_refused(tmp_path, runner):
    write_judge(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tiny_model("qwen3", vocab_size=len(tiny_tokenizer())).save_pretrained(tmp_path, max_shard_size="20KB")
    first, second, *_ = sorted(tmp_path.glob("model-*.safetensors"))
    shutil.copy(first, second)
    with pytest.raises(InputError, match=r"is in two files, .*00001-of-.* and .*00002-of-"):
        PairwiseJudge.from_pretrained(tmp_path, runner=runner)


def test_weights_that_the_model_does_not_use_are_named(folder, caplog):
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    save_file({**load_file(file), "v_head.weight": torch.zeros(3)}, file, metadata={"format": "pt"})
    PairwiseJudge.from_pretrained(folder)
    assert "has 1 weights that Qwen3ForCausalLM does not use, first 'v_head.weight'" in caplog.text
