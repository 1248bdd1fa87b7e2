#include "engine/backend/cpu/matmul.h"

#include <algorithm>
#include <cassert>
#include <optional>
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
  RowTerms(ThreadPool& pool, WeightType type, const QuantizedRows& x, int64_t rows)
      : format_(FormatOf(type)), x_(x), rows_(rows), groups_(x.cols / kQuantGroup) {
    da_.resize(rows * groups_);
    if (format_.has_min()) {
      dsum_.resize(da_.size());
    } else {
      start_[0].resize(da_.size());
      if (format_.two_scales()) start_[1].resize(da_.size());
    }
    const int64_t blocks = CeilDiv(groups_, kTermGroups);
    const int64_t per_task = std::max<int64_t>(1, kTermsPerTask / (kTermGroups * rows));
    pool.Run(CeilDiv(blocks, per_task), [&](int64_t task, int) {
      const int64_t end = std::min((task + 1) * per_task, blocks);
      for (int64_t b = task * per_task; b < end; ++b) FillBlock(b * kTermGroups);
    });
  }

  void Put(MatMulCall* call) const {
    call->rows = rows_;
    call->da = da_.data();
    for (int i = 0; i < 2; ++i) call->start[i] = start_[i].empty() ? nullptr : start_[i].data();
    call->dsum = dsum_.empty() ? nullptr : dsum_.data();
  }

 private:
  // Reads cache lines of the rows and writes as many runs of the terms.
  void FillBlock(int64_t begin) {
    const int64_t end = std::min(begin + kTermGroups, groups_);
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t g = begin; g < end; ++g) {
        const int64_t from = r * groups_ + g, to = g * rows_ + r;
        const int32_t lo = x_.sum_lo[from], hi = x_.sum_hi[from];
        da_[to] = x_.scale[from];
        if (format_.has_min()) {
          dsum_[to] = x_.scale[from] * static_cast<float>(lo + hi);
        } else if (format_.two_scales()) {
          start_[0][to] = -format_.offset * lo;
          start_[1][to] = -format_.offset * hi;
        } else {
          start_[0][to] = -format_.offset * (lo + hi);
        }
      }
    }
  }

  const Format format_;
  const QuantizedRows& x_;
  const int64_t rows_, groups_;
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

void RunFew(ThreadPool& pool, const MatMulKernels& kernels, const MatMulCall& call, int64_t rows) {
  const int64_t tiles = call.w.tiles, threads = pool.threads();
  // As many tasks for each thread: with two or three that differ, one thread would wait.
  const int64_t bytes = tiles * call.w.tile_bytes;
  const int64_t per_thread =
      std::clamp<int64_t>(bytes / (threads * kTaskBytes), 1, kTasksPerThread);
  const int64_t tasks = std::min(tiles, threads * per_thread);
  pool.Run(tasks, [&](int64_t task, int) {
    const int64_t first = tiles * task / tasks;
    const int64_t count = tiles * (task + 1) / tasks - first;
    kernels.few(call, rows, first, count);
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
    kernels.unpack(w.type, w.codes + from * w.tile_bytes, w.scales + from * w.tile_bytes, first, t,
                   panel);
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

void CpuMatMul(ThreadPool& pool, CpuLevel level, const MatMulArgs& args) {
  if (args.rows == 0) return;
  const MatMulKernels& kernels = KernelsOf(level);
  MatMulCall call;
  call.w = static_cast<const PackedWeight&>(*args.w).View();
  call.bias = args.bias;
  call.y = args.y;
  call.y_stride = args.y_stride;
  std::optional<RowTerms> terms;
  if (NeedsQuantized(call.w.type)) {
    const QuantizedRows& x = *args.xq;
    assert(x.cols == call.w.inputs && x.rows >= args.rows);
    call.groups = x.cols / kQuantGroup;
    call.q = x.q.data();
    terms.emplace(pool, call.w.type, x, args.rows);
    terms->Put(&call);
  } else {
    call.x = args.x;
  }
  if (args.rows <= kernels.few_rows) {
    RunFew(pool, kernels, call, args.rows);
  } else {
    RunPanels(pool, kernels, call, args.rows);
  }
}

}  // namespace holdfast
