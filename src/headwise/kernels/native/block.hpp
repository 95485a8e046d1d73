// One block of queries: scores, weights, output and statistics, in strips of a few rows that stay in the nearest cache.
#pragma once

#include "counting.hpp"
#include "pack.hpp"
#include "scores.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

constexpr int TILES = BLOCK_ROWS / TILE_ROWS;

// One sample and group: its keys and values packed, its queries counted over all heads of the group.
template <class M>
struct alignas(CACHE_LINE) Unit {
    int64_t batch, group, rows;
    float *keys, *values;
    uint8_t* broken;
    bool any_broken;
};

// What a block of queries needs for itself.
struct alignas(CACHE_LINE) Block {
    int rows;
    int32_t head[BLOCK_ROWS], query[BLOCK_ROWS], first[BLOCK_ROWS], last[BLOCK_ROWS];
    int64_t tile_first[TILES], tile_last[TILES];
    bool started[TILES];
    float highest[BLOCK_ROWS], total[BLOCK_ROWS];  // running maximum of the scores times log2(e), sum of powers
    float spread[BLOCK_ROWS];                      // centred: sum of power x (score - maximum)
    bool poisoned[BLOCK_ROWS];
    float *left, *scores, *weights, *output, *added;
    uint16_t* words;
    float *line, *received, *map;  // of the second pass
    int64_t held, line_begin, line_end;  // number and keys of the line
    int64_t lines[BLOCK_ROWS];           // number of the line of each row
    Counts counts;
};

template <class M>
class Attention {
public:
    Attention(const Call& call, const Plan& plan)
        : call(call), plan(plan), half(call.half), words(words_for<M>(call.width)),
          room(up(call.value_width, W)), share(call.heads / call.groups), counter(call),
          direct(share * call.queries <= FEW_ROWS), keeping(counter.again && call.keys <= BLOCK_KEYS),
          factor(static_cast<float>(std::fabs(call.scale) / LN_2)), adding(adds(call, plan) || call.scale == 0) {}

    const Call& call;
    const Plan& plan;
    const bool half;
    const int64_t words, room, share;  // words of a key, floats of an output row, heads of a group
    const Counter counter;
    const bool direct;  // a few queries read keys and values where they lie: copies would cost more than they save
    const bool keeping;  // all keys are one block: its weights are kept for the second look

    // Compute up to `rows` queries from `row` of the unit's on.
    void attend(const Unit<M>& unit, Block& block, int64_t row, int64_t rows) const {
        begin(unit, block, row, rows);
        int64_t first = call.keys, last = 0;
        for (int t = 0; t * TILE_ROWS < block.rows; ++t) {
            first = smaller(first, block.tile_first[t]);
            last = larger(last, block.tile_last[t]);
        }
        for (int64_t k = first / PANEL * PANEL; k < last; k += BLOCK_KEYS) {
            const int64_t end = smaller(smaller(last, k + BLOCK_KEYS), call.keys);
            if (call.least)
                words_by_query(call, unit.batch, block.head, block.query, block.rows, k, end - k, block.words,
                               SCORE_ROW);
            for (int t = 0; t * TILE_ROWS < block.rows; ++t) {
                const int64_t from = larger(k, block.tile_first[t]), to = smaller(end, block.tile_last[t]);
                if (from >= to) continue;
                strip(unit, block, t, k, from - k, to - k);
                if (keeping) look_at_strip(unit, block, t, k, from - k, to - k);
            }
            if (keeping) give(unit, block, k);
        }
        for (int r = 0; r < block.rows; ++r) finish(unit, block, r);
        if (counter.again && !keeping) look_again(unit, block, first, last);
    }

private:
    const float factor;
    const bool adding;

    // Compute the final weights once more, and count what needs them.
    void look_again(const Unit<M>& unit, Block& block, int64_t first, int64_t last) const {
        for (int64_t k = first / PANEL * PANEL; k < last; k += BLOCK_KEYS) {
            const int64_t end = smaller(smaller(last, k + BLOCK_KEYS), call.keys);
            for (int t = 0; t * TILE_ROWS < block.rows; ++t) {
                const int64_t from = larger(k, block.tile_first[t]), to = smaller(end, block.tile_last[t]);
                if (from < to) look_at_strip(unit, block, t, k, from - k, to - k);
            }
            give(unit, block, k);
        }
    }

    void look_at_strip(const Unit<M>& unit, Block& block, int t, int64_t k, int64_t from, int64_t to) const {
        const int row = t * TILE_ROWS, rows = smaller(TILE_ROWS, block.rows - row);
        if (!keeping) score(unit, block, row, rows, k, from, to);
        const int64_t begin = from / W * W, end = up(to, W);
        for (int r = row; r < row + rows; ++r) {
            if (!live(block, r)) continue;
            if (block.lines[r] != block.held) {
                give(unit, block, k);
                block.held = block.lines[r];
                block.line_begin = from;
                block.line_end = to;
                std::memset(block.line, 0, up(smaller<int64_t>(BLOCK_KEYS, call.keys - k), W) * 4);
            }
            block.line_begin = smaller(block.line_begin, from);
            block.line_end = larger(block.line_end, to);
            look_at_row(unit, block, r, k, begin, end);
        }
    }

    // Add the line to its place.
    void give(const Unit<M>& unit, Block& block, int64_t k) const {
        const int64_t number = block.held, begin = block.line_begin, end = block.line_end;
        block.held = -1;
        if (number < 0) return;
        counter.add_line(block.counts, extent_of(call, unit.batch), number, block.line, k, begin, end);
    }

    // Turn a row's scores into final weights, add them to the line, and find the strongest.
    void look_at_row(const Unit<M>& unit, Block& block, int r, int64_t k, int64_t begin, int64_t end) const {
        float* scores = block.scores + r % TILE_ROWS * SCORE_ROW;
        const int64_t first = larger<int64_t>(begin, block.first[r] - k);
        const int64_t last = smaller<int64_t>(end, block.last[r] - k);
        if (first >= last) return;
        const int64_t from = first / W * W, to = up(last, W);
        const vec share = all(1 / block.total[r]), highest = all(block.highest[r]);
        const float* weights = block.weights + r % TILE_ROWS * SCORE_ROW;
        const vec c = all(keeping ? 0 : complete(unit, block, r, k, first, last, from, to));
        vec tops = all(0);
        for (int64_t j = from; j < to; j += W) {
            vec weight;
            if (keeping) {
                weight = mul(load(weights + j), share);
            } else {
                const vec score = load(scores + j), power = power_of_2(floored(sub(mul(score, c), highest)));
                weight = unless_equal(score, all(MINUS_INFINITY), mul(power, share));
            }
            store(block.line + j, add(load(block.line + j), weight));
            if (!call.seen.links) continue;
            store(scores + j, weight);
            tops = most(tops, weight);
        }
        const int64_t at = (unit.batch * call.heads + block.head[r]) * call.queries + block.query[r];
        if (call.seen.links) counter.link(at, scores, tops, k, from, to);
    }

    static bool live(const Block& block, int r) {
        return block.highest[r] != MINUS_INFINITY || block.total[r] != block.total[r];
    }

