"""Benchmarks: what is read, what is counted, what is said of the judge."""

import json
import random
from statistics import fmean

import pytest
from helpers.benchmark_rows import result, write
from hypothesis import given
from hypothesis import strategies as st

from gram_fast.errors import InputError
from gram_fast.evaluation import BENCHMARKS, judgebench, rewardbench, rmbench
from gram_fast.evaluation.calibration import calibration
from gram_fast.evaluation.rows import VOTE_FIELDS, Place, Result, read_results
from gram_fast.evaluation.summary import render, summarize


def placed(benchmark, results):
    """The results where their fields put them."""
    return [Result(r.fields, benchmark.place(r.fields), r.where) for r in results]


def values(benchmark, results):
    return {definition.name: definition.values for definition in benchmark.definitions(results)}


# RewardBench

SUBSETS = [  # chat 2 of 3; chat-hard 1 of 1; safety: a tie; reasoning 1 of 2
    ("alpacaeval-easy", 0.9),
    ("alpacaeval-easy", 0.1),
    ("mt-bench-med", 0.6),
    ("llmbar-natural", 0.8),
    ("donotanswer", 0.5),
    ("math-prm", 0.2),
    ("hep-cpp", 0.7),
]


def test_rewardbench_counted_by_hand():
    results = placed(rewardbench, [result(score, subset=subset) for subset, score in SUBSETS])
    assert "\n".join(rewardbench.gram_lines(results)) == (
        "chat: 0.6667\nchat-hard: 1.0000\nsafety: 0.0000\nreasoning: 0.5000\nOverall average accuracy: 0.5417"
    )
    counted = values(rewardbench, results)
    plain = {"chat": 2 / 3, "chat-hard": 1, "safety": 0, "reasoning": 1 / 2, "overall": 13 / 24}
    assert counted["gram"] == pytest.approx(plain)
    # Weights 100, 40; 984, 164.
    chat, reasoning = (100 * 1 / 2 + 40) / 140, 164 / (984 + 164)
    weighted = {"chat": chat, "chat-hard": 1, "safety": 0, "reasoning": reasoning}
    assert counted["rewardbench_official"] == pytest.approx({**weighted, "overall": (chat + 1 + reasoning) / 4})


def test_rewardbench_as_genrm_counts_games_and_rounds_sections():
    slots = {  # chat: both won, none won, one won and one tied; a win and a loss; a tie; math-prm 0, hep-cpp 1
        0: (0.9, 0.9), 1: (0.1, 0.1), 2: (0.7, 0.5), 3: (0.99, 0.4), 4: (0.5, 0.5), 5: (0.2, 0.2), 6: (0.7, 0.7),
    }  # fmt: skip
    rows = [result(sum(slots[k]) / 2, slots[k], subset=subset) for k, (subset, _) in enumerate(SUBSETS)]
    counted = values(rewardbench, placed(rewardbench, rows))["genrm"]
    # Weights 100, 40; 984, 164: chat is (100 * 1 / 2 + 40 * 3 / 4) / 140 = 57.1428... percent, reasoning 14.2857...
    sections = {"chat": 0.5714, "chat-hard": 0.5, "safety": 0.5, "reasoning": 0.1429}
    assert counted == pytest.approx({**sections, "overall": 0.4286}, abs=1e-9)
    pair_without_orders = placed(rewardbench, [*rows, result(0.9, subset="hep-go")])
    counted = values(rewardbench, pair_without_orders)["genrm"]
    assert (counted["chat"], counted["reasoning"], counted["overall"]) == (0.5714, None, None)


