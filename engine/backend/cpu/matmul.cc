#include "engine/backend/cpu/matmul.h"

#include <algorithm>
#include <cassert>
#include <vector>

#include "engine/backend/cpu/matmul_kernels.h"

namespace holdfast {
namespace {

// Rows that pass over a panel before the next one is unpacked: their part of the activations
// (1 KiB a row) stays in L2 while a task goes through its panels.
constexpr int64_t kRowBlock = 384;
// A task of few rows reads at least this much, so that taking it costs nothing beside.
constexpr int64_t kTaskBytes = 64 << 10;
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kPanelsPerTask = 8;
constexpr int64_t kMinRowBlock = 48;     // below, unpacking a panel would take too much of the time
constexpr int64_t kTermGroups = 16;      // 64 bytes of each row's arrays
constexpr int64_t kTermsPerTask = 8192;  // some ten microseconds

const MatMulKernels& KernelsOf(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx512: return Avx512MatMulKernels();
    case CpuLevel::kAvx2: return Avx2MatMulKernels();
    default: return PortableMatMulKernels();
  }
}

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

// As many tasks for each thread: with two or three that differ, one thread would wait.
int64_t FewTasks(const PackedView& w, int64_t threads) {
  const int64_t bytes = w.tiles * w.tile_bytes;
  const int64_t per_thread =
      std::clamp<int64_t>(bytes / (threads * kTaskBytes), 1, kTasksPerThread);
  return std::min(w.tiles, threads * per_thread);
}

// All products at once: a small model's take a few microseconds each, not much more than a join.
void RunFew(ThreadPool& pool, const MatMulKernels& kernels, std::span<const MatMulCall> calls,
            int64_t rows) {
  int64_t all = 0;
  for (const MatMulCall& call : calls) all += FewTasks(call.w, pool.threads());
  pool.Run(all, [&](int64_t task, int) {
    const MatMulCall* call = calls.data();
    int64_t tasks = FewTasks(call->w, pool.threads());
    for (; task >= tasks; tasks = FewTasks((++call)->w, pool.threads())) task -= tasks;
    const int64_t tiles = call->w.tiles, first = tiles * task / tasks;
    kernels.few(*call, rows, first, tiles * (task + 1) / tasks - first);
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
  std::vector<RowTerms> terms;  // of each product of a call
  std::vector<MatMulCall> calls;
};

MatMulScratch::MatMulScratch() : impl_(std::make_unique<Impl>()) {}
MatMulScratch::~MatMulScratch() = default;

void CpuMatMul(ThreadPool& pool, CpuLevel level, std::span<const MatMulArgs> products,
               MatMulScratch& scratch) {
  if (products.empty() || products[0].rows == 0) return;
  const MatMulKernels& kernels = KernelsOf(level);
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
      impl.terms[i].Fill(pool, call.w.type, x, rows);
      impl.terms[i].Put(&call);
    } else {
      call.x = args.x;
    }
  }
  if (rows <= kernels.few_rows) return RunFew(pool, kernels, impl.calls, rows);
  for (const MatMulCall& call : impl.calls) RunPanels(pool, kernels, call, rows);
}

}  // namespace holdfast
