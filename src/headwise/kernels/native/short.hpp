// Output and log-sum-exp of short sequences. Keys are rows and queries columns: a row of weights is a column of
// vectors, whose maximum and sum need no steps across a vector, and all of it stays in the nearest caches.
#pragma once

#include "pack.hpp"
#include "scores.hpp"
#include "threads.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

constexpr int64_t MOST_SHORT_KEYS = 2 * MOST_DEPTH;  // one block of keys of the other way, whose order of sums is kept
constexpr int GROUPS = PANEL / W;

// What a vector of queries sees: keys first to last by one or another, inner_first to inner_last by all.
struct Span {
    int64_t first, last, inner_first, inner_last;
};

// What one thread needs for itself.
struct alignas(CACHE_LINE) Panel {
    float *key_words, *values, *columns, *scores, *output;
    uint8_t* broken;
    float highest[PANEL], total[PANEL];  // running maximum of the scores times log2(e), sum of powers
    int32_t first[PANEL], last[PANEL];   // what the queries see
    Span spans[GROUPS];
    int64_t count, groups, begin, end;  // of queries and their vectors, and what all of them see together
};

template <class M>
class Short {
public:
    Short(const Call& call, const Plan& plan)
        : call(call), plan(plan), half(call.half), words(words_for<M>(call.width)),
          room(up(call.value_width, W)), share(call.heads / call.groups), units(call.batch * call.groups),
          factor(static_cast<float>(call.scale / LN_2)) {}

    // Tell whether a call is for it: nothing added, dropped or counted, and enough heads for all threads.
    static bool takes(const Call& call, const Plan& plan) {
        const Statistics& seen = call.seen;
        const bool counts = seen.entropy || seen.peak || seen.position || seen.distance || seen.sink || seen.diagonal ||
                            seen.previous || seen.next || seen.local || seen.received || seen.map || seen.links;
        const bool few = call.heads / call.groups * call.queries <= FEW_ROWS;
        return call.keys <= MOST_SHORT_KEYS && !few && !counts && !adds(call, plan) && !call.least && call.scale > 0 &&
               call.batch * call.groups >= plan.threads;
    }

    bool run(Reserve reserve) {
        Room room;
        lay_out(room);
        room.at = static_cast<char*>(reserve(room.used));
        if (!room.at) return false;
        room.used = 0;
        lay_out(room);
        int64_t next = 0;
        const int64_t step = larger<int64_t>(1, units / (plan.threads * 16));
        on_threads(plan.threads, [&](int64_t thread, int64_t) {
            for (int64_t a; (a = __atomic_fetch_add(&next, step, __ATOMIC_RELAXED)) < units;)
                for (int64_t u = a; u < smaller(units, a + step); ++u) attend(panels[thread], u);
        });
        return true;
    }

private:
    const Call& call;
    const Plan& plan;
    const bool half;
    const int64_t words, room, share, units;
    const float factor;
    Panel* panels = nullptr;
    static constexpr int RUN = larger(W, M::depth);  // keys that are weighed and summed at once

    void lay_out(Room& memory) {
        panels = memory.take<Panel>(plan.threads);
        Panel none;
        const int64_t keys = up(call.keys, RUN);
        for (int64_t t = 0; t < plan.threads; ++t) {
            Panel& own = memory.at ? panels[t] : none;
            own.key_words = memory.take<float>(call.keys * words);
            own.values = memory.take<float>(keys / M::step * room);
            own.columns = memory.take<float>(PANEL * words);
            own.scores = memory.take<float>(keys * PANEL);
            own.output = memory.take<float>(TILE_ROWS * room);
            own.broken = memory.take<uint8_t>(call.keys + 1);
        }
    }

