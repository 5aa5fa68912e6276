"""Tables on a terminal: the best response first, texts as they are, on one line."""

import pytest
from helpers.comparers import LengthComparer
from rich.console import Console

from gram_fast.commands.tables import ranking_table, result_table
from gram_fast.judge import PairwiseJudge
from gram_fast.results import Verification

RESPONSES = ["bb", "dddd", "a [bold]b[/bold]\nc", "ccc", "a " * 500]


def shown(table, width=60):
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(table)
    return console.export_text()


def responses_of(text):
    return [line.split("│")[-2].strip() for line in text.splitlines() if line.startswith("│")]


@pytest.fixture(scope="module")
def judge():
    return PairwiseJudge(LengthComparer())


def test_a_ranking_shows_the_best_first_and_markup_as_text(judge):
    ranking = judge.rank("What\n[red]now[/red]?", RESPONSES)
    text = shown(ranking_table("What\n[red]now[/red]?", RESPONSES, ranking))
    assert text.startswith("What [red]now[/red]?")
    found = responses_of(text)
    assert found[1:] == ["a [bold]b[/bold] c", "dddd", "ccc", "bb"]
    assert found[0].endswith("…")
    assert max(map(len, text.splitlines())) <= 60
    assert "20 comparisons" in text
    assert "together" not in text


def test_a_ranking_of_places_shows_these_alone(judge):
    ranking = judge.rank("Which?", RESPONSES, "top_k", k=2)
    text = shown(ranking_table("Which?", RESPONSES, ranking, rows=3, places=2))
    assert responses_of(text)[1:] == ["a [bold]b[/bold] c", "and 3 more"]
    assert "for 3 rows" in text
    assert "more" not in shown(ranking_table("Which?", RESPONSES, ranking, places=5))


def test_other_results_show_the_best_first(judge):
    compared = judge.compare("Which?", "short", "longer")
    assert responses_of(shown(result_table("Which?", ["short", "longer"], compared))) == ["longer", "short"]
    chosen = judge.best_of_n("Which?", RESPONSES[:4])
    assert responses_of(shown(result_table("Which?", RESPONSES[:4], chosen)))[0] == "a [bold]b[/bold] c"
    verified = Verification((0.25, 0.75), {}, compared.stats)
    text = shown(result_table("Right?", ["no", "yes"], verified))
    assert responses_of(text) == ["yes", "no"]
    assert "0.750" in text
