#include "common/parallel.h"

#include <omp.h>
#include <pthread.h>

#include <atomic>

namespace gram_fast {
namespace {

std::atomic<bool> is_forked_child{false};

const int registered = pthread_atfork(nullptr, nullptr, [] { is_forked_child = true; });

}  // namespace

int num_threads() { return is_forked_child || registered != 0 ? 1 : omp_get_max_threads(); }

}  // namespace gram_fast
