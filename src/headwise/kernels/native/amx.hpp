// Products of bfloat16 in AMX tiles: 16 rows of 16 words, a word being a pair of numbers along the summed axis.
#pragma once

#include "vector.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

constexpr int SIDE = 16;

// The shapes of a thread's tiles while it lives. What another library has set is put back, as it may count on it.
class Tiles {
public:
    Tiles() {
        struct alignas(64) {
            uint8_t palette = 1, start_row = 0, unused[14] = {};
            uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
            uint8_t rows[16] = {SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE, SIDE};
        } all_alike;
        _tile_storeconfig(before);
        _tile_loadconfig(&all_alike);
    }
    ~Tiles() { _tile_loadconfig(before); }
    Tiles(const Tiles&) = delete;

private:
    alignas(64) char before[64];
};

// Matrices go by reference: a copy would wait until what the tiles have stored is written.

// The sums of one tile, or of two below and two beside each other; the lower begins at row `low`, and may overlap.
template <bool TALL, bool WIDE>
void multiply_tiles(bool add, const Left& a, int64_t low, const Right& b, int64_t depth, const Sum& c) {
    __asm__ volatile("" ::: "memory");  // the compiler does not know what a load of a tile reads
    const int64_t a_row = a.row * 4, b_row = b.step * 4, c_row = c.row * 4;
    float *below = c.data + low * c.row, *beside = c.data + SIDE, *across = below + SIDE;
    if (add) {
        _tile_loadd(0, c.data, c_row);
        if (WIDE) _tile_loadd(1, beside, c_row);
        if (TALL) _tile_loadd(2, below, c_row);
        if (TALL && WIDE) _tile_loadd(3, across, c_row);
    } else {
        _tile_zero(0);
        if (WIDE) _tile_zero(1);
        if (TALL) _tile_zero(2);
        if (TALL && WIDE) _tile_zero(3);
    }
    const float *left = a.data, *right = b.data;
    for (int64_t d = 0; d < depth; d += SIDE, left += SIDE, right += SIDE * b.step) {
        _tile_loadd(4, left, a_row);
        _tile_loadd(6, right, b_row);
        _tile_dpbf16ps(0, 4, 6);
        if (TALL) _tile_loadd(5, left + low * a.row, a_row);
        if (TALL) _tile_dpbf16ps(2, 5, 6);
        if (WIDE) _tile_loadd(7, right + SIDE, b_row);
        if (WIDE) _tile_dpbf16ps(1, 4, 7);
        if (TALL && WIDE) _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c.data, c_row);
    if (WIDE) _tile_stored(1, beside, c_row);
    if (TALL) _tile_stored(2, below, c_row);
    if (TALL && WIDE) _tile_stored(3, across, c_row);
}

template <bool TALL>
void multiply_rows(bool add, const Left& a, int64_t low, const Right& b, int64_t columns, int64_t depth, const Sum& c) {
    int64_t at = 0;
    for (; at + 2 * SIDE <= columns; at += 2 * SIDE)
        multiply_tiles<TALL, true>(add, a, low, {b.data + at, b.step}, depth, {c.data + at, c.row});
    if (at < columns) multiply_tiles<TALL, false>(add, a, low, {b.data + at, b.step}, depth, {c.data + at, c.row});
}

// Rows as adjacent words; where they lie along columns, whole vectors of them are read.
inline Left copied(const Left& a, int rows, int64_t depth, float* to) {
    for (int r = 0; r < rows; r += a.step == 1 ? 1 : SIDE) {
        float* row = to + r * depth;
        if (a.step == 1) std::memcpy(row, a.data + r * a.row, depth * 4);
        else
            for (int64_t d = 0; d < depth; d += SIDE) transpose(a.data + r + d * a.step, a.step, row + d, depth);
    }
    return {to, depth, 1};
}

// c = a b, or c += a b, for up to TILE_ROWS rows, columns that are whole vectors and a depth of whole tiles.
template <class M>
void multiply_strip(bool add, const Left& a, int rows, const Right& b, int64_t columns, int64_t depth, const Sum& c) {
    alignas(64) float copy[TILE_ROWS * MOST_DEPTH];
    if (a.step != 1) return multiply_strip<M>(add, copied(a, rows, depth, copy), rows, b, columns, depth, c);
    if (rows > SIDE) return multiply_rows<true>(add, a, rows - SIDE, b, columns, depth, c);
    if (rows == SIDE) return multiply_rows<false>(add, a, 0, b, columns, depth, c);
    alignas(64) float sums[SIDE * MOST_DEPTH];
    for (int r = 0; add && r < rows; ++r) std::memcpy(sums + r * columns, c.data + r * c.row, columns * 4);
    multiply_rows<false>(add, copied(a, rows, depth, copy), 0, b, columns, depth, {sums, columns});
    for (int r = 0; r < rows; ++r) std::memcpy(c.data + r * c.row, sums + r * columns, columns * 4);
}

template <class M, bool ADD>
void multiply_strip(const Left& a, int rows, const Right& b, int64_t columns, int64_t depth, const Sum& c) {
    multiply_strip<M>(ADD, a, rows, b, columns, depth, c);
}

}  // namespace
}  // namespace headwise::HEADWISE_ISA
