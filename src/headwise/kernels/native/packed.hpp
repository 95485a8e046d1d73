// What the backward pass reads: every matrix in both orders, and what each query needs to find its weights again.
#pragma once

#include <cmath>

#include "pack.hpp"
#include "scores.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

// One sample, group and chunk of its heads: everything packed, its queries counted over the heads.
struct alignas(CACHE_LINE) Packed {
    int64_t batch, group, head, heads, columns;
    float *key_words, *value_words, *key_rows;  // room for left operands, and a right one
    Left keys, values;                          // the left operands, where they lie or in that room
    float *query_columns, *grad_columns, *query_rows, *grad_rows;  // right operands
    float *lse, *lse_rest;                      // of each column, times log2(e): a float, and what it rounds away
    float *pull, *entropy_pull, *poison;        // what is taken from dP
    int32_t *head_of, *query_of, *first, *last;
    uint8_t *broken_keys, *broken_queries, *broken_grads;
    float *key_sums, *value_sums;  // over chunks
    bool any_broken;
};

template <class M>
class Packer {
public:
    Packer(const Call& call, const Plan& plan)
        : call(call), plan(plan), half(call.half), words(words_for<M>(call.width)),
          value_words(words_for<M>(call.value_width)), room(up(call.width, W)),
          value_room(up(call.value_width, W)), adding(adds(call, plan)), one_block(call.keys <= BLOCK_ROWS) {}

    const Call& call;
    const Plan& plan;
    const bool half;
    const int64_t words, value_words, room, value_room;
    const bool adding;
    const bool one_block;  // it holds all keys

    // Begin with a unit: find its matrices.
    void begin(Packed& p) const {
        p.keys = left_of<M>(keys_of(p), words, p.key_words);
        p.values = left_of<M>(values_of(p), value_words, p.value_words);
    }

    // Pack a part of a unit; tells whether something in it is not finite.
    bool pack(Packed& p, bool keys_too, int64_t part, int64_t parts) const {
        const auto share_of = [&](int64_t n, int64_t i) {
            return smaller(n, up(n, PANEL) / PANEL * i / parts * PANEL);
        };
        bool any = false;
        if (keys_too) {
            const Rows keys = keys_of(p), values = values_of(p);
            const int64_t first = share_of(call.keys, part), last = share_of(call.keys, part + 1);
            if (p.keys.data == p.key_words) copy_words<M>(keys, first, last, words, p.key_words);
            if (p.values.data == p.value_words) copy_words<M>(values, first, last, value_words, p.value_words);
            any |= !are_finite(values, first, last);
            any |= pack_rows<M>(keys, first, last, up(last, M::depth), p.key_rows + first / M::step * room, room,
                                p.broken_keys);
        }
        const Rows queries = rows_of(call.query, p.batch, p.head, call.queries, call.width, half);
        const Rows grads = rows_of(call.output_grad, p.batch, p.head, call.queries, call.value_width, half);
        const int64_t end = share_of(p.columns, part + 1);
        for (int64_t c = share_of(p.columns, part); c < end; c += PANEL) {
            const int64_t last = smaller(end, c + PANEL);
            // The last panel's words after the last column take part in sums, with weight 0.
            const int64_t filled = up(last, W * M::step);
            pack_columns<M>(queries, c, last, words, p.query_columns + c * words);
            pack_columns<M>(grads, c, last, value_words, p.grad_columns + c * value_words);
            if (filled > up(last, W)) clear(p, c, up(last, W) - c);
            const int64_t at = c / M::step;
            any |= pack_rows<M>(queries, c, last, filled, p.query_rows + at * room, room, p.broken_queries);
            any |= pack_rows<M>(grads, c, last, filled, p.grad_rows + at * value_room, value_room, p.broken_grads);
            describe(p, grads, c, last, filled);
        }
        return any;
    }