    // Find the rows' places and intervals, and copy the queries.
    void begin(const Unit<M>& unit, Block& block, int64_t row, int64_t rows) const {
        const Rows queries = rows_of(call.query, unit.batch, unit.group * share, call.queries, call.width, half);
        const Extent extent = extent_of(call, unit.batch);
        block.rows = static_cast<int>(smaller(rows, unit.rows - row));
        block.held = -1;
        int64_t head = unit.group * share + row / call.queries, query = row % call.queries;
        for (int r = 0; r < block.rows; ++r, ++query) {
            if (query == call.queries) {
                query = 0;
                ++head;
            }
            block.head[r] = static_cast<int32_t>(head);
            block.query[r] = static_cast<int32_t>(query);
            block.first[r] = plan.first ? plan.first[unit.batch * call.queries + query] : 0;
            block.last[r] = plan.first ? plan.last[unit.batch * call.queries + query] : static_cast<int32_t>(call.keys);
            block.highest[r] = MINUS_INFINITY;
            block.total[r] = block.spread[r] = 0;
            block.poisoned[r] = false;
            counter.begin(block.counts, r, extent, query);
            block.lines[r] = counter.line(head - unit.group * share, query, extent.queries);
            words_of<M>(queries, row + r, block.left + r * words, words);
        }
        // The factor of the scores is positive, so that the largest product is the largest score.
        if (call.scale < 0) flip(block.left, block.rows * words);
        for (int t = 0; t * TILE_ROWS < block.rows; ++t) {
            block.started[t] = false;
            block.tile_first[t] = call.keys;
            block.tile_last[t] = 0;
            for (int r = t * TILE_ROWS; r < smaller(block.rows, (t + 1) * TILE_ROWS); ++r) {
                if (block.first[r] >= block.last[r]) continue;
                block.tile_first[t] = smaller<int64_t>(block.tile_first[t], block.first[r]);
                block.tile_last[t] = larger<int64_t>(block.tile_last[t], block.last[r]);
            }
        }
    }

    static void flip(float* words, int64_t count) {
        const uint32_t sign = M::step == 2 ? 0x80008000u : 0x80000000u;
        for (int64_t i = 0; i < count; ++i) {
            uint32_t bits;
            std::memcpy(&bits, words + i, 4);
            bits ^= sign;
            std::memcpy(words + i, &bits, 4);
        }
    }

    // A tile's rows against keys from to to of the key block at k: scores, weights, output.
    void strip(const Unit<M>& unit, Block& block, int t, int64_t k, int64_t from, int64_t to) const {
        constexpr int64_t step = W * M::step;
        const int row = t * TILE_ROWS, rows = smaller(TILE_ROWS, block.rows - row);
        score(unit, block, row, rows, k, from, to);
        from = from / step * step;
        to = up(to, step);
        for (int r = row; r < row + rows; ++r) weigh(unit, block, r, k, from, to);
        if (direct) {
            mix(unit, block, rows, k, from, smaller(to, call.keys - k), block.started[t]);
        } else {
            float* output = block.output + row * room;
            multiply_strip<M>(block.started[t], {block.scores + from / M::step, SCORE_ROW, 1}, rows,
                              {unit.values + (k + from) / M::step * room, room}, room,
                              (smaller(to, up(call.keys - k, M::depth)) - from) / M::step, {output, room});
        }
        block.started[t] = true;
    }

    // Sum values by weights, key by key; a weight of 0 takes nothing, NaN neither.
    void mix(const Unit<M>& unit, Block& block, int rows, int64_t k, int64_t from, int64_t to, bool started) const {
        const Rows values = rows_of(call.value, unit.batch, unit.group, call.keys, call.value_width, half);
        for (int r = 0; r < rows; ++r) {
            float* output = block.output + r * room;
            if (!started) std::memset(output, 0, room * 4);
            const char* weights = reinterpret_cast<const char*>(block.scores + r * SCORE_ROW);
            int64_t e = 0;
            for (; e + 4 * W <= call.value_width; e += 4 * W) mix<4>(values, weights, k, from, to, e, output + e);
            for (; e + W <= call.value_width; e += W) mix<1>(values, weights, k, from, to, e, output + e);
            for (int64_t j = from; e < call.value_width && j < to; ++j) {
                const float weight = number_at(weights, M::step == 2, j);
                if (weight == 0) continue;
                const char* value = values.at(k + j);
                for (int64_t d = e; d < call.value_width; ++d) output[d] += weight * number_at(value, half, d);
            }
        }
    }

