"""Rows that are read ahead and scored in chunks: the numbers of single calls, in order, as soon as they are known."""

import json
import os
from io import BytesIO
from threading import Event

import pytest
from helpers.comparers import LengthComparer
from helpers.openai_server import MODEL, openai_server
from helpers.small_models import tiny_judge, write_judge

from gram_fast.commands import jobs
from gram_fast.commands.jobs import Job, JobRow, OneJudge, pending_rows, read_ahead, read_job_rows, score_rows
from gram_fast.commands.output import Output, open_output
from gram_fast.commands.writers import whole_rows
from gram_fast.errors import InputError
from gram_fast.judge import PairwiseJudge
from gram_fast.ranking.packed import DUEL, compare_groups, rank_groups
from gram_fast.ranking.scores import find_scores
from gram_fast.ranking.tournament import find_strategy
from gram_fast.reasoning_judge import ReasoningJudge
from gram_fast.rows.source import comes_live
from gram_fast.text.group import Group

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [{"id": k, "prompt": f"Name {k % 3}.", "responses": [f"{c} {k}" for c in "abc"[: 2 + k % 2]]} for k in range(12)]


def ranking(name="knockout"):
    strategy, scores = find_strategy(name), find_scores("auto", name)

    def score(rows, comparer):
        return rank_groups([row.group for row in rows], comparer, strategy, scores)

    return Job(strategy, score)


def refuse(error):
    raise error


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def scored(path, comparer, job=None, on_bad=refuse):
    """Output rows of an input."""
    output, job = Output("a stream", BytesIO()), job or ranking()
    read = read_job_rows(str(path), job, on_bad)
    try:
        with read_ahead(pending_rows(read, output), is_live=False) as rows:
            score_rows(rows, job, OneJudge(job, comparer), whole_rows(output), on_bad)
    except InputError as error:
        error.written = [json.loads(line) for line in output.file.getvalue().splitlines()]
        raise
    return [json.loads(line) for line in output.file.getvalue().splitlines()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(ROWS))
    return path


@pytest.mark.parametrize(("budget", "at_once"), [(16, 2), (1024, 12)])
def test_rows_have_the_numbers_of_single_calls(source, budget, at_once):
    judge = tiny_judge(max_batch_tokens=budget)
    found = scored(source, judge.comparer)
    for row, line in zip(ROWS, found, strict=True):
        alone = judge.rank(row["prompt"], row["responses"], "knockout")
        assert (line["id"], tuple(line["order"])) == (row["id"], alone.order)
        assert line["scores"] == pytest.approx(alone.scores, abs=1e-4)
        assert [(c["i"], c["j"]) for c in line["comparisons"]] == [(c.i, c.j) for c in alone.comparisons]
    assert found[0]["stats"]["rows"] == at_once


def test_deterministic_rows_have_the_bits_of_single_calls_on_any_number_of_devices(source, tmp_path_factory):
    folder = write_judge(tmp_path_factory.mktemp("judge"))
    judge = PairwiseJudge.from_pretrained(folder, deterministic=True)
    both = PairwiseJudge.from_pretrained(folder, deterministic=True, device=["cpu", "cpu"])
    for row, one, two in zip(ROWS, scored(source, judge.comparer), scored(source, both.comparer), strict=True):
        alone = judge.rank(row["prompt"], row["responses"], "knockout")
        assert tuple(one["scores"]) == tuple(two["scores"]) == alone.scores
        comparisons = [{k: v for k, v in vars(c).items() if k != "reasoning"} for c in alone.comparisons]
        assert one["comparisons"] == two["comparisons"] == comparisons
        assert one["stats"]["rows"] == two["stats"]["rows"] == 12


def test_stats_are_those_of_the_chunk_and_say_of_how_many_rows(source):
    comparer = LengthComparer(tokens_at_once=50)
    stats = [line["stats"] for line in scored(source, comparer)]
    assert len(comparer.opened) > 2
    pairs = [len(row["responses"]) - 1 for row in ROWS]
    assert sum(of_chunk["comparisons"] / of_chunk["rows"] for of_chunk in stats) == pytest.approx(2 * sum(pairs))
    assert [len(call["groups"]) for call in comparer.opened] == [
        of_chunk["rows"] for at, of_chunk in enumerate(stats) if at == 0 or stats[at - 1] != of_chunk
    ]


