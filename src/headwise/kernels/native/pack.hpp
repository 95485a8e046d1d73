// Copies of the inputs in the order in which the products read them.
#pragma once

#include "call.hpp"
#include "product.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

// Rows of one matrix of the caller's, or of the matrices of adjacent heads one after the other.
struct Rows {
    char* data;
    int64_t row;  // stride in elements
    int64_t width;
    bool half;
    int64_t run, jump;  // rows of a head, and the stride from head to head

    char* at(int64_t i) const {
        const int64_t place = i < run ? i * row : i / run * jump + i % run * row;
        return data + place * (half ? 2 : 4);
    }
    bool adjacent(int64_t first, int64_t count) const { return first % run + count <= run; }
};

inline Rows rows_of(const View& view, int64_t batch, int64_t head, int64_t rows, int64_t width, bool half) {
    char* data = view.data + (batch * view.batch + head * view.head) * (half ? 2 : 4);
    return {data, view.row, width, half, rows, view.head};
}

inline float number_at(const char* row, bool half, int64_t i) {
    if (!half) return reinterpret_cast<const float*>(row)[i];
    const uint32_t bits = static_cast<uint32_t>(reinterpret_cast<const uint16_t*>(row)[i]) << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

// Widen a row to float, and fill it up with zeros to `room`.
inline void widen(const char* row, bool half, int64_t width, float* to, int64_t room) {
    int64_t i = 0;
    if (half) {
        const auto* from = reinterpret_cast<const uint16_t*>(row);
        for (; i + W <= width; i += W) store(to + i, load_half(from + i));
        for (; i < width; ++i) to[i] = number_at(row, true, i);
    } else {
        const auto* from = reinterpret_cast<const float*>(row);
        for (; i + W <= width; i += W) store(to + i, load(from + i));
        for (; i < width; ++i) to[i] = from[i];
    }
    for (; i < room; ++i) to[i] = 0;
}

// Write a row times a factor in the caller's type.
inline void narrow(const float* from, float factor, char* row, bool half, int64_t width) {
    const vec times = all(factor);
    const auto wide = reinterpret_cast<float*>(row);
    const auto small = reinterpret_cast<uint16_t*>(row);
    int64_t i = 0;
    for (; i + W <= width; i += W) {
        const vec x = mul(load(from + i), times);
        if (half) store_half(small + i, x);
        else store(wide + i, x);
    }
    if (i == width) return;
    alignas(64) float rest[W] = {};
    alignas(64) uint16_t bits[W];
    std::memcpy(rest, from + i, (width - i) * 4);
    store(rest, mul(load(rest), times));
    store_half(bits, load(rest));
    std::memcpy(half ? row + 2 * i : row + 4 * i, half ? static_cast<void*>(bits) : rest, (width - i) * (half ? 2 : 4));
}

// Ask for rows that are needed soon: heads lie apart in memory, which no hardware foresees.
template <bool WRITE>
void fetch_rows(const Rows& x, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t e = 0; e < x.width * (x.half ? 2 : 4); e += 64) __builtin_prefetch(x.at(i) + e, WRITE, 2);
    // GCC drops calls of functions that do nothing but this.
    __asm__ volatile("");
}

// Ask for a unit, a sample and group, while the one before is computed, where the plan says so.
inline void fetch_unit(const Call& call, const Plan& plan, int64_t unit, bool gradients) {
    if (!plan.fetches || unit >= call.batch * call.groups) return;
    const int64_t share = call.heads / call.groups, rows = share * call.queries;
    const int64_t batch = unit / call.groups, group = unit % call.groups;
    const bool half = call.half;
    const auto keys = [&](const View& view, int64_t width) {
        return rows_of(view, batch, group, call.keys, width, half);
    };
    const auto queries = [&](const View& view, int64_t width) {
        return rows_of(view, batch, group * share, call.queries, width, half);
    };
    fetch_rows<false>(keys(call.key, call.width), call.keys);
    fetch_rows<false>(keys(call.value, call.value_width), call.keys);
    fetch_rows<false>(queries(call.query, call.width), rows);
    if (!gradients) return fetch_rows<true>(queries(call.output, call.value_width), rows);
    fetch_rows<false>(queries(call.output, call.value_width), rows);
    fetch_rows<false>(queries(call.output_grad, call.value_width), rows);
    fetch_rows<true>(keys(call.key_grad, call.width), call.keys);
    fetch_rows<true>(keys(call.value_grad, call.value_width), call.keys);
    fetch_rows<true>(queries(call.query_grad, call.width), rows);
}

