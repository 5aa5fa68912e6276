"""Rounds of pairs, for judges that play their tournaments elsewhere (`gram_fast.from_server`)."""

from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from gram_fast import InputError
from gram_fast.comparing.comparer import Pair, Pairs
from gram_fast.comparing.modes import Mode, in_mode
from gram_fast.comparing.orders import Orders
from gram_fast.errors import shown_value
from gram_fast.results import Preference, Stats
from gram_fast.serving.endpoint import Form, Listed, add_endpoint
from gram_fast.serving.refusal import OPENAI
from gram_fast.serving.service import Service
from gram_fast.text.group import Group, Names


class GroupAsked(BaseModel):
    """A prompt with distinct responses."""

    model_config = ConfigDict(extra="forbid", strict=True)

    prompt: str
    texts: Listed[str] = Field(min_length=1)
    has_reference: bool = Field(False, description="Whether the first text is one that the others need.")


class PairsAsked(BaseModel):
    """Pairs of texts to compare: number of the group, and of both texts; a verifier's are the same text twice."""

    model_config = GroupAsked.model_config

    groups: Listed[GroupAsked]
    pairs: Listed[Annotated[list[int], Field(min_length=3, max_length=3)]]
    orders: Orders = "both"
    mode: Mode = "full"


def add_rounds(router: APIRouter, service: Service) -> None:
    """Adds the endpoints."""
    add_endpoint(router, service, ["/v1/pairs"], Form(OPENAI, PairsAsked, compare), summary="Compare pairs of texts")
    add_endpoint(router, service, ["/v1/unfit"], Form(OPENAI, PairsAsked, unfit), summary="Find what has no comparison")


async def compare(service: Service, request: Request, asked: PairsAsked) -> dict[str, Any]:
    """Answers with [p, margin, p_ab, p_ba] of each pair, in order, and the cost."""
    groups, pairs = _read(service, asked)

    def compare() -> tuple[list[list[float | None]], Stats]:
        rounds: dict[int, list[Pair]] = {}
        for g, i, j in asked.pairs:
            rounds.setdefault(g, []).append((i, j))
        num_pairs = [len(of_group) for of_group in pairs]
        found: dict[int, Sequence[Preference]] = {}
        comparer = in_mode(service.judge.comparer, asked.mode)
        with comparer.open(groups, asked.orders, num_pairs=num_pairs, has_one_round=True) as session:
            found.update(session.compare(rounds))
            while len(found) < len(rounds):
                found.update(session.compare({}))
            stats = session.stats
        of_group = {g: iter(preferences) for g, preferences in found.items()}
        ordered = [next(of_group[g]) for g, _, _ in asked.pairs]
        return [[c.p, c.margin, c.p_ab, c.p_ba] for c in ordered], stats

    if not asked.pairs:
        return {"preferences": [], "stats": Stats(comparisons=0, seconds=0.0)}
    preferences, stats = await service.judged(request, compare)
    return {"id": request.state.id, "model": service.model, "preferences": preferences, "stats": stats}


async def unfit(service: Service, request: Request, asked: PairsAsked) -> dict[str, Any]:
    """Answers with the reasons why texts cannot be compared, by name: "groups[0][1]", "prompts[0]"."""
    groups, pairs = _read(service, asked)
    find = getattr(in_mode(service.judge.comparer, asked.mode), "unfit", None)
    reasons = await service.judged(request, lambda: find(groups, pairs, asked.orders)) if find and groups else {}
    return {"id": request.state.id, "model": service.model, "reasons": reasons}


def _read(service: Service, asked: PairsAsked) -> tuple[list[Group], list[Pairs]]:
    """Groups, and the pairs of each. Raises InputError on texts that are not distinct, and on pairs of others."""
    service.check_items(sum(len(group.texts) for group in asked.groups), "groups")
    service.check_comparisons(len(asked.pairs) * (2 if asked.orders == "both" else 1))
    verifies = getattr(service.judge.comparer, "verifies", False)
    for place, (g, i, j) in enumerate(asked.pairs):
        size = len(asked.groups[g].texts) if 0 <= g < len(asked.groups) else 0
        if not (0 <= i < size and 0 <= j < size) or (verifies and i != j):
            raise InputError(f"pairs[{place}]: expected a group and two of its texts, got {shown_value([g, i, j])}")
    groups = []
    for g, group in enumerate(asked.groups):
        if len(set(group.texts)) < len(group.texts):
            raise InputError(f"groups[{g}].texts: expected distinct texts")
        first = -1 if group.has_reference else 0
        names = Names(f"prompts[{g}]", f"groups[{g}]", lambda k, g=g, first=first: f"groups[{g}][{k - first}]")  # type: ignore[misc]
        texts = group.texts[-first:] if first else group.texts
        groups.append(_group(group.prompt, group.texts[: -first or 0], texts, names))
    of_group: list[list[Pair]] = [[] for _ in groups]
    for g, i, j in asked.pairs:
        of_group[g].append((i, j))
    return groups, [np.array(pairs, np.int64).reshape(-1, 2) for pairs in of_group]


def _group(prompt: str, reference: Sequence[str], texts: Sequence[str], names: Names) -> Group:
    errors: dict[str, str] = {}
    group = Group.read(prompt, texts, errors, names, reference=reference, at_least=0)
    if group is None or errors:
        raise InputError.of(errors)
    return group
