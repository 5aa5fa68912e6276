"""Configurations of self-training: bad ones are one sentence each, before anything is loaded."""

import re

import pytest
import yaml

from gram_fast.errors import GramFastError, InputError
from gram_fast.training.self_training.config import SelfTrainConfig
from gram_fast.training.self_training.files import read_json, write_json

GOOD = {
    "output_dir": "out",
    "judge": "j",
    "prover": "p",
    "unlabeled_data": "u.jsonl",
    "eval_data": ["e.jsonl"],
    "pairs_per_round": 5,
    "device": "cpu",
}

BAD = [
    ({"judge": ""}, "x.yaml: judge: expected text, got ''"),
    ({"prover": 3}, "x.yaml: prover: expected text, got 3"),
    ({"base": ""}, "x.yaml: base: expected text"),
    ({"unlabeled_data": []}, "x.yaml: unlabeled_data: expected at least one name, got []"),
    ({"eval_data": "-"}, "x.yaml: eval_data: expected names of data, since standard input"),
    ({"seed_data": [3]}, "x.yaml: seed_data: expected a name or a list of names, got [3]"),
    ({"rounds": 0}, "x.yaml: rounds: expected an integer of at least 1, got 0"),
    ({"pairs_per_round": 1.5}, "x.yaml: pairs_per_round: expected an integer of at least 1, got 1.5"),
    ({"chunk_rows": True}, "x.yaml: chunk_rows: expected an integer"),
    ({"seed": -1}, "x.yaml: seed: expected an integer of at least 0, got -1"),
    ({"skip_bad": "yes"}, "x.yaml: skip_bad: expected true or false, got 'yes'"),
    ({"round": 3}, "x.yaml: there is no key 'round': expected one of output_dir, judge"),
    ({"predict": {"vote": 2}}, "x.yaml: predict: there is no key 'vote': expected one of votes, temperature"),
    ({"predict": 3}, "x.yaml: predict: expected a section of keys and values, got 3"),
    ({"predict": {"votes": 0}}, "x.yaml: predict: votes: expected an integer of at least 1, got 0"),
    ({"predict": {"temperature": 0}}, "x.yaml: predict: temperature: 4 votes with 0 would be one vote 4 times"),
    ({"predict": {"max_new_tokens": None}}, "x.yaml: predict: expected a number for max_new_tokens, got None"),
    ({"evaluate": {"votes": 2}}, "x.yaml: evaluate: temperature: 2 votes with 0"),
    ({"denoise": {"min_probability": 2}}, "x.yaml: denoise: expected min_probability from 0 to 1, got 2"),
    ({"denoise": {"min_probability": None}}, "x.yaml: denoise: expected min_probability from 0 to 1, got None"),
    ({"denoise": {"max_rationale_characters": 0}}, "x.yaml: denoise: expected max_rationale_characters of at least 1"),
    ({"prove": {"proofs": 0}}, "x.yaml: prove: expected proofs of at least 1, got 0"),
    ({"prove": {"proofs": None}}, "x.yaml: prove: expected proofs of at least 1, got None"),
    ({"train": None}, "x.yaml: train: expected a section of keys and values, got None"),
    ({"prove": {"temperature": 0}}, "x.yaml: prove: expected a temperature above 0 for 4 proofs, got 0"),
    ({"prove": {"temperature": "hot"}}, "x.yaml: prove: temperature: expected a number from 0 to 100, got 'hot'"),
    ({"train": []}, "x.yaml: train: expected a section of keys and values, got []"),
    ({"train": {"output_dir": "x"}}, "x.yaml: train: output_dir follows from the other keys: leave it out"),
    ({"train": {"streaming": True}}, "x.yaml: train: streaming follows from the other keys"),
    ({"train": {"learning_rat": 1}}, "x.yaml: train: there is no key 'learning_rat'"),
    ({"train": {"learning_rate": -1}}, "x.yaml: train: learning_rate: expected a number above 0, got -1"),
    ({"preset": "none.txt"}, "there is no preset or template file 'none.txt'"),
    ({"dtype": "float8"}, "dtype"),
    ({"device": "cpu,cpu"}, "x.yaml: device: expected one device, got 'cpu,cpu'"),
    ({"device": "gpu"}, "device"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message[:60] for _, message in BAD])
def test_a_bad_configuration_is_one_sentence(change, message):
    with pytest.raises(GramFastError, match=re.escape(message)) as raised:
        SelfTrainConfig.parse({**GOOD, **change}, "x.yaml")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("key", ["output_dir", "judge", "prover", "unlabeled_data", "eval_data", "pairs_per_round"])
def test_what_has_no_default_must_be_given(key):
    with pytest.raises(InputError, match=f"x.yaml: expected a value for {key}"):
        SelfTrainConfig.parse({name: value for name, value in GOOD.items() if name != key}, "x.yaml")


def test_a_file_with_overrides(tmp_path):
    path = tmp_path / "self.yaml"
    path.write_text(yaml.safe_dump(GOOD), "utf-8")
    config = SelfTrainConfig.load(str(path), ["rounds=2", "denoise.min_probability=0.8", "train.learning_rate=1e-5"])
    assert (config.rounds, config.denoise.min_probability, config.unlabeled_data) == (2, 0.8, ["u.jsonl"])
    run, arguments = config.training("out/round-1/model", ["d"], str(path))
    assert (arguments.learning_rate, arguments.seed, arguments.logging_steps, arguments.use_cpu) == (1e-5, 0, 1, True)
    assert (run.model_name_or_path, run.output_dir, run.train_data) == ("j", "out/round-1/model", ["d"])
    with pytest.raises(InputError, match="cannot read the configuration"):
        SelfTrainConfig.load(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="expected key=value, got 'rounds'"):
        SelfTrainConfig.load(str(path), ["rounds"])


def test_what_is_recorded_is_what_is_read_back(tmp_path):
    text = "{run_name: 2024-05-01, max_steps: 1, lr_scheduler_kwargs: {1: 2}}"
    config = SelfTrainConfig.parse({**GOOD, "train": yaml.safe_load(text)}, "x.yaml")
    write_json(tmp_path / "record.json", config.recorded)
    assert read_json(tmp_path / "record.json") == config.recorded
    assert config.recorded["train"]["run_name"] == "2024-05-01"
