"""The server as replicas of Ray Serve: sessions stay together, and the death of a replica loses nothing."""

import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
from helpers.ray_cluster import Cluster
from helpers.small_models import write_judge

from gram_fast import InputError, PairwiseJudge, RemoteRendezvous, from_server
from gram_fast.comparing.replicas import Replicas

PROMPTS = [f"Name colour {k}." for k in range(24)]
GROUPS = [[f"Blue {k}.", "Red. " * (1 + k % 7), f"{k} {k}", "Green"] for k in range(24)]
SECONDS_TO_START = 300


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_judge(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def served(cluster: Cluster, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of two replicas, started as users start them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = tmp_path_factory.mktemp("serve") / "serve.yaml"
    arguments = {"model": str(checkpoint), "device": "cpu", "replicas": 2, "name": "judge"}
    of_app = {"name": "judge", "import_path": "gram_fast.serving.on_ray:app", "args": arguments}
    # JSON is YAML, too.
    config.write_text(json.dumps({"http_options": {"host": "127.0.0.1", "port": port}, "applications": [of_app]}))
    url = f"http://127.0.0.1:{port}"
    log = config.with_suffix(".log")
    command = [str(Path(sys.executable).with_name("serve")), "run", str(config)]
    with log.open("w") as said, subprocess.Popen(command, env=cluster.environment, stdout=said, stderr=said) as run:
        try:
            deadline = time.monotonic() + SECONDS_TO_START
            while not _is_ready(url):
                assert run.poll() is None, log.read_text()[-3000:]
                assert time.monotonic() < deadline, log.read_text()[-3000:]
                time.sleep(0.2)
            yield url
        finally:
            run.kill()  # what it has started ends with the cluster


def _is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def judge(checkpoint: Path) -> PairwiseJudge:
    return PairwiseJudge.from_pretrained(checkpoint, device="cpu")


def test_a_call_is_divided_among_replicas_and_groups_meet_at_one(served: str, judge: PairwiseJudge) -> None:
    remote = from_server(served)
    assert isinstance(remote.comparer, Replicas)
    assert len(remote.comparer.comparers) == 8
    expected = judge.rewards(PROMPTS, GROUPS)
    for found, group in zip(remote.rewards(PROMPTS, GROUPS), expected, strict=True):
        assert found == pytest.approx(group, abs=1e-5)
    rendezvous = RemoteRendezvous(served, size=4, timeout=120)
    with ThreadPoolExecutor(4 * len(GROUPS)) as pool:
        # Those that come at the same time are of different groups, so that a group's members come one by one.
        rewards = list(
            pool.map(
                lambda of: rendezvous.reward(f"group {of[1]}", PROMPTS[of[1]], GROUPS[of[1]][of[0]]),
                [(member, g) for member in range(4) for g in range(len(GROUPS))],
            )
        )
    for g, group in enumerate(expected):
        assert rewards[g :: len(GROUPS)] == pytest.approx(group, abs=1e-5)


def test_the_death_of_a_replica_loses_no_call_and_no_member(
    cluster: Cluster, served: str, judge: PairwiseJudge
) -> None:
    remote = from_server(served)
    rendezvous = RemoteRendezvous(served, size=4, timeout=120)
    many = [PROMPTS * 8, GROUPS * 8]
    with ThreadPoolExecutor(64) as pool:
        called = pool.submit(remote.rewards, *many, strategy="knockout")
        members = [(member, g) for member in range(4) for g in range(12)]

        def come(of: tuple[int, int]) -> float | None:
            return rendezvous.reward(f"later {of[1]}", PROMPTS[of[1]], GROUPS[of[1]][of[0]])

        first = [pool.submit(come, of) for of in members[:24]]
        time.sleep(0.5)
        assert not any(one.done() for one in first)
        cluster.kill_one("ray::ServeReplica")
        rest = [pool.submit(come, of) for of in members[24:]]
        rewards = [one.result() for one in first + rest]
        found = called.result()
    for g, group in enumerate(judge.rewards(PROMPTS[:12], GROUPS[:12])):
        assert rewards[g::12] == pytest.approx(group, abs=1e-5)
    for one, other in zip(found, judge.rewards(*many, strategy="knockout"), strict=True):
        assert one == pytest.approx(other, abs=1e-5)


def test_requests_that_wait_for_their_group_ask_for_no_replica() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install gram_fast[ray]")
    from ray.serve.autoscaling_policy import AutoscalingContext

    from gram_fast.serving.on_ray import replicas_for_calls

    context = AutoscalingContext(
        deployment_id=None,
        deployment_name="Judge",
        app_name=None,
        current_num_replicas=2,
        target_num_replicas=2,
        running_replicas=[],
        total_num_requests=4096,  # most of them wait
        total_queued_requests=0,
        aggregated_metrics={"calls": {"a": 30.0, "b": 18.0}},
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=8,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=SimpleNamespace(target_ongoing_requests=16.0),
    )
    assert replicas_for_calls(context)[0] == 3.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"nope": 1}, "nope: Extra inputs are not permitted"),
        ({"replicas": "two"}, "replicas: Input should be a valid integer"),
        ({"replicas": "4", "max_replicas": "2"}, "expected 1 <= replicas <= max_replicas, got 4 and 2"),
        ({"requests_per_replica": 0}, "requests_per_replica: expected more than 0, got 0.0"),
        ({"api_keys": "nowhere"}, "nowhere"),
        ({"cache_bytes": -1}, "cache_bytes: Input should be greater than or equal to 0"),
        ({"chat_template_kwargs": "[]"}, "chat_template_kwargs: "),
        ({"dtype": "int3"}, "dtype: expected auto, float32"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], message: str) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install gram_fast[ray]")
    from gram_fast.serving.on_ray import app

    with pytest.raises(InputError, match=message):
        app({"model": "small", **arguments})


def test_arguments_of_a_command_line_are_text() -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install gram_fast[ray]")
    from gram_fast.serving.on_ray import app

    given = {"chat_template_kwargs": '{"date_string": "26 Jul 2024"}', "max_items": "12", "deterministic": "true"}
    made = app({"model": "small", "device": "cpu", "cpus": "2", "replicas": "3", **given})._bound_deployment
    (options,) = made.init_args
    assert options.chat_template_kwargs == {"date_string": "26 Jul 2024"}
    assert (options.max_items, options.deterministic, options.device) == (12, True, "cpu")
    assert made.num_replicas == 3
    assert (made.ray_actor_options["num_cpus"], made.ray_actor_options["num_gpus"]) == (2.0, 0.0)
