"""What a model does to the products of its output embedding before they are its logits."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gram_fast.errors import UnsupportedModelError

# Beginnings of the names of families, the setting that scales their logits, and whether it multiplies or divides. A
# configuration may also have a setting that its family does not read.
_FACTORS = (
    (("cohere",), "logit_scale", 1),
    (("falcon_h1",), "lm_head_multiplier", 1),
    (("hyperclovax",), "logits_scaling", 1),
    (("granite", "minicpm3"), "logits_scaling", -1),
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
        """Reads it from the configuration of a decoder. Raises UnsupportedModelError for a factor that is none."""
        factor, family = 1.0, config.model_type
        for families, name, exponent in _FACTORS:
            value = getattr(config, name, None) if family.startswith(families) else None
            if value is None:
                continue
            if not isinstance(value, int | float) or not value:
                raise UnsupportedModelError(f"model type {family!r}: {name} is {value!r}, expected a number but 0")
            factor *= value**exponent
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
