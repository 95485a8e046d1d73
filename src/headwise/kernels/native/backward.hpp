// Gradients of query, key, value and what is added, one block of keys after the other. The weights are computed again,
// transposed: keys are rows and queries columns, so that what a block of keys collects stays with it.
#pragma once

#include "added.hpp"
#include "threads.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

constexpr int64_t CHUNK_COLUMNS = 4096;  // columns of the heads that are packed at once, unless one head has more

// What one thread needs for itself.
struct alignas(CACHE_LINE) Strips {
    float *scores, *slopes, *across, *added, *added_row, *key_grad, *value_grad, *query_grad;
    uint16_t* words;
    Collected collected;
};

template <class M>
class Backward {
public:
    Backward(const Call& call, const Plan& plan)
        : packer(call, plan), call(call), plan(plan), half(call.half), words(packer.words),
          value_words(packer.value_words), room(packer.room), value_room(packer.value_room),
          share(call.heads / call.groups),
          chunk(larger<int64_t>(1, smaller<int64_t>(share, CHUNK_COLUMNS / call.queries))),
          most_columns(up(chunk * call.queries, PANEL)), factor(static_cast<float>(call.scale / LN_2)),
          adding(adds(call, plan)), learned(call), order(learned.order()),
          apart(plan.threads == 1 || order.tasks % plan.threads == 0 || order.tasks >= 4 * plan.threads) {
        int64_t blocks = (call.keys + BLOCK_ROWS - 1) / BLOCK_ROWS;
        // Units that share a bias leave no other work to threads than blocks of keys.
        if (learned.wanted && !apart && !packer.one_block) blocks = larger(blocks, smaller(plan.threads, call.keys));
        block_keys = up((call.keys + blocks - 1) / blocks, TILE_ROWS);
    }

    bool run(Reserve reserve) {
        const int64_t units = call.batch * call.groups, threads = plan.threads;
        Room memory;
        lay_out(memory, apart ? threads : 1, threads);
        memory.at = static_cast<char*>(reserve(memory.used));
        if (!memory.at) return false;
        memory.used = 0;
        lay_out(memory, apart ? threads : 1, threads);
        for (int64_t t = 0; t < threads; ++t) learned.begin(strips[t].collected);
        int64_t next = 0;
        const int64_t step = larger<int64_t>(1, order.tasks / (threads * 16));
        on_threads(threads, [&](int64_t thread, int64_t team) {
            if (apart) {
                for (int64_t a; (a = __atomic_fetch_add(&next, step, __ATOMIC_RELAXED)) < order.tasks;)
                    for (int64_t i = a * order.units; i < smaller(order.tasks, a + step) * order.units; ++i)
                        differentiate(packed[thread], order.unit(i / order.units, i % order.units), thread, 0, 1);
            } else {
                for (int64_t u = 0; u < units; ++u) differentiate(packed[0], u, 0, thread, team);
            }
        });
        for (int64_t t = 0; t < threads; ++t) learned.finish(strips[t].collected);
        return true;
    }

private:
    const Packer<M> packer;
    const Call& call;
    const Plan& plan;
    const bool half;
    const int64_t words, value_words, room, value_room, share, chunk, most_columns;
    const float factor;
    const bool adding;
    const Added learned;
    const Order order;
    const bool apart;  // threads compute units of their own; else all compute each, by blocks of keys
    int64_t block_keys;
    Packed* packed = nullptr;
    Strips* strips = nullptr;

    void lay_out(Room& memory, int64_t holders, int64_t threads) {
        packed = memory.take<Packed>(holders);
        strips = memory.take<Strips>(threads);
        Packed no_packed;
        Strips no_strips;
        for (int64_t t = 0; t < holders; ++t) lay_out(memory, memory.at ? packed[t] : no_packed);
        for (int64_t t = 0; t < threads; ++t) lay_out(memory, memory.at ? strips[t] : no_strips);
    }

