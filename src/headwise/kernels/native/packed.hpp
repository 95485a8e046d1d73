// What the backward pass reads: every matrix in both orders, and what each query needs to find its weights again.
#pragma once

#include <cmath>

#include "pack.hpp"
#include "scores.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

// One sample, group and chunk of its heads: everything packed, its queries counted over the heads.
struct Packed {
    int64_t batch, group, head, heads, columns;
    float *key_words, *value_words, *key_rows;               // left operands, and a right one
    float *query_columns, *grad_columns, *query_rows, *grad_rows;  // right operands
    float *lse, *pull, *entropy_pull, *poison;  // of each column: lse times log2(e); what is taken from dP
    int32_t *head_of, *query_of, *first, *last;
    uint8_t *broken_keys, *broken_queries, *broken_grads;
    float *key_sums, *value_sums;  // over chunks
    bool any_broken;
};

template <class M>
class Packer {
public:
    Packer(const Call& call, const Plan& plan)
        : call(call), plan(plan), half(call.half), words(up(call.width, M::step) / M::step),
          value_words(up(call.value_width, M::step) / M::step), room(up(call.width, W)),
          value_room(up(call.value_width, W)) {}

    const Call& call;
    const Plan& plan;
    const bool half;
    const int64_t words, value_words, room, value_room;

    // Pack a part of a unit; tells whether something in it is not finite.
    bool pack(Packed& p, bool keys_too, int64_t part, int64_t parts) const {
        const auto share_of = [&](int64_t n, int64_t i) {
            return smaller(n, up(n, PANEL) / PANEL * i / parts * PANEL);
        };
        bool any = false;
        if (keys_too) {
            const Rows keys = rows_of(call.key, p.batch, p.group, call.keys, call.width, half);
            const Rows values = rows_of(call.value, p.batch, p.group, call.keys, call.value_width, half);
            const int64_t first = share_of(call.keys, part), last = share_of(call.keys, part + 1);
            for (int64_t j = first; j < last; ++j) {
                words_of<M>(keys, j, p.key_words + j * words, words);
                words_of<M>(values, j, p.value_words + j * value_words, value_words);
            }
            any |= !are_finite(values, first, last);
            any |= pack_rows<M>(keys, first, last, p.key_rows + first / M::step * room, room, p.broken_keys);
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
            any |= pack_lines(queries, c, last, filled, p.query_rows, room, p.broken_queries);
            any |= pack_lines(grads, c, last, filled, p.grad_rows, value_room, p.broken_grads);
            for (int64_t i = c; i < filled; ++i) describe(p, grads, i, i < last);
        }
        return any;
    }

private:
    // Zero one more vector of columns of a panel.
    void clear(Packed& p, int64_t panel, int64_t from) const {
        for (int64_t w = 0; w < words; ++w) store(p.query_columns + panel * words + w * PANEL + from, all(0));
        for (int64_t w = 0; w < value_words; ++w)
            store(p.grad_columns + panel * value_words + w * PANEL + from, all(0));
    }

    bool pack_lines(const Rows& x, int64_t first, int64_t last, int64_t filled, float* to, int64_t width,
                    uint8_t* broken) const {
        const bool any = pack_rows<M>(x, first, last, to + first / M::step * width, width, broken);
        const int64_t begin = up(last, M::step) / M::step;
        if (begin * M::step < filled) std::memset(to + begin * width, 0, (filled / M::step - begin) * width * 4);
        return any;
    }

    // Work out what a column needs to turn scores into weights and slopes.
    void describe(Packed& p, const Rows& grads, int64_t i, bool valid) const {
        const int64_t ahead = valid && i >= call.queries ? i / call.queries : 0;
        const int64_t head = p.head + ahead, query = valid ? i - ahead * call.queries : 0;
        const int64_t at = (p.batch * call.heads + head) * call.queries + query;
        p.head_of[i] = static_cast<int32_t>(head);
        p.query_of[i] = static_cast<int32_t>(query);
        p.first[i] = plan.first && valid ? plan.first[p.batch * call.queries + query] : 0;
        p.last[i] = plan.first ? plan.last[p.batch * call.queries + query] : static_cast<int32_t>(call.keys);
        if (!valid) p.last[i] = 0;
        p.poison[i] = valid && p.broken_grads[i] ? __builtin_nanf("") : 0;
        p.lse[i] = valid && call.lse[at] != MINUS_INFINITY ? static_cast<float>(call.lse[at] / LN_2) : -MINUS_INFINITY;
        p.pull[i] = p.entropy_pull[i] = 0;
        if (!valid) return;
        const Rows outputs = rows_of(call.output, p.batch, head, call.queries, call.value_width, half);
        p.pull[i] = dot(grads.at(i), half, outputs.at(query), half, call.value_width);
        if (call.lse_grad) p.pull[i] -= call.lse_grad[at];
        if (call.entropy_grad) {
            p.pull[i] += call.entropy_grad[at] * call.seen.entropy[at];
            p.entropy_pull[i] = call.entropy_grad[at] * static_cast<float>(LN_2);
        }
        if (p.last[i] - p.first[i] == 1 && std::isfinite(p.pull[i])) alone(p, i, at);
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
