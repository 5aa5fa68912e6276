"""Stand-ins for classes of hosts that are not installed, so that what is derived from them runs in every environment.

They have the signatures of the published packages and do the part of their work that is relied on. Where a host is
installed, it is taken itself.
"""

import importlib
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def has_host(monkeypatch: pytest.MonkeyPatch, module: str, *stand_ins: type) -> None:
    """Makes sure that a module of a host can be imported: itself, or with these classes in its place."""
    try:
        importlib.import_module(module)
    except ImportError:
        made = ModuleType(module)
        made.__dict__.update({stand_in.__name__: stand_in for stand_in in stand_ins})
        monkeypatch.setitem(sys.modules, module, made)


class SingleTurnAgentExecutor:
    """That of openrlhf.utils.agent, OpenRLHF 0.11.2, without rewards."""

    def __init__(self, remote_rm_url: Any = None) -> None:
        self.reward_endpoints: list[str] = []

    async def execute(
        self,
        prompt: str,
        label: str,
        sampling_params: Any,
        max_length: int,
        hf_tokenizer: Any,
        llm_engine: Any,
        images: Any = None,
    ) -> dict[str, Any]:
        ids = hf_tokenizer(text=prompt, add_special_tokens=False, return_tensors="pt")["input_ids"][0].tolist()
        request = await llm_engine.generate(ids, sampling_params, multi_modal_data=None)
        generated = request.outputs[0].token_ids
        return {
            "prompt": prompt,
            "label": label,
            "observation_tokens": ids + generated,
            "action_ranges": [(len(ids), len(ids + generated))],
            "reward": None,
            "scores": None,
            "extra_logs": {},
        }


class RewardManagerBase:
    """That of verl.experimental.reward_loop.reward_manager.base, verl 0.9.1."""

    def __init__(self, config: Any, tokenizer: Any, compute_score: Any) -> None:
        self.config, self.tokenizer, self.compute_score = config, tokenizer, compute_score

    async def run_single(self, data: Any) -> dict[str, Any]:
        raise NotImplementedError


def namespace(values: Any) -> Any:
    """A configuration of dicts whose values are read as attributes, as OmegaConf's are."""
    if not isinstance(values, dict):
        return values
    return SimpleNamespace(**{name: namespace(value) for name, value in values.items()})
