"""What a model does to the products of its output embedding before they are its logits."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class OutputTransform:
    """A factor on the products, then a soft cap c: logits = c * tanh(factor * products / c).

    Cohere, Falcon-H1 and HyperCLOVA X multiply, Granite divides, Gemma 2 to 4 cap.
    """

    factor: float = 1.0
    softcap: float | None = None

    @classmethod
    def of(cls, config: Any) -> "OutputTransform":
        """Reads it from the configuration of a decoder."""

        def setting(name: str) -> float:
            return float(getattr(config, name, None) or 1.0)

        scaling = setting("logits_scaling")
        scaling = scaling if config.model_type == "hyperclovax" else 1 / scaling
        factor = setting("logit_scale") * setting("lm_head_multiplier") * scaling
        return cls(factor, getattr(config, "final_logit_softcapping", None))

    @property
    def is_plain(self) -> bool:
        """Whether the products are the logits."""
        return self == OutputTransform()

    def __call__(self, products: Tensor) -> Tensor:
        """The logits, of the same shape and dtype."""
        if self.factor != 1:
            products = products * self.factor
        return products if self.softcap is None else (products / self.softcap).tanh() * self.softcap
