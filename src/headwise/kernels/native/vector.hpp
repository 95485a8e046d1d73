// The few vector instructions that the kernels are written in, for each instruction set.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

// Before loops over arrays of vectors: unrolled late, these would live in memory instead of registers.
#if defined(__clang__)
#define HEADWISE_UNROLL _Pragma("unroll")
#else
#define HEADWISE_UNROLL _Pragma("GCC unroll 16")
#endif

namespace headwise::HEADWISE_ISA {
namespace {

constexpr double LN_2 = 0.6931471805599453;
constexpr float LOG2_E = 1.4426950408889634f;
constexpr float MINUS_INFINITY = -__builtin_inff();
constexpr float SMALLEST_POWER = -127.0f;  // exp2 of this and less is 0

template <class N>
constexpr N smaller(N a, N b) { return b < a ? b : a; }
template <class N>
constexpr N larger(N a, N b) { return a < b ? b : a; }
inline int64_t up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

#if defined(__AVX512F__)

using vec = __m512;
constexpr int W = 16, TILE_VECTORS = 4;

inline vec all(float x) { return _mm512_set1_ps(x); }
inline vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vec a) { _mm512_storeu_ps(p, a); }
inline vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm512_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm512_mul_ps(a, b); }
inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec most(vec a, vec b) { return _mm512_max_ps(a, b); }  // b where one is NaN
inline vec absolute(vec a) { return _mm512_abs_ps(a); }
inline float sum(vec a) { return _mm512_reduce_add_ps(a); }
inline float largest(vec a) { return _mm512_reduce_max_ps(a); }
inline vec ramp() { return _mm512_set_ps(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0); }

inline vec load_half(const uint16_t* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

inline void store_half(uint16_t* p, vec a) {
#if defined(__AVX512BF16__)
    const __m256bh bits = _mm512_cvtneps_pbh(a);
    std::memcpy(p, &bits, sizeof bits);
#else
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i near = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
    near = _mm512_mask_mov_epi32(near, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q), _mm512_set1_epi32(0x7FC00000));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(_mm512_srli_epi32(near, 16)));
#endif
}

inline vec scaled(vec power, vec x, vec whole) {
    return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, all(SMALLEST_POWER), _CMP_NLE_UQ), power, whole);
}
inline vec rounded(vec a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }

// s c + added, and -inf where that is added: NaN plus -inf would stay NaN.
inline vec joined(vec s, vec c, vec added) {
    const __mmask16 hidden = _mm512_cmp_ps_mask(added, all(MINUS_INFINITY), _CMP_EQ_OQ);
    return _mm512_mask_mov_ps(fma(s, c, added), hidden, added);
}

// Zero where the query of a lane does not see the key.
inline vec within(vec a, const int32_t* first, const int32_t* last, int32_t key) {
    const __m512i at = _mm512_set1_epi32(key);
    const __mmask16 begun = _mm512_cmple_epi32_mask(_mm512_loadu_si512(first), at);
    return _mm512_maskz_mov_ps(_mm512_mask_cmplt_epi32_mask(begun, at, _mm512_loadu_si512(last)), a);
}

// -inf where the query of a lane does not see the key.
inline vec where_within(vec a, const int32_t* first, const int32_t* last, int32_t key) {
    const __m512i at = _mm512_set1_epi32(key);
    const __mmask16 begun = _mm512_cmple_epi32_mask(_mm512_loadu_si512(first), at);
    const __mmask16 within = _mm512_mask_cmplt_epi32_mask(begun, at, _mm512_loadu_si512(last));
    return _mm512_mask_mov_ps(all(MINUS_INFINITY), within, a);
}

// Zero where the word of a lane is below the least.
inline vec kept(vec a, const uint16_t* words, int32_t least) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)));
    return _mm512_maskz_mov_ps(_mm512_cmpge_epi32_mask(wide, _mm512_set1_epi32(least)), a);
}

// c, but 0 where a equals b.
inline vec unless_equal(vec a, vec b, vec c) { return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), c); }
inline vec unless_zero(vec a, vec b) { return unless_equal(a, all(0), b); }

// Lanes where a equals b, as bits.
inline uint32_t equal(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
inline uint32_t above(vec a, vec b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }

// Write the places of lanes where a is above b, the first lane's being `first`, and give their number; writes W.
inline int places_above(vec a, vec b, int32_t first, int32_t* to) {
    const __mmask16 found = _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
    const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi32(found, _mm512_add_epi32(lanes, _mm512_set1_epi32(first))));
    return __builtin_popcount(found);
}

