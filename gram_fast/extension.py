"""The C++ extension, or one sentence about why it is missing."""

try:
    from gram_fast import _C
except ImportError as error:
    # A missing file reads as a circular import of the package; anything else (a bad link) keeps its own words.
    raise ImportError(
        "the C++ extension of gram_fast is not built: run `python setup.py build_ext --inplace` in its folder "
        f"or install a wheel ({error})"
    ) from error

__all__ = ["_C"]
