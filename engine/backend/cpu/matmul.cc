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
constexpr int64_t kTaskBytes = 48 << 10;
constexpr int64_t kTasksPerThread = 8;
constexpr int64_t kFewTiles = 4;         // tiles that the few-row kernels like to take together
constexpr int64_t kPanelsPerTask = 8;

const MatMulKernels& KernelsOf(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx512: return Avx512MatMulKernels();
    case CpuLevel::kAvx2: return Avx2MatMulKernels();
    default: return PortableMatMulKernels();
  }
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The terms of a row that belong to a group alone (MatMulCall). Types with an offset or a minimum.
struct RowTerms {
  std::vector<int32_t> start[2];
  std::vector<float> dsum;

  void Fill(WeightType type, const QuantizedRows& x, MatMulCall* call) {
    const size_t n = x.scale.size();
    if (type == WeightType::kQ4_1 || type == WeightType::kQ4_K) {
      dsum.resize(n);
      for (size_t i = 0; i < n; ++i) {
        dsum[i] = x.scale[i] * static_cast<float>(x.sum_lo[i] + x.sum_hi[i]);
      }
      call->dsum = dsum.data();
      return;
    }
    start[0].resize(n);
    call->start[0] = start[0].data();
    if (type == WeightType::kQ6_K) {
      start[1].resize(n);
      call->start[1] = start[1].data();
      for (size_t i = 0; i < n; ++i) start[0][i] = -32 * x.sum_lo[i];
      for (size_t i = 0; i < n; ++i) start[1][i] = -32 * x.sum_hi[i];
      return;
    }
    const int32_t offset = type == WeightType::kQ8_0 ? 128 : 16;
    for (size_t i = 0; i < n; ++i) start[0][i] = -offset * (x.sum_lo[i] + x.sum_hi[i]);
  }
};

void RunFew(ThreadPool& pool, const MatMulKernels& kernels, const MatMulCall& call, int rows) {
  const int64_t tiles = call.w->tiles();
  const auto tile_bytes = static_cast<int64_t>(call.w->tile_bytes());
  int64_t per_task = std::max(CeilDiv(tiles, pool.threads() * kTasksPerThread),
                              CeilDiv(kTaskBytes, tile_bytes));
  per_task = std::min(per_task, CeilDiv(tiles, pool.threads()));
  per_task = CeilDiv(per_task, kFewTiles) * kFewTiles;
  pool.Run(CeilDiv(tiles, per_task), [&](int64_t task, int) {
    const int64_t first = task * per_task;
    const int64_t count = std::min(per_task, tiles - first);
    for (int row = 0; row < rows; row += kernels.few_rows) {
      kernels.few(call, row, std::min(rows - row, kernels.few_rows), first, count);
    }
  });
}

// Rows [begin, end) over one panel, cut so that no kernel call has much fewer rows than another.
void PassRows(const MatMulKernels& kernels, const MatMulCall& call, const Panel& panel,
              int64_t begin, int64_t end) {
  const int64_t cuts = CeilDiv(end - begin, kernels.panel_rows);
  for (int64_t i = 0; i < cuts; ++i) {
    const int64_t from = begin + (end - begin) * i / cuts;
    const int64_t to = begin + (end - begin) * (i + 1) / cuts;
    kernels.panel(call, panel, from, static_cast<int>(to - from));
  }
}

void RunPanels(ThreadPool& pool, const MatMulKernels& kernels, const MatMulCall& call,
               int64_t rows) {
  const bool quantized = NeedsQuantized(call.w->type());
  const int64_t units = quantized ? call.groups : call.w->inputs();
  const int64_t part_units = quantized ? kPartGroups : kPartElements;
  const int64_t parts = CeilDiv(units, part_units);
  const int64_t panels = CeilDiv(call.w->tiles(), kPanelTiles);
  const int64_t row_blocks = CeilDiv(rows, kRowBlock);
  const int64_t per_task = std::clamp<int64_t>(
      panels * row_blocks / (pool.threads() * kTasksPerThread), 1, kPanelsPerTask);
  const int64_t panel_tasks = CeilDiv(panels, per_task);
  pool.Run(panel_tasks * row_blocks, [&](int64_t task, int) {
    const int64_t block = task % row_blocks, first = task / row_blocks * per_task;
    Panel panel;
    for (int64_t part = 0; part < parts; ++part) {
      for (int64_t p = first; p < std::min(first + per_task, panels); ++p) {
        panel.first_output = p * kPanelOutputs;
        panel.outputs = static_cast<int>(
            std::min<int64_t>(kPanelOutputs, call.w->outputs() - panel.first_output));
        panel.part = part;
        panel.units = static_cast<int>(std::min(part_units, units - part * part_units));
        panel.last = part + 1 == parts;
        kernels.unpack(*call.w, &panel);
        PassRows(kernels, call, panel, rows * block / row_blocks, rows * (block + 1) / row_blocks);
      }
    }
  });
}

}  // namespace

void CpuMatMul(ThreadPool& pool, CpuLevel level, const MatMulArgs& args) {
  if (args.rows == 0) return;
  const auto& w = static_cast<const PackedWeight&>(*args.w);
  const MatMulKernels& kernels = KernelsOf(level);
  MatMulCall call;
  call.w = &w;
  call.bias = args.bias;
  call.y = args.y;
  call.y_stride = args.y_stride;
  RowTerms terms;
  if (NeedsQuantized(w.type())) {
    const QuantizedRows& x = *args.xq;
    assert(x.cols == w.inputs() && x.rows >= args.rows);
    call.groups = x.cols / kQuantGroup;
    call.q = x.q.data();
    call.da = x.scale.data();
    terms.Fill(w.type(), x, &call);
  } else {
    call.x = args.x;
  }
  if (args.rows <= kernels.few_rows) {
    RunFew(pool, kernels, call, static_cast<int>(args.rows));
  } else {
    RunPanels(pool, kernels, call, args.rows);
  }
}

}  // namespace holdfast
