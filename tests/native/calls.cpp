// A handful of calls of the native library, each tensor a heap block of its own size, for valgrind to watch:
// `calls ISA` runs them forward and backward, and looks at every number that comes back.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "../../src/headwise/kernels/native/call.hpp"

extern "C" {
int headwise_choose(const char* name);
const char* headwise_forward(const headwise::Call* call);
const char* headwise_backward(const headwise::Call* call);
}

namespace {

using headwise::Call;
using headwise::Spread;
using headwise::View;

struct Sizes {
    int64_t batch, heads, groups, queries, keys, width, value_width;
};

enum Feature { PLAIN, CAUSAL, PADDED, DENSE, BIAS, SHARED_BIAS, KEYS_SHARE_BIAS, SLOPES, RELATIVE, DROPOUT, SEGMENTS };
constexpr int FEATURES = SEGMENTS + 1;

// One call with everything it points to.
class Example {
public:
    Example(const Sizes& sizes, int feature, bool half, int64_t threads, bool seen) : n(sizes) {
        call.bytes = sizeof(Call);
        call.half = half;
        call.threads = threads;
        call.batch = n.batch, call.heads = n.heads, call.groups = n.groups;
        call.queries = n.queries, call.keys = n.keys, call.width = n.width, call.value_width = n.value_width;
        call.scale = 0.3;
        call.query = tensor(n.heads, n.queries, n.width);
        call.key = tensor(n.groups, n.keys, n.width);
        call.value = tensor(n.groups, n.keys, n.value_width);
        call.output = view(n.heads, n.queries, n.value_width);
        call.lse = room<double>(rows());
        call.left = call.right = -1;
        call.kept_share = 1;
        put(static_cast<Feature>(feature));
        if (seen) put_statistics();
    }

    void run() {
        expect(headwise_forward(&call));
        look(call.output, n.heads, n.queries, n.value_width);
        look(call.lse, rows());
        call.output_grad = tensor(n.heads, n.queries, n.value_width);
        call.lse_grad = numbers<float>(rows());
        if (call.seen.entropy) call.entropy_grad = numbers<float>(rows());
        call.query_grad = view(n.heads, n.queries, n.width);
        call.key_grad = view(n.groups, n.keys, n.width);
        call.value_grad = view(n.groups, n.keys, n.value_width);
        expect(headwise_backward(&call));
        look(call.query_grad, n.heads, n.queries, n.width);
        look(call.key_grad, n.groups, n.keys, n.width);
        look(call.value_grad, n.groups, n.keys, n.value_width);
    }

    static int64_t not_finite, faults;

private:
    const Sizes n;
    Call call{};
    std::mt19937 random{7};
    std::vector<std::unique_ptr<char[]>> held;

    int64_t rows() const { return n.batch * n.heads * n.queries; }

    // Memory in which nothing is defined.
    template <class T>
    T* room(int64_t count) {
        held.emplace_back(new char[count * sizeof(T)]);
        return reinterpret_cast<T*>(held.back().get());
    }

    template <class T>
    T* zeros(int64_t count) {
        T* made = room<T>(count);
        std::memset(made, 0, count * sizeof(T));
        return made;
    }

    template <class T>
    T* numbers(int64_t count) {
        T* made = room<T>(count);
        std::normal_distribution<float> normal;
        for (int64_t i = 0; i < count; ++i) {
            const float x = normal(random);
            std::memcpy(made + i, reinterpret_cast<const char*>(&x) + 4 - sizeof(T), sizeof(T));
        }
        return made;
    }

    View view(char* data, int64_t heads, int64_t rows, int64_t width) const {
        return {data, rows * heads * width, width, heads * width};
    }
    View view(int64_t heads, int64_t rows, int64_t width) {
        return view(room<char>(n.batch * heads * rows * width * (call.half ? 2 : 4)), heads, rows, width);
    }
    View tensor(int64_t heads, int64_t rows, int64_t width) {
        const int64_t count = n.batch * heads * rows * width;
        char* data = call.half ? reinterpret_cast<char*>(numbers<uint16_t>(count))
                               : reinterpret_cast<char*>(numbers<float>(count));
        return view(data, heads, rows, width);
    }

    Spread whole(void* data) const {
        const int64_t head = n.queries * n.keys;
        return {static_cast<char*>(data), n.heads * head, head, n.keys, 1};
    }