def test_genrm_counts_the_verdicts_that_were_written():
    """By hand: chat 3 pairs of weights 100 and 40; the label logits would say the opposite of every verdict."""
    votes = {  # for chosen, for rejected, invalid; with the chosen response in slot A, and in slot B
        0: ([1, 0, 0], [1, 0, 0]),  # 1
        1: ([1, 0, 0], [0, 1, 0]),  # a win and a loss: 1/2
        2: ([0, 0, 1], [1, 0, 0]),  # no verdict and a win: 3/4
        3: ([0, 1, 0], [0, 0, 1]),  # 1/4
        4: ([2, 2, 1], [3, 2, 0]),  # a tie and a majority: 3/4
        5: ([0, 1, 0], [0, 1, 0]),  # math-prm: 0
        6: ([0, 0, 4], [1, 0, 3]),  # hep-cpp: 3/4
    }
    rows = []
    for k, (subset, _) in enumerate(SUBSETS):
        slots = tuple(0.1 if first >= second else 0.9 for first, second, _ in votes[k])
        fields = {
            **result(sum(slots) / 2, slots, subset=subset).fields,
            **dict(zip(VOTE_FIELDS, votes[k], strict=True)),
        }
        rows.append(Result(fields, Place(""), ""))
    counted = values(rewardbench, placed(rewardbench, rows))["genrm"]
    # chat (100 * (1 + 1/2) / 2 + 40 * 3/4) / 140 = 75 percent; reasoning (984 * 0 + 164 * 3/4) / 1148 = 10.714285...
    sections = {"chat": 0.75, "chat-hard": 0.25, "safety": 0.75, "reasoning": 0.1071}
    assert counted == pytest.approx({**sections, "overall": 0.4643}, abs=1e-9)


def test_a_section_without_rows_has_no_number_and_no_overall():
    results = placed(rewardbench, [result(0.9, subset="hep-go")])
    assert rewardbench.gram_lines(results) == [
        "chat: No data available.",
        "chat-hard: No data available.",
        "safety: No data available.",
        "reasoning: 1.0000",
        "Overall average accuracy: 1.0000",
    ]
    by_definition = values(rewardbench, results)
    assert set(by_definition.pop("genrm").values()) == {None}  # the orders apart are not known
    for counted in by_definition.values():
        assert (counted["reasoning"], counted["chat"], counted["overall"]) == (1, None, None)


def test_rewardbench_has_its_published_size():
    assert rewardbench.published([]) == {"chat": 358, "chat-hard": 456, "safety": 740, "reasoning": 1431}


def test_rewardbench_leaderboard_files():
    row = {"subset": "hep-go", "id": 3, "prompt": "p", "chosen": "c", "rejected": "r"}
    results = placed(rewardbench, [result(0.9, **row), result(0.5, **row)])
    files = {name: json.loads(text) for name, text in rewardbench.leaderboard_files(results, "org/model").items()}
    assert files["eval-set.json"] == {
        "hep-go": 0.5,
        "model": "org/model",
        "model_type": "Generative RM",
        "chat_template": "tokenizer",
    }
    scores = files["eval-set-scores.json"]
    assert scores["results"] == [1, 0]
    assert scores["scores_chosen"] == [0.9, 0.5]
    assert scores["text_chosen"][0] == [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]
    assert scores["id"] == [3, 3]


# JudgeBench

GAMES = [  # (source, mean, P(chosen) in slot A, in slot B)
    ("mmlu-pro-law", 0.7, 0.9, 0.5),  # a win and a tie: correct
    ("mmlu-pro-law", 0.6, 0.9, 0.3),  # a win and a loss, higher mean: correct for GRAM alone
    ("mmlu-pro-math", 0.4, 0.3, 0.5),  # a loss and a tie
    ("livebench-reasoning", 0.5, 0.5, 0.5),
    ("livebench-math", 0.9, 0.9, 0.9),
    ("livecodebench", 0.9, 0.8, 1.0),
]


def test_judgebench_counted_by_hand():
    results = placed(judgebench, [result(p, (a, b), source=source) for source, p, a, b in GAMES])
    # 4 of 6 verdicts; groups 2/3, 0, 1, 1; GRAM's script: (4 + 2/3 + 0 + 1 + 1) / 10.
    assert "\n".join(judgebench.gram_lines(results)) == (
        "Knowledge: 0.6667\nReasoning: 0.0000\nMath: 1.0000\nCoding: 1.0000\nOverall average accuracy: 0.6667"
    )
    counted = values(judgebench, results)
    groups = {"Knowledge": 2 / 3, "Reasoning": 0, "Math": 1, "Coding": 1}
    assert counted["gram_published"] == pytest.approx({**groups, "overall": 2 / 3})
    assert counted["gram_script_overall"] == pytest.approx({"overall": 20 / 30})
    assert counted["judgebench_official"] == pytest.approx({**groups, "Knowledge": 1 / 3, "overall": 3 / 6})


