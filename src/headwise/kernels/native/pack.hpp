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
inline void fetch_rows(const Rows& x, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i)
        for (int64_t e = 0; e < x.width * (x.half ? 2 : 4); e += 64) __builtin_prefetch(x.at(i) + e);
}

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
    return x.half == (M::step == 2) && x.width == words * M::step;
}

// Pack rows first to last as columns: `words` rows of PANEL columns, zeros after the last up to a whole vector.
template <class M>
void pack_columns(const Rows& x, int64_t first, int64_t last, int64_t words, float* to) {
    alignas(64) float copy[W * 256];
    for (int64_t i = first; i < last; i += W, to += W) {
        const int64_t count = smaller<int64_t>(W, last - i);
        auto from = reinterpret_cast<const float*>(x.at(i));
        int64_t from_row = x.row / M::step;
        if (count < W || !direct<M>(x, words) || x.row % M::step || words % W || !x.adjacent(i, W)) {
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
    for (; e + W <= width; e += W) total = fma(load_number(a, half_a, e), load_number(b, half_b, e), total);
    float rest = 0;
    for (; e < width; ++e) rest += number_at(a, half_a, e) * number_at(b, half_b, e);
    return sum(total) + rest;
}

// Tell whether all numbers of rows first to last are finite: 0 times any other is NaN.
inline bool are_finite(const Rows& x, int64_t first, int64_t last) {
    vec total = all(0);
    float rest = 0;
    for (int64_t i = first; i < last; ++i) {
        const char* row = x.at(i);
        int64_t e = 0;
        for (; e + W <= x.width; e += W) total = fma(load_number(row, x.half, e), all(0), total);
        for (; e < x.width; ++e) rest += number_at(row, x.half, e) * 0;
    }
    return sum(total) + rest == 0;
}

// Pack rows first to last for sums over rows, `step` rows to a word and `room` words to a line. Rows that are not
// finite become zero, because 0 times NaN is NaN, and are marked.
template <class M>
bool pack_rows(const Rows& x, int64_t first, int64_t last, float* to, int64_t room, uint8_t* broken) {
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