    void lay_out(Room& memory, Packed& p) const {
        const int64_t keys = up(call.keys, larger(2, M::depth)), n = most_columns;
        p.key_words = memory.take<float>(keys * words);
        p.value_words = memory.take<float>(keys * value_words);
        p.key_rows = memory.take<float>(keys / M::step * room);
        p.query_columns = memory.take<float>(n * words);
        p.grad_columns = memory.take<float>(n * value_words);
        p.query_rows = memory.take<float>(n / M::step * room);
        p.grad_rows = memory.take<float>(n / M::step * value_room);
        p.lse = memory.take<float>(n);
        p.lse_rest = memory.take<float>(n);
        p.pull = memory.take<float>(n);
        p.entropy_pull = memory.take<float>(n);
        p.poison = memory.take<float>(n);
        p.head_of = memory.take<int32_t>(n);
        p.query_of = memory.take<int32_t>(n);
        p.first = memory.take<int32_t>(n);
        p.last = memory.take<int32_t>(n);
        p.broken_keys = memory.take<uint8_t>(keys);
        p.broken_queries = memory.take<uint8_t>(n);
        p.broken_grads = memory.take<uint8_t>(n);
        p.key_sums = memory.take<float>(chunk < share ? call.keys * room : 0);
        p.value_sums = memory.take<float>(chunk < share ? call.keys * value_room : 0);
        p.any_broken = false;
    }

    void lay_out(Room& memory, Strips& s) const {
        const int64_t rows = packer.one_block ? BLOCK_ROWS : TILE_ROWS;
        s.scores = memory.take<float>(rows * BLOCK_COLUMNS);
        s.slopes = memory.take<float>(rows * BLOCK_COLUMNS);
        s.across = memory.take<float>(BLOCK_ROWS * BLOCK_COLUMNS);
        s.added = memory.take<float>(adding ? BLOCK_ROWS * BLOCK_COLUMNS : 0);
        s.added_row = memory.take<float>(BLOCK_ROWS);
        s.key_grad = memory.take<float>(BLOCK_ROWS * room);
        s.value_grad = memory.take<float>(BLOCK_ROWS * value_room);
        s.query_grad = memory.take<float>(most_columns * room);
        s.words = memory.take<uint16_t>(call.least ? BLOCK_ROWS * BLOCK_COLUMNS : 0);
        learned.lay_out(memory, s.collected);
    }

    // Compute the gradients of one unit, by one thread or by all: `strip` is where its own memory begins.
    void differentiate(Packed& p, int64_t unit, int64_t strip, int64_t part, int64_t parts) const {
        Strips& own = strips[strip + part];
        const int64_t batch = unit / call.groups, group = unit % call.groups;
        for (int64_t head = 0; head < share; head += chunk) {
            if (part == 0) {
                p.batch = batch;
                p.group = group;
                p.head = group * share + head;
                p.heads = smaller(chunk, share - head);
                p.columns = p.heads * call.queries;
                packer.begin(p);
            }
            if (parts > 1) barrier();
            if (packer.pack(p, head == 0, part, parts)) __atomic_store_n(&p.any_broken, true, __ATOMIC_RELAXED);
            if (parts == 1) fetch_unit(call, plan, unit + 1, true);
            std::memset(own.query_grad, 0, p.columns * room * 4);
            if (parts > 1) barrier();
            if (part == 0) learned.collect_shared(p);
            for (int64_t k = part * block_keys; k < call.keys; k += parts * block_keys) {
                const bool begins = head == 0, ends = head + chunk >= share;
                of_keys(p, own, k, smaller(call.keys, k + block_keys), begins, ends);
            }
            if (parts > 1) barrier();
            write_query_grads(p, strip, part, parts);
            if (parts > 1) barrier();
        }
    }

    // Collect the gradients of keys first to last over all columns.
    void of_keys(Packed& p, Strips& own, int64_t first, int64_t last, bool begins, bool ends) const {
        bool started = false;
        for (int64_t c = 0; c < p.columns; c += BLOCK_COLUMNS) {
            int64_t from = smaller(p.columns, c + BLOCK_COLUMNS), to = c;
            bool whole = true;
            const int64_t end = from;
            for (int64_t panel = c; panel < end; panel += PANEL)
                if (reaches(p, panel, smaller(end, panel + PANEL), first, last, whole)) {
                    from = smaller(from, panel);
                    to = smaller(end, panel + PANEL);
                }
            if (from >= to) continue;
            of_tile(p, own, first, last, from, to, whole, started);
            started = true;
        }
        if (!started) {
            std::memset(own.key_grad, 0, (last - first) * room * 4);
            std::memset(own.value_grad, 0, (last - first) * value_room * 4);
        }
        for (int64_t j = first; j < last; ++j) {
            float* key_grad = summed(own.key_grad + (j - first) * room, p.key_sums + j * room, room, begins, ends);
            float* value_grad = summed(own.value_grad + (j - first) * value_room, p.value_sums + j * value_room,
                                       value_room, begins, ends);
            if (!ends) continue;
            const Rows keys = rows_of(call.key_grad, p.batch, p.group, call.keys, call.width, half);
            const Rows values = rows_of(call.value_grad, p.batch, p.group, call.keys, call.value_width, half);
            narrow(key_grad, static_cast<float>(call.scale), keys.at(j), half, call.width);
            narrow(value_grad, 1, values.at(j), half, call.value_width);
        }
    }

