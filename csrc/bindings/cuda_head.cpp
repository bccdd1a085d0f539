// Ops over an output head on a GPU. Where csrc/cuda/fused.h runs, logits are reduced before they leave the registers.
// Elsewhere the library multiplies and csrc/cuda/head.h does the rest.
//
// For the library, logits of some rows and some vocabulary entries are made in fp32 in one small workspace that stays
// in the second level cache, and reduced at once. A product has one of two shapes, whatever the number of tokens: rows
// are filled up with zeros. So the library runs the same kernel for a token wherever it stands and whoever its
// neighbours are.
#include <ATen/ops/arange.h>
#include <ATen/ops/equal.h>
#include <ATen/ops/full.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>
#include <vector>

#include "cuda_products.h"

namespace perilune {

bool fused_wanted = true;

namespace {

using cuda::Block;
using cuda::Draw;
using cuda::Partial;

// The shape of one product: rows of hidden states by vocabulary entries, a multiple of kSlab.
struct Tiling {
  int64_t rows, columns;
};

// 8 Mi logits each. The second serves decoding and the end of a batch, where the first would mostly multiply zeros.
constexpr Tiling many = {1024, 8192}, few = {128, 65536};
constexpr int64_t kChunkRows = 8192;      // bounds the partial sums that are kept
constexpr int64_t kKeptLogits = 1 << 24;  // that draws read again: about what the second level cache holds

// For measuring and tests: whether csrc/cuda/fused.h serves where it can. The last bits of the two ways differ.
bool set_cuda_fused(bool wanted) {
  std::swap(fused_wanted, wanted);
  return wanted;
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
  static std::map<std::tuple<int, int, int64_t, int64_t>, bool> known;
  auto key = std::make_tuple(int(hidden.get_device()), int(hidden.scalar_type()), weight.size(0), weight.size(1));
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
  return few_agree(hidden, settled(weight, false), call);
}

std::tuple<Tensor, Tensor, Tensor> token_logprob(const Tensor& hidden, const Tensor& weight, const Tensor& target,
                                                 const Tensor& scale, bool want_entropy) {
  Call call({{"hidden", hidden}, {"weight", weight}, {"target", target}, {"scale", scale}});
  dtype_of(hidden, "hidden");
  bool fused = fused_takes(hidden);
  Tensor x = settled(hidden, fused), w = settled(weight, fused), y = target.contiguous(), s = scale.contiguous();
  int64_t tokens = x.size(0), slabs = fused ? cuda::fused_slabs_of(w.size(0)) : cuda::slabs_of(w.size(0));
  auto floats = hidden.options().dtype(at::kFloat);
  Tensor logprob = at::empty({tokens}, floats), lse = at::empty_like(logprob);
  Tensor entropy = want_entropy ? at::empty_like(logprob) : at::zeros({tokens}, floats);
  // A target outside of the vocabulary stays NaN.
  Tensor chosen = at::full({tokens}, std::numeric_limits<double>::quiet_NaN(), floats);
  Tensor kept = at::empty({std::min(tokens, kChunkRows), slabs, 4}, floats);
  auto* partials = static_cast<Partial*>(kept.mutable_data_ptr());
  for (int64_t first = 0; first < tokens; first += kChunkRows) {
    int64_t count = std::min(kChunkRows, tokens - first);
    const float* factors = s.const_data_ptr<float>();
    const int64_t* targets = y.const_data_ptr<int64_t>();
    float* hits = chosen.mutable_data_ptr<float>();
    if (fused) {
      Call::check(cuda::fused_stats(rows_of(x, first, count, w), {factors + first, targets + first, partials,
                                    hits + first, nullptr, 0, 0, slabs}, call.stream()), "fused_stats");
    } else {
      walk_all(x, first, count, w, factors, call, [&](const Block& block, int64_t row) {
        Call::check(cuda::stats(block, targets + row, partials + (row - first) * slabs, hits + row, call.stream()),
                    "stats");
      });
    }
    Call::check(cuda::finish(partials, chosen.const_data_ptr<float>() + first, count, slabs,
                             logprob.mutable_data_ptr<float>() + first,
                             want_entropy ? entropy.mutable_data_ptr<float>() + first : nullptr,
                             lse.mutable_data_ptr<float>() + first, call.stream()), "finish");
  }
  return {logprob, entropy, lse};
}

// Logits of some vocabulary entries at a time, their partial sums made on the way, for visit(block).
template <typename Visit>
void walk_fused(const Tensor& hidden, int64_t first, int64_t count, const Tensor& weight, const float* scale,
                Partial* partials, const Call& call, Visit visit) {
  int64_t vocabulary = weight.size(0), per_block = cuda::kSlab / cuda::kFusedSlab;
  int64_t most = std::max<int64_t>(1, kKeptLogits / std::max<int64_t>(count, 1) / cuda::kSlab);
  int64_t columns = std::min(most, cuda::slabs_of(vocabulary)) * cuda::kSlab;
  Tensor logits = at::empty({count, columns}, hidden.options().dtype(at::kFloat));
  float* to = logits.mutable_data_ptr<float>();
  for (int64_t start = 0; start < vocabulary; start += columns) {
    int64_t here = std::min(columns, vocabulary - start), slab = start / cuda::kSlab * per_block;
    Call::check(cuda::fused_stats(rows_of(hidden, first, count, weight), {scale, nullptr, partials, nullptr, to,
                                  columns, slab, cuda::fused_slabs_of(here)}, call.stream()), "fused_stats");
    visit(Block{to, columns, count, here, start, scale, cuda::slabs_of(vocabulary)});
  }
}

std::tuple<Tensor, Tensor> sample(const Tensor& hidden, const Tensor& weight, const Tensor& temperature,
                                  const Tensor& key, const Tensor& position) {
  Call call({{"hidden", hidden}, {"weight", weight}, {"temperature", temperature}, {"key", key},
             {"position", position}});
  dtype_of(hidden, "hidden");
  bool fused = fused_takes(hidden);
  Tensor x = settled(hidden, fused), w = settled(weight, fused), heat = temperature.contiguous();
  Tensor keys = key.contiguous(), positions = position.contiguous();
  int64_t tokens = x.size(0), vocabulary = w.size(0), most = std::min(tokens, kChunkRows);
  int64_t drawn = cuda::slabs_of(vocabulary), slabs = fused ? cuda::fused_slabs_of(vocabulary) : drawn;
  auto floats = hidden.options().dtype(at::kFloat);
  Tensor token = at::empty({tokens}, key.options()), logprob = at::empty({tokens}, floats);
  Tensor scale = at::empty_like(logprob), chosen = at::empty_like(logprob);
  Tensor kept = at::empty({most, slabs, 4}, floats), best = at::empty({most, drawn, 4}, floats);
  auto* partials = static_cast<Partial*>(kept.mutable_data_ptr());
  auto* draws = static_cast<Draw*>(best.mutable_data_ptr());
  Call::check(cuda::scales(heat.const_data_ptr<float>(), tokens, scale.mutable_data_ptr<float>(), call.stream()),
              "scales");
  const float* factors = scale.const_data_ptr<float>();
  for (int64_t first = 0; first < tokens; first += kChunkRows) {
    int64_t count = std::min(kChunkRows, tokens - first);
    auto draw = [&](const Block& block, int64_t row) {
      Call::check(cuda::draw(block, heat.const_data_ptr<float>() + row, keys.const_data_ptr<int64_t>() + row,
                             positions.const_data_ptr<int64_t>() + row, draws + (row - first) * drawn,
                             call.stream()), "draw");
    };
    if (fused) {
      walk_fused(x, first, count, w, factors + first, partials, call,
                 [&](const Block& block) { draw(block, first); });
    } else {
      walk_all(x, first, count, w, factors, call, [&](const Block& block, int64_t row) {
        Call::check(cuda::stats(block, nullptr, partials + (row - first) * slabs, nullptr, call.stream()), "stats");
        draw(block, row);
      });
    }
    float* own = chosen.mutable_data_ptr<float>() + first;
    Call::check(cuda::finish_draw(draws, count, drawn, token.mutable_data_ptr<int64_t>() + first, own,
                                  call.stream()), "finish_draw");
    Call::check(cuda::finish(partials, own, count, slabs, logprob.mutable_data_ptr<float>() + first, nullptr, nullptr,
                             call.stream()), "finish");
  }
  return {token, logprob};
}

}  // namespace
}  // namespace perilune

TORCH_LIBRARY_FRAGMENT(perilune, m) {
  m.def("set_cuda_fused(bool wanted) -> bool", &perilune::set_cuda_fused);
  m.def("cuda_few_agree(Tensor hidden, Tensor weight) -> bool", &perilune::cuda_few_agree);
}

TORCH_LIBRARY_IMPL(perilune, CUDA, m) {
  m.impl("token_logprob", &perilune::token_logprob);
  m.impl("sample", &perilune::sample);
}
