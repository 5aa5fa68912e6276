"""The files of deploy/: what they start is there, with options that it takes, and probes ask what it answers."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.served import in_process, length_app
from typer.testing import CliRunner

from gram_fast import cli
from gram_fast.serving.command import ServeOptions

REPOSITORY = Path(__file__).parents[2]
DEPLOY = REPOSITORY / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()


def options_of(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> ServeOptions:
    """What `gram-fast` would start with these arguments."""
    started: list[ServeOptions] = []
    monkeypatch.setattr(cli, "serve_judge", started.append)
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.output
    return started[0]


def test_the_example_of_the_dockerfile_starts_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    comment = re.sub(r"\s*\\\n#\s*", " ", DOCKERFILE)
    arguments = next(line for line in comment.splitlines() if "docker run" in line).partition("gram-fast:cuda")[2]
    assert options_of(shlex.split(arguments), monkeypatch).open_to_all


def test_the_dockerfile_installs_what_there_is() -> None:
    project = (REPOSITORY / "pyproject.toml").read_text()
    for extra in ("cuda", "serve", "ray"):
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)
    stages = re.findall(r"^FROM \S+ AS (\S+)", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"--target (\S+)", DOCKERFILE)) | set(re.findall(r"--from=(\S+)", DOCKERFILE)) == set(stages)


def manifests(name: str) -> dict[str, Any]:
    return {one["kind"]: one for one in yaml.safe_load_all((DEPLOY / name).read_text())}


def test_the_pod_of_kubernetes(monkeypatch: pytest.MonkeyPatch) -> None:
    found = manifests("kubernetes.yaml")
    pod = found["Deployment"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    options = options_of(container["args"], monkeypatch)
    assert options.host == "0.0.0.0"
    assert options.api_keys == "/etc/gram-fast/keys"
    assert container["ports"][0]["containerPort"] == options.port == found["Service"]["spec"]["ports"][0]["port"]
    assert found["Service"]["spec"]["selector"] == pod["metadata"]["labels"]
    # What was accepted has its time to be answered.
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > before + options.timeout
    with in_process(length_app()) as client:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert client.get(container[probe]["httpGet"]["path"]).status_code == 200
        assert client.get(pod["metadata"]["annotations"]["prometheus.io/path"]).status_code == 200


def test_the_service_of_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install gram_fast[ray]")
    from ray.serve.schema import ServeDeploySchema

    from gram_fast.serving import on_ray

    spec = manifests("ray-service.yaml")["RayService"]["spec"]
    assert f"ray=={spec['rayClusterConfig']['rayVersion']}" in (REPOSITORY / "constraints.txt").read_text().split()
    (application,) = ServeDeploySchema.model_validate(yaml.safe_load(spec["serveConfigV2"])).applications
    assert application.import_path == f"{on_ray.__name__}:{on_ray.app.__name__}"
    keys = tmp_path / "keys"
    keys.write_text("a-key-that-is-long-enough\n")
    made = on_ray.app({**application.args, "api_keys": str(keys)})._bound_deployment
    workers = spec["rayClusterConfig"]["workerGroupSpecs"][0]
    needs = workers["template"]["spec"]["containers"][0]["resources"]
    assert made.ray_actor_options["num_gpus"] == needs["limits"]["nvidia.com/gpu"]
    assert made.ray_actor_options["num_cpus"] == float(needs["requests"]["cpu"])
    assert workers["maxReplicas"] == application.args["max_replicas"]
