#pragma once

#include <pybind11/pybind11.h>

namespace gram_fast {

// Adds the ops and `has_cuda` to the module.
void bind_ops(pybind11::module_& m);

}  // namespace gram_fast