    template <int V>
    void mix(const Rows& values, const char* weights, int64_t k, int64_t from, int64_t to, int64_t e, float* output)
        const {
        vec total[V];
        HEADWISE_UNROLL
        for (int v = 0; v < V; ++v) total[v] = load(output + v * W);
        for (int64_t j = from; j < to; ++j) {
            const float weight = number_at(weights, M::step == 2, j);
            if (weight == 0) continue;
            const char* value = values.at(k + j);
            HEADWISE_UNROLL
            for (int v = 0; v < V; ++v) total[v] = fma(all(weight), load_number(value, half, e + v * W), total[v]);
        }
        HEADWISE_UNROLL
        for (int v = 0; v < V; ++v) store(output + v * W, total[v]);
    }

    void score_direct(const Unit<M>& unit, Block& block, int rows, int64_t k, int64_t from, int64_t to) const {
        const Rows keys = rows_of(call.key, unit.batch, unit.group, call.keys, call.width, half);
        for (int64_t j = from; j < to; ++j)
            for (int r = 0; r < rows; ++r) {
                const char* query = reinterpret_cast<const char*>(block.left + r * words);
                block.scores[r * SCORE_ROW + j] = dot(query, M::step == 2, keys.at(k + j), half, call.width);
            }
    }

    void score(const Unit<M>& unit, Block& block, int row, int rows, int64_t k, int64_t from, int64_t to) const {
        if (direct) return score_direct(unit, block, rows, k, from, to);
        for (int64_t p = from / PANEL * PANEL; p < to; p += PANEL)
            multiply_strip<M, false>({block.left + row * words, words, 1}, rows, {unit.keys + (k + p) * words, PANEL},
                                     smaller<int64_t>(PANEL, up(to - p, W)), words, {block.scores + p, SCORE_ROW});
    }

    // Add to a row's scores what is added, and put -inf on both sides of what it sees; gives the factor left to apply.
    float complete(const Unit<M>& unit, Block& block, int r, int64_t k, int64_t first, int64_t last, int64_t begin,
                   int64_t end) const {
        float* scores = block.scores + r % TILE_ROWS * SCORE_ROW;
        if (adding) {
            const int64_t place[3] = {unit.batch, block.head[r], block.query[r]};
            added_scores(call, plan, place, k + first, last - first, block.added + (first - begin));
            for (int64_t j = begin; j < end; j += W)
                store(scores + j, joined(load(scores + j), all(factor), load(block.added + j - begin)));
        }
        for (int64_t j = begin; j < first; ++j) scores[j] = MINUS_INFINITY;
        for (int64_t j = last; j < end; ++j) scores[j] = MINUS_INFINITY;
        return adding ? 1 : factor;
    }

    // Turn a row's scores into weights, relative to the running maximum, in place; zeros in from to to where hidden.
    void weigh(const Unit<M>& unit, Block& block, int r, int64_t k, int64_t from, int64_t to) const {
        constexpr int64_t step = W * M::step;
        float* scores = block.scores + r % TILE_ROWS * SCORE_ROW;
        const int64_t first = larger<int64_t>(from, block.first[r] - k), last = smaller<int64_t>(to, block.last[r] - k);
        if (first >= last) return blank(scores, from, to);
        const int64_t begin = first / step * step, end = up(last, step);
        const float c = complete(unit, block, r, k, first, last, begin, end);
        const float old = block.highest[r], top = largest(scores + begin, end - begin), highest = larger(old, c * top);
        if (highest == MINUS_INFINITY && !has_nan(scores + begin, end - begin)) return blank(scores, from, to);
        if (highest != old) {
            rescale(block, r, highest);
            counter.find_peak(block.counts, r, scores, top, k, begin, end);
        }
        blank(scores, from, begin);
        if (counter.on_the_way || keeping) sums<true>(block, r, scores, c, k, begin, end);
        else sums<false>(block, r, scores, c, k, begin, end);
        blank(scores, end, to);
        if (unit.any_broken) poison(unit, block, r, k, first, last);
    }

    // Zero the weights of keys from to to.
    static void blank(float* scores, int64_t from, int64_t to) {
        if (from < to) std::memset(scores + from / M::step, 0, (to - from) / M::step * 4);
    }