    // Compute one sample and group: its queries are counted over all heads of the group.
    void attend(Panel& own, int64_t unit) const {
        const int64_t batch = unit / call.groups, group = unit % call.groups;
        fetch_unit(call, plan, unit + 1, false);
        const Rows key_rows = rows_of(call.key, batch, group, call.keys, call.width, half);
        const Rows value_rows = rows_of(call.value, batch, group, call.keys, call.value_width, half);
        const Rows queries = rows_of(call.query, batch, group * share, call.queries, call.width, half);
        const Left keys = left_of<M>(key_rows, words, own.key_words);
        if (keys.data == own.key_words) copy_words<M>(key_rows, 0, call.keys, words, own.key_words);
        const int64_t filled = up(call.keys, M::depth);
        const bool any_broken = pack_rows<M>(value_rows, 0, call.keys, filled, own.values, room, own.broken);
        for (int64_t row = 0; row < share * call.queries; row += PANEL) {
            own.count = smaller<int64_t>(PANEL, share * call.queries - row);
            pack_columns<M>(queries, row, row + own.count, words, own.columns);
            find_visible(own, batch, row);
            score(own, keys);
            for (int64_t g = 0; g < own.groups; ++g) weigh(own, g);
            if (any_broken) poison(own);
            finish(own, batch, group, row);
        }
    }

    // Find the keys that each query sees, each vector of them, and all together.
    void find_visible(Panel& own, int64_t batch, int64_t row) const {
        own.groups = up(own.count, W) / W;
        own.begin = call.keys;
        own.end = 0;
        int64_t query = row % call.queries;
        for (int64_t g = 0; g < own.groups; ++g) {
            Span& span = own.spans[g];
            span = {call.keys, 0, 0, call.keys};
            for (int64_t i = g * W; i < (g + 1) * W; ++i, ++query) {
                if (query == call.queries) query = 0;
                const bool valid = i < own.count;
                own.first[i] = plan.first && valid ? plan.first[batch * call.queries + query] : 0;
                own.last[i] = plan.first ? plan.last[batch * call.queries + query] : static_cast<int32_t>(call.keys);
                if (!valid) continue;
                span.inner_first = larger<int64_t>(span.inner_first, own.first[i]);
                span.inner_last = smaller<int64_t>(span.inner_last, own.last[i]);
                if (own.first[i] >= own.last[i]) continue;
                span.first = smaller<int64_t>(span.first, own.first[i]);
                span.last = larger<int64_t>(span.last, own.last[i]);
            }
            span.first = smaller(span.first, span.last) / RUN * RUN;
            own.begin = smaller(own.begin, span.first);
            own.end = larger(own.end, span.last);
        }
        own.begin = smaller(own.begin, own.end);
    }

    void score(Panel& own, const Left& keys) const {
        for (int64_t j = own.begin; j < own.end; j += TILE_ROWS) {
            int64_t first = own.groups, last = 0;
            for (int64_t g = 0; g < own.groups; ++g) {
                if (own.spans[g].first >= j + TILE_ROWS || own.spans[g].last <= j) continue;
                first = smaller(first, g);
                last = g + 1;
            }
            if (first >= last) continue;
            multiply_strip<M, false>({keys.data + j * keys.row, keys.row, 1},
                                     static_cast<int>(smaller<int64_t>(TILE_ROWS, own.end - j)),
                                     {own.columns + first * W, PANEL}, (last - first) * W, words,
                                     {own.scores + j * PANEL + first * W, PANEL});
        }
    }

    // Turn the scores of a vector of queries into weights, in place, as words of `step` keys. Their sum is taken in the
    // order of a sum across a vector of keys, so that a call with statistics, which takes another way, gives the same.
    void weigh(Panel& own, int64_t g) const {
        const Span span = own.spans[g];
        const int64_t at = g * W, end = up(span.last, RUN);
        const auto all_see = [&](int64_t j) { return span.inner_first <= j && j + W <= span.inner_last; };
        vec top = all(MINUS_INFINITY);
        for (int64_t j = span.first; j < end; j += W)
            top = all_see(j) ? top_of<true>(own, at, j, top) : top_of<false>(own, at, j, top);
        top = mul(top, all(factor));
        store(own.highest + at, top);
        // Where nothing is seen, -inf less -inf would be NaN.
        top = unless_equal(top, all(MINUS_INFINITY), top);
        vec total[W];
        for (vec& sum : total) sum = all(0);
        blank(own, at, own.begin, span.first);
        for (int64_t j = span.first; j < end; j += W) {
            if (all_see(j)) weights_of<true>(own, at, j, top, total);
            else weights_of<false>(own, at, j, top, total);
        }
        blank(own, at, end, up(own.end, M::depth));
        for (int width = W / 2; width > 0; width /= 2)
            for (int k = 0; k < width; ++k) total[k] = add(total[k], total[k + width]);
        store(own.total + at, total[0]);
    }

