"""What a model does to the products of its output embedding before they are its logits."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gram_fast.errors import UnsupportedModelError

# Beginnings of the names of families, and the setting that scales their logits.
_FACTORS = (
    (("cohere",), "logit_scale"),
    (("falcon_h1",), "lm_head_multiplier"),
    (("granite", "hyperclovax", "minicpm3"), "logits_scaling"),
)


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

        # A configuration may also have a setting that its family does not read.
        family = config.model_type
        found = {name: getattr(config, name, None) for families, name in _FACTORS if family.startswith(families)}
        for name, value in found.items():
            if value is not None and (not isinstance(value, int | float) or not value):
                raise UnsupportedModelError(
                    f"model type {family!r}: {name} is {value!r}, expected a number that is not 0"
                )
        factor = math.prod(value for value in found.values() if value is not None)
        divides = family.startswith(("granite", "minicpm3"))
        return cls(1 / factor if divides else factor, getattr(config, "final_logit_softcapping", None))

    @property
    def is_plain(self) -> bool:
        """Whether the products are the logits."""
        return self == OutputTransform()

    def __call__(self, products: Tensor) -> Tensor:
        """The logits, of the same shape and dtype."""
        if self.factor != 1:
            products = products * self.factor
        return products if self.softcap is None else (products / self.softcap).tanh() * self.softcap
