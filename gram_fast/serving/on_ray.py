"""The server as replicas of Ray Serve, on any number of machines: the same application, a judge each.

    serve run gram_fast.serving.on_ray:app model=NAME replicas=4 [device=cpu]

Requests with the same header X-Session-Id go to the same replica: members of a group, who meet there, and prompts that
it has read. The clients of this package send it.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import torch
from pydantic import ConfigDict, Field, Json, ValidationError, create_model

from gram_fast.errors import InputError
from gram_fast.serving.command import ServiceOptions
from gram_fast.serving.places import with_spare

try:
    from ray import serve
    from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
except ImportError as error:
    raise InputError(f"gram_fast.serving.on_ray needs Ray Serve: pip install gram_fast[ray] ({error})") from None

# Requests beside those that the application itself counts, which ask how it is.
_OTHERS = 64
_CALLS = "calls"


@dataclass(frozen=True, kw_only=True)
class ReplicaOptions(ServiceOptions):
    """Options of `app`: those of `gram-fast serve` but for the address, which is Ray's, and these."""

    replicas: int = 1
    max_replicas: int | None = None
    """Replicas under load, from `replicas` on; None: there are always as many."""
    requests_per_replica: float = 16.0
    """Calls of the judge, of requests or of whole groups, above which there are more replicas."""
    cpus: float = 1.0
    """Cores of a replica."""
    gpus: float | None = None
    """GPUs of a replica; None: 1, or none with `device` "cpu"."""

    @property
    def most_replicas(self) -> int:
        """Replicas that there may be."""
        return self.max_replicas or self.replicas


def app(arguments: Mapping[str, Any]) -> serve.Application:
    """Makes the application of Ray Serve; Ray calls it with what stands behind its name, or under `args` of a file.

    Paths have to be there on every machine. Other settings of the deployment `Judge`, such as how soon replicas come
    and go, are Ray's own, under `deployments` of a file. Raises InputError on wrong arguments.
    """
    options = _read(arguments)
    options.read_keys()
    gpus = float(options.device != "cpu") if options.gpus is None else options.gpus
    scaling: dict[str, Any] = {"num_replicas": options.replicas}
    if options.most_replicas > options.replicas:
        policy = AutoscalingPolicy(policy_function=replicas_for_calls)
        scaling = {
            "autoscaling_config": AutoscalingConfig(
                min_replicas=options.replicas,
                max_replicas=options.max_replicas,
                target_ongoing_requests=options.requests_per_replica,
                policy=policy,
            )
        }
    limits = options.limits
    deployment = serve.deployment(
        name="Judge",
        ray_actor_options={"num_cpus": options.cpus, "num_gpus": gpus},
        # The application refuses what is too much, in the form of each protocol.
        max_ongoing_requests=with_spare(limits.max_requests) + with_spare(limits.max_waiting) + _OTHERS,
        # A group waits for its members for as long, and is then judged.
        graceful_shutdown_timeout_s=2 * limits.timeout + 1,
        request_router_config=RequestRouterConfig(
            request_router_class="ray.serve.experimental.consistent_hash_router.ConsistentHashRouter",
            # A group would not meet where its members go to two replicas.
            request_router_kwargs={"num_fallback_replicas": 0},
        ),
        **scaling,
    )
    return deployment(serve.ingress()(Replica)).bind(options)


class Replica:
    """A judge and its application."""

    def __init__(self, options: ReplicaOptions) -> None:
        self._app = options.load_app(options.read_keys(), options.most_replicas)

    def __serve_build_asgi_app__(self) -> Any:
        return self._app

    def check_health(self) -> None:
        """Raises RuntimeError where the judge's GPU is lost; Ray asks from time to time, and then starts another."""
        if self._app.state.service.is_broken:
            raise RuntimeError("the GPU of this judge computes nothing more in this process")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `replicas_for_calls` reads; Ray asks for it."""
        return {_CALLS: self._app.state.service.metrics.num_calls}


def replicas_for_calls(context: AutoscalingContext) -> tuple[float, dict[str, Any]]:
    """Replicas for the calls that are judged or wait for it -> their number and a state, of which there is none.

    Ray's own policy would count requests, of which those that wait for the others of their group are no work.
    """
    of_replicas = (context.aggregated_metrics or {}).get(_CALLS, {})
    return sum(of_replicas.values()) / context.config.target_ongoing_requests, {}


def _bounded(annotation: Any) -> Any:
    """The type of an option with the least value that the command line takes, and JSON for an object."""
    if get_origin(annotation) is not Annotated:
        return annotation
    kind, option = get_args(annotation)[:2]
    if getattr(option, "type", None) is dict:
        return kind | Json[dict[str, Any]]
    least = getattr(option, "min", None)
    return kind if least is None else Annotated[kind, Field(ge=least)]


def _read(arguments: Mapping[str, Any]) -> ReplicaOptions:
    """Reads options, which are text on a command line."""
    types = get_type_hints(ReplicaOptions, localns={"torch": torch}, include_extras=True)
    fields: Any = {
        field.name: (_bounded(types[field.name]), ... if field.default is dataclasses.MISSING else field.default)
        for field in dataclasses.fields(ReplicaOptions)
    }
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=True, protected_namespaces=())
    try:
        read = create_model("Options", __config__=config, **fields).model_validate(dict(arguments))
    except ValidationError as error:
        found = {str(one["loc"][0]): one["msg"] for one in error.errors()}
        raise InputError.of(found) from None
    options = ReplicaOptions(**dict(read))
    if not 1 <= options.replicas <= options.most_replicas:
        raise InputError(
            f"replicas, max_replicas: expected 1 <= replicas <= max_replicas, got {options.replicas} and "
            f"{options.max_replicas}"
        )
    if not options.requests_per_replica > 0:
        raise InputError(f"requests_per_replica: expected more than 0, got {options.requests_per_replica}")
    return options.for_other_folders()
