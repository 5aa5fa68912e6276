#pragma once

namespace gram_fast {

// Number of threads for an OpenMP region: 1 in a forked child, where libgomp's thread pool is gone and a region that
// uses it hangs.
int num_threads();

}  // namespace gram_fast
