// Products of matrices in tiles that stay in vector registers.
#pragma once

#include "vector.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

struct Tiles {};  // nothing to set up

// What stands there is added last: a long sum is one of shorter sums, and rounds less.
template <class M, int R, int V, bool ADD>
void tile(Left a, Right b, int64_t depth, Sum c) {
    vec total[R][V];
    HEADWISE_UNROLL
    for (int r = 0; r < R; ++r) {
        HEADWISE_UNROLL
        for (int v = 0; v < V; ++v) total[r][v] = all(0);
    }
    const float *left = a.data, *right = b.data;
    for (int64_t d = 0; d < depth; ++d, left += a.step, right += b.step) {
        vec columns[V];
        HEADWISE_UNROLL
        for (int v = 0; v < V; ++v) columns[v] = load(right + v * W);
        HEADWISE_UNROLL
        for (int r = 0; r < R; ++r) {
            const vec x = all(left[r * a.row]);
            HEADWISE_UNROLL
            for (int v = 0; v < V; ++v) total[r][v] = M::multiply(total[r][v], x, columns[v]);
        }
    }
    HEADWISE_UNROLL
    for (int r = 0; r < R; ++r) {
        HEADWISE_UNROLL
        for (int v = 0; v < V; ++v) {
            float* to = c.data + r * c.row + v * W;
            store(to, ADD ? add(load(to), total[r][v]) : total[r][v]);
        }
    }
}

using Tile = void (*)(Left, Right, int64_t, Sum);

template <class M, bool ADD, int V>
Tile tile_of(int rows) {
    switch (rows) {
        case 1: return tile<M, 1, V, ADD>;
        case 2: return tile<M, 2, V, ADD>;
        case 3: return tile<M, 3, V, ADD>;
        case 4: return tile<M, 4, V, ADD>;
        case 5: return tile<M, 5, V, ADD>;
        default: return tile<M, 6, V, ADD>;
    }
}

template <class M, bool ADD>
Tile tile_of(int rows, int vectors) {
    switch (vectors) {
        case 1: return tile_of<M, ADD, 1>(rows);
        case 2: return tile_of<M, ADD, 2>(rows);
#if defined(__AVX512F__)
        case 3: return tile_of<M, ADD, 3>(rows);
#endif
        default: return tile_of<M, ADD, TILE_VECTORS>(rows);
    }
}

// c = a b, or c += a b, for up to TILE_ROWS rows and columns that are whole vectors.
template <class M, bool ADD>
void multiply_strip(Left a, int rows, Right b, int64_t columns, int64_t depth, Sum c) {
    for (int64_t at = 0; at < columns; at += TILE_VECTORS * W) {
        const int vectors = static_cast<int>(smaller<int64_t>((columns - at) / W, TILE_VECTORS));
        tile_of<M, ADD>(rows, vectors)(a, {b.data + at, b.step}, depth, {c.data + at, c.row});
    }
}

template <class M>
void multiply_strip(bool add, Left a, int rows, Right b, int64_t columns, int64_t depth, Sum c) {
    if (add) {
        multiply_strip<M, true>(a, rows, b, columns, depth, c);
    } else {
        multiply_strip<M, false>(a, rows, b, columns, depth, c);
    }
}

}  // namespace
}  // namespace headwise::HEADWISE_ISA
