// The statistics: sums of weight times something cheap on the way, and what needs the final weights in a second pass.
#pragma once

#include "call.hpp"
#include "product.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

constexpr int BLOCK_KEYS = 2 * MOST_DEPTH;
constexpr int SCORE_ROW = BLOCK_KEYS + 16;  // not a power of 2, so that rows fall into different cache sets

// Sums of a block's rows, relative to the running maximum as the total is.
struct Counts {
    static constexpr int kinds = 7;
    enum Kind { position, distance, sink, diagonal, previous, next, local };

    float sums[kinds][BLOCK_ROWS];
    int64_t peak_key[BLOCK_ROWS], own[BLOCK_ROWS], start;
    float* weights;   // of one row and block of keys
    float* received;  // of each head of the group and key, and of each cell, by this thread
    float* map;
};

class Counter {
public:
    explicit Counter(const Call& call)
        : call(call), seen(call.seen), places(seen.position || seen.distance),
          nears(seen.sink || seen.diagonal || seen.previous || seen.next || seen.local),
          on_the_way(seen.entropy || seen.peak || places || nears),
          again(seen.received || seen.map || seen.links),
          reach(seen.local ? larger<int64_t>(1, seen.reach) : 1) {}

    const Call& call;
    const Statistics& seen;
    const bool places, nears, on_the_way, again;

    void begin(Counts& counts, int r, const Extent& extent, int64_t query) const {
        for (auto& sums : counts.sums) sums[r] = 0;
        counts.peak_key[r] = -1;
        counts.start = extent.start;
        counts.own[r] = extent.own(query);
    }

    // Find the key of a new maximum among the scores of keys k + begin to k + end.
    void find_peak(Counts& counts, int r, const float* scores, float c, float highest, int64_t k, int64_t begin,
                   int64_t end) const {
        if (!seen.peak) return;
        for (int64_t j = begin; j < end; j += W)
            if (const uint32_t found = equal(mul(load(scores + j), all(c)), all(highest))) {
                counts.peak_key[r] = k + j + __builtin_ctz(found);
                return;
            }
    }

    void shrink(Counts& counts, int r, float factor) const {
        for (auto& sums : counts.sums) sums[r] *= factor;
    }

    // Tell whether the weights of a row on keys first to last are needed one by one.
    bool near(const Counts& counts, int r, int64_t first, int64_t last) const {
        if (!nears) return false;
        const bool on_sink = seen.sink && first < counts.start + seen.sinks;
        return on_sink || (counts.own[r] - reach < last && counts.own[r] + reach >= first);
    }

    // Add the weights of keys begin to end that lie on the first keys, on the own position or beside it.
    void count_near(Counts& counts, int r, int64_t k, int64_t begin, int64_t end) const {
        const float* weights = counts.weights - k;
        begin += k;
        end += k;
        const auto add = [&](Counts::Kind kind, int64_t first, int64_t last) {
            float total = 0;
            for (int64_t j = larger(first, begin); j < smaller(last, end); ++j) total += weights[j];
            counts.sums[kind][r] += total;
        };
        const int64_t own = counts.own[r];
        if (seen.sink) add(Counts::sink, counts.start, counts.start + seen.sinks);
        if (seen.diagonal) add(Counts::diagonal, own, own + 1);
        if (seen.previous) add(Counts::previous, own - 1, own);
        if (seen.next) add(Counts::next, own + 1, own + 2);
        if (seen.local) add(Counts::local, own - seen.reach, own + seen.reach + 1);
    }

    // Write what was counted of a row on the way; its place among all queries is `at`.
    void write(const Counts& counts, int r, int64_t at, float total, float spread) const {
        const float share = 1 / total;
        float* const rooms[] = {seen.position, seen.distance, seen.sink, seen.diagonal,
                                seen.previous, seen.next,     seen.local};
        for (int kind = 0; kind < Counts::kinds; ++kind)
            if (rooms[kind]) rooms[kind][at] = counts.sums[kind][r] * share;
        if (seen.peak) {
            seen.peak[at] = share;
            seen.peak_key[at] = counts.peak_key[r];
        }
        if (seen.entropy) {
            const double lost = static_cast<double>(spread) / total;
            const double bits = std::log2(static_cast<double>(total)) - lost;
            seen.entropy[at] = static_cast<float>((bits < 0 ? 0 : bits) * LN_2);
        }
    }

    int64_t cell(int64_t place, int64_t length) const {
        return smaller(seen.cells - 1, place * seen.cells / larger<int64_t>(1, length));
    }

    // Add a line of weights, summed over queries of one head and one row of the map, for keys k + begin to k + end.
    void add_line(Counts& counts, const Extent& extent, int64_t head, int64_t row, const float* line, int64_t k,
                  int64_t begin, int64_t end) const {
        if (seen.received) {
            float* received = counts.received + head * call.keys + k;
            for (int64_t j = begin; j < end; ++j) received[j] += line[j];
        }
        if (!seen.map) return;
        float* map = counts.map + (head * seen.cells + row) * seen.cells;
        begin = larger(begin, extent.start - k);
        for (int64_t j = begin; j < end;) {
            const int64_t column = cell(k + j - extent.start, extent.keys);
            // The first key of the next cell.
            int64_t stop = extent.start - k + ((column + 1) * extent.keys + seen.cells - 1) / seen.cells;
            stop = column + 1 < seen.cells ? smaller(end, stop) : end;
            float total = 0;
            for (; j < stop; ++j) total += line[j];
            map[column] += total;
        }
    }

    // Keep a row's strongest keys, sorted, among the weights of keys k + begin to k + end, in whole vectors.
    void link(int64_t at, const float* line, int64_t k, int64_t begin, int64_t end) const {
        float* weights = seen.link_weight + at * seen.links;
        int64_t* keys = seen.link_key + at * seen.links;
        const int64_t last = seen.links - 1;
        for (int64_t j = begin; j < end; j += W)
            for (uint32_t found = above(load(line + j), all(weights[last])); found; found &= found - 1) {
                const int64_t key = j + __builtin_ctz(found);
                if (line[key] <= weights[last]) continue;
                int64_t rank = last;
                for (; rank > 0 && weights[rank - 1] < line[key]; --rank) {
                    weights[rank] = weights[rank - 1];
                    keys[rank] = keys[rank - 1];
                }
                weights[rank] = line[key];
                keys[rank] = k + key;
            }
    }

    void count_live(int64_t batch, int64_t head, int64_t query, const Extent& extent) const {
        if (!seen.map) return;
        const int64_t row = cell(query, extent.queries);
        __atomic_fetch_add(seen.map_count + (batch * call.heads + head) * seen.cells + row, 1, __ATOMIC_RELAXED);
    }

private:
    const int64_t reach;
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