    // Add a row to what earlier chunks of heads gave.
    static float* summed(float* row, float* total, int64_t width, bool begins, bool ends) {
        if (begins && ends) return row;
        for (int64_t d = 0; d < width; d += W)
            store(total + d, begins ? load(row + d) : add(load(total + d), load(row + d)));
        return total;
    }

    // Tell whether some column of a panel sees a key of the block; `whole` becomes false when some pair is hidden.
    bool reaches(const Packed& p, int64_t begin, int64_t end, int64_t first, int64_t last, bool& whole) const {
        if (!plan.first) return true;
        bool some = false, every = true;
        for (int64_t i = begin; i < end; ++i) {
            some |= p.first[i] < last && p.last[i] > first;
            every &= p.first[i] <= first && p.last[i] >= last;
        }
        whole &= every;
        return some;
    }

    // A block of keys against columns from to to, in strips of a few keys.
    void of_tile(Packed& p, Strips& own, int64_t first, int64_t last, int64_t from, int64_t to, bool whole,
                 bool started) const {
        const bool plain = whole && !adding && !call.least && !call.entropy_grad && !p.any_broken;
        if (call.least)
            words_by_key(call, p.batch, p.head_of + from, p.query_of + from, to - from, first, last, own.words,
                         BLOCK_COLUMNS);
        if (adding) add_across(p, own, first, last, from, to);
        const int64_t columns = up(to - from, W * M::step), depth = columns / M::step;
        const auto rows_at = [&](int64_t j) { return static_cast<int>(smaller<int64_t>(TILE_ROWS, last - j)); };
        if (packer.one_block) {
            for (int64_t j = first; j < last; j += TILE_ROWS) score(p, own, j, rows_at(j), j - first, from, to);
            sum_pulls(p, own, first, last, from, columns, plain);
        }
        for (int64_t j = first; j < last; j += TILE_ROWS) {
            const int rows = rows_at(j);
            const int64_t row = packer.one_block ? j - first : 0;
            if (!packer.one_block) score(p, own, j, rows, 0, from, to);
            float* across = own.across + (j - first) / M::step * BLOCK_COLUMNS;
            for (int r = 0; r < rows; r += M::step, across += BLOCK_COLUMNS) {
                const int count = smaller(M::step, rows - r);
                if (plain) slope<true>(p, own, j + r, j - first + r, row + r, count, from, columns, across);
                else slope<false>(p, own, j + r, j - first + r, row + r, count, from, columns, across);
            }
            multiply_strip<M>(started, {own.scores + row * BLOCK_COLUMNS, BLOCK_COLUMNS, 1}, rows,
                              {p.grad_rows + from / M::step * value_room, value_room}, value_room, depth,
                              {own.value_grad + (j - first) * value_room, value_room});
            multiply_strip<M>(started, {own.slopes + row * BLOCK_COLUMNS, BLOCK_COLUMNS, 1}, rows,
                              {p.query_rows + from / M::step * room, room}, room, depth,
                              {own.key_grad + (j - first) * room, room});
        }
        if (learned.wanted) learned.collect(p, own.collected, first, last, from, to);
        const int64_t filled = up(last - first, M::step) / M::step, lines = up(last - first, M::depth) / M::step;
        if (filled < lines) std::memset(own.across + filled * BLOCK_COLUMNS, 0, (lines - filled) * BLOCK_COLUMNS * 4);
        for (int64_t i = from; i < to; i += TILE_ROWS) {
            multiply_strip<M, true>({own.across + i - from, 1, BLOCK_COLUMNS},
                                    static_cast<int>(smaller<int64_t>(TILE_ROWS, to - i)),
                                    {p.key_rows + first / M::step * room, room}, room, lines,
                                    {own.query_grad + i * room, room});
        }
    }

