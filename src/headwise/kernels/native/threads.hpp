// Threads of the OpenMP runtime that PyTorch has loaded, so that `torch.set_num_threads` holds here too.
#pragma once

#include "product.hpp"

#if defined(_OPENMP)
#include <omp.h>
#endif

namespace headwise::HEADWISE_ISA {
namespace {

// Run body(thread, team) on each thread of a team; on one thread without the runtime, whose pool no fork survives.
template <class Body>
void on_threads(int64_t threads, const Body& body) {
#if defined(_OPENMP)
    if (threads > 1) {
#pragma omp parallel num_threads(static_cast<int>(threads))
        {
            [[maybe_unused]] const Tiles tiles;
            body(omp_get_thread_num(), omp_get_num_threads());
        }
        return;
    }
#endif
    [[maybe_unused]] const Tiles tiles;
    body(0, 1);
}

// Wait for the whole team.
inline void barrier() {
#if defined(_OPENMP)
#pragma omp barrier
#endif
}

}  // namespace
}  // namespace headwise::HEADWISE_ISA