    Rows keys_of(const Packed& p) const {
        return rows_of(call.key, p.batch, p.group, call.keys, call.width, half);
    }
    Rows values_of(const Packed& p) const {
        return rows_of(call.value, p.batch, p.group, call.keys, call.value_width, half);
    }

private:
    // Zero one more vector of columns of a panel.
    void clear(Packed& p, int64_t panel, int64_t from) const {
        for (int64_t w = 0; w < words; ++w) store(p.query_columns + panel * words + w * PANEL + from, all(0));
        for (int64_t w = 0; w < value_words; ++w)
            store(p.grad_columns + panel * value_words + w * PANEL + from, all(0));
    }

    // Work out what columns first to last need to turn scores into weights and slopes; those after them get no weight.
    void describe(Packed& p, const Rows& grads, int64_t first, int64_t last, int64_t filled) const {
        int64_t head = p.head + first / call.queries, query = first % call.queries;
        for (int64_t i = first; i < last; ++i, ++query) {
            if (query == call.queries) {
                query = 0;
                ++head;
            }
            describe(p, grads.at(i), i, head, query);
        }
        for (int64_t i = last; i < filled; ++i) {
            p.head_of[i] = static_cast<int32_t>(p.head);
            p.query_of[i] = p.first[i] = p.last[i] = 0;
            p.lse[i] = -MINUS_INFINITY;
            p.lse_rest[i] = p.pull[i] = p.entropy_pull[i] = p.poison[i] = 0;
        }
    }

    void describe(Packed& p, const char* grad, int64_t i, int64_t head, int64_t query) const {
        const int64_t at = (p.batch * call.heads + head) * call.queries + query;
        p.head_of[i] = static_cast<int32_t>(head);
        p.query_of[i] = static_cast<int32_t>(query);
        p.first[i] = plan.first ? plan.first[p.batch * call.queries + query] : 0;
        p.last[i] = plan.first ? plan.last[p.batch * call.queries + query] : static_cast<int32_t>(call.keys);
        p.poison[i] = p.broken_grads[i] ? __builtin_nanf("") : 0;
        const double lse = call.lse[at] != MINUS_INFINITY ? call.lse[at] * (1 / LN_2) : -MINUS_INFINITY;
        p.lse[i] = static_cast<float>(lse);
        p.lse_rest[i] = std::isfinite(p.lse[i]) ? static_cast<float>(lse - p.lse[i]) : 0;
        const Rows outputs = rows_of(call.output, p.batch, head, call.queries, call.value_width, half);
        p.pull[i] = one_block ? 0 : dot(grad, half, outputs.at(query), half, call.value_width);
        p.entropy_pull[i] = 0;
        if (call.lse_grad) p.pull[i] -= call.lse_grad[at];
        if (call.entropy_grad) {
            p.pull[i] += call.entropy_grad[at] * call.seen.entropy[at];
            p.entropy_pull[i] = call.entropy_grad[at] * static_cast<float>(LN_2);
        }
        if (std::isfinite(p.pull[i]) && sees_one(p, i)) alone(p, i, at);
    }

    // What is added hides a key by -inf.
    bool sees_one(const Packed& p, int64_t i) const {
        const int64_t place[3] = {p.batch, p.head_of[i], p.query_of[i]}, last = p.last[i];
        if (!adding) return last - p.first[i] == 1;
        float added[PANEL];
        int64_t seen = 0;
        for (int64_t j = p.first[i]; j < last && seen < 2; j += PANEL) {
            const int64_t count = smaller<int64_t>(PANEL, last - j);
            added_scores(call, plan, place, j, count, added);
            for (int64_t k = 0; k < count; ++k) seen += added[k] != MINUS_INFINITY;
        }
        return seen == 1;
    }

    // One visible key has weight 1 whatever its score: its slope is that of the log-sum-exp, to the last bit.
    void alone(Packed& p, int64_t i, int64_t at) const {
        float* column = p.grad_columns + i / PANEL * PANEL * value_words + i % PANEL;
        for (int64_t w = 0; w < value_words; ++w) column[w * PANEL] = 0;
        p.pull[i] = call.lse_grad ? -call.lse_grad[at] : 0;
        p.entropy_pull[i] = 0;
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
