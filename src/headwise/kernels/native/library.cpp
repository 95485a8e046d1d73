// What Python sees: plain C functions, the choice of the instruction set, and the working memory.
#include <cstdlib>
#include <cstring>
#include <new>

#include "plan.hpp"

#define HEADWISE_PUBLIC extern "C" __attribute__((visibility("default")))

namespace headwise {

#if defined(__x86_64__)
#if defined(HEADWISE_AMX)
namespace amx { extern const Kernel kernel; }
#endif
namespace avx512_bf16 { extern const Kernel kernel; }
namespace avx512 { extern const Kernel kernel; }
namespace avx2 { extern const Kernel kernel; }
#endif
namespace portable { extern const Kernel kernel; }

namespace {

// The fastest first.
const Kernel* const kernels[] = {
#if defined(__x86_64__)
#if defined(HEADWISE_AMX)
    &amx::kernel,
#endif
    &avx512_bf16::kernel, &avx512::kernel, &avx2::kernel,
#endif
    &portable::kernel};
const Kernel* chosen = nullptr;

constexpr size_t KEPT_BYTES = 8u << 20;  // fresh memory costs a page fault for every 4 KB

// Working memory of a calling thread, kept between its calls while it is small.
struct Memory {
    void* data = nullptr;
    size_t bytes = 0;

    ~Memory() { std::free(data); }

    void* reserve(size_t wanted) {
        if (wanted <= bytes) return data;
        std::free(data);
        bytes = (wanted + 4095) / 4096 * 4096;
        data = std::aligned_alloc(4096, bytes);
        if (!data) bytes = 0;
        return data;
    }

    void release() {
        if (bytes <= KEPT_BYTES) return;
        std::free(data);
        data = nullptr;
        bytes = 0;
    }
};

thread_local Memory memory;

void* reserve(size_t bytes) { return memory.reserve(bytes); }

const char* compute(const Call& call, bool (*way)(const Call&, const Plan&, Reserve)) {
    if (const char* wrong = fault(call)) return wrong;
    try {
        Planned planned;
        prepare(call, planned);
        const bool done = way(call, planned.plan, reserve);
        memory.release();
        return done ? nullptr : "memory";
    } catch (const std::bad_alloc&) {
        return "memory";
    }
}

}  // namespace
}  // namespace headwise

// Choose an instruction set by name, or the best with an empty one; false where the machine lacks it.
HEADWISE_PUBLIC int headwise_choose(const char* name) {
    for (const headwise::Kernel* kernel : headwise::kernels) {
        if ((*name == '\0' || std::strcmp(name, kernel->name) == 0) && kernel->usable()) {
            headwise::chosen = kernel;
            return 1;
        }
    }
    return 0;
}

HEADWISE_PUBLIC const char* headwise_chosen() { return headwise::chosen ? headwise::chosen->name : ""; }

// Null when all went well, "memory" where there was none, else what is wrong with the call.
HEADWISE_PUBLIC const char* headwise_forward(const headwise::Call* call) {
    return headwise::compute(*call, headwise::chosen->forward);
}

HEADWISE_PUBLIC const char* headwise_backward(const headwise::Call* call) {
    return headwise::compute(*call, headwise::chosen->backward);
}
