"""benchmarks/real_judge: what is chosen within a limit, inputs that are nested, and one tiny run that is stopped."""

import io
import json
import lzma
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.small_training import write_checkpoint
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from benchmarks.real_judge import run as running
from benchmarks.real_judge.inputs import CANDIDATES, Inputs, Sizes, prepare
from benchmarks.real_judge.report import plot, tables
from benchmarks.real_judge.run import OutOfTimeError, Runner, TrialError, launch, read_records
from benchmarks.real_judge.scoring import Generative
from benchmarks.real_judge.speed import Speeds, flops_a_token
from benchmarks.real_judge.trials import Plan, Trial, choose, open_sizes
from gram_fast.errors import InputError
from gram_fast.training.config import RunConfig, Stage
from gram_fast.training.train import train

pytestmark = pytest.mark.usefixtures("one_thread")

TRIALS = (
    Trial("zero-shot"),
    Trial("stage 2", 8),
    Trial("stage 1", 16),
    Trial("two stages", 8),
    Trial("scalar head", 8),
    Trial("stage 2", 8, smoothing=0.0),
    Trial("stage 2", 8, both_modes=True),
)
PLAN = Plan(
    Sizes(8, 16, {"dev": 3, "rmbench": 1, "judgebench": 2}, max_tokens=300, max_test_tokens=300, groups=2),
    TRIALS,
    {
        "cutoff_len": 300, "use_cpu": True, "per_device_train_batch_size": 4,
        "learning_rate": 1e-2, "disable_tqdm": True,
    },
    judge={"device": "cpu", "dtype": "float32"},
    probe_steps=1,
)  # fmt: skip


def cost(trial: Trial) -> float:
    return 10.0 + trial.pairs


def planned(seconds: float, done: Sequence[Trial] = ()) -> list[Trial]:
    """What is run one after the other, where every trial takes as long as it is estimated to."""
    chosen: list[Trial] = []
    while (trial := choose(TRIALS, {*done, *chosen}, cost, seconds - sum(map(cost, chosen)))) is not None:
        chosen.append(trial)
    return chosen


def test_with_time_for_all_the_order_is_the_plans() -> None:
    assert planned(1000) == list(TRIALS)
    assert planned(1000, TRIALS[:4]) == list(TRIALS[4:])
    assert planned(1000, TRIALS) == []


@given(seconds=st.floats(0, 200), done=st.sets(st.sampled_from(TRIALS)))
def test_the_limit_is_kept_and_nothing_is_run_twice(seconds: float, done: set[Trial]) -> None:
    chosen = planned(seconds, tuple(done))
    assert sum(map(cost, chosen)) <= seconds
    assert len({*chosen, *done}) == len(chosen) + len(done)
    for number, trial in enumerate(chosen):
        before = {*done, *chosen[:number]}
        if trial.method == "two stages":
            assert any(other.method == "stage 1" for other in before)


def test_a_trial_that_does_not_fit_gets_fewer_pairs() -> None:
    assert planned(10 + 15) == [Trial("zero-shot"), Trial("stage 2", 4)]
    assert planned(10 + 13) == [Trial("zero-shot"), Trial("stage 2", 2)]
    assert planned(10 + 11) == [Trial("zero-shot")]
    # More time later: the whole trial is run, and none that is smaller than one that is done.
    assert choose(TRIALS[1:2], {Trial("stage 2", 4)}, cost, 18) == Trial("stage 2", 8)
    assert choose(TRIALS[1:2], {Trial("stage 2", 4)}, cost, 17) is None
    assert list(open_sizes(Trial("zero-shot"), {Trial("zero-shot")})) == []