    // Compute the scores of a strip of keys, and the gradient of their weights.
    void score(const Packed& p, Strips& own, int64_t key, int rows, int64_t row, int64_t from, int64_t to) const {
        const int64_t columns = up(to - from, W * M::step), half_sum = M::step == 1 ? value_words / 2 : 0;
        float *scores = own.scores + row * BLOCK_COLUMNS, *slopes = own.slopes + row * BLOCK_COLUMNS;
        multiply_panels(p.keys, key, words, 0, rows, p.query_columns, from, columns, scores);
        if (share * call.queries <= FEW_ROWS) score_few(p, scores, key, rows, from, to);
        multiply_panels(p.values, key, value_words, half_sum, rows, p.grad_columns, from, columns, slopes);
    }

    // The forward pass scored few queries across vectors: sums in another order would not fit its log-sum-exp.
    void score_few(const Packed& p, float* scores, int64_t key, int rows, int64_t from, int64_t to) const {
        const Rows keys = rows_of(call.key, p.batch, p.group, call.keys, call.width, half);
        for (int64_t i = from; i < to; ++i) {
            const Rows queries = rows_of(call.query, p.batch, p.head_of[i], call.queries, call.width, half);
            for (int r = 0; r < rows; ++r)
                scores[r * BLOCK_COLUMNS + i - from] =
                    dot(queries.at(p.query_of[i]), half, keys.at(key + r), half, call.width);
        }
    }

    // The first `split` products, if any, make a sum of their own: what one long sum rounds away would show in the
    // gradients of rows that see few keys. Scores are not split: they must round as they did in the forward pass.
    void multiply_panels(Left left, int64_t row, int64_t depth, int64_t split, int rows, const float* right,
                         int64_t from, int64_t columns, float* to) const {
        left.data += row * left.row;
        const Left rest = {left.data + split * left.step, left.row, left.step};
        for (int64_t c = 0; c < columns; c += PANEL) {
            const float* panel = right + (from + c) * depth;
            const int64_t count = smaller<int64_t>(PANEL, columns - c);
            const Sum sum = {to + c, BLOCK_COLUMNS};
            if (split) multiply_strip<M, false>(left, rows, {panel, PANEL}, count, split, sum);
            multiply_strip<M>(split > 0, rest, rows, {panel + split * PANEL, PANEL}, count, depth - split, sum);
        }
    }

    void add_across(const Packed& p, Strips& own, int64_t first, int64_t last, int64_t from, int64_t to) const {
        for (int64_t i = from; i < to; ++i) {
            const int64_t place[3] = {p.batch, p.head_of[i], p.query_of[i]};
            added_scores(call, plan, place, first, last - first, own.added_row);
            for (int64_t j = 0; j < last - first; ++j) own.added[j * BLOCK_COLUMNS + i - from] = own.added_row[j];
        }
    }

    // Turn scores and the gradient of the weights into weights and the gradient of the scores, in place, `count` keys
    // at once, and write the latter a second time for the gradient of the queries.
    template <bool PLAIN>
    void slope(const Packed& p, Strips& own, int64_t key, int64_t line, int64_t row, int count, int64_t from,
               int64_t columns, float* across) const {
        constexpr int S = M::step;
        float *scores = own.scores + row * BLOCK_COLUMNS, *slopes = own.slopes + row * BLOCK_COLUMNS;
        for (int64_t c = 0; c < columns; c += W * S) {
            vec weight[S][S], slope[S][S];
            for (int k = 0; k < S; ++k)
                for (int v = 0; v < S; ++v) {
                    const int64_t at = c + v * W, i = from + at;
                    weight[k][v] = slope[k][v] = all(0);
                    if (k >= count) continue;
                    const vec grad = load(slopes + k * BLOCK_COLUMNS + at);
                    const vec x = log_weight<PLAIN>(p, own, scores + k * BLOCK_COLUMNS, line + k, at, i);
                    weight[k][v] = power_of_2(x);
                    slope[k][v] = PLAIN ? mul(weight[k][v], sub(grad, load(p.pull + i)))
                                        : careful(p, own, key + k, line + k, at, i, x, grad, weight[k][v]);
                    if (!PLAIN && learned.wanted)
                        store(own.collected.columns + (line + k) * BLOCK_COLUMNS + at, slope[k][v]);
                }
            put(scores, weight, c, count);
            put(slopes, slope, c, count);
            put_across(across, slope, c);
        }
    }