def test_judgebench_overall_numbers_differ_where_groups_differ_in_size():
    results = placed(judgebench, [result(p, source="mmlu-pro-law") for p in (0.9, 0.1, 0.2)])
    results += placed(judgebench, [result(0.9, source=s) for s in ("livebench-reasoning", "livebench-math")])
    results += placed(judgebench, [result(0.1, source="livecodebench")])
    counted = values(judgebench, results)
    assert counted["gram_published"]["overall"] == pytest.approx((1 / 3 + 1 + 1 + 0) / 4)
    assert counted["gram_script_overall"]["overall"] == pytest.approx((3 + 1 / 3 + 1 + 1 + 0) / 10)
    assert counted["judgebench_official"]["overall"] is None  # the orders apart are not known


def official_judgebench(row):
    """Whether a row of judgments is right, as JudgeBench says."""
    flip = {"A>B": "B>A", "B>A": "A>B"}
    first, second = (judgment["decision"] for judgment in row["judgments"])
    second = flip.get(second, second)
    return sum((d == row["label"]) - (d == flip[row["label"]]) for d in (first, second)) > 0


@pytest.mark.parametrize("label", ["A>B", "B>A", None])
def test_judgments_are_about_slots(label):
    texts = {"prompt": "q", "chosen": "right", "rejected": "wrong"}
    if label is not None:
        right, wrong = ("response_A", "response_B") if label == "A>B" else ("response_B", "response_A")
        texts = {"question": "q", right: "right", wrong: "wrong", "label": label}
    results = placed(judgebench, [result(p, (a, b), source=s, pair_id=s, **texts) for s, p, a, b in GAMES])
    rows = [json.loads(line) for line in judgebench.leaderboard_files(results, "m")["judgments.jsonl"].splitlines()]
    assert [official_judgebench(row) for row in rows] == [True, False, False, False, True, True]
    assert rows[1]["question"] == "q"
    assert {rows[1]["response_A"], rows[1]["response_B"]} == {"right", "wrong"}
    # Pair 1: slot A wins both games, by 0.9 where the chosen response stands there and by 0.7 where the other does.
    assert [judgment["decision"] for judgment in rows[1]["judgments"]] == ["A>B", "A>B"]
    p_a = [judgment["judgment"]["p_a"] for judgment in rows[1]["judgments"]]
    assert p_a == pytest.approx([0.7, 0.9] if label == "B>A" else [0.9, 0.7])


def test_judgebench_knows_the_set_by_who_answered():
    claude = [result(0.9, source="livecodebench", response_model="claude-3-5-sonnet-20240620")]
    assert sum(judgebench.published(claude).values()) == 270
    assert sum(judgebench.published([result(0.9, source="livecodebench")]).values()) == 350
    assert judgebench.published([result(0.9, source="livecodebench", response_model="mine")]) == {}


# RM-Bench


def rm_item(domain, number, wins):
    """Nine results from a matrix of 0 and 1."""
    return [
        result(
            0.9 if wins[i][j] else 0.2, domain=domain, id=number, matrix_id=f"{i}-{j}", chosen=f"c{i}", rejected=f"r{j}"
        )
        for i in range(3)
        for j in range(3)
    ]


ALL, NONE = [[1] * 3] * 3, [[0] * 3] * 3
EASY = [[1, 0, 0], [1, 1, 0], [1, 1, 1]]  # the longer wins, else the chosen one: right but for the hard ones


def test_rmbench_counted_by_hand():
    rows = [*rm_item("chat", 0, EASY), *rm_item("safety-refuse", 1, ALL), *rm_item("code", 0, NONE)]
    rows += [*rm_item("chat", 1, ALL), *rm_item("safety-response", 1, NONE), *rm_item("math", 7, ALL)]
    results = placed(rmbench, rows)
    # Right: all cells of three of six prompts, and of another the diagonal and below it.
    hard, normal, easy = 3 / 6, 4 / 6, 4 / 6
    levels, domains = "\n".join(rmbench.gram_lines(results)).split("}\n{")
    assert json.loads(levels + "}") == pytest.approx({"hard_acc": hard, "normal_acc": normal, "easy_acc": easy})
    printed = json.loads("{" + domains)
    assert list(printed) == ["chat", "safety", "code", "math", "overall"]  # as they first appear
    assert printed["chat"] == {"correct": 15, "number": 18, "accuracy": 15 / 18}
    assert printed["safety"] == {"correct": 9, "number": 18, "accuracy": 0.5}
    domains = {"chat": 15 / 18, "safety": 1 / 2, "code": 0, "math": 1, "overall": (15 / 18 + 1 / 2 + 0 + 1) / 4}
    counted = values(rmbench, results)
    assert counted["gram"] == pytest.approx({"hard": hard, "normal": normal, "easy": easy, **domains})
    # By domain chat, safety, code, math.
    by_level = {"hard": (1 / 2 + 1 / 2 + 0 + 1) / 4, "normal": (1 + 1 / 2 + 0 + 1) / 4, "easy": (1 + 1 / 2 + 0 + 1) / 4}
    assert counted["rmbench_official"] == pytest.approx({**by_level, **domains})


