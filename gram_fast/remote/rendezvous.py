"""Groups whose members meet at a server, from any number of processes and machines."""

import uuid
from typing import Any

from gram_fast.errors import InputError, ServerError
from gram_fast.remote.connection import Connection
from gram_fast.rendezvous import Partial
from gram_fast.text.digest import digest
from gram_fast.text.messages import Prompt, read_text
from gram_fast.web import check_timeout


class RemoteRendezvous:
    """Gives each response of a group its reward when the others have come, wherever they come from.

    rendezvous = gram_fast.RemoteRendezvous("http://judge:8000", size=8, timeout=300)
    reward = rendezvous.reward(f"{step}-{row}", prompt, response)

    As `Rendezvous`, whose members meet in one process.
    """

    def __init__(
        self,
        url: str,
        *,
        size: int,
        timeout: float,
        partial: Partial = "judge",
        api_key: str | None = None,
        retries: int = 6,
        **settings: Any,
    ) -> None:
        """Makes a place to meet.

        Args:
            url: of a server that `gram-fast serve` runs.
            size: members of a group, two or more.
            timeout: seconds that a group waits for its members from the first one on; the server has a limit too.
            partial: what the members of a group get that is not full by then, as for `Rendezvous`.
            api_key: one of the server's keys. Those with the same key meet.
            retries: as for `from_server`.
            settings: of `PairwiseJudge.rewards`, such as `strategy`, `orders` and `scores`.

        Raises InputError on a wrong argument; the server checks settings with the first response.
        """
        check_timeout(timeout)
        # A group waits, is judged, and may have to wait for that.
        self._connection = Connection(url, api_key, 2 * timeout + 60, retries)
        self._settings = {"size": size, "timeout": timeout, "partial": partial, **settings}

    def reward(self, key: str | int, prompt: Prompt, response: Prompt) -> float | None:
        """Waits for the others of the group -> the reward, or None where this response has none.

        `key` names the group among those of this API key, or of all where there are none. Arguments and None as for
        `Rendezvous.reward`. Raises InputError on what cannot be judged, and ServerError where the server cannot be
        reached.
        """
        return _reward(self._connection.post("/v1/reward", self._body(key, prompt, response), _session_of(key)))

    async def reward_async(self, key: str | int, prompt: Prompt, response: Prompt) -> float | None:
        """Awaits the reward of a response, as `reward` waits for it; a task that is cancelled leaves the group."""
        body = self._body(key, prompt, response)
        return _reward(await self._connection.post_async("/v1/reward", body, _session_of(key)))

    def _body(self, key: str | int, prompt: Prompt, response: Prompt) -> dict[str, Any]:
        if not isinstance(key, str | int):
            raise InputError(f"key: expected text or an integer, got {type(key).__name__}")
        texts = {"prompt": read_text(prompt, "prompt")[0], "response": read_text(response, "response")[0]}
        # The same in every try: one whose answer was lost is no other member.
        return {"key": key, "member": uuid.uuid4().hex, **texts, **self._settings}


def _session_of(key: str | int) -> str:
    """Where a server has replicas, a group meets at one of them."""
    return digest([str(key)])


def _reward(answer: Any) -> float | None:
    value = answer.get("reward", "") if isinstance(answer, dict) else ""
    if value is not None and not isinstance(value, int | float):
        raise ServerError("expected 'reward' in the answer of a gram-fast server")
    return None if value is None else float(value)