    // The logarithm of the weights of a key, to base 2, rounded as in the forward pass.
    template <bool PLAIN>
    vec log_weight(const Packed& p, const Strips& own, const float* scores, int64_t line, int64_t at, int64_t i) const {
        vec x = load(scores + at);
        if (!PLAIN && adding) x = joined(x, all(factor), load(own.added + line * BLOCK_COLUMNS + at));
        else x = mul(x, all(factor));
        return floored(sub(sub(x, load(p.lse + i)), load(p.lse_rest + i)));
    }

    // Where a block holds all keys, what is taken from dP is the sum of the weights times dP, in which its rounding
    // cancels: a heavy key among few leaves next to nothing of its own slope.
    void sum_pulls(Packed& p, const Strips& own, int64_t first, int64_t last, int64_t from, int64_t columns,
                   bool plain) const {
        for (int64_t at = 0; at < columns; at += W) {
            const int64_t i = from + at;
            vec total = load(p.pull + i);
            for (int64_t r = 0; r < last - first; ++r) {
                vec grad = load(own.slopes + r * BLOCK_COLUMNS + at);
                vec weight = power_of_2(log_weight<false>(p, own, own.scores + r * BLOCK_COLUMNS, r, at, i));
                if (!plain) weight = within(weight, p.first + i, p.last + i, static_cast<int32_t>(first + r));
                if (call.least) grad = dropped(own, grad, r, at);
                total = add(total, unless_zero(weight, mul(weight, grad)));
            }
            store(p.pull + i, total);
        }
    }

    // The gradient of the scores, with everything that may happen to it; hidden weights become 0, NaN or not.
    vec careful(const Packed& p, const Strips& own, int64_t key, int64_t line, int64_t at, int64_t i, vec x, vec grad,
                vec& weight) const {
        weight = within(weight, p.first + i, p.last + i, static_cast<int32_t>(key));
        const vec seen = weight;
        if (call.least) {
            grad = dropped(own, grad, line, at);
            weight = dropped(own, weight, line, at);
        }
        const vec pull = fma(load(p.entropy_pull + i), x, load(p.pull + i));
        weight = unless_zero(weight, add(weight, load(p.poison + i)));
        return unless_zero(seen, mul(seen, sub(grad, pull)));
    }

    // What dropout leaves of the numbers of a key.
    vec dropped(const Strips& own, vec numbers, int64_t line, int64_t at) const {
        const vec rest = all(call.kept_share > 0 ? static_cast<float>(1 / call.kept_share) : 0);
        return kept(mul(numbers, rest), own.words + line * BLOCK_COLUMNS + at, static_cast<int32_t>(call.least));
    }

    static void put(float* to, const vec (&rows)[M::step][M::step], int64_t c, int count) {
        for (int k = 0; k < count; ++k) {
#if defined(__AVX512BF16__)
            if constexpr (M::step == 2) store(to + k * BLOCK_COLUMNS + c / 2, halves(rows[k][0], rows[k][1]));
            else
#endif
                store(to + k * BLOCK_COLUMNS + c, rows[k][0]);
        }
    }

    static void put_across(float* to, const vec (&rows)[M::step][M::step], int64_t c) {
#if defined(__AVX512BF16__)
        if constexpr (M::step == 2) {
            store(to + c, interleaved(rows[0][0], rows[1][0]));
            store(to + c + W, interleaved(rows[0][1], rows[1][1]));
        } else
#endif
            store(to + c, rows[0][0]);
    }

    // Add up what the threads have for each query.
    void write_query_grads(const Packed& p, int64_t strip, int64_t part, int64_t parts) const {
        const Rows grads = rows_of(call.query_grad, p.batch, p.head, call.queries, call.width, half);
        for (int64_t i = p.columns * part / parts; i < p.columns * (part + 1) / parts; ++i) {
            float* total = strips[strip].query_grad + i * room;
            for (int64_t t = 1; t < parts; ++t)
                for (int64_t d = 0; d < room; d += W)
                    store(total + d, add(load(total + d), load(strips[strip + t].query_grad + i * room + d)));
            narrow(total, static_cast<float>(call.scale), grads.at(i), half, call.width);
        }
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