def test_a_chunk_is_as_large_as_what_it_costs(source):
    """A group of many candidates costs more than its text."""
    knockout, round_robin = LengthComparer(tokens_at_once=50), LengthComparer(tokens_at_once=50)
    scored(source, knockout)
    scored(source, round_robin, ranking("round_robin"))
    assert len(knockout.opened) < len(round_robin.opened)


def test_a_bad_row_of_a_chunk_is_named_and_the_others_have_their_numbers(tmp_path):
    rows = [{**row, "responses": ["short", "word " * 400]} if row["id"] in (3, 7) else row for row in ROWS]
    path = tmp_path / "in.jsonl"
    path.write_bytes(lines(rows))
    comparer = tiny_judge(max_length=700).comparer
    errors = []
    good = scored(path, comparer, on_bad=lambda error: errors.append(str(error)))
    assert [line["id"] for line in good] == [k for k in range(12) if k not in (3, 7)]
    for number, error in zip((4, 8), errors, strict=True):
        assert error.startswith(f"{path} line {number}: responses[")
        assert "the limit is 700 (max_length)" in error
    path.write_bytes(lines(ROWS))
    expected = {line["id"]: line["scores"] for line in scored(path, comparer)}
    for line in good:
        assert line["scores"] == pytest.approx(expected[line["id"]], abs=1e-4)
    path.write_bytes(lines(rows))
    with pytest.raises(InputError, match=r"line 4: responses\[") as caught:
        scored(path, comparer)
    assert [line["id"] for line in caught.value.written] == [0, 1, 2]


@pytest.mark.parametrize("is_bad", [{40}, {0, 17, 63}, set(range(64))])
def test_rows_that_a_judge_s_server_refuses_are_skipped_and_the_others_asked_for_once_more(tmp_path, is_bad):
    def refuses(body):
        return "too much" in body["messages"][0]["content"]

    rows = [{"id": k, "prompt": f"P {k}", "responses": ["a", "too much" if k in is_bad else "bb"]} for k in range(64)]
    path, errors = tmp_path / "in.jsonl", []
    path.write_bytes(lines(rows))
    job = Job(DUEL, lambda rows, comparer: compare_groups([row.group for row in rows], comparer))
    with openai_server(refuses=refuses) as server:
        judge = ReasoningJudge.from_server(server.url, MODEL, preset="gram-r2", verdict="hard")
        good = scored(path, judge.comparer, job, lambda error: errors.append(str(error)))
    assert [line["id"] for line in good] == [k for k in range(64) if k not in is_bad]
    assert {len(line["reasoning"]["votes"]) for line in good} <= {2}
    assert [error.split(":")[0] for error in errors] == [f"{path} line {k + 1}" for k in sorted(is_bad)]
    assert all("responses[1]: the pair with responses[0] in slot A: http" in error for error in errors)
    assert len(server.asked) == 2 * 64 + 2 * (64 - len(is_bad))


def test_a_row_that_cannot_be_read_ends_the_run_behind_those_before_it(source, monkeypatch):
    with source.open("ab") as file:
        file.write(b"{bad\n" + lines([{"id": "more", "prompt": "p", "responses": ["a", "b"]}]))
    comparer = LengthComparer()
    with pytest.raises(InputError, match="line 13: expected JSON") as caught:
        scored(source, comparer)
    assert (caught.value.written, comparer.opened) == ([], [])  # it was read before anything was scored
    monkeypatch.setattr(jobs, "_AHEAD", 20)
    with pytest.raises(InputError, match="line 13: expected JSON") as caught:
        scored(source, comparer)
    assert [line["id"] for line in caught.value.written] == list(range(12))


