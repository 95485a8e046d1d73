#include "plan.hpp"

#include <algorithm>
#include <cmath>
#include <map>

namespace headwise {
namespace {

constexpr int64_t MOST_NUMBERS = int64_t{1} << 40, MOST_PLACES = int64_t{1} << 30;
constexpr int64_t MOST_WIDTH = 256, MOST_THREADS = 1024;
constexpr int64_t LEAST_WORK = 1 << 18;  // multiplications worth another thread
constexpr int64_t HEAD_WORK = 1 << 10;   // as many take as long as a head does besides its own
constexpr int64_t MOST_FETCHED = 512;       // rows that the second-level cache holds besides

bool fits(int64_t n, int64_t least, int64_t most) { return least <= n && n <= most; }

bool complete(const Call& call) {
    const bool lengths = (call.key_length == nullptr) == (call.key_start == nullptr);
    const bool segments = (call.key_segment == nullptr) == (call.query_segment == nullptr);
    const bool learned = (!call.bias_grad.data || call.bias.data) && (!call.slopes_grad || call.slopes) &&
                         (!call.relative_grad || call.relative);
    return call.query.data && call.key.data && call.value.data && call.lse && lengths && segments && learned &&
           (call.output.data || call.output_grad.data || call.query_grad.data);
}

struct Interval {
    int64_t first, last;
};

Interval interval(const Call& call, const Extent& extent, int64_t query) {
    if (call.query_length && query >= extent.queries) return {0, 0};
    Interval seen{0, call.keys};
    if (call.key_length) seen = {extent.start, extent.start + extent.keys};
    const int64_t own = extent.own(query);
    if (call.left >= 0) seen.first = std::max(seen.first, own - call.left);
    if (call.right >= 0) seen.last = std::min(seen.last, own + call.right + 1);
    if (call.start_causal) seen.last = std::min(seen.last, extent.start + query + 1);
    return seen.first < seen.last ? seen : Interval{0, 0};
}

void number_segments(const Call& call, Planned& planned) {
    planned.key_class.resize(call.batch * call.keys);
    planned.query_class.resize(call.batch * call.queries);
    for (int64_t b = 0; b < call.batch; ++b) {
        std::map<std::vector<int64_t>, int32_t> numbers;
        const auto number = [&](const int64_t* ids) {
            const auto next = static_cast<int32_t>(numbers.size());
            return numbers.emplace(std::vector<int64_t>(ids, ids + call.segments), next).first->second;
        };
        for (int64_t j = b * call.keys; j < (b + 1) * call.keys; ++j)
            planned.key_class[j] = number(call.key_segment + j * call.segments);
        for (int64_t i = b * call.queries; i < (b + 1) * call.queries; ++i)
            planned.query_class[i] = number(call.query_segment + i * call.segments);
    }
}

// Narrow each query's interval to the run of keys of its own segment; keep the numbers where some run is broken.
void narrow_to_segments(const Call& call, Planned& planned) {
    number_segments(call, planned);
    bool broken = false;
    for (int64_t b = 0; b < call.batch; ++b) {
        const int32_t* key_class = planned.key_class.data() + b * call.keys;
        std::map<int32_t, std::pair<Interval, int64_t>> runs;  // and how many keys they hold
        for (int64_t j = 0; j < call.keys; ++j) {
            auto& [run, count] = runs.try_emplace(key_class[j], Interval{j, j}, 0).first->second;
            run.last = j + 1;
            ++count;
        }
        for (const auto& [number, held] : runs) broken |= held.first.last - held.first.first != held.second;
        for (int64_t i = b * call.queries; i < (b + 1) * call.queries; ++i) {
            const auto found = runs.find(planned.query_class[i]);
            const Interval run = found == runs.end() ? Interval{0, 0} : found->second.first;
            planned.first[i] = std::max<int32_t>(planned.first[i], static_cast<int32_t>(run.first));
            planned.last[i] = std::min<int32_t>(planned.last[i], static_cast<int32_t>(run.last));
        }
    }
    planned.plan.key_class = broken ? planned.key_class.data() : nullptr;
    planned.plan.query_class = broken ? planned.query_class.data() : nullptr;
}

}  // namespace

const char* fault(const Call& call) {
    if (call.bytes != static_cast<int64_t>(sizeof(Call))) return "the record has another size than the library expects";
    const bool sizes = fits(call.batch, 1, MOST_PLACES) && fits(call.groups, 1, MOST_PLACES) &&
                       fits(call.queries, 1, MOST_PLACES) && fits(call.keys, 1, MOST_PLACES) &&
                       fits(call.heads, call.groups, MOST_PLACES) && call.heads % call.groups == 0;
    if (!sizes) return "a size is out of range";
    if (!fits(call.width, 1, MOST_WIDTH) || !fits(call.value_width, 1, MOST_WIDTH)) return "a width is out of range";
    // Doubles cannot overflow here.
    const double numbers = static_cast<double>(call.batch) * static_cast<double>(call.heads) *
                           static_cast<double>(std::max(call.queries, call.keys)) * MOST_WIDTH;
    if (numbers > static_cast<double>(MOST_NUMBERS)) return "the tensors are too large";
    if (!fits(call.threads, 1, MOST_THREADS)) return "the number of threads is out of range";
    if (!std::isfinite(call.scale)) return "the scale is not finite";
    if (!fits(call.least, 0, 65536) || (call.least && !call.seed)) return "dropout is out of range";
    if (!complete(call)) return "a tensor is missing";
    if (call.relative && !fits(call.relatives, 1, MOST_PLACES)) return "the relative bias is out of range";
    if (!fits(call.bias_grad.column, 0, 1)) return "the gradient of the bias has its keys apart";
    for (int64_t b = 0; b < call.batch; ++b) {
        const Extent extent = extent_of(call, b);
        const bool inside = fits(extent.start, 0, call.keys) && fits(extent.keys, 0, call.keys - extent.start) &&
                            fits(extent.queries, 0, call.queries);
        if (!inside) return "a length leaves the tensors";
    }
    return nullptr;
}

// Whether the processor reads the rows of another head ahead by itself, as Intel's do: to ask for them there slowed
// short calls by 5 to 15 %.
static bool reads_ahead() {
#if defined(__x86_64__)
    static const bool intel = __builtin_cpu_is("intel");
    return intel;
#else
    return false;
#endif
}

void prepare(const Call& call, Planned& planned) {
    const double head = static_cast<double>(call.queries) * static_cast<double>(call.keys) *
                        static_cast<double>(call.width + call.value_width);
    const double work = static_cast<double>(call.batch) * static_cast<double>(call.heads) * (head + HEAD_WORK);
    planned.plan.threads = std::max<int64_t>(1, std::min<int64_t>(call.threads, work / LEAST_WORK));
    const int64_t rows = call.heads / call.groups * call.queries;
    planned.plan.fetches = call.keys + rows <= MOST_FETCHED && !reads_ahead();
    const bool hides = call.left >= 0 || call.right >= 0 || call.start_causal || call.key_length ||
                       call.query_length || call.key_segment;
    if (!hides) return;
    planned.first.resize(call.batch * call.queries);
    planned.last.resize(call.batch * call.queries);
    for (int64_t b = 0; b < call.batch; ++b) {
        const Extent extent = extent_of(call, b);
        for (int64_t i = 0; i < call.queries; ++i) {
            const Interval seen = interval(call, extent, i);
            planned.first[b * call.queries + i] = static_cast<int32_t>(seen.first);
            planned.last[b * call.queries + i] = static_cast<int32_t>(seen.last);
        }
    }
    if (call.key_segment) narrow_to_segments(call, planned);
    planned.plan.first = planned.first.data();
    planned.plan.last = planned.last.data();
}

}  // namespace headwise
