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
    int32_t* first;   // of the valid keys, the first of each cell
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
    void find_peak(Counts& counts, int r, const float* scores, float top, int64_t k, int64_t begin, int64_t end) const {
        if (!seen.peak) return;
        for (int64_t j = begin; j < end; j += W)
            if (const uint32_t found = equal(load(scores + j), all(top))) {
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

    // The first place of a cell.
    int64_t first_of(int64_t cell, int64_t length) const { return (cell * length + seen.cells - 1) / seen.cells; }

    // Number what a query's weights are added up in: a row of its head's map, or the head where there is no map.
    int64_t line(int64_t head, int64_t query, int64_t length) const {
        return seen.map ? head * seen.cells + cell(query, length) : head;
    }

    // Add weights of keys k + begin to k + end, summed over the queries of a line.
    void add_line(Counts& counts, const Extent& extent, int64_t number, const float* line, int64_t k, int64_t begin,
                  int64_t end) const {
        if (seen.received) {
            float* received = counts.received + (seen.map ? number / seen.cells : number) * call.keys + k;
            for (int64_t j = begin; j < end; ++j) received[j] += line[j];
        }
        if (!seen.map) return;
        float* map = counts.map + number * seen.cells;
        int64_t j = larger(begin, extent.start - k);
        for (int64_t column = cell(j + k - extent.start, extent.keys); j < end; ++column) {
            const int64_t stop = smaller(end, extent.start - k + counts.first[column + 1]);
            float total = 0;
            if (j + W <= stop) {
                vec sums = all(0);
                for (; j + W <= stop; j += W) sums = add(sums, load(line + j));
                total = sum(sums);
            }
            for (; j < stop; ++j) total += line[j];
            map[column] += total;
        }
    }

    // Keep a row's strongest keys, sorted, among the weights of keys k + begin to k + end, in whole vectors; `tops` is
    // the largest weight of each lane.
    void link(int64_t at, const float* line, vec tops, int64_t k, int64_t begin, int64_t end) const {
        float* weights = seen.link_weight + at * seen.links;
        int64_t* keys = seen.link_key + at * seen.links;
        const int64_t last = seen.links - 1;
        vec least = all(weights[last]);
        const uint32_t lanes = above(tops, least);
        if (!lanes) return;
        // With a lane for each link, what is below the smallest of their tops is none of the strongest.
        if (__builtin_popcount(lanes) > last) least = most(least, all(below(ranked(tops, last))));
        // Found first, then sorted in: a branch for every vector would be foreseen wrongly too often.
        int32_t found[BLOCK_KEYS + W];
        int64_t count = 0;
        for (int64_t j = begin; j < end; j += W)
            count += places_above(load(line + j), least, static_cast<int32_t>(j), found + count);
        for (int64_t i = 0; i < count; ++i) {
            const int64_t key = found[i];
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

    // Count the queries of each row of the map that see something.
    void count_live() const {
        if (!seen.map) return;
        for (int64_t u = 0; u < call.batch * call.heads; ++u) {
            const int64_t length = extent_of(call, u / call.heads).queries;
            const double* lse = call.lse + u * call.queries;
            int64_t* counts = seen.map_count + u * seen.cells;
            int64_t rest = 0;  // of places times cells, less what fills whole rows of the map
            for (int64_t i = 0; i < length; ++i) {
                *counts += lse[i] != MINUS_INFINITY;
                for (rest += seen.cells; rest >= length; rest -= length) ++counts;
            }
        }
    }

private:
    const int64_t reach;

    // The largest lane after the `before` largest of positive ones; equal lanes are one.
    static float ranked(vec lanes, int64_t before) {
        for (; before > 0; --before) lanes = unless_equal(lanes, all(largest(lanes)), lanes);
        return largest(lanes);
    }

    // The next number below a positive one; 0 for 0.
    static float below(float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof bits);
        bits -= bits > 0;
        std::memcpy(&x, &bits, sizeof bits);
        return x;
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
