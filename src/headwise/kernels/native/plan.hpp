// What is worked out once per call, before any instruction set matters.
#pragma once

#include <vector>

#include "call.hpp"

namespace headwise {

// Owns what a Plan points to.
struct Planned {
    Plan plan;
    std::vector<int32_t> first, last, key_class, query_class;
};

// Say what is wrong with a call; null when nothing is.
const char* fault(const Call& call);

// Turn the mask into intervals of keys; throws std::bad_alloc.
void prepare(const Call& call, Planned& planned);

}  // namespace headwise
