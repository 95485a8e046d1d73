// The kernels for one instruction set, HEADWISE_ISA; this file is compiled once for each.
#include "backward.hpp"
#include "forward.hpp"
#include "short.hpp"

#if defined(__AMX_BF16__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace headwise::avx512_bf16 { extern const Kernel kernel; }
#endif

namespace headwise::HEADWISE_ISA {
namespace {

#if defined(__AMX_BF16__)
// Ask the processor for tiles of bfloat16, and Linux to keep them for this process.
bool has_tiles() {
    constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
    constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & BF16) || !(d & TILE)) return false;
    return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
}
#endif

bool usable() {
#if defined(__AVX512F__)
    bool has = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(__AVX512BF16__)
    has = has && __builtin_cpu_supports("avx512bf16");
#endif
#if defined(__AMX_BF16__)
    has = has && has_tiles();
#endif
    return has;
#elif defined(__AVX2__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return true;
#endif
}

template <class M>
bool forward_in(const Call& call, const Plan& plan, Reserve reserve) {
    return Short<M>::takes(call, plan) ? Short<M>(call, plan).run(reserve) : Forward<M>(call, plan).run(reserve);
}

#if defined(__AMX_BF16__)
// Its tiles take no float32.
bool forward(const Call& call, const Plan& plan, Reserve reserve) {
    return call.half ? forward_in<Half>(call, plan, reserve) : avx512_bf16::kernel.forward(call, plan, reserve);
}

bool backward(const Call& call, const Plan& plan, Reserve reserve) {
    return call.half ? Backward<Half>(call, plan).run(reserve) : avx512_bf16::kernel.backward(call, plan, reserve);
}
#else
bool forward(const Call& call, const Plan& plan, Reserve reserve) {
    return call.half ? forward_in<Half>(call, plan, reserve) : forward_in<Single>(call, plan, reserve);
}

bool backward(const Call& call, const Plan& plan, Reserve reserve) {
    return call.half ? Backward<Half>(call, plan).run(reserve) : Backward<Single>(call, plan).run(reserve);
}
#endif

#define HEADWISE_QUOTE(x) #x
#define HEADWISE_NAME(x) HEADWISE_QUOTE(x)

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {HEADWISE_NAME(HEADWISE_ISA), usable, forward, backward};

}  // namespace headwise::HEADWISE_ISA