// How many words a row is multiplied as.
template <class M>
int64_t words_for(int64_t width) { return up(width, M::depth) / M::step; }

// Copy a row as words of M, zeros after its end.
template <class M>
void words_of(const Rows& x, int64_t i, float* to, int64_t words) {
    if (M::step == 1) {
        widen(x.at(i), x.half, x.width, to, words);
    } else {
        const char* row = x.at(i);
        int64_t w = 0;
        for (; (w + W) * 2 <= x.width; w += W) store(to + w, load(reinterpret_cast<const float*>(row) + w));
        if (w == words) return;
        std::memcpy(to + w, row + w * 4, (x.width - w * 2) * 2);
        std::memset(reinterpret_cast<char*>(to) + x.width * 2, 0, words * 4 - x.width * 2);
    }
}

// Whether rows can be read as words where they lie.
template <class M>
bool direct(const Rows& x, int64_t words) {
    const bool aligned = reinterpret_cast<uintptr_t>(x.data) % 4 == 0 && x.row % M::step == 0 && x.jump % M::step == 0;
    return x.half == (M::step == 2) && x.width == words * M::step && aligned;
}

// Copy rows first to last as words.
template <class M>
void copy_words(const Rows& x, int64_t first, int64_t last, int64_t words, float* to) {
    for (int64_t i = first; i < last; ++i) words_of<M>(x, i, to + i * words, words);
}

// Rows of one head as a left operand: where they lie, or in the room to which they have to be copied.
template <class M>
Left left_of(const Rows& x, int64_t words, float* room) {
    if (!direct<M>(x, words)) return {room, words, 1};
    return {reinterpret_cast<const float*>(x.data), x.row / M::step, 1};
}

// Pack rows first to last as columns: `words` rows of PANEL columns, zeros after the last up to a whole vector.
template <class M>
void pack_columns(const Rows& x, int64_t first, int64_t last, int64_t words, float* to) {
    alignas(64) float copy[W * 256];
    for (int64_t i = first; i < last; i += W, to += W) {
        const int64_t count = smaller<int64_t>(W, last - i);
        auto from = reinterpret_cast<const float*>(x.at(i));
        int64_t from_row = x.row / M::step;
        if (count < W || !direct<M>(x, words) || words % W || !x.adjacent(i, W)) {
            from = copy;
            from_row = up(words, W);
            for (int64_t r = 0; r < W; ++r) {
                if (r < count) words_of<M>(x, i + r, copy + r * from_row, from_row);
                else std::memset(copy + r * from_row, 0, from_row * 4);
            }
        }
        int64_t w = 0;
        for (; w + W <= words; w += W) transpose(from + w, from_row, to + w * PANEL, PANEL);
        for (; w < words; ++w)
            for (int64_t r = 0; r < W; ++r) to[w * PANEL + r] = from[r * from_row + w];
    }
}

inline vec load_number(const char* row, bool half, int64_t i) {
    return half ? load_half(reinterpret_cast<const uint16_t*>(row) + i) : load(reinterpret_cast<const float*>(row) + i);
}

inline float dot(const char* a, bool half_a, const char* b, bool half_b, int64_t width) {
    vec total = all(0);
    int64_t e = 0;
#if defined(__AVX512BF16__)
    if (half_a && half_b)
        for (; e + 2 * W <= width; e += 2 * W) {
            const auto *x = reinterpret_cast<const float*>(a + 2 * e), *y = reinterpret_cast<const float*>(b + 2 * e);
            total = Paired::multiply(total, load(x), load(y));
        }
#endif
    for (; e + W <= width; e += W) total = fma(load_number(a, half_a, e), load_number(b, half_b, e), total);
    float rest = 0;
    for (; e < width; ++e) rest += number_at(a, half_a, e) * number_at(b, half_b, e);
    return sum(total) + rest;
}

