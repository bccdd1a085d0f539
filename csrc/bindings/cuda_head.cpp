// Ops over an output head on a GPU: matrix products by the library, everything after them by csrc/cuda/head.h.
//
// Logits of some rows and some vocabulary entries are made in fp32 in one small workspace that stays in the second
// level cache, and reduced at once. A product has one of two shapes, whatever the number of tokens: rows are filled
// up with zeros. So the library runs the same kernel for a token wherever it stands and whoever its neighbours are.
#include <ATen/Context.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "../cuda/head.h"
#include "../cuda/logits.h"
#include "cuda.h"

namespace perilune {
namespace {

using cuda::Block;
using cuda::Draw;
using cuda::Partial;

// The shape of one product: rows of hidden states by vocabulary entries, a multiple of kSlab.
struct Tiling {
  int64_t rows, columns;
};

// 8 Mi logits each. The second serves decoding and the end of a batch, where the first would mostly multiply zeros.
Tiling many = {1024, 8192}, few = {128, 65536};
constexpr int64_t kChunkRows = 8192;        // bounds the partial sums that are kept
int64_t gradient_logits = 1 << 26;          // of one product of the backward: one for each step of token_logprob.py

// For measuring. Other tilings may give other last bits.
void set_cuda_tiling(int64_t rows, int64_t columns, int64_t few_rows, int64_t few_columns, int64_t backward) {
  for (int64_t value : {columns, few_columns})
    TORCH_CHECK_VALUE(value > 0 && value % cuda::kSlab == 0, "columns: expected a multiple of ", cuda::kSlab,
                      ", got ", value);
  for (int64_t value : {rows, few_rows})
    TORCH_CHECK_VALUE(value > 0 && value % 128 == 0, "rows: expected a multiple of 128, got ", value);
  many = {rows, columns};
  TORCH_CHECK_VALUE(backward > 0, "backward: expected a number of logits above 0, got ", backward);
  few = {few_rows, few_columns};
  gradient_logits = backward;
}

// out = left @ right in fp32; fp32 factors are not shortened to tf32 whatever the process allows.
void multiply(Tensor& out, const Tensor& left, const Tensor& right) {
  at::NoTF32Guard whole_digits;
  if (left.scalar_type() == at::kFloat) at::mm_out(out, left, right);
  else at::mm_out(out, left, right, at::kFloat);
}

// Contiguous, and on the boundary that the library's choice of a kernel may depend on.
Tensor settled(const Tensor& tensor) {
  Tensor whole = tensor.contiguous();
  return reinterpret_cast<uintptr_t>(whole.const_data_ptr()) % 256 == 0 ? whole : whole.clone();
}

Tensor tile_of(const Tensor& hidden, int64_t first, int64_t count, int64_t rows) {
  if (count == rows) return hidden.narrow(0, first, rows);
  Tensor tile = at::zeros({rows, hidden.size(1)}, hidden.options());
  tile.narrow(0, 0, count).copy_(hidden.narrow(0, first, count));
  return tile;
}

// Calls visit(block, first row) for all logits of rows first..first + count - 1. `scale` belongs to row 0.
template <typename Visit>
void walk(const Tensor& hidden, int64_t first, int64_t count, const Tensor& weight, const float* scale, Tiling tiling,
          Visit visit) {
  int64_t vocabulary = weight.size(0), slabs = cuda::slabs_of(vocabulary);
  int64_t columns = std::min(tiling.columns, slabs * cuda::kSlab);
  Tensor logits = at::empty({tiling.rows, columns}, hidden.options().dtype(at::kFloat));
  std::vector<Tensor> tiles;
  for (int64_t row = 0; row < count; row += tiling.rows)
    tiles.push_back(tile_of(hidden, first + row, std::min(tiling.rows, count - row), tiling.rows));
  // Tiles inside: the rows of the head stay in the cache while every tile meets them.
  for (int64_t start = 0; start < vocabulary; start += columns) {
    int64_t here = std::min(columns, vocabulary - start), row = first;
    Tensor rows = weight.narrow(0, start, here).t(), out = logits.narrow(1, 0, here);
    for (const Tensor& tile : tiles) {
      multiply(out, tile, rows);
      int64_t real = std::min(tiling.rows, first + count - row);
      visit(Block{logits.const_data_ptr<float>(), columns, real, here, start, scale + row, slabs}, row);
      row += tiling.rows;
    }
  }
}

// Whether both tilings give the same bits for a head of this shape, which the library does not promise: every slab
// of 128 made-up rows is compared. Waits for the device, once for each shape.
bool few_agree(const Tensor& hidden, const Tensor& weight, const Call& call) {
  static std::mutex mutex;
  static std::map<std::tuple<int, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>, bool> known;
  auto key = std::make_tuple(int(hidden.get_device()), int(hidden.scalar_type()), weight.size(0), weight.size(1),
                             many.rows, many.columns, few.rows, few.columns);
  {
    std::lock_guard<std::mutex> lock(mutex);
    auto found = known.find(key);
    if (found != known.end()) return found->second;
  }
  auto floats = hidden.options().dtype(at::kFloat);
  int64_t rows = std::min(few.rows, many.rows), slabs = cuda::slabs_of(weight.size(0));
  Tensor made_up = at::arange(rows * weight.size(1), floats).sin_().view({rows, -1}).to(hidden.scalar_type());
  Tensor scale = at::ones({rows}, floats);
  std::vector<Tensor> found;
  for (Tiling tiling : {many, few}) {
    Tensor partials = at::empty({rows, slabs, 4}, floats);
    auto* to = static_cast<Partial*>(partials.mutable_data_ptr());
    walk(made_up, 0, rows, weight, scale.const_data_ptr<float>(), tiling, [&](const Block& block, int64_t row) {
      Call::check(cuda::stats(block, nullptr, to + row * slabs, nullptr, call.stream()), "stats");
    });
    found.push_back(partials.view(at::kInt));
  }
  bool agree = at::equal(found[0], found[1]);
  std::lock_guard<std::mutex> lock(mutex);
  known[key] = agree;
  return agree;
}

// All rows: whole tiles of `many`, and what is left in the shape that wastes least.
template <typename Visit>
void walk_all(const Tensor& hidden, int64_t first, int64_t count, const Tensor& weight, const float* scale,
              const Call& call, Visit visit) {
  int64_t left = count % many.rows, whole = count - left;
  bool small = left > 0 && left <= many.rows / 2 && few_agree(hidden, weight, call);
  if (!small) whole = count;
  if (whole) walk(hidden, first, whole, weight, scale, many, visit);
  if (small) walk(hidden, first + whole, left, weight, scale, few, visit);
}

bool cuda_few_agree(const Tensor& hidden, const Tensor& weight) {
  Call call({{"hidden", hidden}, {"weight", weight}});
  return few_agree(hidden, settled(weight), call);
}

std::tuple<Tensor, Tensor, Tensor> token_logprob(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                 const Tensor& scale, bool want_entropy) {
  Call call({{"hidden", hidden}, {"weight", weight}, {"target", target}, {"scale", scale}});
  cuda_dtype_of(hidden, "hidden");
  Tensor x = settled(hidden), w = settled(weight), y = target.contiguous(), s = scale.contiguous();
  int64_t tokens = x.size(0), slabs = cuda::slabs_of(w.size(0));
  auto floats = hidden.options().dtype(at::kFloat);
  Tensor logprob = at::empty({tokens}, floats), lse = at::empty_like(logprob);
  Tensor entropy = want_entropy ? at::empty_like(logprob) : at::zeros({tokens}, floats);
  // A target outside of the vocabulary stays NaN.
  Tensor chosen = at::full({tokens}, std::numeric_limits<double>::quiet_NaN(), floats);
  Tensor kept = at::empty({std::min(tokens, kChunkRows), slabs, 4}, floats);
  auto* partials = static_cast<Partial*>(kept.mutable_data_ptr());
  for (int64_t first = 0; first < tokens; first += kChunkRows) {
    int64_t count = std::min(kChunkRows, tokens - first);
    walk_all(x, first, count, w, s.const_data_ptr<float>(), call, [&](const Block& block, int64_t row) {
      Call::check(cuda::stats(block, y.const_data_ptr<int64_t>() + row, partials + (row - first) * slabs,
                              chosen.mutable_data_ptr<float>() + row, call.stream()), "stats");
    });
    Call::check(cuda::finish(partials, chosen.const_data_ptr<float>() + first, count, slabs,
                             logprob.mutable_data_ptr<float>() + first,
                             want_entropy ? entropy.mutable_data_ptr<float>() + first : nullptr,
                             lse.mutable_data_ptr<float>() + first, call.stream()), "finish");
  }
  return {logprob, entropy, lse};
}

std::tuple<Tensor, Tensor> sample(const Tensor& hidden, const Tensor& weight, const Tensor& temperature,
                                  const Tensor& key, const Tensor& position) {
  Call call({{"hidden", hidden}, {"weight", weight}, {"temperature", temperature}, {"key", key},
             {"position", position}});
  cuda_dtype_of(hidden, "hidden");
  Tensor x = settled(hidden), w = settled(weight), heat = temperature.contiguous();
  Tensor keys = key.contiguous(), positions = position.contiguous();
  int64_t tokens = x.size(0), slabs = cuda::slabs_of(w.size(0)), most = std::min(tokens, kChunkRows);
  auto floats = hidden.options().dtype(at::kFloat);
  Tensor token = at::empty({tokens}, key.options()), logprob = at::empty({tokens}, floats);
  Tensor scale = at::empty_like(logprob), chosen = at::empty_like(logprob);
  Tensor kept = at::empty({most, slabs, 4}, floats), best = at::empty({most, slabs, 4}, floats);
  auto* partials = static_cast<Partial*>(kept.mutable_data_ptr());
  auto* draws = static_cast<Draw*>(best.mutable_data_ptr());
  Call::check(cuda::scales(heat.const_data_ptr<float>(), tokens, scale.mutable_data_ptr<float>(), call.stream()),
              "scales");
  for (int64_t first = 0; first < tokens; first += kChunkRows) {
    int64_t count = std::min(kChunkRows, tokens - first);
    walk_all(x, first, count, w, scale.const_data_ptr<float>(), call, [&](const Block& block, int64_t row) {
      int64_t at = (row - first) * slabs;
      Call::check(cuda::stats(block, nullptr, partials + at, nullptr, call.stream()), "stats");
      Call::check(cuda::draw(block, heat.const_data_ptr<float>() + row, keys.const_data_ptr<int64_t>() + row,
                             positions.const_data_ptr<int64_t>() + row, draws + at, call.stream()), "draw");
    });
    float* own = chosen.mutable_data_ptr<float>() + first;
    Call::check(cuda::finish_draw(draws, count, slabs, token.mutable_data_ptr<int64_t>() + first, own,
                                  call.stream()), "finish_draw");
    Call::check(cuda::finish(partials, own, count, slabs, logprob.mutable_data_ptr<float>() + first, nullptr, nullptr,
                             call.stream()), "finish");
  }
  return {token, logprob};
}

// Rows of the result lie a multiple of eight tokens apart: the products that take it are slow with others. What lies
// between them is 0, for a library may multiply it by the zeros that it fills up with itself.
Tensor logit_gradient(const Tensor& hidden, const Tensor& weight, const Tensor& target, const Tensor& statistics,
                      int64_t start) {
  Call call({{"hidden", hidden}, {"weight", weight}, {"target", target}, {"statistics", statistics}});
  Dtype dtype = cuda_dtype_of(hidden, "hidden");
  Tensor x = hidden.contiguous(), w = weight.contiguous(), y = target.contiguous(), columns = statistics.contiguous();
  int64_t tokens = x.size(0), rows = w.size(0);
  int64_t pitch = (tokens + 7) / 8 * 8;
  Tensor filled = at::empty({rows, pitch}, hidden.options());
  if (pitch != tokens) filled.zero_();
  Tensor out = filled.narrow(1, 0, tokens);
  if (!tokens) return out;
  int64_t step = std::min(rows, std::max<int64_t>(128, gradient_logits / pitch / 128 * 128));
  Tensor logits = at::empty({step, pitch}, hidden.options().dtype(at::kFloat)).narrow(1, 0, tokens), states = x.t();
  char* to = static_cast<char*>(out.mutable_data_ptr());
  for (int64_t row = 0; row < rows; row += step) {
    int64_t here = std::min(step, rows - row);
    Tensor part = logits.narrow(0, 0, here);
    multiply(part, w.narrow(0, row, here), states);
    Call::check(cuda::gradient({logits.const_data_ptr<float>(), y.const_data_ptr<int64_t>(),
                                columns.const_data_ptr<float>(), to + row * pitch * int64_t(out.element_size()),
                                here, tokens, pitch, start + row, dtype}, call.stream()), "gradient");
  }
  return out;
}

cuda::Logits logits_of(const Tensor& logits, const Tensor& target) {
  return {logits.const_data_ptr(), logits.stride(0), logits.size(0), logits.size(1),
          cuda_dtype_of(logits, "logits"), target.const_data_ptr<int64_t>()};
}

std::tuple<Tensor, Tensor, Tensor> logits_logprob(const Tensor& logits, const Tensor& target, const Tensor& scale) {
  Call call({{"logits", logits}, {"target", target}, {"scale", scale}});
  Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous(), y = target.contiguous(), s = scale.contiguous();
  Tensor logprob = at::empty({z.size(0)}, logits.options().dtype(at::kFloat));
  Tensor entropy = at::empty_like(logprob), lse = at::empty_like(logprob);
  Call::check(cuda::logits_logprob(logits_of(z, y), s.const_data_ptr<float>(), logprob.mutable_data_ptr<float>(),
                                   entropy.mutable_data_ptr<float>(), lse.mutable_data_ptr<float>(), call.stream()),
              "logits_logprob");
  return {logprob, entropy, lse};
}

Tensor logits_gradient(const Tensor& logits, const Tensor& target, const Tensor& statistics) {
  Call call({{"logits", logits}, {"target", target}, {"statistics", statistics}});
  Tensor z = logits.stride(1) == 1 ? logits : logits.contiguous(), y = target.contiguous();
  Tensor columns = statistics.contiguous(), out = at::empty(z.sizes(), logits.options());
  Call::check(cuda::logits_gradient(logits_of(z, y), columns.const_data_ptr<float>(), out.mutable_data_ptr(),
                                    call.stream()), "logits_gradient");
  return out;
}

}  // namespace
}  // namespace perilune

TORCH_LIBRARY_FRAGMENT(perilune, m) {
  m.def("set_cuda_tiling(int rows, int columns, int few_rows, int few_columns, int backward) -> ()",
        &perilune::set_cuda_tiling);
  m.def("cuda_few_agree(Tensor hidden, Tensor weight) -> bool", &perilune::cuda_few_agree);
}

TORCH_LIBRARY_IMPL(perilune, CUDA, m) {
  m.impl("token_logprob", &perilune::token_logprob);
  m.impl("logit_gradient", &perilune::logit_gradient);
  m.impl("sample", &perilune::sample);
  m.impl("logits_logprob", &perilune::logits_logprob);
  m.impl("logits_gradient", &perilune::logits_gradient);
}
