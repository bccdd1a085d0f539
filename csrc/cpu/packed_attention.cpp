// The walk of packed attention: parts of spans forward; backward, what shares keys goes to one thread.
#include "../ops/packed_attention.h"

#include <algorithm>
#include <vector>
#if defined(_OPENMP)
#include <omp.h>
#endif

#include "head.h"

namespace perilune {
namespace {

constexpr int64_t kThreadPairs = 1 << 15;  // of query and key; below it, waking a thread costs more than its share
constexpr int64_t kRangeTokens = 256;      // whose key gradients one task sums where the rows are few
constexpr double kSplitCost = 1.4;         // seven products in place of five

struct Task {
  double cost;                             // pairs of query and key
  int64_t first_span, last_span, shared_head, first_column, first_token, last_token;
};

int64_t group_of(const PackedAttention& args) { return args.heads / args.shared_heads; }

double pairs_of(const Span& span, double queries, double first_query) {
  return queries * (span.context_length + first_query + queries / 2);
}

// Calls body(task, thread) for all tasks, the long ones first. All threads or none: libgomp ends the threads of its
// pool that a smaller region leaves out.
template <typename Body>
void run(std::vector<Task> tasks, int threads, const Body& body) {
  std::stable_sort(tasks.begin(), tasks.end(), [](const Task& a, const Task& b) { return a.cost > b.cost; });
  double cost = 0;
  for (const Task& task : tasks) cost += task.cost;
  if (threads < 2 || cost < 2 * kThreadPairs) {
    for (const Task& task : tasks) body(task, 0);
    return;
  }
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (size_t i = 0; i < tasks.size(); ++i) {
#if defined(_OPENMP)
    body(tasks[i], omp_get_thread_num());
#else
    body(tasks[i], 0);
#endif
  }
}

int64_t columns_of(const PackedAttention& args, const Span& span) { return span.length * group_of(args); }

std::vector<Task> parts_of(const PackedAttention& args) {
  std::vector<Task> tasks;
  double group = double(group_of(args));
  for (int64_t i = 0; i < args.num_spans; ++i) {
    const Span& span = args.spans[i];
    for (int64_t first = 0; first < columns_of(args, span); first += kSpanColumns) {
      int64_t count = std::min<int64_t>(kSpanColumns, columns_of(args, span) - first);
      double cost = group * pairs_of(span, count / group, first / group);
      for (int64_t head = 0; head < args.shared_heads; ++head) tasks.push_back({cost, i, i + 1, head, first, 0, 0});
    }
  }
  return tasks;
}

// Runs of spans that see no token of another run, once for every shared head.
std::vector<Task> runs_of(const PackedAttention& args) {
  std::vector<Task> tasks;
  int64_t last = args.num_spans, first_seen = args.tokens;
  double cost = 0;
  for (int64_t i = args.num_spans - 1; i >= 0; --i) {
    const Span& span = args.spans[i];
    int64_t seen = span.context_length && span.length ? span.context_start : span.start;
    first_seen = std::min(first_seen, seen);
    cost += group_of(args) * pairs_of(span, span.length, 0);
    if (span.start > first_seen || !span.length) continue;
    int64_t end = args.spans[last - 1].start + args.spans[last - 1].length;
    for (int64_t head = 0; head < args.shared_heads; ++head)
      tasks.push_back({cost, i, last, head, 0, span.start, end});
    last = i;
    first_seen = span.start;
    cost = 0;
  }
  return tasks;
}

class Backward {
 public:
  Backward(const PackedGradient& args, int threads)
      : args_(args), threads_(threads), bytes_(level_.span_bytes(args.forward.dtype, args.forward.head_size)),
        token_bytes_(level_.sums_bytes(args.forward.head_size)), scratch_(threads * bytes_) {}

  void run_all() {
    std::vector<Task> runs = runs_of(args_.forward);
    double all = 0, longest = 0;
    for (const Task& task : runs) all += task.cost, longest = std::max(longest, task.cost);
    // The two ways give the same bits: every sum runs in the same order.
    if (longest * threads_ <= kSplitCost * all) return sum_keys(runs, true);
    run(parts_of(args_.forward), threads_, [this](const Task& task, int thread) {
      Span span = args_.forward.spans[task.first_span];
      level_.span_gradient(args_, {span, task.shared_head, task.first_column}, true, {nullptr, 0, 0}, scratch(thread));
    });
    std::vector<Task> ranges;
    for (const Task& task : runs)
      for (int64_t first = task.first_token; first < task.last_token; first += kRangeTokens) {
        Task range = task;
        range.first_token = first;
        range.last_token = std::min(first + kRangeTokens, task.last_token);
        // Later keys are seen by fewer queries.
        range.cost *= double(task.last_token - first) / double(task.last_token - task.first_token);
        ranges.push_back(range);
      }
    sum_keys(ranges, false);
  }

 private:
  void* scratch(int thread) const { return scratch_.as<char>() + thread * bytes_; }

  void sum_keys(const std::vector<Task>& tasks, bool want_query) {
    int64_t most = 0;
    for (const Task& task : tasks) most = std::max(most, task.last_token - task.first_token);
    Buffer all_sums(threads_ * most * token_bytes_);
    run(tasks, threads_, [&](const Task& task, int thread) {
      char* data = all_sums.as<char>() + thread * most * token_bytes_;
      std::fill_n(data, (task.last_token - task.first_token) * token_bytes_, 0);
      KeySums sums{reinterpret_cast<float*>(data), task.first_token, task.last_token};
      for (int64_t i = task.first_span; i < task.last_span; ++i) {
        const Span& span = args_.forward.spans[i];
        for (int64_t first = 0; first < columns_of(args_.forward, span); first += kSpanColumns)
          level_.span_gradient(args_, {span, task.shared_head, first}, want_query, sums, scratch(thread));
      }
      level_.write_sums(args_, task.shared_head, sums);
    });
  }

  const Kernels& level_ = kernels();
  const PackedGradient& args_;
  int threads_;
  int64_t bytes_, token_bytes_;
  Buffer scratch_;
};

}  // namespace

void packed_attention(const PackedAttention& args, void* out, float* lse, int threads) {
  const Kernels& level = kernels();
  int64_t bytes = level.span_bytes(args.dtype, args.head_size);
  Buffer scratch(threads * bytes);
  run(parts_of(args), threads, [&](const Task& task, int thread) {
    level.span(args, {args.spans[task.first_span], task.shared_head, task.first_column}, out, lse,
               scratch.as<char>() + thread * bytes);
  });
}

void packed_attention_gradient(const PackedGradient& args, int threads) { Backward(args, threads).run_all(); }

}  // namespace perilune
