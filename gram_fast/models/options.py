"""Options of loading and running a judge, for `PairwiseJudge.from_pretrained` and the command line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, Literal

from gram_fast.errors import BackendError, InputError, shown_value
from gram_fast.text.prompts import PairTemplate
from gram_fast.text.settings import check_kwargs

if TYPE_CHECKING:
    import torch

_LARGEST = 2**24
# Of names and switches. A switch that is text would count as on, "false" too.
_TYPES: dict[str, tuple[type, ...]] = {
    "preset": (str, PathLike),
    "tokenizer": (str, PathLike, NoneType),
    "runner": (str,),
    "attention": (str,),
    "products": (str,),
    "quantization": (str, NoneType),
    "deterministic": (bool,),
    "tensor_parallel": (bool,),
    "include_reasoning": (bool,),
    "revision": (str, NoneType),
    "token": (str, bool, NoneType),
    "trust_remote_code": (bool,),
}

RUNNERS = ("auto", "transformers", "dense")
"""Names of the kinds of runners; "auto" is "dense" where the checkpoint allows it."""


@dataclass(frozen=True)
class Flag:
    """Command-line form of an option: the type of its value, and one sentence of help; a dict is a JSON object."""

    type: type
    help: str


@dataclass(frozen=True, kw_only=True)
class JudgeOptions:
    """Options of PairwiseJudge.from_pretrained, whose docstring explains each.

    Unknown names, wrong limits and combinations raise InputError or BackendError here, before minutes of loading;
    devices are looked up, and counted, in `load_comparer`. Fields without a Flag are not on the command line.
    """

    preset: Annotated[
        str, Flag(str, "Judge prompt: auto (what the checkpoint records, else gram), a preset or a preset file.")
    ] = "auto"
    chat_template_kwargs: Annotated[
        Mapping[str, Any] | None,
        Flag(dict, 'Variables of the checkpoint\'s chat template, as JSON: {"date_string": "26 Jul 2024"}.'),
    ] = None
    tokenizer: Annotated[
        str | None, Flag(str, "Checkpoint whose tokenizer and chat template are used in place of the model's own.")
    ] = None
    device: Annotated[
        "str | torch.device | Sequence[str | torch.device]",
        Flag(str, "auto, cpu, cuda, cuda:N, cuda:all, or several with commas."),
    ] = "auto"
    dtype: Annotated["str | torch.dtype", Flag(str, "auto, float32, float16 or bfloat16.")] = "auto"
    runner: Annotated[str, Flag(str, "auto, dense (this package's own model) or transformers.")] = "auto"
    attention: Annotated[str, Flag(str, "Attention backend: auto, reference, cascade, triton or extension.")] = "auto"
    products: Annotated[str, Flag(str, "Matrix products: auto, torch, onednn or split.")] = "auto"
    quantization: Annotated[
        str | None, Flag(str, "fp8: products of FP8 numbers, faster and less exact; default: none.")
    ] = None
    max_batch_tokens: Annotated[
        int | Literal["auto"], Flag(int, "Most tokens of one forward; default: what suits the device.")
    ] = "auto"
    max_length: Annotated[int | None, Flag(int, "Most tokens of one pair; default: what the checkpoint allows.")] = None
    deterministic: Annotated[bool, Flag(bool, "The same bits for a pair whatever else is asked with it.")] = False
    tensor_parallel: bool = False
    include_reasoning: Annotated[bool, Flag(bool, "Let the judge read the reasoning in chat messages.")] = False
    revision: Annotated[str | None, Flag(str, "Branch, tag or commit on the hub.")] = None
    token: str | bool | None = None
    trust_remote_code: Annotated[bool, Flag(bool, "Run code that comes with the checkpoint.")] = False

    def __post_init__(self) -> None:
        for name, types in _TYPES.items():
            if not isinstance(value := getattr(self, name), types):
                expected = " or ".join("None" if one is NoneType else one.__name__ for one in types)
                raise InputError(f"{name}: expected {expected}, got {shown_value(value)}")
        for name, default in (("max_batch_tokens", "auto"), ("max_length", None)):
            value = getattr(self, name)
            is_default = isinstance(value, type(default)) and value == default
            if not is_default and (type(value) is not int or not 1 <= value <= _LARGEST):
                raise InputError(
                    f"{name}: expected {default!r} or an integer from 1 to {_LARGEST}, got {shown_value(value)}"
                )
        if self.preset != "auto":
            PairTemplate.load(self.preset)
        if self.chat_template_kwargs is not None:
            check_kwargs(self.chat_template_kwargs)
        if self.runner not in RUNNERS:
            raise BackendError(f"there is no runner {shown_value(self.runner)}: expected one of {', '.join(RUNNERS)}")
        self._check_names()
        if self.quantization is not None:
            self._check_quantization()
        for name in self.dense_only:
            if self.runner == "transformers":
                raise BackendError(f"{name} needs runner 'dense', got 'transformers'")
        if self.deterministic and self.tensor_parallel:
            raise BackendError("deterministic=True: sums over processes change with a pass; leave out tensor_parallel")
        if self.deterministic and self.attention != "auto":
            raise BackendError(
                f"deterministic=True has attention of its own: expected attention 'auto', got {self.attention!r}"
            )

    def _check_names(self) -> None:
        """Checks the names that modules with torch define; they are imported here, so that options alone load none."""
        import torch

        from gram_fast.devices import find_dtype
        from gram_fast.models.dense.products import PRODUCTS, product_problem
        from gram_fast.ops import BACKENDS, backend_problem

        cpu = torch.device("cpu")
        find_dtype(self.dtype, cpu)
        if self.attention not in ("auto", *BACKENDS["tree_attention"]):
            raise BackendError(backend_problem("tree_attention", self.attention, cpu, torch.float32))
        if self.products not in ("auto", *PRODUCTS):
            raise BackendError(product_problem(self.products, cpu, torch.float32))

    def _check_quantization(self) -> None:
        from gram_fast.models.dense.fp8 import QUANTIZATIONS

        this = f"quantization={shown_value(self.quantization)}"
        if self.quantization not in QUANTIZATIONS:
            raise BackendError(f"there is no {this}: expected None or one of {', '.join(QUANTIZATIONS)}")
        if self.products != "auto":
            raise BackendError(f"{this} has products of its own: expected products 'auto', got {self.products!r}")
        if self.deterministic:
            raise BackendError(f"deterministic=True: products with {this} change with a pass; leave it out")

    @property
    def dense_only(self) -> list[str]:
        """Options in use that only the dense runner has."""
        named = {"products": "auto", "quantization": None}
        given = {name: getattr(self, name) for name in named}
        of_products = [f"{name}={value!r}" for name, value in given.items() if value != named[name]]
        return of_products + [f"{name}=True" for name in ("deterministic", "tensor_parallel") if getattr(self, name)]

    @property
    def hub(self) -> dict[str, Any]:
        """Keyword arguments for transformers' loading functions: revision, token and trust_remote_code."""
        return {"revision": self.revision, "token": self.token, "trust_remote_code": self.trust_remote_code}