@pytest.mark.parametrize("ahead", [2**25, 20])
def test_going_on_leaves_out_what_is_there_and_checks_it_however_far_was_read(source, tmp_path, monkeypatch, ahead):
    monkeypatch.setattr(jobs, "_AHEAD", ahead)

    def run(resume=True):
        with open_output(str(tmp_path / "out.jsonl"), str(source), resume) as output:
            output.record(command="rank")
            with read_ahead(pending_rows(read_job_rows(str(source), ranking(), refuse), output), False) as rows:
                return score_rows(rows, ranking(), OneJudge(ranking(), LengthComparer()), whole_rows(output), refuse)

    assert run(resume=False) == 12
    whole = (tmp_path / "out.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "out.jsonl").write_text(whole[4] + whole[7])
    assert run() == 10
    again = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in again] == [4, 7, 0, 1, 2, 3, 5, 6, 8, 9, 10, 11]
    source.write_bytes(lines(ROWS[:-1]))
    with pytest.raises(InputError, match="line 12 holds id 11, which the input lacks: it is of another run"):
        run()
    source.write_bytes(lines([*ROWS, ROWS[2]]))
    with pytest.raises(InputError, match=r"line 13: expected an id of its own, 2 is also that of .* 3"):
        run()


def test_rows_that_keep_coming_are_scored_before_they_end(monkeypatch):
    monkeypatch.setattr(jobs, "_FIRST_SECONDS", 0.1)
    has_result = Event()

    def steady():
        for number in range(1000):  # ten seconds, so that a wait for its end fails
            if has_result.wait(0.01):
                return
            prompt, responses = f"Name {number}.", ["a", "bb"]
            yield JobRow(number, prompt, responses, Group.of(prompt, responses), f"line {number + 1}")

    with read_ahead(steady(), is_live=True) as rows:
        comparer, written = LengthComparer(tokens_at_once=10**6), []

        def write(row, result, count):
            written.append(row.id)
            has_result.set()

        score_rows(rows, ranking(), OneJudge(ranking(), comparer), write, refuse, is_live=True)
    assert written == list(range(rows.count))
    assert 0 < rows.count < 500


def test_reasoning_counts_as_read_ahead_though_nobody_judges_it():
    responses = [[{"role": "assistant", "content": c, "reasoning": "hm " * 1000}] for c in "ab"]
    row = JobRow(0, "Name one.", responses, Group.of("Name one.", responses), "line 1")
    assert 6000 < row.characters < 6300


def test_a_row_that_is_written_to_a_pipe_is_scored_before_the_next_one_comes(tmp_path, monkeypatch):
    monkeypatch.setattr(jobs, "_FIRST_SECONDS", 0.2)
    pipe, results = tmp_path / "in", tmp_path / "out"
    os.mkfifo(pipe)
    os.mkfifo(results)
    reader, job = os.open(results, os.O_RDONLY | os.O_NONBLOCK), Job(DUEL, lambda rows, comparer: compare(rows))
    writer = os.open(pipe, os.O_RDWR)
    seen = []

    def compare(rows):
        seen.append([row.id for row in rows])
        return compare_groups([row.group for row in rows], LengthComparer())

    assert comes_live(str(pipe))
    rows = [{**row, "responses": ["a", "bb"]} for row in ROWS]
    os.write(writer, lines(rows[:3]))
    with open_output(str(results), str(pipe), False) as output:
        read = read_job_rows(str(pipe), job, refuse)

        def pending():
            for row in read:
                yield row
                if row.id in (2, 3):  # as somebody does who sees a result and asks for the next
                    while b'"id": %d,' % row.id not in os.read(reader, 10_000):
                        pass
                    os.write(writer, lines([rows[row.id + 1]]))
                if row.id == 4:
                    return

        os.set_blocking(reader, True)
        with read_ahead(pending(), is_live=True) as ahead:
            comparer = LengthComparer(tokens_at_once=10**6)
            assert score_rows(ahead, job, OneJudge(job, comparer), whole_rows(output), refuse, is_live=True) == 5
    assert seen == [[0, 1, 2], [3], [4]]
    os.close(writer)
    os.close(reader)
