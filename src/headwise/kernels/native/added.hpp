// Gradients of what is added to the scores: of a bias, of the slopes, and of the relative bias.
#pragma once

#include "packed.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

constexpr int BLOCK_COLUMNS = 256;
constexpr int LINE = 80;  // keys of a block in whole vectors

// What one thread collects over all its units, and its room to turn columns into lines.
struct Collected {
    double *slopes, *relative;
    float *columns, *lines;
};

// Which units a thread computes one after the other, because their gradients of the bias meet.
struct Order {
    int64_t tasks, units, task_step, unit_step;

    int64_t unit(int64_t task, int64_t i) const { return task * task_step + i * unit_step; }
};

class Added {
public:
    explicit Added(const Call& call)
        : wanted(call.bias_grad.data || call.slopes_grad || call.relative_grad), call(call) {}

    const bool wanted;

    Order order() const {
        const Spread& bias = call.bias_grad;
        const bool groups = bias.data && bias.head == 0;
        const bool samples = call.slopes_grad || call.relative_grad || (bias.data && bias.batch == 0);
        if (samples && groups) return {1, call.batch * call.groups, 0, 1};
        if (samples) return {call.groups, call.batch, 1, call.groups};
        if (groups) return {call.batch, call.groups, call.groups, 1};
        return {call.batch * call.groups, 1, 1, 0};
    }

    void lay_out(Room& memory, Collected& own) const {
        own.slopes = memory.take<double>(slope_count());
        own.relative = memory.take<double>(relative_count());
        own.columns = memory.take<float>(wanted ? LINE * BLOCK_COLUMNS : 0);
        own.lines = memory.take<float>(wanted ? W * LINE : 0);
    }

    void begin(Collected& own) const {
        std::memset(own.slopes, 0, slope_count() * sizeof(double));
        std::memset(own.relative, 0, relative_count() * sizeof(double));
    }

    // Add what a thread has collected to the caller's.
    void finish(const Collected& own) const {
        for (int64_t i = 0; i < slope_count(); ++i) call.slopes_grad[i] += own.slopes[i];
        for (int64_t i = 0; i < relative_count(); ++i) call.relative_grad[i] += own.relative[i];
    }

    // Collect a tile of gradients of scores, `own.columns`: keys first to last, columns from to to.
    void collect(const Packed& p, Collected& own, int64_t first, int64_t last, int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; i += W) {
            for (int64_t j = 0; j < last - first; j += W)
                transpose(own.columns + j * BLOCK_COLUMNS + i - from, BLOCK_COLUMNS, own.lines + j, LINE);
            for (int64_t l = 0; l < smaller<int64_t>(W, to - i); ++l) {
                const int64_t begin = larger<int64_t>(first, p.first[i + l]);
                const int64_t end = smaller<int64_t>(last, p.last[i + l]);
                if (begin < end) add_line(p, own, i + l, own.lines + l * LINE + begin - first, begin, end - begin);
            }
        }
    }

    // The gradients of a query's scores sum up to that of its log-sum-exp: what all keys share needs no other sum.
    void collect_shared(const Packed& p) const {
        if (!call.bias_grad.data || call.bias_grad.column) return;
        for (int64_t i = 0; i < p.columns; ++i) {
            const int64_t at = (p.batch * call.heads + p.head_of[i]) * call.queries + p.query_of[i];
            if (call.lse[at] == MINUS_INFINITY) continue;
            const bool broken = !std::isfinite(p.pull[i]) || call.lse[at] != call.lse[at];
            const float sum = broken ? __builtin_nanf("") : call.lse_grad ? call.lse_grad[at] : 0;
            add_bias(p, i, &sum, 0, 1);
        }
    }

private:
    const Call& call;

    int64_t slope_count() const { return call.slopes_grad ? call.heads : 0; }
    int64_t relative_count() const { return call.relative_grad ? call.heads * call.relatives : 0; }

    void add_line(const Packed& p, Collected& own, int64_t i, const float* line, int64_t first, int64_t count) const {
        if (call.bias_grad.data && call.bias_grad.column) add_bias(p, i, line, first, count);
        const int64_t head = p.head_of[i], before = first - extent_of(call, p.batch).own(p.query_of[i]);
        if (call.slopes_grad) own.slopes[head] -= distant(line, before, count);
        if (!call.relative_grad) return;
        const int64_t reach = call.relatives / 2;
        const int64_t near = smaller(count, larger<int64_t>(0, -reach - before));
        const int64_t far = smaller(count, larger<int64_t>(0, reach + 1 - before));
        double* table = own.relative + head * call.relatives + reach;
        if (near > 0) table[-reach] += total(line, near);
        if (near < far) accumulate(table + before + near, line + near, far - near);
        if (far < count) table[reach] += total(line + far, count - far);
    }

    void add_bias(const Packed& p, int64_t i, const float* line, int64_t first, int64_t count) const {
        const int64_t at = place(call.bias_grad, p.batch, p.head_of[i], p.query_of[i]) + first;
        if (call.bias_grad_wide) accumulate(reinterpret_cast<double*>(call.bias_grad.data) + at, line, count);
        else accumulate(reinterpret_cast<float*>(call.bias_grad.data) + at, line, count);
    }

    template <class N>
    static void accumulate(N* to, const float* line, int64_t count) {
        for (int64_t j = 0; j < count; ++j) to[j] += line[j];
    }

    static float total(const float* line, int64_t count) {
        vec sums = all(0);
        float rest = 0;
        int64_t j = 0;
        for (; j + W <= count; j += W) sums = add(sums, load(line + j));
        for (; j < count; ++j) rest += line[j];
        return sum(sums) + rest;
    }

    // Sum a line times the distances of its keys, of which `before` is the first.
    static float distant(const float* line, int64_t before, int64_t count) {
        vec sums = all(0), distance = add(ramp(), all(static_cast<float>(before)));
        float rest = 0;
        int64_t j = 0;
        for (; j + W <= count; j += W, distance = add(distance, all(W)))
            sums = fma(load(line + j), absolute(distance), sums);
        for (; j < count; ++j) rest += line[j] * std::fabs(static_cast<float>(before + j));
        return sum(sums) + rest;
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
