// What products of matrices read and write. A word is a float, or a pair of bfloat16 along the summed axis.
#pragma once

#include "vector.hpp"

namespace headwise::HEADWISE_ISA {
namespace {

#if defined(__AMX_BF16__)
constexpr int TILE_ROWS = 32;
#else
constexpr int TILE_ROWS = 6;
#endif
constexpr int FEW_ROWS = 6;  // so few read what they are multiplied by where it lies
constexpr int BLOCK_ROWS = 66 / TILE_ROWS * TILE_ROWS;
constexpr int PANEL = 64;  // columns of a packed panel
constexpr int CACHE_LINE = 64;  // bytes: threads that write to one wait for each other
constexpr int MOST_DEPTH = 256;  // words of the longest sum of bfloat16, and of the widest row

// Words of the left matrix: of each row, `step` apart along the summed axis.
struct Left {
    const float* data;
    int64_t row, step;
};

// Words of the right matrix: a row of adjacent columns for each step of the summed axis.
struct Right {
    const float* data;
    int64_t step;
};

struct Sum {
    float* data;
    int64_t row;
};

}  // namespace
}  // namespace headwise::HEADWISE_ISA

#if defined(__AMX_BF16__)
#include "amx.hpp"
#else
#include "registers.hpp"
#endif
