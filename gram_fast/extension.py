"""Imports the C++ extension `_C`; raises ImportError that says how to build it when it is missing."""

# Before the extension, which then finds torch's libgomp loaded and shares its threads; a wheel brings none of its own.
import torch  # noqa: F401

try:
    from gram_fast import _C
except ImportError as error:
    # A missing file reads as a circular import of the package; other causes (a bad link) are quoted.
    raise ImportError(
        "the C++ extension of gram_fast is not built: run `python setup.py build_ext --inplace` in its folder "
        f"or install a wheel ({error})"
    ) from error

__all__ = ["_C"]