    void rescale(Block& block, int r, float highest) const {
        const float old = block.highest[r];
        block.highest[r] = highest;
        if (old == MINUS_INFINITY) return;
        const float shrink = std::exp2(old - highest);
        block.spread[r] = shrink * (block.spread[r] + (old - highest) * block.total[r]);
        block.total[r] *= shrink;
        if (counter.places || counter.nears) counter.shrink(block.counts, r, shrink);
        float* output = block.output + r * room;
        if (block.started[r / TILE_ROWS])
            for (int64_t e = 0; e < room; e += W) store(output + e, mul(load(output + e), all(shrink)));
    }

    template <bool COUNTING>
    void sums(Block& block, int r, float* scores, float c, int64_t k, int64_t begin, int64_t end) const {
        const vec times = all(c), highest = all(block.highest[r]);
        const uint16_t* words = block.words + r * SCORE_ROW;
        const auto least = static_cast<int32_t>(call.least);
        Counts& counts = block.counts;
        const bool near = COUNTING && counter.near(counts, r, k + begin, k + end);
        float* weights = block.weights + r % TILE_ROWS * SCORE_ROW;
        vec total = all(0), spread = all(0), position = all(0), distance = all(0);
        vec place = add(ramp(), all(static_cast<float>(k + begin - counts.start)));
        const vec own = all(static_cast<float>(counts.own[r] - counts.start));
        for (int64_t j = begin; j < end; j += W * M::step) {
            vec weight[2];
            for (int v = 0; v < M::step; ++v) {
                const vec x = floored(sub(mul(load(scores + j + v * W), times), highest));
                weight[v] = power_of_2(x);
                total = add(total, weight[v]);
                if (COUNTING) {
                    spread = fma(weight[v], x, spread);
                    if (counter.places) {
                        position = fma(weight[v], place, position);
                        distance = fma(weight[v], absolute(sub(place, own)), distance);
                        place = add(place, all(W));
                    }
                    if (near) store(counts.weights + j + v * W, weight[v]);
                    if (keeping) store(weights + j + v * W, weight[v]);
                }
                if (least) weight[v] = kept(weight[v], words + j + v * W, least);
            }
            put(scores + j / M::step, weight);
        }
        block.total[r] += sum(total);
        if (!COUNTING) return;
        block.spread[r] += sum(spread);
        counts.sums[Counts::position][r] += sum(position);
        counts.sums[Counts::distance][r] += sum(distance);
        if (near) counter.count_near(counts, r, k, begin, end);
    }

    static void put(float* to, const vec (&weight)[2]) {
#if defined(__AVX512BF16__)
        if (M::step == 2) return store(to, halves(weight[0], weight[1]));
#endif
        store(to, weight[0]);
    }

    // A weight on a value that is not finite makes the row NaN.
    void poison(const Unit<M>& unit, Block& block, int r, int64_t k, int64_t first, int64_t last) const {
        const char* weights = reinterpret_cast<const char*>(block.scores + r % TILE_ROWS * SCORE_ROW);
        for (int64_t j = first; j < last; ++j)
            block.poisoned[r] |= unit.broken[k + j] && number_at(weights, M::step == 2, j) != 0;
    }

    void finish(const Unit<M>& unit, Block& block, int r) const {
        const float total = block.total[r];
        const int64_t at = (unit.batch * call.heads + block.head[r]) * call.queries + block.query[r];
        const bool lives = live(block, r);
        float* output = block.output + r * room;
        float share = lives && call.kept_share > 0 ? static_cast<float>(1 / (total * call.kept_share)) : 0;
        if (block.poisoned[r]) share = __builtin_nanf("");
        if (!lives) std::memset(output, 0, room * 4);
        const Rows place = rows_of(call.output, unit.batch, block.head[r], call.queries, call.value_width, half);
        narrow(output, share, place.at(block.query[r]), half, call.value_width);
        const double log_total = lives ? block.highest[r] + std::log2(static_cast<double>(total)) : MINUS_INFINITY;
        call.lse[at] = log_total * LN_2;
        if (!lives) return;
        if (counter.on_the_way) counter.write(block.counts, r, at, total, block.spread[r]);
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