// Both halves of the products of W numbers of 32 bits.
inline void multiply_wide(const uint32_t* a, uint32_t b, uint32_t* high, uint32_t* low) {
    const __m512i x = _mm512_loadu_si512(a), y = _mm512_set1_epi32(static_cast<int>(b));
    const __m512i even = _mm512_mul_epu32(x, y), odd = _mm512_mul_epu32(_mm512_srli_epi64(x, 32), y);
    _mm512_storeu_si512(low, _mm512_mask_mov_epi32(even, 0xAAAA, _mm512_slli_epi64(odd, 32)));
    _mm512_storeu_si512(high, _mm512_mask_mov_epi32(_mm512_srli_epi64(even, 32), 0xAAAA, odd));
}

// Turn a square of W rows into W columns.
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
    __m512 r[16], t[16];
    for (int i = 0; i < 16; ++i) r[i] = load(from + i * from_row);
    for (int i = 0; i < 16; i += 4) {
        const __m512 a = _mm512_unpacklo_ps(r[i], r[i + 1]), b = _mm512_unpackhi_ps(r[i], r[i + 1]);
        const __m512 c = _mm512_unpacklo_ps(r[i + 2], r[i + 3]), d = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(a, c, 0x44);
        t[i + 1] = _mm512_shuffle_ps(a, c, 0xEE);
        t[i + 2] = _mm512_shuffle_ps(b, d, 0x44);
        t[i + 3] = _mm512_shuffle_ps(b, d, 0xEE);
    }
    for (int i = 0; i < 4; ++i) {
        const __m512 a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88), b = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xDD);
        const __m512 c = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
        const __m512 d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xDD);
        store(to + i * to_row, _mm512_shuffle_f32x4(a, c, 0x88));
        store(to + (i + 4) * to_row, _mm512_shuffle_f32x4(b, d, 0x88));
        store(to + (i + 8) * to_row, _mm512_shuffle_f32x4(a, c, 0xDD));
        store(to + (i + 12) * to_row, _mm512_shuffle_f32x4(b, d, 0xDD));
    }
}

#elif defined(__AVX2__)

using vec = __m256;
constexpr int W = 8, TILE_VECTORS = 2;

inline vec all(float x) { return _mm256_set1_ps(x); }
inline vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vec a) { _mm256_storeu_ps(p, a); }
inline vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
inline vec sub(vec a, vec b) { return _mm256_sub_ps(a, b); }
inline vec mul(vec a, vec b) { return _mm256_mul_ps(a, b); }
inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
inline vec most(vec a, vec b) { return _mm256_max_ps(a, b); }
inline vec absolute(vec a) { return _mm256_andnot_ps(all(-0.0f), a); }
inline vec ramp() { return _mm256_set_ps(7, 6, 5, 4, 3, 2, 1, 0); }
inline float sum(vec a) {
    __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_add_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
inline float largest(vec a) {
    __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    x = _mm_max_ps(x, _mm_movehl_ps(x, x));
    return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}

inline __m256i wide(const uint16_t* p) {
    return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline vec load_half(const uint16_t* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(wide(p), 16)); }
inline void store_half(uint16_t* p, vec a) {
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    __m256i near = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
    const __m256i broken = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    near = _mm256_srli_epi32(_mm256_blendv_epi8(near, _mm256_set1_epi32(0x7FC00000), broken), 16);
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(near, near), 0x88);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_castsi256_si128(packed));
}

