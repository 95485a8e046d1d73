// Output, log-sum-exp and statistics of a whole call: who computes what, and from which copies.
#pragma once

#include "block.hpp"
#include "threads.hpp"

namespace headwise::HEADWISE_ISA {
namespace {


template <class M>
class Forward {
public:
    Forward(const Call& call, const Plan& plan)
        : attention(call, plan), call(call), plan(plan), threads(plan.threads) {
        // Blocks of equal size, in whole tiles.
        const int64_t rows = attention.share * call.queries, blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        block_rows = up((rows + blocks - 1) / blocks, TILE_ROWS);
        block_count = (rows + block_rows - 1) / block_rows;
    }

    bool run(Reserve reserve) {
        const int64_t units = call.batch * call.groups;
        const bool apart = threads == 1 || attention.direct || units % threads == 0 || units >= 4 * threads;
        const int64_t holders = apart ? threads : 1;
        Room room;
        lay_out(room, holders);
        room.at = static_cast<char*>(reserve(room.used));
        if (!room.at) return false;
        room.used = 0;
        lay_out(room, holders);
        int64_t next = 0;
        const int64_t step = larger<int64_t>(1, units / (threads * 16));
        on_threads(threads, [&](int64_t thread, int64_t team) {
            Block& block = blocks[thread];
            if (apart) {
                Unit<M>& unit = held[thread];
                for (int64_t a; (a = __atomic_fetch_add(&next, step, __ATOMIC_RELAXED)) < units;)
                    for (int64_t u = a; u < smaller(units, a + step); ++u) {
                        enter(unit, u);
                        unit.any_broken = pack(unit, 0, 1);
                        fetch_unit(call, plan, u + 1, false);
                        aim(unit, block, true);
                        for (int64_t n = 0; n < block_count; ++n) attend(unit, block, n);
                    }
                return;
            }
            for (int64_t u = 0; u < units; ++u) {
                Unit<M> unit = held[0];
                enter(unit, u);
                aim(unit, block, false);
                if (pack(unit, thread, team)) __atomic_store_n(&held[0].any_broken, true, __ATOMIC_RELAXED);
                barrier();
                unit.any_broken = held[0].any_broken;
                // The longest first: later queries may see more keys.
                for (int64_t n = thread; n < block_count; n += team) attend(unit, block, block_count - 1 - n);
                barrier();
                if (attention.counter.again) join(unit, thread, team);
            }
        });
        attention.counter.count_live();
        return true;
    }

private:
    const Attention<M> attention;
    const Call& call;
    const Plan& plan;
    const int64_t threads;
    int64_t block_rows, block_count;
    Unit<M>* held = nullptr;
    Block* blocks = nullptr;

    void lay_out(Room& memory, int64_t holders) {
        held = memory.take<Unit<M>>(holders);
        blocks = memory.take<Block>(threads);
        Unit<M> no_unit;
        Block no_block;
        for (int64_t t = 0; t < holders; ++t) {
            Unit<M>& unit = memory.at ? held[t] : no_unit;
            unit.keys = memory.take<float>(attention.direct ? 0 : up(call.keys, PANEL) * attention.words);
            const int64_t lines = up(call.keys, larger(2, M::depth)) / M::step;
            unit.values = memory.take<float>(attention.direct ? 0 : lines * attention.room);
            unit.broken = memory.take<uint8_t>(call.keys + 1);
            unit.any_broken = false;
        }
        for (int64_t t = 0; t < threads; ++t) {
            Block& block = memory.at ? blocks[t] : no_block;
            block.left = memory.take<float>(BLOCK_ROWS * attention.words);
            block.scores = memory.take<float>(TILE_ROWS * SCORE_ROW);
            block.weights = memory.take<float>(attention.keeping ? TILE_ROWS * SCORE_ROW : 0);
            block.output = memory.take<float>(BLOCK_ROWS * attention.room);
            block.added = memory.take<float>(SCORE_ROW);
            block.words = memory.take<uint16_t>(call.least ? BLOCK_ROWS * SCORE_ROW : 0);
            block.counts.weights = memory.take<float>(SCORE_ROW);
            block.counts.first = memory.take<int32_t>(call.seen.map ? call.seen.cells + 1 : 0);
            block.line = memory.take<float>(SCORE_ROW);
            // Threads that share a unit add up apart and join their sums when it is done.
            const bool apart = holders == threads;
            block.received = memory.take<float>(apart || !call.seen.received ? 0 : attention.share * call.keys);
            block.map = memory.take<float>(apart || !call.seen.map ? 0 : attention.share * cells());
        }
    }

    void enter(Unit<M>& unit, int64_t u) const {
        unit.batch = u / call.groups;
        unit.group = u % call.groups;
        unit.rows = attention.share * call.queries;
    }

    void attend(const Unit<M>& unit, Block& block, int64_t n) const {
        attention.attend(unit, block, n * block_rows, block_rows);
    }

    // Choose where the sums over queries go: to their place, or, where threads share the unit, to room of their own.
    void aim(const Unit<M>& unit, Block& block, bool direct) const {
        const int64_t head = unit.batch * call.heads + unit.group * attention.share;
        block.counts.received = direct && call.seen.received ? call.seen.received + head * call.keys : block.received;
        block.counts.map = direct && call.seen.map ? call.seen.map + head * cells() : block.map;
        for (int64_t cell = 0; call.seen.map && cell <= call.seen.cells; ++cell)
            block.counts.first[cell] =
                static_cast<int32_t>(attention.counter.first_of(cell, extent_of(call, unit.batch).keys));
        if (direct) return;
        if (call.seen.received) std::memset(block.received, 0, attention.share * call.keys * 4);
        if (call.seen.map) std::memset(block.map, 0, attention.share * cells() * 4);
    }

    int64_t cells() const { return call.seen.cells * call.seen.cells; }

    // Add up what the threads have summed over queries.
    void join(const Unit<M>& unit, int64_t thread, int64_t team) const {
        const int64_t head = unit.batch * call.heads + unit.group * attention.share;
        const auto add = [&](float* to, float* Block::*sums, int64_t count) {
            if (!to) return;
            for (int64_t i = count * thread / team; i < count * (thread + 1) / team; ++i)
                for (int64_t t = 0; t < team; ++t) to[i] += (blocks[t].*sums)[i];
        };
        add(call.seen.received ? call.seen.received + head * call.keys : nullptr, &Block::received,
            attention.share * call.keys);
        add(call.seen.map ? call.seen.map + head * cells() : nullptr, &Block::map, attention.share * cells());
        barrier();
    }

    bool pack(Unit<M>& unit, int64_t part, int64_t parts) const {
        if (attention.direct) return false;
        const Rows keys = rows_of(call.key, unit.batch, unit.group, call.keys, call.width, attention.half);
        const Rows values = rows_of(call.value, unit.batch, unit.group, call.keys, call.value_width, attention.half);
        const int64_t panels = (call.keys + PANEL - 1) / PANEL;
        bool any = false;
        for (int64_t p = panels * part / parts; p < panels * (part + 1) / parts; ++p) {
            const int64_t first = p * PANEL, last = smaller(call.keys, first + PANEL);
            pack_columns<M>(keys, first, last, attention.words, unit.keys + first * attention.words);
            float* lines = unit.values + first / M::step * attention.room;
            any |= pack_rows<M>(values, first, last, up(last, M::depth), lines, attention.room, unit.broken);
        }
        return any;
    }
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA
