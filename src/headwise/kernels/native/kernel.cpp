// The kernels for one instruction set, HEADWISE_ISA; this file is compiled once for each.
#include "backward.hpp"
#include "forward.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

bool usable() {
#if defined(__AVX512F__)
    bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(__AVX512BF16__)
    has = has && __builtin_cpu_supports("avx512bf16");
#endif
    return has;
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

bool forward(const Call& call, const Plan& plan, Reserve reserve) {
    return call.half ? Forward<Half>(call, plan).run(reserve) : Forward<Single>(call, plan).run(reserve);
}

bool backward(const Call& call, const Plan& plan, Reserve reserve) {
    return call.half ? Backward<Half>(call, plan).run(reserve) : Backward<Single>(call, plan).run(reserve);
}

#define HEADWISE_QUOTE(x) #x
#define HEADWISE_NAME(x) HEADWISE_QUOTE(x)

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {HEADWISE_NAME(HEADWISE_ISA), usable, forward, backward};

}  // namespace headwise::HEADWISE_ISA