inline vec rounded(vec a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vec scaled(vec power, vec, vec whole) {
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return mul(power, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline vec joined(vec s, vec c, vec added) {
    const vec hidden = _mm256_cmp_ps(added, all(MINUS_INFINITY), _CMP_EQ_OQ);
    return _mm256_blendv_ps(fma(s, c, added), added, hidden);
}
inline vec within(vec a, const int32_t* first, const int32_t* last, int32_t key) {
    const __m256i at = _mm256_set1_epi32(key);
    const __m256i early = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)), at);
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(last)), at);
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_andnot_si256(early, inside)), a);
}
inline vec where_within(vec a, const int32_t* first, const int32_t* last, int32_t key) {
    const __m256i at = _mm256_set1_epi32(key);
    const __m256i early = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(first)), at);
    const __m256i inside = _mm256_cmpgt_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(last)), at);
    return _mm256_blendv_ps(all(MINUS_INFINITY), a, _mm256_castsi256_ps(_mm256_andnot_si256(early, inside)));
}
inline vec kept(vec a, const uint16_t* words, int32_t least) {
    return _mm256_and_ps(_mm256_castsi256_ps(_mm256_cmpgt_epi32(wide(words), _mm256_set1_epi32(least - 1))), a);
}
inline vec unless_equal(vec a, vec b, vec c) { return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ), c); }
inline vec unless_zero(vec a, vec b) { return unless_equal(a, all(0), b); }
inline uint32_t equal(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)); }
inline uint32_t above(vec a, vec b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)); }

inline void multiply_wide(const uint32_t* a, uint32_t b, uint32_t* high, uint32_t* low) {
    const __m256i x = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(a));
    const __m256i y = _mm256_set1_epi32(static_cast<int>(b));
    const __m256i even = _mm256_mul_epu32(x, y), odd = _mm256_mul_epu32(_mm256_srli_epi64(x, 32), y);
    const __m256i lows = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    const __m256i highs = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(low), lows);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(high), highs);
}

inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int i = 0; i < W; ++i)
        for (int j = 0; j < W; ++j) to[j * to_row + i] = from[i * from_row + j];
}

#else

typedef float vec __attribute__((vector_size(16)));
typedef int32_t whole_vec __attribute__((vector_size(16)));
constexpr int W = 4, TILE_VECTORS = 2;

inline vec all(float x) { return vec{x, x, x, x}; }
inline vec load(const float* p) { vec a; std::memcpy(&a, p, sizeof a); return a; }
inline void store(float* p, vec a) { std::memcpy(p, &a, sizeof a); }
inline vec add(vec a, vec b) { return a + b; }
inline vec sub(vec a, vec b) { return a - b; }
inline vec mul(vec a, vec b) { return a * b; }
inline vec fma(vec a, vec b, vec c) { return a * b + c; }
inline vec most(vec a, vec b) { return a > b ? a : b; }
inline vec absolute(vec a) { return a < 0 ? -a : a; }
inline vec ramp() { return vec{0, 1, 2, 3}; }
inline float sum(vec a) { return (a[0] + a[2]) + (a[1] + a[3]); }
inline float largest(vec a) { return larger(larger(a[0], a[2]), larger(a[1], a[3])); }
inline vec load_half(const uint16_t* p) {
    const whole_vec bits = {p[0] << 16, p[1] << 16, p[2] << 16, p[3] << 16};
    return reinterpret_cast<vec>(bits);
}
inline void store_half(uint16_t* p, vec a) {
    for (int i = 0; i < W; ++i) {
        uint32_t bits;
        const float x = a[i];
        std::memcpy(&bits, &x, sizeof bits);
        p[i] = static_cast<uint16_t>(x == x ? (bits + 0x7FFF + (bits >> 16 & 1)) >> 16 : 0x7FC0);
    }
}
// Adding and taking away 1.5 x 2^23 leaves a float's nearest whole number.
inline vec rounded(vec a) { const vec shift = all(12582912.0f); return (a + shift) - shift; }
inline vec scaled(vec power, vec, vec whole) {
    const whole_vec exponent = (__builtin_convertvector(whole, whole_vec) + 127) << 23;
    return power * reinterpret_cast<vec>(exponent);
}
inline vec joined(vec s, vec c, vec added) { return added == all(MINUS_INFINITY) ? added : s * c + added; }
inline vec within(vec a, const int32_t* first, const int32_t* last, int32_t key) {
    whole_vec f, l;
    std::memcpy(&f, first, sizeof f);
    std::memcpy(&l, last, sizeof l);
    return ((f <= key) & (l > key)) ? a : all(0);
}
inline vec where_within(vec a, const int32_t* first, const int32_t* last, int32_t key) {
    whole_vec f, l;
    std::memcpy(&f, first, sizeof f);
    std::memcpy(&l, last, sizeof l);
    return ((f <= key) & (l > key)) ? a : all(MINUS_INFINITY);
}
inline vec kept(vec a, const uint16_t* words, int32_t least) {
    const whole_vec wide = {words[0], words[1], words[2], words[3]};
    return (wide >= least) ? a : all(0);
}
inline vec unless_equal(vec a, vec b, vec c) { return (a != b) ? c : all(0); }
inline vec unless_zero(vec a, vec b) { return unless_equal(a, all(0), b); }
inline void multiply_wide(const uint32_t* a, uint32_t b, uint32_t* high, uint32_t* low) {
    for (int l = 0; l < W; ++l) {
        const uint64_t product = a[l] * uint64_t{b};
        low[l] = static_cast<uint32_t>(product);
        high[l] = static_cast<uint32_t>(product >> 32);
    }
}
inline uint32_t bits_of(whole_vec m) { return (m[0] & 1) | (m[1] & 2) | (m[2] & 4) | (m[3] & 8); }
inline uint32_t equal(vec a, vec b) { return bits_of(a == b); }
inline uint32_t above(vec a, vec b) { return bits_of(a > b); }
inline void transpose(const float* from, int64_t from_row, float* to, int64_t to_row) {
    for (int i = 0; i < W; ++i)
        for (int j = 0; j < W; ++j) to[j * to_row + i] = from[i * from_row + j];
}