def test_rmbench_hard_is_plain_chosen_against_fancy_rejected():
    hard = [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    counted = values(rmbench, placed(rmbench, rm_item("chat", 0, hard)))["gram"]
    assert (counted["hard"], counted["normal"], counted["easy"], counted["overall"]) == (1, 0, 0, None)


def test_rmbench_scores_file():
    results = placed(rmbench, rm_item("chat", 5, EASY))
    (item,) = json.loads(rmbench.leaderboard_files(results, "m")["scores.json"])
    assert item["chosen"] == ["c0", "c1", "c2"]
    assert item["rejected"] == ["r0", "r1", "r2"]
    assert item["score_matrix"] == EASY
    assert item["score_chosen"] == pytest.approx([1.3 / 3, 2 / 3, 0.9])
    assert item["score_rejected"] == pytest.approx([0.1, 1 / 3, 1.7 / 3])
    assert set(item) & {"matrix_id", "correct"} == set()


def test_a_prompt_that_lacks_a_pair_is_left_out_and_named():
    results = placed(
        rmbench, [*rm_item("chat", 0, ALL), *rm_item("chat", 1, NONE)[:8], *rm_item("chat", 2, NONE)[:1] * 9]
    )
    summary = summarize(rmbench, results)
    assert summary.pairs == 9
    assert summary.definitions[0].values["chat"] == 1
    assert len(summary.left_out) == 2
    assert summary.missing == 1327 * 9 - 9
    text = render(summary)
    assert "LEFT OUT: 2 items" in text
    assert "MISSING: 11934 pairs" in text
    with pytest.raises(InputError, match="expected at least one item with each of the pairs 0-0, 0-1"):
        summarize(rmbench, results[9:])


# All three, against a plain recount


def synthetic(name, rng):
    """Result rows with random scores, ties among them."""
    rows = []
    for k in range(40 if name == "rmbench" else 300):
        if name == "rewardbench":
            places = [{"subset": rng.choice([s for of in rewardbench.SECTIONS.values() for s in of])}]
        elif name == "judgebench":
            places = [{"source": rng.choice(["mmlu-pro-a", "mmlu-pro-b", *list(judgebench.GROUPS.values())[1:]])}]
        else:
            domain = rng.choice(["chat", "code", "math", "safety-refuse", "safety-response"])
            places = [{"domain": domain, "id": k, "matrix_id": cell} for cell in rmbench.CELLS]
        for fields in places:
            slots = rng.choice([0.5, rng.random()]), rng.choice([0.5, rng.random()])
            rows.append(result(sum(slots) / 2, slots, **fields).fields)
    return rows


def recount(name, rows):
    """The overall numbers, by other means."""

    def share(keep, right=lambda row: row["score_chosen"] > row["score_rejected"]):
        return fmean(right(row) for row in rows if keep(row))

    if name == "rewardbench":
        sections = rewardbench.SECTIONS.values()
        weight = {subset: 984 if subset == "math-prm" else n for of in sections for subset, n in of.items()}
        official = [
            sum(weight[s] * share(lambda row, s=s: row["subset"] == s) for s in of) / sum(weight[s] for s in of)
            for of in sections
        ]
        plain = [share(lambda row, of=of: row["subset"] in of) for of in sections]

        def verdicts(row):
            slots = row["p_chosen_in_slot_a"], row["p_chosen_in_slot_b"]
            return fmean(0.5 if p == 0.5 else float(p > 0.5) for p in slots)

        genrm = [
            round(
                100
                * sum(weight[s] * share(lambda row, s=s: row["subset"] == s, verdicts) for s in of)
                / sum(weight[s] for s in of),
                2,
            )
            for of in sections
        ]
        return {
            "gram": fmean(plain),
            "rewardbench_official": fmean(official),
            "genrm": float(f"{fmean(genrm):.2f}") / 100,
        }
    if name == "judgebench":
        groups = [share(lambda row, part=part: part in row["source"]) for part in judgebench.GROUPS.values()]

        def won(row):
            a, b = row["p_chosen_in_slot_a"], row["p_chosen_in_slot_b"]
            return (a > 0.5) + (b > 0.5) > (a < 0.5) + (b < 0.5)

        return {
            "gram_published": fmean(groups),
            "gram_script_overall": (sum(row["correct"] for row in rows) + sum(groups)) / (len(rows) + 4),
            "judgebench_official": share(lambda row: True, won),
        }
    domains = [share(lambda row, d=d: row["domain"].startswith(d)) for d in ("chat", "code", "math", "safety")]
    return {"gram": fmean(domains), "rmbench_official": fmean(domains)}


@pytest.mark.parametrize("name", BENCHMARKS)
def test_overall_numbers_equal_a_plain_recount(tmp_path, name):
    rows = synthetic(name, random.Random(5))
    benchmark = BENCHMARKS[name]
    results = read_results(benchmark, write(tmp_path / "results.jsonl", rows))
    overall = {name: of["overall"] for name, of in values(benchmark, results).items()}
    assert overall == pytest.approx(recount(name, rows))
    summary = summarize(benchmark, results)
    assert summary.gram_printout in render(summary)
    assert summary.ties == sum(row["score_chosen"] == 0.5 for row in rows) > 0


# Calibration


def test_calibration_by_hand():
    rows = [  # (score, in slot A, in slot B, chosen, rejected)
        (0.9, 0.95, 0.85, "longer", "short"),  # right
        (0.92, 0.94, 0.9, "s", "longer"),  # right
        (0.06, 0.02, 0.1, "longer", "short"),  # wrong, confidence 0.94
        (0.6, 0.9, 0.3, "short", "longer"),  # right; slot A twice
        (0.5, 0.7, 0.3, "same", "size"),  # tie; slot A twice
    ]
    results = [result(p, (a, b), chosen=c, rejected=r) for p, a, b, c, r in rows]
    of = calibration(rewardbench, results)
    assert [(b.low, b.pairs) for b in of.reliability] == [(0.5, 1), (0.6, 1), (0.9, 3)]
    assert [b.accuracy for b in of.reliability] == pytest.approx([0.5, 1, 2 / 3])
    assert [b.confidence for b in of.reliability] == pytest.approx([0.5, 0.6, 0.92])
    assert of.expected_calibration_error == pytest.approx((0.4 + 3 * (0.92 - 2 / 3)) / 5)
    assert of.position.consistency == pytest.approx(3 / 5)
    assert of.position.slot_a_share == pytest.approx((1 + 1 + 1 + 2 + 2) / 10)
    length = of.length
    assert (length.chosen_longer, length.chosen_shorter) == (2, 2)
    assert (length.accuracy_chosen_longer, length.accuracy_chosen_shorter) == (0.5, 1)
    assert (length.longer_wins, length.longer_is_chosen) == (1 / 4, 2 / 4)


def test_what_a_file_lacks_is_not_known():
    of = calibration(rewardbench, [result(0.9)])
    assert of.position.consistency is of.position.slot_a_share is None
    assert of.length.longer_wins is of.length.accuracy_chosen_longer is None


probability = st.integers(0, 64).map(lambda k: k / 64)  # such that 1 - p is exact


@given(st.lists(st.tuples(probability, probability), min_size=1, max_size=20))
def test_calibration_does_not_know_which_response_is_the_chosen_one(slots):
    ours = [result((a + b) / 2, (a, b)) for a, b in slots]
    # The other response's view: it stands in slot A where this one stands in B.
    theirs = [result(r.score_rejected, (1 - b, 1 - a)) for r, (a, b) in zip(ours, slots, strict=True)]
    one, other = calibration(rewardbench, ours), calibration(rewardbench, theirs)
    assert sum(b.pairs for b in one.reliability) == len(slots)
    assert 0 <= one.expected_calibration_error <= 1
    assert all(b.low - 1e-9 <= b.confidence <= b.high + 1e-9 for b in one.reliability)
    assert [b.confidence for b in one.reliability] == pytest.approx([b.confidence for b in other.reliability])
    assert [b.accuracy for b in one.reliability] == pytest.approx([1 - b.accuracy for b in other.reliability])
    assert one.position.consistency == other.position.consistency
    assert one.position.slot_a_share == pytest.approx(other.position.slot_a_share)
