"""Comparisons for NeMo-Gym: the shapes of genrm_compare, and the host's own server with this judge."""

import asyncio
import logging

import pytest
from helpers.comparers import LengthComparer, p_longer

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.nemo_gym import compare, compare_server

HISTORY = [{"role": "user", "content": "Name a city."}]


def response(text, reasoning="A very long line of thought about cities."):
    """An object of the Responses API."""
    return {
        "output": [
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": reasoning}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text}]},
        ]
    }


@pytest.fixture
def judge():
    return PairwiseJudge(LengthComparer())


def test_all_responses_are_compared_in_one_call(judge):
    body = {"conversation_history": HISTORY, "response_objs": [response(t) for t in ("a", "ccc", "bb")]}
    result = compare(judge, body)
    assert len(judge.comparer.opened) == 1
    p = {(i, j): p_longer(a, b) for i, a in enumerate(("a", "ccc", "bb")) for j, b in enumerate(("a", "ccc", "bb"))}
    assert [(r["response_i"], r["response_j"], r["judge_idx"]) for r in result["comparison_results"]] == [
        (0, 1, 0),
        (0, 2, 0),
        (1, 2, 0),
    ]
    for found in result["comparison_results"]:
        one = p[found["response_i"], found["response_j"]]
        assert found["score_1"] == pytest.approx(1 + 4 * one)
        assert found["score_2"] == pytest.approx(5 - 4 * one)
        assert found["ranking"] == pytest.approx(6 - 5 * one)
    assert result["rewards"] == pytest.approx([1 + 2 * sum(p[i, j] for j in range(3) if j != i) for i in range(3)])
    assert result["metrics"]["mean_individual_score"] == pytest.approx(3)
    assert result["metrics"]["tiebreak_usage_rate"] == 0
    assert result["metrics"]["position_consistency"] == 1


def test_what_cannot_be_compared_has_the_default_score(judge, caplog):
    with caplog.at_level(logging.WARNING):
        result = compare(
            judge,
            {"conversation_history": HISTORY, "response_objs": [response("a"), {"output": []}, {}, response("bbb")]},
            default_score=2.5,
        )
    assert result["rewards"] == pytest.approx([1 + 4 * p_longer("a", "bbb"), 2.5, 2.5, 1 + 4 * p_longer("bbb", "a")])
    assert [(r["response_i"], r["response_j"]) for r in result["comparison_results"]] == [(0, 3)]
    assert "2 of 4 responses were not judged" in caplog.text
    alone = compare(judge, {"conversation_history": HISTORY, "response_objs": [response("a")]})
    assert alone == {"rewards": [3.0], "comparison_results": None, "metrics": None}
    assert compare(judge, {"conversation_history": HISTORY, "response_objs": []})["rewards"] == []


def test_equal_responses_share_a_reward(judge):
    body = {"conversation_history": HISTORY, "response_objs": [response(t) for t in ("a", "a", "bb")]}
    rewards = compare(judge, body)["rewards"]
    assert rewards[0] == rewards[1] == pytest.approx(1 + 4 * p_longer("a", "bb"))


def test_the_judge_reads_the_conversation_and_the_principle(judge):
    history = [*HISTORY, {"role": "assistant", "content": "Rome."}, {"role": "user", "content": "Another."}]
    body = {"conversation_history": history, "response_objs": [response("a"), response("bb")], "principle": "Be brief."}
    compare(judge, body)
    (group,) = judge.comparer.opened[0]["groups"]
    assert group.prompt == "System: Be brief.\n\nUser: Name a city.\n\nAssistant: Rome.\n\nUser: Another."
    assert group.texts == ["a", "bb"]


def test_another_body_is_an_error(judge):
    with pytest.raises(InputError, match="response_objs: expected a list in the body of the request, got NoneType"):
        compare(judge, {"conversation_history": HISTORY})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scores": "margin"}, "scores: expected none here"),
        ({"strategies": "sort"}, r"strategies: expected an argument of PairwiseJudge\.rewards"),
    ],
)
def test_a_wrong_setting_is_named(judge, settings, message):
    with pytest.raises(InputError, match=message):
        compare(judge, {"conversation_history": HISTORY, "response_objs": [response("a")]}, **settings)


@pytest.fixture
def server(judge, monkeypatch):
    app = pytest.importorskip("resources_servers.genrm_compare.app", reason="needs nemo-gym", exc_type=ImportError)
    from nemo_gym.config_types import ModelServerRef
    from nemo_gym.openai_utils import NeMoGymResponseCreateParamsNonStreaming

    config = app.GenRMCompareConfig(
        host="localhost",
        port=8000,
        entrypoint="app.py",
        domain="rlhf",
        genrm_model_server=ModelServerRef(type="responses_api_models", name="none"),
        genrm_responses_create_params=NeMoGymResponseCreateParamsNonStreaming(input=[]),
        comparison_strategy="all_pairs",
        num_rollouts_per_prompt=3,
    )
    return compare_server(judge).model_construct(config=config, server_client=None)


def test_the_host_s_server_compares_with_the_judge(judge, server):
    from resources_servers.genrm_compare.app import GenRMCompareRequest

    body = {"conversation_history": HISTORY, "response_objs": [response(t) for t in ("a", "ccc", "bb")]}
    theirs = asyncio.run(server.compare(GenRMCompareRequest(**body))).model_dump()
    ours = compare(judge, body)
    assert theirs["rewards"] == pytest.approx(ours["rewards"])
    for their, our in zip(theirs["comparison_results"], ours["comparison_results"], strict=True):
        assert their == pytest.approx(our)
    for name, value in theirs["metrics"].items():
        assert ours["metrics"][name] == pytest.approx(value)


def test_the_host_s_cohort_gets_a_response_that_failed(server, caplog):
    from nemo_gym.openai_utils import NeMoGymResponse, NeMoGymResponseCreateParamsNonStreaming
    from resources_servers.genrm_compare.app import GenRMCompareVerifyRequest

    def request(text):
        message = {"id": "m", "type": "message", "role": "assistant", "status": "completed"}
        content = [{"type": "output_text", "text": text, "annotations": []}]
        found = NeMoGymResponse(
            id="r",
            created_at=0,
            model="policy",
            object="response",
            output=[] if text is None else [{**message, "content": content}],
            parallel_tool_calls=False,
            tool_choice="none",
            tools=[],
        )
        params = NeMoGymResponseCreateParamsNonStreaming(input=HISTORY)
        return GenRMCompareVerifyRequest(responses_create_params=params, response=found)

    async def verify():
        return await asyncio.gather(*(server.verify(request(text)) for text in ("a", "bbb", None)))

    with caplog.at_level(logging.WARNING):
        rewards = [found.reward for found in asyncio.run(verify())]
    p = p_longer("a", "bbb")
    assert rewards == pytest.approx([(1 + 4 * p + 3) / 2, (5 - 4 * p + 3) / 2, 3])
    assert "was not made: b: expected" in caplog.text