    template <bool SEEN>
    static vec score_of(const Panel& own, int64_t at, int64_t key) {
        const vec x = load(own.scores + key * PANEL + at);
        return SEEN ? x : where_within(x, own.first + at, own.last + at, static_cast<int32_t>(key));
    }

    template <bool SEEN>
    static vec top_of(const Panel& own, int64_t at, int64_t key, vec top) {
        vec tops[2] = {top, top};
        for (int k = 0; k < W; ++k) tops[k % 2] = most(score_of<SEEN>(own, at, key + k), tops[k % 2]);
        return most(tops[0], tops[1]);
    }

    template <bool SEEN>
    void weights_of(Panel& own, int64_t at, int64_t key, vec top, vec (&total)[W]) const {
        for (int k = 0; k < W; k += M::step) {
            vec weight[2];
            for (int s = 0; s < M::step; ++s) {
                const vec x = mul(score_of<SEEN>(own, at, key + k + s), all(factor));
                weight[s] = power_of_2(floored(sub(x, top)));
                total[k + s] = add(total[k + s], weight[s]);
            }
            put(own.scores + (key + k) / M::step * PANEL + at, weight);
        }
    }

    // Zero the weights of keys first to last, which a vector of queries does not see.
    static void blank(Panel& own, int64_t at, int64_t first, int64_t last) {
        for (int64_t j = first; j < last; j += M::step) store(own.scores + j / M::step * PANEL + at, all(0));
    }

    static void put(float* to, const vec (&weight)[2]) {
#if defined(__AVX512BF16__)
        if (M::step == 2) return store(to, interleaved(weight[0], weight[1]));
#endif
        store(to, weight[0]);
    }

    // A weight on a value that is not finite makes the row NaN.
    void poison(Panel& own) const {
        for (int64_t j = own.begin; j < own.end; ++j) {
            if (!own.broken[j]) continue;
            const char* weights = reinterpret_cast<const char*>(own.scores + j / M::step * PANEL);
            for (int64_t i = 0; i < own.count; ++i)
                if (number_at(weights, M::step == 2, i * M::step + j % M::step) != 0) own.total[i] = __builtin_nanf("");
        }
    }

    void finish(Panel& own, int64_t batch, int64_t group, int64_t row) const {
        int64_t head = group * share + row / call.queries, query = row % call.queries;
        for (int64_t i = 0; i < own.count; i += TILE_ROWS) {
            const int rows = static_cast<int>(smaller<int64_t>(TILE_ROWS, own.count - i));
            const Span &one = own.spans[i / W], &other = own.spans[(i + rows - 1) / W];
            const int64_t first = smaller(one.first, other.first) / M::step;
            const int64_t last = up(larger(one.last, other.last), M::depth) / M::step;
            multiply_strip<M, false>({own.scores + first * PANEL + i, 1, PANEL}, rows,
                                     {own.values + first * room, room}, room, last - first, {own.output, room});
            for (int r = 0; r < rows; ++r, ++query) {
                if (query == call.queries) {
                    query = 0;
                    ++head;
                }
                write(own, i + r, own.output + r * room, batch, head, query);
            }
        }
    }

    void write(const Panel& own, int64_t i, const float* output, int64_t batch, int64_t head, int64_t query) const {
        const float total = own.total[i];
        const bool lives = !(total == 0);
        const Rows place = rows_of(call.output, batch, head, call.queries, call.value_width, half);
        narrow(output, lives ? 1 / total : 0, place.at(query), half, call.value_width);
        const double log_total = lives ? own.highest[i] + std::log2(static_cast<double>(total)) : MINUS_INFINITY;
        call.lse[(batch * call.heads + head) * call.queries + query] = log_total * LN_2;
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
