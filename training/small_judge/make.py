"""Makes the small judge that ships with the package, from generated data, with the package's own commands.

    python -m gram_fast.training.small_judge.make

Works in the folder small-judge: generates tasks (tasks.py), trains a tokenizer, runs both stages of the recipe `small`,
adapts the result to read each response by itself, too, tests it, and writes the judge in float16 with its model card
into small-judge/judge. After an interruption, the same command resumes.
"""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from pydoc_data.topics import topics
from statistics import mean
from typing import Any, get_args

import torch
from tqdm import tqdm
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from gram_fast.comparing.modes import Mode
from gram_fast.extension import _C
from gram_fast.judge import PairwiseJudge
from gram_fast.text.prompts import PairTemplate
from gram_fast.training.small_judge.chatter import Chatter
from gram_fast.training.small_judge.task import Task, TaskMaker
from gram_fast.training.small_judge.tasks import (
    SEEN,
    SHOWN,
    TRAINED,
    UNSEEN,
    distinct_tasks,
    labeled_row,
    tasks,
    unlabeled_row,
)
from gram_fast.training.small_judge.tokenizer import make_tokenizer
from gram_fast.training.small_judge.wordings import every, held_out

FOLDER = Path("small-judge")
# Pairs for stage 1 and stage 2; pairs of each kind for validation and test.
UNLABELED, LABELED, VALIDATION, TEST = 600_000, 300_000, 20, 100
# Of the preferences, those that are read once more, in both modes.
ADAPTED = 80_000
# Accuracy below which the model card says that the judge guesses.
GUESSED = 0.75

# Short, so that most tokens are the task's; special tokens mark the turns, and there is no thinking mode.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}"""
VOCAB_SIZE = 4096
# 3.1 M parameters, of which 0.8 M are the embedding.
SHAPE = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
}


