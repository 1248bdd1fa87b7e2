#include "engine/backend/cpu/matmul.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <vector>

#include "engine/backend/cpu/matmul_kernels.h"

namespace holdfast {
namespace {

// Rows that pass over a panel before the next one is unpacked: their part of the activations
// (1 KiB a row) stays in L2 while a task goes through its panels.
constexpr int64_t kRowBlock = 384;
// What a thread takes at a time of a product of few rows, so that taking it costs nothing beside.
constexpr int64_t kStepBytes = 32 << 10;
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kPanelsPerTask = 8;
constexpr int64_t kMinRowBlock = 48;     // below, unpacking a panel would take too much of the time
constexpr int64_t kTermGroups = 16;      // 64 bytes of each row's arrays
constexpr int64_t kTermsPerTask = 8192;  // some ten microseconds

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// MatMulCall's terms of each group of each row, [groups][rows].
class RowTerms {
 public:
  void Fill(ThreadPool& pool, WeightType type, const QuantizedRows& x, int64_t rows) {
    const int64_t groups = x.cols / kQuantGroup;
    format_ = FormatOf(type);
    rows_ = rows;
    da_.resize(rows * groups);
    if (format_.has_min()) {
      dsum_.resize(da_.size());
    } else {
      start_[0].resize(da_.size());
      if (format_.two_scales()) start_[1].resize(da_.size());
    }
    const int64_t blocks = CeilDiv(groups, kTermGroups);
    const int64_t per_task = std::max<int64_t>(1, kTermsPerTask / (kTermGroups * rows));
    pool.Run(CeilDiv(blocks, per_task), [&](int64_t task, int) {
      const int64_t end = std::min((task + 1) * per_task, blocks);
      for (int64_t b = task * per_task; b < end; ++b) FillBlock(x, b * kTermGroups);
    });
  }

  void Put(MatMulCall* call) const {
    const bool has_min = format_.has_min();
    call->rows = rows_;
    call->da = da_.data();
    call->dsum = has_min ? dsum_.data() : nullptr;
    call->start[0] = has_min ? nullptr : start_[0].data();
    call->start[1] = format_.two_scales() ? start_[1].data() : nullptr;
  }

 private:
  // Reads cache lines of the rows and writes as many runs of the terms.
  void FillBlock(const QuantizedRows& x, int64_t begin) {
    const int64_t groups = x.cols / kQuantGroup, end = std::min(begin + kTermGroups, groups);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t from = r * groups + g, to = g * rows_ + r;
        const int32_t lo = x.sum_lo[from], hi = x.sum_hi[from];
        da_[to] = x.scale[from];
        if (format_.has_min()) {
          dsum_[to] = x.scale[from] * static_cast<float>(lo + hi);
        } else if (format_.two_scales()) {
          start_[0][to] = -format_.offset * lo;
          start_[1][to] = -format_.offset * hi;
        } else {
          start_[0][to] = -format_.offset * (lo + hi);
        }
      }
    }
  }

  Format format_;
  int64_t rows_ = 0;
  std::vector<float> da_, dsum_;
  std::vector<int32_t> start_[2];
};

// fn(row, rows) for pieces of [begin, end) of at most `most` rows, none much shorter than another:
// kernels are slow with one or two.
template <typename F>
void ForRows(int64_t begin, int64_t end, int64_t most, const F& fn) {
  const int64_t cuts = CeilDiv(end - begin, most);
  for (int64_t i = 0; i < cuts; ++i) {
    const int64_t from = begin + (end - begin) * i / cuts;
    fn(from, static_cast<int>(begin + (end - begin) * (i + 1) / cuts - from));
  }
}

// A thread's part of a product's tiles: it walks through them, memory's stream unbroken, a step at
// a time; whoever has finished his own takes steps from another's.
struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
  int64_t step = 1;  // even, or there is but one tile: kernels like pairs
  const MatMulCall* call = nullptr;

  void Work(const MatMulKernels& kernels, int64_t rows) {
    if (next.load(std::memory_order_relaxed) >= end) return;
    for (;;) {
      const int64_t first = next.fetch_add(step, std::memory_order_relaxed);
      if (first >= end) return;
      kernels.few(*call, rows, first, std::min(step, end - first));
    }
  }
};

// All products at once: a small model's take a few microseconds each, not much more than a join.
// `shares` has products times threads.
void RunFew(ThreadPool& pool, const MatMulKernels& kernels, std::span<const MatMulCall> calls,
            int64_t rows, Share* shares) {
  const int64_t threads = pool.threads(), products = static_cast<int64_t>(calls.size());
  for (int64_t i = 0; i < products * threads; ++i) {
    Share& share = shares[i];
    share.call = &calls[i / threads];
    const int64_t tiles = share.call->w.tiles, thread = i % threads;
    share.next.store(tiles * thread / threads, std::memory_order_relaxed);
    share.end = tiles * (thread + 1) / threads;
    share.step = CeilDiv(kStepBytes, 2 * share.call->w.tile_bytes) * 2;
  }
  pool.Run(threads, [&](int64_t task, int) {
    for (int64_t i = 0; i < threads; ++i) {
      for (int64_t p = 0; p < products; ++p) {
        shares[p * threads + (task + i) % threads].Work(kernels, rows);
      }
    }
  });
}

