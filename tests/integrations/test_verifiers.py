"""Rewards for verifiers: of an environment's attempts (0.4), and group functions of a Rubric (before)."""

import asyncio
import importlib
import logging
from types import SimpleNamespace

import pytest
from helpers.comparers import LengthComparer

from gram_fast import InputError, PairwiseJudge
from gram_fast.integrations.verifiers import group_reward, record_rewards

USER = [{"role": "user", "content": "Name a city."}]


@pytest.fixture
def judge():
    return PairwiseJudge(LengthComparer())


class Trace:
    """The members of a trace that are read or called."""

    def __init__(self, last_reply, ok=True):
        self.last_reply, self.ok, self.rewards = last_reply, ok, {}

    def record_reward(self, name, value, weight=1.0):
        self.rewards[name] = (value, weight)


def task(prompt, system_prompt=None):
    return SimpleNamespace(data=SimpleNamespace(prompt=prompt, system_prompt=system_prompt))


def test_attempts_are_judged_against_each_other(judge, caplog):
    traces = [Trace("a"), Trace("", ok=False), Trace("bbb"), Trace("cc", ok=False), Trace("dd")]
    with caplog.at_level(logging.WARNING):
        asyncio.run(record_rewards(judge, task("Name a city."), traces, name="taste", weight=0.5))
    expected = judge.rewards(["x"], [["a", "bbb", "dd"]])[0]
    assert [trace.rewards["taste"] for trace in traces] == [
        (pytest.approx(expected[0]), 0.5),
        None,
        (pytest.approx(expected[1]), 0.5),
        None,
        (pytest.approx(expected[2]), 0.5),
    ]
    assert "2 of 5 responses were not judged" in caplog.text


@pytest.mark.parametrize(
    ("given", "read"),
    [
        (task("Name a city."), "Name a city."),
        (task(USER), "Name a city."),
        (task("Name a city.", "Be brief."), "System: Be brief.\n\nUser: Name a city."),
        (task(USER, "Be brief."), "System: Be brief.\n\nUser: Name a city."),
    ],
)
def test_the_prompt_is_that_of_the_task(judge, given, read):
    asyncio.run(record_rewards(judge, given, [Trace("a"), Trace("bb")]))
    assert judge.comparer.opened[0]["groups"][0].prompt == read


def test_a_wrong_setting_is_named_before_a_judge_is_loaded():
    with pytest.raises(InputError, match="there are no scores 'winrate'"):
        asyncio.run(record_rewards("no/such-judge", task("Name a city."), [], scores="winrate"))


def test_a_group_function_judges_the_rollouts_of_a_prompt(judge, caplog):
    said = [[{"role": "assistant", "content": text}] for text in ("a", "bbb", "b", "cc")]
    with caplog.at_level(logging.WARNING):
        rewards = asyncio.run(group_reward(judge, unjudged=-1.0)([USER] * 4, [*said[:2], [], said[3]]))
    expected = judge.rewards(["x"], [["a", "bbb", "cc"]])[0]
    assert rewards == pytest.approx([*expected[:2], -1, expected[2]])
    assert "1 of 4 responses were not judged" in caplog.text


def test_texts_and_prompts_that_a_caller_mixes(judge):
    rewards = asyncio.run(group_reward(judge)(["p", "q", "p", "q"], ["a", "bb", "ccc", "dddd"]))
    one, other = judge.rewards(["p", "q"], [["a", "ccc"], ["bb", "dddd"]])
    assert rewards == pytest.approx([one[0], other[0], one[1], other[1]])


def rubrics():
    """The module with Rubric, where this version has one."""
    for name in ("verifiers.legacy", "verifiers"):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        if hasattr(module, "Rubric"):
            return module
    return pytest.skip("needs verifiers before 0.4")


def test_the_host_s_rubric(judge):
    vf = rubrics()
    # Its messages are pydantic objects in newer versions.
    user, assistant = (
        getattr(vf, name, lambda role=role, **m: {"role": role, **m})
        for name, role in (("UserMessage", "user"), ("AssistantMessage", "assistant"))
    )
    rubric = vf.Rubric(funcs=[group_reward(judge)])
    states = [
        {"prompt": [user(content="q")], "completion": [assistant(content=text)], "trajectory": [], "task": None}
        for text in ("a", "bbb", "cc")
    ]
    asyncio.run(rubric.score_group(states))
    expected = judge.rewards(["q"], [["a", "bbb", "cc"]])[0]
    assert [state["reward"] for state in states] == pytest.approx(expected)
    assert [state["metrics"]["judge_reward"] for state in states] == pytest.approx(expected)
    assert [state["advantage"] for state in states] == pytest.approx([value - 0.5 for value in expected])
    assert judge.comparer.opened[0]["groups"][0].texts == ["a", "bbb", "cc"]


def test_the_host_s_environment(judge):
    vf = pytest.importorskip("verifiers.v1", reason="needs verifiers", exc_type=ImportError)
    if not hasattr(vf, "Env") or "root_reply" not in vf.Trace.model_fields:
        pytest.skip("needs verifiers 0.4")
    from verifiers.v1.envs.best_of_n import BestOfNEnv
    from verifiers.v1.episode import Episode
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask

    class JudgedEnv(BestOfNEnv):
        async def finalize(self, task, episode):
            await record_rewards(judge, task, episode.traces)
            await super().finalize(task, episode)

    data = vf.TaskData(prompt=[vf.UserMessage(content="Name a city.")], system_prompt="Be brief.")
    of = TraceTask(type="Task", data=data)
    traces = [
        Trace(task=of, agent=AgentInfo(config=vf.AgentConfig()), root_reply=t, ok=t != "") for t in ("a", "", "ccc")
    ]
    env = object.__new__(JudgedEnv)  # without a task set and a model
    env.config = SimpleNamespace(threshold=0.9)
    asyncio.run(env.finalize(vf.Task(data), Episode(task=of, traces=traces)))
    expected = judge.rewards(["x"], [["a", "ccc"]])[0]
    assert [trace.reward for trace in traces] == pytest.approx([expected[0], 0, expected[1]])
    assert traces[1].rewards == {"judge": None}
    assert [trace.metrics["best"] for trace in traces] == [0, 0, 1]
    Episode.model_validate_json(Episode(task=of, traces=traces).model_dump_json())
    assert judge.comparer.opened[0]["groups"][0].prompt == "System: Be brief.\n\nUser: Name a city."
