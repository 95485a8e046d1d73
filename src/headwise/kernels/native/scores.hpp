// What is added to the scores beyond their product, and which weights dropout keeps.
#pragma once

#include "call.hpp"
#include "vector.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

inline bool adds(const Call& call, const Plan& plan) {
    return call.bias.data || call.slopes || call.relative || call.dense.data || plan.key_class;
}

inline int64_t place(const Spread& x, int64_t batch, int64_t head, int64_t row) {
    return batch * x.batch + head * x.head + row * x.row;
}

inline void add_bias(const Call& call, int64_t at, int64_t count, float* to) {
    const int64_t step = call.bias.column;
    if (call.bias_half) {
        const auto* from = reinterpret_cast<const uint16_t*>(call.bias.data) + at;
        for (int64_t j = 0; j < count; ++j) {
            const uint32_t bits = static_cast<uint32_t>(from[j * step]) << 16;
            float x;
            std::memcpy(&x, &bits, sizeof x);
            to[j] = x * LOG2_E;
        }
    } else {
        const auto* from = reinterpret_cast<const float*>(call.bias.data) + at;
        for (int64_t j = 0; j < count; ++j) to[j] = from[j * step] * LOG2_E;
    }
}

// Write what is added to the scores, times log2(e), of one query and `count` keys from `first` on; -inf where hidden.
inline void added_scores(const Call& call, const Plan& plan, const int64_t (&query)[3], int64_t first, int64_t count,
                         float* to) {
    const auto [batch, head, row] = query;
    if (call.bias.data) {
        add_bias(call, place(call.bias, batch, head, row) + first * call.bias.column, count, to);
    } else {
        std::memset(to, 0, count * 4);
    }
    const auto before = static_cast<int32_t>(first - extent_of(call, batch).own(row));
    if (call.slopes) {
        const float slope = call.slopes[head] * LOG2_E;
        for (int32_t j = 0; j < count; ++j) to[j] -= slope * std::fabs(static_cast<float>(before + j));
    }
    if (call.relative) {
        const auto reach = static_cast<int32_t>(call.relatives / 2);
        const float* table = call.relative + head * call.relatives + reach;
        for (int32_t j = 0; j < count; ++j) to[j] += table[larger(-reach, smaller(reach, before + j))] * LOG2_E;
    }
    if (call.dense.data) {
        const char* seen = call.dense.data + place(call.dense, batch, head, row) + first * call.dense.column;
        for (int64_t j = 0; j < count; ++j) to[j] = seen[j * call.dense.column] ? to[j] : MINUS_INFINITY;
    }
    if (plan.key_class) {
        const int32_t own = plan.query_class[batch * call.queries + row];
        const int32_t* classes = plan.key_class + batch * call.keys + first;
        for (int64_t j = 0; j < count; ++j) to[j] = classes[j] == own ? to[j] : MINUS_INFINITY;
    }
}

// As many counters of Philox-4x32 (Salmon et al. 2011) as a vector has lanes, 7 rounds.
struct Philox {
    alignas(64) uint32_t c0[W], c1[W], c2[W], c3[W];

    void set(int lane, int64_t block, int32_t query, int32_t head, int64_t batch) {
        c0[lane] = static_cast<uint32_t>(block);
        c1[lane] = static_cast<uint32_t>(query);
        c2[lane] = static_cast<uint32_t>(head);
        c3[lane] = static_cast<uint32_t>(batch);
    }

    void run(uint64_t seed) {
        auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
        alignas(64) uint32_t high0[W], high2[W];
        for (int round = 0; round < 7; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            alignas(64) uint32_t low0[W], low2[W];
            multiply_wide(c0, 0xD2511F53u, high0, low0);
            multiply_wide(c2, 0xCD9E8D57u, high2, low2);
            for (int l = 0; l < W; ++l) {
                c0[l] = high2[l] ^ c1[l] ^ k0;
                c2[l] = high0[l] ^ c3[l] ^ k1;
                c1[l] = low2[l];
                c3[l] = low0[l];
            }
        }
    }
};

// Write the 16-bit words of some queries and `count` keys from `first`, a multiple of 8, on; `row` words to a query.
inline void words_by_query(const Call& call, int64_t batch, const int32_t* heads, const int32_t* queries, int rows,
                           int64_t first, int64_t count, uint16_t* to, int64_t row) {
    const auto seed = static_cast<uint64_t>(*call.seed);
    const int64_t blocks = (count + 7) / 8;
    Philox random;
    uint16_t* places[W];
    int64_t block = 0;
    for (int r = 0; r < rows;) {
        int lanes = 0;
        for (; lanes < W && r < rows; ++lanes) {
            random.set(lanes, first / 8 + block, queries[r], heads[r], batch);
            places[lanes] = to + r * row + block * 8;
            if (++block == blocks) {
                block = 0;
                ++r;
            }
        }
        random.run(seed);
        for (int l = 0; l < lanes; ++l) {
            const uint32_t words[4] = {random.c0[l], random.c1[l], random.c2[l], random.c3[l]};
            std::memcpy(places[l], words, sizeof words);
        }
    }
}

// Write the words of keys first to last and `count` queries beside each other; `row` words to a key.
inline void words_by_key(const Call& call, int64_t batch, const int32_t* heads, const int32_t* queries, int64_t count,
                         int64_t first, int64_t last, uint16_t* to, int64_t row) {
    const auto seed = static_cast<uint64_t>(*call.seed);
    Philox random;
    for (int64_t block = first / 8; block * 8 < last; ++block) {
        for (int64_t at = 0; at < count; at += W) {
            for (int l = 0; l < W; ++l) {
                const int64_t column = smaller(at + l, count - 1);
                random.set(l, block, queries[column], heads[column], batch);
            }
            random.run(seed);
            const uint32_t* words[4] = {random.c0, random.c1, random.c2, random.c3};
            for (int64_t j = larger(first, block * 8); j < smaller(last, block * 8 + 8); ++j) {
                const uint32_t* from = words[j % 8 / 2];
                const int shift = j % 2 * 16;
                uint16_t* line = to + (j - first) * row + at;
                for (int l = 0; l < W; ++l) line[l] = static_cast<uint16_t>(from[l] >> shift);
            }
        }
    }
}

}  // namespace
}  // namespace headwise::HEADWISE_ISA
