#pragma once

namespace gram_fast {

// Threads for a parallel region. 1 in a forked child: libgomp's pool does not survive fork, and a region that asks for
// it hangs there.
int num_threads();

}  // namespace gram_fast