    void put(Feature feature) {
        if (feature == CAUSAL) call.right = 0;
        if (feature == PADDED) {
            int64_t *lengths = room<int64_t>(n.batch), *starts = room<int64_t>(n.batch);
            for (int64_t b = 0; b < n.batch; ++b) starts[b] = n.keys - (lengths[b] = n.keys * b / n.batch);
            call.key_length = lengths;
            call.key_start = starts;
        }
        if (feature == DENSE) {
            char* seen = room<char>(rows() * n.keys);
            for (int64_t i = 0; i < rows() * n.keys; ++i) seen[i] = random() % 3 != 0;
            call.dense = whole(seen);
        }
        if (feature == BIAS || feature == SHARED_BIAS) {
            call.bias = whole(numbers<float>(rows() * n.keys));
            call.bias_grad_wide = feature == SHARED_BIAS;
            call.bias_grad = whole(feature == BIAS ? static_cast<void*>(zeros<float>(rows() * n.keys))
                                                   : zeros<double>(n.keys));
            if (feature == SHARED_BIAS) call.bias_grad.batch = call.bias_grad.head = call.bias_grad.row = 0;
        }
        if (feature == KEYS_SHARE_BIAS) {
            call.bias = {reinterpret_cast<char*>(numbers<uint16_t>(n.queries)), 0, 0, 1, 0};
            call.bias_half = call.bias_grad_wide = 1;
            call.bias_grad = {reinterpret_cast<char*>(zeros<double>(n.queries)), 0, 0, 1, 0};
        }
        if (feature == SLOPES) {
            float* slopes = numbers<float>(n.heads);
            for (int64_t h = 0; h < n.heads; ++h) slopes[h] = std::fabs(slopes[h]) / 20;
            call.slopes = slopes;
            call.slopes_grad = zeros<double>(n.heads);
        }
        if (feature == RELATIVE) {
            call.relatives = 11;
            call.relative = numbers<float>(n.heads * call.relatives);
            call.relative_grad = zeros<double>(n.heads * call.relatives);
        }
        if (feature == DROPOUT) {
            call.least = 20000;
            call.kept_share = 1 - 20000 / 65536.0;
            call.seed = zeros<int64_t>(1);
        }
        if (feature == SEGMENTS) {
            int64_t *of_keys = room<int64_t>(n.batch * n.keys), *of_queries = room<int64_t>(n.batch * n.queries);
            for (int64_t j = 0; j < n.batch * n.keys; ++j) of_keys[j] = random() % 3;
            for (int64_t i = 0; i < n.batch * n.queries; ++i) of_queries[i] = random() % 4;
            call.key_segment = of_keys;
            call.query_segment = of_queries;
            call.segments = 1;
        }
    }

    void put_statistics() {
        headwise::Statistics& seen = call.seen;
        for (float** room : {&seen.entropy, &seen.peak, &seen.position, &seen.distance, &seen.sink, &seen.diagonal,
                             &seen.previous, &seen.next, &seen.local})
            *room = zeros<float>(rows());
        seen.sinks = 2, seen.reach = 3, seen.cells = 5, seen.links = 3;
        seen.peak_key = zeros<int64_t>(rows());
        seen.received = zeros<float>(n.batch * n.heads * n.keys);
        seen.map = zeros<float>(n.batch * n.heads * seen.cells * seen.cells);
        seen.map_count = zeros<int64_t>(n.batch * n.heads * seen.cells);
        seen.link_weight = zeros<float>(rows() * seen.links);
        seen.link_key = zeros<int64_t>(rows() * seen.links);
    }

    static void expect(const char* fault) {
        if (!fault) return;
        std::printf("a call failed: %s\n", fault);
        ++faults;
    }

    // Decide by every number: valgrind reports those that nobody has written.
    template <class T>
    static void look(const T* data, int64_t count) {
        for (int64_t i = 0; i < count; ++i) not_finite += !(data[i] - data[i] == 0);
    }
    void look(const View& tensor, int64_t heads, int64_t rows, int64_t width) const {
        const int64_t count = n.batch * heads * rows * width;
        if (call.half) look(reinterpret_cast<const uint16_t*>(tensor.data), count);
        else look(reinterpret_cast<const float*>(tensor.data), count);
    }
};

int64_t Example::not_finite = 0, Example::faults = 0;

}  // namespace

int main(int count, char** arguments) {
    if (count != 2 || !headwise_choose(arguments[1])) {
        std::printf("calls ISA: an instruction set that this machine has\n");
        return 2;
    }
    const Sizes sizes[] = {{2, 2, 1, 19, 23, 9, 6}, {1, 2, 2, 3, 131, 16, 17}, {2, 1, 1, 70, 66, 4, 8}};
    for (const Sizes& size : sizes)
        for (int feature = 0; feature < FEATURES; ++feature)
            for (const bool half : {false, true})
                for (const bool seen : {false, true}) Example(size, feature, half, 1 + feature % 2, seen).run();
    std::printf("%s: %lld calls failed, %lld numbers are not finite\n", arguments[1],
                static_cast<long long>(Example::faults), static_cast<long long>(Example::not_finite));
    return Example::faults != 0;
}