def test_stage_1_waits_until_two_stages_fit() -> None:
    stage_1, two_stages = TRIALS[2:4]
    assert choose((stage_1, two_stages), (), cost, 26 + 18) == stage_1
    assert choose((stage_1, two_stages), (), cost, 26 + 17) == Trial("stage 1", 8)
    assert choose((stage_1, two_stages), (), cost, 20) is None
    assert choose((stage_1, two_stages, Trial("two stages", 2)), (), cost, 26 + 12) == stage_1
    assert choose((stage_1, two_stages), {Trial("stage 1", 8)}, cost, 100) == two_stages


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts whose better answer has the word "good", in the folders and formats of the real data."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "alpaca_eval").mkdir()

    def write(name: str, rows: Sequence[dict[str, Any]]) -> None:
        with lzma.open(folder / "alpaca_eval" / f"{name}.jsonl.xz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    for split in ("train", "dev"):
        answers = {"x": "good", "y": "bad", "z": "bad " * 400, **{f"{n}": "so " * n for n in range(1, 8)}}
        write(
            f"{split}.responses",
            [{"prompt_id": n, "prompt": f"{split} {n}?", "responses": answers} for n in range(8)],
        )
        pairs = [{"prompt_id": n, "chosen": "x", "rejected": other} for n in range(8) for other in "yz"]
        write(f"{split}.pairs", pairs)
    row = {"id": "1", "domain": "chat", "prompt": "Q?", "chosen": ["good"] * 3, "rejected": ["bad"] * 3}
    (folder / "rmbench_chat.json").write_text(json.dumps([row]))
    pair = {"prompt": "Q?", "chosen": "good", "rejected": "bad", "source": "livecodebench"}
    (folder / "judgebench_gpt.json").write_text(json.dumps([pair] * 3))
    return folder


@pytest.fixture(scope="module")
def inputs(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    base = write_checkpoint(tmp_path_factory.mktemp("base"), tie_word_embeddings=True)
    return prepare(tmp_path_factory.mktemp("inputs") / "inputs", source, base, PLAN.sizes)


def test_inputs_fit_and_are_counted(inputs: Inputs) -> None:
    rows = [json.loads(line) for line in inputs.data("finetune").read_text().splitlines()]
    assert len(rows) == 8
    assert {row["rejected"] for row in rows} == {"bad"}, "the long answers do not fit"
    for stage, count, sequences in (("finetune", 8, 2), ("scalar", 8, 2), ("pretrain", 16, 1)):
        assert inputs.lengths(stage).shape == (count, sequences)
    assert inputs.described["tests"]["rmbench"]["pairs"] == 9
    assert [len(inputs.test(name)) for name in ("dev", "rmbench", "judgebench")] == [3, 9, 2]
    groups = inputs.groups()
    assert len(groups) == 2
    for group in groups:
        assert group["prompt"].startswith("dev ")
        assert len(set(group["candidates"])) == CANDIDATES
        assert "bad " * 400 not in group["candidates"], "the long answers do not fit"


def test_fewer_labels_are_the_first_of_more(source: Path, inputs: Inputs, tmp_path: Path) -> None:
    fewer = prepare(tmp_path, source, inputs.base, Sizes(3, 4, {}, max_tokens=300, max_test_tokens=300, seed=0))
    part, whole = (found.data("finetune").read_text() for found in (fewer, inputs))
    assert part
    assert whole.startswith(part)
    np.testing.assert_array_equal(fewer.lengths("finetune"), inputs.lengths("finetune")[:3])


def test_inputs_of_other_sizes_are_not_taken(source: Path, inputs: Inputs) -> None:
    assert prepare(inputs.folder, source, inputs.base, PLAN.sizes) == inputs
    with pytest.raises(InputError, match="expected inputs of these sizes"):
        prepare(inputs.folder, source, inputs.base, replace(PLAN.sizes, max_tokens=299))


def test_a_stage_that_was_not_measured_is_estimated_by_another(tmp_path: Path) -> None:
    speeds = Speeds(tmp_path / "speeds.json")
    assert not speeds.knows_training
    assert speeds.training("finetune", 1000) == speeds.tests(Trial("stage 2", 8)) == 0
    speeds.keep("judge", seconds=20)
    assert not speeds.knows_training
    speeds.keep("finetune", tokens_a_second=100, start=5)
    again = Speeds(tmp_path / "speeds.json")
    assert again.knows_training
    assert 15 < again.training("finetune", 1000) < again.training("pretrain", 1000) < 30
    again.keep("pretrain", tokens_a_second=50, start=5)
    assert 25 < again.training("pretrain", 1000) < 30
    assert again.tests(Trial("stage 1", 8)) == 0
    assert 20 < again.tests(Trial("stage 2", 8)) == again.tests(Trial("scalar head", 8))
    again.keep("scalar head", seconds=2)
    assert again.tests(Trial("scalar head", 8)) < 4
    both = Trial("stage 2", 8, both_modes=True)
    assert 40 < again.tests(both) < 80
    again.keep("judge in both modes", seconds=30)
    assert 30 < again.tests(both) < 40


@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
def test_operations_are_those_that_torch_counts(stage: Stage, inputs: Inputs) -> None:
    model = AutoModelForCausalLM.from_pretrained(inputs.base, attn_implementation="eager").eval()
    length = 7
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        ids = torch.zeros((1, length), dtype=torch.int64)
        model(input_ids=ids) if stage == "pretrain" else model.model(input_ids=ids)
    config = model.config
    masked = config.num_hidden_layers * 2 * config.num_attention_heads * config.head_dim * length**2
    expected = 3 * (counter.get_total_flops() - masked) / length  # with the backward
    assert flops_a_token(stage, inputs.config, np.array([[length]])) == pytest.approx(expected, rel=0.01)


def in_this_process(arguments: Sequence[str], log: Path, seconds: float) -> str:
    """`launch` without a new process, which would import torch again."""
    _, stage, config, *overrides = arguments
    with redirect_stdout(io.StringIO()) as printed:
        train(stage, *RunConfig.load(config, stage, overrides))  # type: ignore[arg-type]
    return printed.getvalue()


def test_a_run_ends_with_records_and_goes_on_where_it_was_stopped(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trials = [trial for trial in TRIALS if trial.method != "stage 2" or trial.both_modes]
    two_stages = trials[2]
    assert two_stages.method == "two stages"
    plan = replace(PLAN, trials=trials)
    monkeypatch.setattr(running, "_BETWEEN_CHECKPOINTS", 1e-9)  # after every step
    monkeypatch.setattr(running, "launch", in_this_process)
    Runner(tmp_path, inputs, plan, seconds=0).run()
    assert read_records(tmp_path) == []

    def interrupted(arguments: Sequence[str], log: Path, seconds: float) -> str:
        printed = in_this_process(arguments, log, seconds)
        if log.name == f"{two_stages.name}.log":
            (tmp_path / two_stages.name / "model.safetensors").unlink()
            raise OutOfTimeError("as if the limit had come before the model was written")
        return printed

    monkeypatch.setattr(running, "launch", interrupted)
    Runner(tmp_path, inputs, plan, seconds=600).run()
    assert [running.trial_of(record) for record in read_records(tmp_path)] == trials[:2]

    commands = []
    monkeypatch.setattr(running, "launch", lambda *given: (commands.append(given[0]), in_this_process(*given))[1])
    ranked: list[str] = []
    orders = Generative.orders

    def orders_until_the_limit(self: Generative, group: dict[str, Any]) -> list[tuple[int, ...]]:
        ranked.append(group["prompt"])
        if len(ranked) == 2:
            raise OutOfTimeError("as if the limit had come while the second group was ranked")
        return orders(self, group)

    monkeypatch.setattr(Generative, "orders", orders_until_the_limit)
    Runner(tmp_path, inputs, plan, seconds=600).run()
    assert "resume_from_checkpoint=true" in commands[0]
    assert [running.trial_of(record) for record in read_records(tmp_path)] == trials[:4]
    Runner(tmp_path, inputs, plan, seconds=600).run()
    first, second, again = ranked
    assert (second, again) == (inputs.groups()[1]["prompt"],) * 2
    assert first == inputs.groups()[0]["prompt"]
    records = read_records(tmp_path)
    assert [running.trial_of(record) for record in records] == trials
    zero_shot, stage_1, two, scalar, both = records
    assert [bool(record["tests"]) for record in records] == [True, False, True, True, True]
    assert [record["training"] is None for record in records] == [True, False, False, False, False]
    assert [record["unlabeled"] for record in records] == [0, 0, 16, 0, 0]
    assert [bool(record["factored"]) for record in records] == [False, False, False, False, True]
    assert two["training"]["tokens"] < inputs.lengths("finetune").sum(), "what was done before does not count"
    assert scalar["tests"]["dev"]["consistency"] is None
    assert 0 <= zero_shot["tests"]["rmbench"]["hard"] <= 1
    assert both["tests"] != both["factored"]["tests"]
    assert both["factored"]["groups"]["count"] == 2
    for name, parts in both["factored"]["agreement"].items():
        assert parts["all"]["full"] == both["tests"][name]["accuracy"]
        assert parts["all"]["factored"] == both["factored"]["tests"][name]["accuracy"]
    printed = tables(records)
    assert f"| stage 1, {stage_1['pairs']} pairs |" in printed
    assert printed.count("| stage 2, 8 labels, both modes, read factored |") == 3
    assert "| stage 2, 8 labels, both modes | 2 |" in printed
    plot(records, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 10_000

    before = (tmp_path / "records.jsonl").read_text()
    Runner(tmp_path, inputs, plan, seconds=600).run()
    assert (tmp_path / "records.jsonl").read_text() == before


def test_a_command_is_interrupted_at_the_limit(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OutOfTimeError, match=r"trial-0\.1 goes on from its last checkpoint"):
        launch(["train", "recipes"], tmp_path / "trial-0.1.log", seconds=0)
    with pytest.raises(TrialError, match="failed with exit code 2"):
        launch(["train", "finetune", str(tmp_path / "absent.yaml")], tmp_path / "trial-0.1.log", seconds=3600)
    assert "absent.yaml" in capfd.readouterr().err