// What a task of panels goes through: for each part all of its panels.
struct PanelWalk {
  const PackedView& w;
  int64_t units, part_units;  // of the inner dimension: groups, or elements of a float type
  int64_t first, end;         // panels

  int64_t parts() const { return CeilDiv(units, part_units); }
  void Place(int64_t part, int64_t panel, Panel* p) const {
    p->first_output = panel * kPanelOutputs;
    p->outputs =
        static_cast<int>(std::min<int64_t>(kPanelOutputs, w.outputs - p->first_output));
    p->part = part;
    p->units = static_cast<int>(std::min(part_units, units - part * part_units));
    p->last = part + 1 == parts();
  }
};

void Unpack(const MatMulKernels& kernels, const PackedView& w, Panel* panel) {
  const int64_t tile = panel->first_output / kTileOutputs;
  const int64_t first = panel->part * (NeedsQuantized(w.type) ? kPartGroups : kPartElements);
  for (int t = 0; t < kPanelTiles; ++t) {
    const int64_t from = tile + t < w.tiles ? tile + t : tile;  // a last odd tile stands twice
    kernels.unpack(w.type, w.data + from * w.tile_bytes, first, t, panel);
  }
}

void RunPanels(ThreadPool& pool, const MatMulKernels& kernels, const MatMulCall& call,
               int64_t rows) {
  const bool quantized = NeedsQuantized(call.w.type);
  const int64_t panels = CeilDiv(call.w.tiles, kPanelTiles);
  const int64_t row_blocks =
      std::max(CeilDiv(rows, kRowBlock),
               std::min(CeilDiv(4 * pool.threads(), panels), rows / kMinRowBlock));
  const int64_t per_task = std::clamp<int64_t>(
      panels * row_blocks / (pool.threads() * kTasksPerThread), 1, kPanelsPerTask);
  pool.Run(CeilDiv(panels, per_task) * row_blocks, [&](int64_t task, int) {
    const int64_t block = task % row_blocks, first = task / row_blocks * per_task;
    const int64_t begin = rows * block / row_blocks, end = rows * (block + 1) / row_blocks;
    const PanelWalk walk = {call.w, quantized ? call.groups : call.w.inputs,
                            quantized ? kPartGroups : kPartElements, first,
                            std::min(first + per_task, panels)};
    Panel panel;
    for (int64_t part = 0; part < walk.parts(); ++part) {
      for (int64_t p = first; p < walk.end; ++p) {
        walk.Place(part, p, &panel);
        Unpack(kernels, call.w, &panel);
        ForRows(begin, end, kernels.panel_rows,
                [&](int64_t row, int n) { kernels.panel(call, panel, row, n); });
      }
    }
  });
}

}  // namespace

struct MatMulScratch::Impl {
  std::vector<RowTerms> terms;  // of a call's products; those of one type over the same rows share
  std::vector<MatMulCall> calls;
  std::unique_ptr<Share[]> shares;
  int64_t shares_size = 0;
};

MatMulScratch::MatMulScratch() : impl_(std::make_unique<Impl>()) {}
MatMulScratch::~MatMulScratch() = default;

void CpuMatMul(ThreadPool& pool, const MatMulKernels& kernels,
               std::span<const MatMulArgs> products, MatMulScratch& scratch) {
  if (products.empty() || products[0].rows == 0) return;
  const int64_t rows = products[0].rows;
  MatMulScratch::Impl& impl = scratch.impl();
  impl.terms.resize(std::max(impl.terms.size(), products.size()));
  impl.calls.clear();
  for (size_t i = 0; i < products.size(); ++i) {
    const MatMulArgs& args = products[i];
    assert(args.rows == rows);
    MatMulCall& call = impl.calls.emplace_back();
    call.w = static_cast<const PackedWeight&>(*args.w).View();
    call.bias = args.bias;
    call.y = args.y;
    call.y_stride = args.y_stride;
    if (NeedsQuantized(call.w.type)) {
      const QuantizedRows& x = *args.xq;
      assert(x.cols == call.w.inputs && x.rows >= rows);
      call.groups = x.cols / kQuantGroup;
      call.q = x.q.data();
      const auto end = products.begin() + static_cast<int64_t>(i);
      const auto like = std::find_if(products.begin(), end, [&](const MatMulArgs& before) {
        return before.w->type() == call.w.type && before.xq == args.xq;
      });
      RowTerms& terms = impl.terms[like - products.begin()];
      if (like == end) terms.Fill(pool, call.w.type, x, rows);
      terms.Put(&call);
    } else {
      call.x = args.x;
    }
  }
  if (rows <= kernels.few_rows) {
    const int64_t shares = static_cast<int64_t>(products.size()) * pool.threads();
    if (shares > impl.shares_size) {
      impl.shares = std::make_unique<Share[]>(shares);
      impl.shares_size = shares;
    }
    return RunFew(pool, kernels, impl.calls, rows, impl.shares.get());
  }
  for (const MatMulCall& call : impl.calls) RunPanels(pool, kernels, call, rows);
}

}  // namespace holdfast