def make_data(
    folder: Path,
    unlabeled: int = UNLABELED,
    labeled: int = LABELED,
    trained: tuple[TaskMaker, ...] = TRAINED,
    unseen: tuple[TaskMaker, ...] = UNSEEN,
    share_right: float = 1.0,
) -> None:
    """Writes the data, JSON lines; no prompt of a test is in training data, and none of the examples (`SHOWN`).

    pretrain, finetune and validation are of the training, in which kinds are as frequent as in `trained`; test-seen has
    its kinds and its wordings, test-worded its kinds in wordings, both of the prompt and of the responses, that no
    training data has; test-unseen has other kinds. `share_right` of the responses in pretrain are right ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kinds = tuple(dict.fromkeys(trained))
    seen = distinct_tasks(kinds, 1, TEST + VALIDATION)
    per_kind = [seen[start : start + TEST + VALIDATION] for start in range(0, len(seen), TEST + VALIDATION)]
    worded = distinct_tasks(kinds, 5, TEST, held_out)
    without = SHOWN | {task.prompt for task in (*seen, *worded)}
    sampled = partial(unlabeled_row, share_right=share_right)
    files: dict[str, tuple[Iterable[Task], Callable[[Task, random.Random], dict[str, Any]]]] = {
        "test-seen": ((task for some in per_kind for task in some[:TEST]), labeled_row),
        "validation": ((task for some in per_kind for task in some[TEST:]), labeled_row),
        "test-unseen": (distinct_tasks(unseen, 2, TEST, every), labeled_row),
        "finetune": (islice(tasks(trained, 3, without, chatter=Chatter(0.4, 0.1)), labeled), labeled_row),
        # In answers, random words were a third of the loss of stage 1.
        "pretrain": (islice(tasks(trained, 4, without, chatter=Chatter(0.4)), unlabeled), sampled),
        "test-worded": (worded, labeled_row),
    }
    for seed, (name, (of_file, row)) in enumerate(files.items()):
        rng = random.Random(seed)
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            rows = (row(task, rng) for task in tqdm(of_file, desc=name, unit=" rows", disable=None))
            file.writelines(json.dumps(one) + "\n" for one in rows)


def tokenizer_texts(data: Path) -> list[str]:
    """Collects the tokenizer's training texts: tasks, the presets and plain English (Python's help pages)."""
    with open(data / "pretrain.jsonl", encoding="utf-8") as file:
        rows = [json.loads(line) for line in islice(file, 20_000)]
    texts = ["\n".join([row["prompt"], *row["responses"]]) for row in rows]
    literals = ["".join(PairTemplate.load(preset).literals) for preset in ("gram", "gram-demo")]
    # As often as there are tasks: the words of the judge's own prompt are then single tokens, and a sequence of stage 2
    # has 53 tokens instead of 58.
    prompt = ["".join(PairTemplate.load("short").literals)] * len(texts)
    return [*texts, *prompt, *literals, *(topics[name] for name in sorted(topics)[:30])]


def make_base(folder: Path, tokenizer: PreTrainedTokenizerFast, seed: int = 0, **shape: int) -> None:
    """Writes a randomly initialised Qwen3 model of the given shape, and its tokenizer, into `folder`."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        max_position_embeddings=32768,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **shape,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def small_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Trains the small judge's tokenizer."""
    special = ["<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
    return make_tokenizer(texts, VOCAB_SIZE, CHAT_TEMPLATE, special=special, eos="<|end|>", pad="<|pad|>")


def read_labeled_rows(path: Path) -> list[dict[str, Any]]:
    """Reads a file of labeled rows that `make_data` wrote."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def accuracy_by_kind(
    judge: PairwiseJudge, rows: Sequence[dict[str, Any]], mode: Mode = "full"
) -> dict[str, tuple[float, float]]:
    """Tests a judge on labeled rows -> (accuracy, consistency) for each kind of task and for "all".

    Accuracy is that of the mean of both orders; consistency is the share of pairs with the same winner in both.
    """
    pairs = [(row["chosen"], row["rejected"]) for row in rows]
    found: dict[str, list[tuple[float, float]]] = {}
    compared = judge.compare_many([row["prompt"] for row in rows], pairs, mode=mode)
    for row, c in zip(rows, compared, strict=True):
        result = (float(c.p > 0.5), float((c.p_ab > 0.5) == (c.p_ba > 0.5)))  # type: ignore[operator]
        for key in (row["kind"], "all"):
            found.setdefault(key, []).append(result)
    return {key: (mean(right for right, _ in all_), mean(same for _, same in all_)) for key, all_ in found.items()}


def export(model: Path, folder: Path) -> None:
    """Writes model and tokenizer into `folder`, the weights in float16."""
    AutoModelForCausalLM.from_pretrained(model, dtype=torch.float16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model).save_pretrained(folder)


Tested = dict[str, tuple[float, float]]
"""(accuracy, consistency) for each kind of task and for "all"."""


def accuracies(judge: PairwiseJudge, data: Path) -> dict[Mode, dict[str, Tested]]:
    """Tests a judge of both modes on the tests that `make_data` wrote: seen, worded and unseen of each mode."""
    rows = {test: read_labeled_rows(data / f"test-{test}.jsonl") for test in ("seen", "worded", "unseen")}
    return {mode: {test: accuracy_by_kind(judge, some, mode) for test, some in rows.items()} for mode in get_args(Mode)}


def model_card(folder: Path, tested: dict[Mode, dict[str, Tested]]) -> str:
    """Renders the model card: what the judge is, how it was made, how accurate it is and where it guesses.

    `tested`: what `accuracies` found of the judge in `folder`.
    """
    full, factored = tested["full"], tested["factored"]
    worded, unseen = full["worded"], full["unseen"]
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(folder).parameters())
    weak = sorted((accuracy, kind) for kind, (accuracy, _) in (worded | unseen).items() if accuracy < GUESSED)

    def rows(by_kind: Mapping[str, tuple[float, ...]]) -> str:
        cells = {kind: " | ".join(f"{value:.3f}" for value in by_kind[kind]) for kind in sorted(set(by_kind) - {"all"})}
        return "\n".join(f"| {kind} | {values} |" for kind, values in cells.items())

    return CARD.format(
        parameters=parameters / 1e6,
        unlabeled=UNLABELED,
        labeled=LABELED,
        adapted=ADAPTED,
        kinds=len(SEEN),
        seen=(*full["seen"]["all"], *factored["seen"]["all"]),
        worded=(*worded["all"], *factored["worded"]["all"]),
        unseen=(*unseen["all"], *factored["unseen"]["all"]),
        per_kind=TEST,
        below=GUESSED,
        guessed=", ".join(f"`{kind}` ({accuracy:.2f})" for accuracy, kind in weak if kind != "all") or "none",
        table=rows({kind: (full["seen"][kind][0], *worded[kind], factored["worded"][kind][0]) for kind in worded}),
        table_unseen=rows({kind: (*unseen[kind], factored["unseen"][kind][0]) for kind in unseen}),
    )


CARD = """\
---
license: apache-2.0
---
# gram_fast's small judge

A generative pairwise reward model of {parameters:.1f} M parameters (Qwen3's architecture, float16), trained from
nothing with gram_fast's own commands. It is there to try gram_fast and to test it; it knows some small tasks in
English, those with a high accuracy in the tables below, and it is no judge of real answers: there it guesses.

**How it was made.** `python -m gram_fast.training.small_judge.make`: {unlabeled:,} unlabeled pairs for stage 1,
{labeled:,} preferences for stage 2, each seen once, all generated, of {kinds} kinds of tasks whose answer can be
verified (training/small_judge/tasks.py): sums, sorting, edits, formats, facts of a passage, each asked and answered in
a dozen ways or more, some of them among random words. Sums, lookups and the copying that lookups are learned from come
more often than the others in both stages. In stage 2 it also learns to write the better response (`lm_weight`). Then
the first {adapted:,} preferences are read once more, each in mode "full" or "factored" (`mode: both`), so that it
judges in both. Its prompt is the preset `short`, recorded in config.json.

**How good it is.** Of each kind, {per_kind} prompts that are in no training data (where a kind has few questions, as
`month`, the same question may be there in other words), with one right response and a wrong one that is well formed and
right for another prompt: a linear classifier that sees the responses alone stays near chance. A fifth of the ways to
ask and to answer is never trained. Kinds never seen ask of other material, or in another story, for something that the
training teaches. On the mean of both orders, in mode "full" and in mode "factored":

| test | accuracy | same winner in both orders | factored: accuracy | same winner |
|---|---|---|---|---|
| kinds of the training, in its wordings | {seen[0]:.3f} | {seen[1]:.3f} | {seen[2]:.3f} | {seen[3]:.3f} |
| kinds of the training, in other wordings | {worded[0]:.3f} | {worded[1]:.3f} | {worded[2]:.3f} | {worded[3]:.3f} |
| kinds never seen | {unseen[0]:.3f} | {unseen[1]:.3f} | {unseen[2]:.3f} | {unseen[3]:.3f} |

**Where it guesses.** In mode "full", kinds with an accuracy below {below} in other wordings, or never seen: {guessed}.

Kinds of the training:

| kind | accuracy | in other wordings | same winner in both orders | factored, in other wordings |
|---|---|---|---|---|
{table}

Kinds never seen in training:

| kind | accuracy | same winner in both orders | factored |
|---|---|---|---|
{table_unseen}
"""


def _train(stage: str, folder: Path, *more: str) -> None:
    """Runs a stage of the recipe into `folder`, with `more` of its keys, unless it has been."""
    if not (folder / "model.safetensors").exists():
        gpu = torch.cuda.is_available()
        # A core with AVX-512 alone computes 85 GFLOP/s in bfloat16 and 160 in float32 (products of these shapes).
        overrides = ["resume_from_checkpoint=true", f"use_cpu={not gpu}", f"bf16={gpu or _C.has_amx()}", *more]
        command = [sys.executable, "-m", "gram_fast.cli", "train", stage, "small", *overrides]
        if code := subprocess.run(command).returncode:
            sys.exit(code)  # it has said why


def main() -> None:
    """Runs every step whose output does not exist yet."""
    data, base, judge = FOLDER / "data", FOLDER / "base", FOLDER / "judge"
    if not (data / "pretrain.jsonl").exists():
        make_data(data)
    if not (base / "config.json").exists():
        make_base(base, small_tokenizer(tokenizer_texts(data)), **SHAPE)
    finetuned, adapted = FOLDER / "finetune", FOLDER / "both-modes"
    _train("pretrain", FOLDER / "pretrain")
    _train("finetune", finetuned)
    of_adapting = ("mode=both", f"max_samples={ADAPTED}", "learning_rate=5e-4")
    _train("finetune", adapted, f"model_name_or_path={finetuned}", f"output_dir={adapted}", *of_adapting)
    export(adapted, judge)
    tested = accuracies(PairwiseJudge.from_pretrained(judge), data)
    (judge / "README.md").write_text(model_card(judge, tested), "utf-8")
    for mode, found in tested.items():
        told = ", ".join(f"{test} {by_kind['all'][0]:.3f}" for test, by_kind in found.items())
        print(f"{judge}, mode {mode}: accuracy {told}")


if __name__ == "__main__":
    main()
