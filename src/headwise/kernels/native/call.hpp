// What Python hands over: one flat record of 8-byte fields, in the order of `_NAMES` in binding.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace headwise {

// A tensor of four axes whose last one is adjacent; strides count elements.
struct View {
    char* data;
    int64_t batch, head, row;
};

// A tensor of four axes with any strides, 0 along an axis that is shared.
struct Spread {
    char* data;
    int64_t batch, head, row, column;
};

struct Statistics {
    float *entropy, *peak;
    int64_t* peak_key;
    float *position, *distance, *sink, *diagonal, *previous, *next, *local, *received, *map;
    int64_t* map_count;
    float* link_weight;
    int64_t* link_key;
    int64_t sinks, reach, cells, links;
};

struct Call {
    int64_t bytes;  // of this record: both sides agree on it
    int64_t half;   // whether query, key, value and output are bfloat16, else float32
    int64_t threads;
    int64_t batch, heads, groups, queries, keys, width, value_width;
    double scale;
    View query, key, value, output;
    double* lse;  // so that the backward pass finds the very weights of the forward pass

    int64_t left, right;  // -1 for no limit
    int64_t start_causal;
    const int64_t *key_length, *query_length, *key_start;
    const int64_t *key_segment, *query_segment;
    int64_t segments;  // ids of each position
    Spread dense;

    Spread bias;
    int64_t bias_half;
    const float* slopes;
    const float* relative;
    int64_t relatives;

    int64_t least;  // a weight is kept when its 16-bit word is at least this; 0 for no dropout
    double kept_share;
    const int64_t* seed;

    Statistics seen;

    View output_grad;
    const float *lse_grad, *entropy_grad;
    View query_grad, key_grad, value_grad;
    Spread bias_grad;        // null where it is not wanted; keys adjacent
    int64_t bias_grad_wide;  // whether it is double, else float
    double *slopes_grad, *relative_grad;
};

// What of the mask is an interval of keys for each query, and what is left of it.
struct Plan {
    const int32_t* first = nullptr;  // of each query of each sample; null when every query sees every key
    const int32_t* last = nullptr;   // one past the last key
    const int32_t* key_class = nullptr;  // segments that are not intervals, numbered; null where there are none
    const int32_t* query_class = nullptr;
    int64_t threads = 1;
    bool fetches = false;  // the next sample and group is asked for while one is computed
};

// Where a sample's queries stand among its keys.
struct Extent {
    int64_t start, keys, queries;

    int64_t own(int64_t query) const { return start + query + keys - queries; }
};

inline Extent extent_of(const Call& call, int64_t sample) {
    return {call.key_start ? call.key_start[sample] : 0, call.key_length ? call.key_length[sample] : call.keys,
            call.query_length ? call.query_length[sample] : call.queries};
}

// Working memory of one call, cut from one piece so that nothing can fail half way.
using Reserve = void* (*)(size_t bytes);

struct Kernel {
    const char* name;
    bool (*usable)();
    bool (*forward)(const Call&, const Plan&, Reserve);
    bool (*backward)(const Call&, const Plan&, Reserve);
};

}  // namespace headwise