#if defined(__AVX512BF16__)
// The same for whole vectors of bfloat16: without the sign, infinity and NaN are the largest.
inline bool are_finite_halves(const Rows& x, int64_t first, int64_t last) {
    const __m512i magnitude = _mm512_set1_epi16(0x7FFF);
    __m512i top = _mm512_setzero_si512();
    for (int64_t i = first; i < last; ++i) {
        const char* row = x.at(i);
        for (int64_t e = 0; e < x.width * 2; e += 64)
            top = _mm512_max_epu16(top, _mm512_and_si512(_mm512_loadu_si512(row + e), magnitude));
    }
    return _mm512_cmpge_epu16_mask(top, _mm512_set1_epi16(0x7F80)) == 0;
}
#endif

// Tell whether all numbers of rows first to last are finite: 0 times any other is NaN.
inline bool are_finite(const Rows& x, int64_t first, int64_t last) {
#if defined(__AVX512BF16__)
    if (x.half && x.width % (2 * W) == 0) return are_finite_halves(x, first, last);
#endif
    constexpr int SUMS = 4;  // each waits for the one before
    vec totals[SUMS] = {all(0), all(0), all(0), all(0)};
    float rest = 0;
    for (int64_t i = first; i < last; ++i) {
        const char* row = x.at(i);
        int64_t e = 0;
        for (; e + SUMS * W <= x.width; e += SUMS * W) {
            HEADWISE_UNROLL
            for (int s = 0; s < SUMS; ++s)
                totals[s] = fma(load_number(row, x.half, e + s * W), all(0), totals[s]);
        }
        for (; e + W <= x.width; e += W) totals[0] = fma(load_number(row, x.half, e), all(0), totals[0]);
        for (; e < x.width; ++e) rest += number_at(row, x.half, e) * 0;
    }
    return sum(add(add(totals[0], totals[1]), add(totals[2], totals[3]))) + rest == 0;
}

// Pack rows first to last for sums over rows, `step` rows to a word and `room` words to a line, with lines of zeros for
// those up to `filled`. Rows that are not finite become zero, because 0 times NaN is NaN, and are marked.
template <class M>
bool pack_rows(const Rows& x, int64_t first, int64_t last, int64_t filled, float* to, int64_t room, uint8_t* broken) {
    const int64_t begin = (up(last, M::step) - first) / M::step, end = (filled - first) / M::step;
    if (begin < end) std::memset(to + begin * room, 0, (end - begin) * room * 4);
    const bool any = !are_finite(x, first, last);
    std::memset(broken + first, 0, last - first);
    if (any)
        for (int64_t i = first; i < last; ++i) broken[i] = !are_finite(x, i, i + 1);
    if (M::step == 1) {
        for (int64_t i = first; i < last; ++i, to += room) {
            if (broken[i]) std::memset(to, 0, room * 4);
            else widen(x.at(i), x.half, x.width, to, room);
        }
        return any;
    }
    for (int64_t i = first; i < last; i += 2, to += room) {
        alignas(64) static const uint16_t nothing[512] = {};
        const bool odd = i + 1 < last && !broken[i + 1];
        const auto* a = broken[i] ? nothing : reinterpret_cast<const uint16_t*>(x.at(i));
        const auto* b = odd ? reinterpret_cast<const uint16_t*>(x.at(i + 1)) : nothing;
        auto* words = reinterpret_cast<uint32_t*>(to);
        int64_t e = 0;
#if defined(__AVX512BF16__)
        for (; e + W <= x.width; e += W) store(to + e, paired(a + e, b + e));
#endif
        for (; e < x.width; ++e) words[e] = a[e] | static_cast<uint32_t>(b[e]) << 16;
        for (; e < room; ++e) words[e] = 0;
    }
    return any;
}

// Working memory, handed out piece by piece.
struct Room {
    char* at = nullptr;
    size_t used = 0;

    template <class T>
    T* take(int64_t count) {
        T* here = reinterpret_cast<T*>(at ? at + used : nullptr);
        used += up(count * sizeof(T), 64);
        return here;
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