#endif

#if !defined(__AVX512F__)
inline int places_above(vec a, vec b, int32_t first, int32_t* to) {
    int count = 0;
    for (uint32_t found = above(a, b); found; found &= found - 1) to[count++] = first + __builtin_ctz(found);
    return count;
}
#endif

// 2^x for x up to 127; 0 from -127 down, NaN where x is NaN. A polynomial of degree 5, good to 1e-7.
inline vec power_of_2(vec x) {
    const vec whole = rounded(x), f = sub(x, whole);
    vec p = all(1.326472711e-3f);
    p = fma(p, f, all(9.671512681e-3f));
    p = fma(p, f, all(5.550733743e-2f));
    p = fma(p, f, all(2.402224208e-1f));
    p = fma(p, f, all(6.931469776e-1f));
    p = fma(p, f, all(1.0f));
    return scaled(p, x, whole);
}
inline vec floored(vec x) { return most(all(SMALLEST_POWER), x); }

// The largest of whole vectors of numbers, NaN aside, from several maxima at once: each waits for the one before.
inline float largest(const float* numbers, int64_t count) {
    constexpr int TOPS = 4;
    vec tops[TOPS];
    for (vec& top : tops) top = all(MINUS_INFINITY);
    int64_t i = 0;
    for (; i + TOPS * W <= count; i += TOPS * W) {
        HEADWISE_UNROLL
        for (int t = 0; t < TOPS; ++t) tops[t] = most(load(numbers + i + t * W), tops[t]);
    }
    for (; i < count; i += W) tops[0] = most(load(numbers + i), tops[0]);
    return largest(most(most(tops[0], tops[1]), most(tops[2], tops[3])));
}

inline bool has_nan(const float* numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i)
        if (numbers[i] != numbers[i]) return true;
    return false;
}

// How numbers are multiplied: one by one, or bfloat16 two by two in one 32-bit word. `step` is how many a word has,
// `depth` how many of a sum are taken at once, so that what is summed is filled up with zeros to whole ones.
struct Single {
    static constexpr int step = 1, depth = 1;
    static inline vec multiply(vec total, vec a, vec b) { return fma(a, b, total); }
};

#if defined(__AVX512BF16__)
struct Paired {
#if defined(__AMX_BF16__)
    static constexpr int step = 2, depth = 32;
#else
    static constexpr int step = 2, depth = 2;
#endif
    static inline vec multiply(vec total, vec a, vec b) {
        return _mm512_dpbf16_ps(total, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
    }
};
using Half = Paired;

// Two vectors as 32 adjacent bfloat16.
inline vec halves(vec a, vec b) { return reinterpret_cast<vec>(_mm512_cvtne2ps_pbh(b, a)); }
// Two rows of bfloat16, each lane's numbers beside each other in one word.
inline vec paired(const uint16_t* a, const uint16_t* b) {
    const __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(a)));
    const __m512i high = _mm512_castps_si512(load_half(b));
    return _mm512_castsi512_ps(_mm512_or_si512(low, high));
}
// The same of two rows of float, rounded.
inline vec interleaved(vec a, vec b) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, _mm512_castps_si512(halves(a, b))));
}
#else
using Half = Single;
#endif

}  // namespace
}  // namespace headwise::HEADWISE_ISA
