// The CPU backend: one class for every instruction set. A level is a row of kernels (levels.h),
// chosen once here; above the kernels everything is written once.
//
// Work is cut by rows, and by elements where an operation has no rows, into tasks that are worth
// the few microseconds of waking a thread. The cuts never touch a result (NUMERICS.md section 1).
#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <thread>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/attend.h"
#include "engine/backend/cpu/levels.h"
#include "engine/backend/cpu/matmul.h"
#include "engine/backend/cpu/pack.h"
#include "engine/backend/cpu/thread_pool.h"
#include "engine/backend/reference/reference.h"

namespace holdfast {
namespace {

constexpr int kMaxThreads = 256;

// "reference, portable, ... or avx512"
std::string LevelNames() {
  std::string names = "reference";
  const std::span<const CpuLevel> levels = CpuLevels();
  for (size_t i = levels.size(); i-- > 0;) {
    names += (i > 0 ? ", " : " or ") + std::string(levels[i].name);
  }
  return names;
}

// Null stands for the reference backend.
Result<const CpuLevel*> ChooseLevel(const std::string& option) {
  std::string name = option;
  std::string source = "level";
  if (name.empty()) {
    const char* variable = std::getenv("HOLDFAST_CPU");
    if (variable != nullptr) name = variable;
    source = "HOLDFAST_CPU";
  }
  if (name.empty()) return &BestCpuLevel();
  if (name == "reference") return static_cast<const CpuLevel*>(nullptr);
  for (const CpuLevel& level : CpuLevels()) {
    if (name != level.name) continue;
    if (level.present()) return &level;
    return Status::Invalid(source + "=" + name + ": this processor lacks one of " +
                           std::string(level.needs));
  }
  return Status::Invalid(source + "=" + name + ": must be " + LevelNames());
}

class CpuBackend : public Backend {
 public:
  CpuBackend(const CpuLevel& level, int threads)
      : level_(level), kernels_(level.elementwise()), pool_(threads) {}

  std::string_view name() const override { return level_.name; }

  void ForEach(int64_t tasks, const std::function<void(int64_t)>& fn) override {
    pool_.Run(tasks, [&](int64_t task, int) { fn(task); });
  }

  Result<std::unique_ptr<Weight>> Pack(const WeightSource& source) override {
    return PackCpuWeight(source, weight_memory_);
  }

  void Embed(const Weight& table, std::span<const TokenId> ids, float* out) override {
    ForRows(ids.size(), table.inputs() * 4, [&](int64_t begin, int64_t end) {
      CpuEmbed(table, ids.subspan(begin, end - begin), out + begin * table.inputs());
    });
  }

  void RmsNorm(const RmsNormArgs& a) override {
    MakeRows(a.rows, a.cols, 1, a.y, a.quantize, [&](int64_t r, float* y) {
      kernels_.norm_row(a.cols, a.x + r * a.cols, a.w, a.eps, y);
    });
  }

  void Quantize(const QuantizeArgs& a) override {
    MakeRows(a.rows, a.cols, 0, a.x, a.to, [](int64_t, const float*) {});
  }

  void MatMul(const MatMulArgs& a) override { MatMuls({&a, 1}); }

  void MatMuls(std::span<const MatMulArgs> products) override {
    CpuMatMul(pool_, level_.matmul(), products, matmul_scratch_);
  }

  void Glu(const GluArgs& a) override {
    const auto glu = a.activation == Activation::kSilu ? kernels_.swiglu : kernels_.geglu;
    if (a.rows >= pool_.threads()) {
      MakeRows(a.rows, a.cols, 4, a.h, a.quantize, [&](int64_t r, float* h) {
        glu(a.cols, a.gate + r * a.cols, a.up + r * a.cols, h);
      });
      return;
    }
    ForRows(a.rows * a.cols, 4, [&](int64_t begin, int64_t end) {  // parts of rows: all threads
      glu(end - begin, a.gate + begin, a.up + begin, a.h + begin);
    });
    if (a.quantize.out != nullptr) Quantize({a.rows, a.cols, a.h, a.quantize});
  }

  void Scale(int64_t count, float factor, float* x) override {
    ForRows(count, 1, [&](int64_t begin, int64_t end) {
      kernels_.scale(end - begin, factor, x + begin);
    });
  }

  void SoftCap(int64_t count, float cap, float* x) override {
    ForRows(count, 4, [&](int64_t begin, int64_t end) {
      kernels_.soft_cap(end - begin, cap, x + begin);
    });
  }

  void Add(int64_t count, const float* x, float* y) override {
    ForRows(count, 1, [&](int64_t begin, int64_t end) {
      kernels_.add(end - begin, x + begin, y + begin);
    });
  }

  void StoreKv(const StoreKvArgs& a) override {
    const LayerGroup& g = *a.group;
    assert(g.k_dim <= kMaxHeadDim);
    ForRows(a.rows, int64_t{4} * g.heads * (g.k_dim + g.v_dim), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) StoreRow(a, r);
    });
  }

  void Attend(const AttendArgs& a) override {
    CpuAttend(pool_, level_.attend(), a, attend_scratch_);
  }

  void CheckFinite(int64_t rows, int64_t cols, const float* x, uint8_t* row_failed) override {
    ForRows(rows, cols, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        if (!kernels_.finite(cols, x + r * cols)) row_failed[r] = 1;
      }
    });
  }

 private:
  // Calls fn(begin, end) over 0..rows-1, on the pool when there is enough to do. `row_cost` is in
  // elements of a cheap operation.
  template <typename F>
  void ForRows(int64_t rows, int64_t row_cost, const F& fn) {
    const int64_t cost = std::max<int64_t>(1, row_cost);
    const int64_t per_task = std::max<int64_t>(1, level_.task_elements / cost);
    pool_.Run((rows + per_task - 1) / per_task, [&](int64_t task, int) {
      fn(task * per_task, std::min(rows, (task + 1) * per_task));
    });
  }

  // Calls make(row, the row in `y`) for each row, and quantises it where that is wanted. `cost` is
  // what an element of a row costs, as in ForRows.
  template <typename Y, typename F>
  void MakeRows(int64_t rows, int64_t cols, int64_t cost, Y* y, const QuantizeTarget& to,
                const F& make) {
    if (to.out != nullptr) to.out->Resize(rows, cols);
    ForRows(rows, cols * (cost + (to.out != nullptr ? 2 : 0)), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        make(r, y + r * cols);
        if (to.out != nullptr) QuantizeRow(y + r * cols, cols, r, to);
      }
    });
  }

  void QuantizeRow(const float* x, int64_t cols, int64_t r, const QuantizeTarget& to) {
    QuantizedRows& out = *to.out;
    const int64_t at = r * (out.cols / kQuantGroup);
    if (!kernels_.quantize_row(cols, x, out.q.data() + at * kQuantGroup, out.scale.data() + at,
                               out.sum_lo.data() + at, out.sum_hi.data() + at)) {
      to.row_failed[r] = 1;
    }
  }

  void StoreRow(const StoreKvArgs& a, int64_t r) {
    const LayerGroup& g = *a.group;
    for (int h = 0; h < g.heads; ++h) {
      std::byte* k_page = a.page[r] + g.HeadOffset(a.layer, h);
      std::byte* v_page = k_page + g.KBytes();
      const StoreHeadArgs head = {
          .k_type = g.k_type,
          .v_type = g.v_type,
          .k_dim = g.k_dim,
          .v_dim = g.v_dim,
          .rope_dim = a.rope->dim(),
          .turn = a.rope->Row(a.position[r]),
          .k = a.k + (r * g.heads + h) * g.k_dim,
          .v = a.v + (r * g.heads + h) * g.v_dim,
          .k_out = k_page + g.KOffset(0, a.slot[r]),
          .v_out = v_page + a.slot[r] * g.v_dim * KvTypeBytes(g.v_type),
      };
      if (!kernels_.store_head(head)) a.row_failed[r] = 1;
    }
  }

  const CpuLevel& level_;
  const ElementwiseKernels& kernels_;
  ThreadPool pool_;
  WeightMemory weight_memory_;
  MatMulScratch matmul_scratch_;
  AttendScratch attend_scratch_;
};

}  // namespace

const CpuLevel& BestCpuLevel() {
  static const CpuLevel& best =
      *std::ranges::find_if(CpuLevels(), [](const CpuLevel& level) { return level.present(); });
  return best;
}

Result<std::unique_ptr<Backend>> MakeCpuBackend(const CpuOptions& options) {
  if (options.threads < 0 || options.threads > kMaxThreads) {
    return Status::Invalid("threads=" + std::to_string(options.threads) + ": must be 0 to " +
                           std::to_string(kMaxThreads));
  }
  HOLDFAST_ASSIGN_OR_RETURN(const CpuLevel* const level, ChooseLevel(options.level));
  if (level == nullptr) return MakeReferenceBackend();
  int threads = options.threads;
  if (threads == 0) threads = static_cast<int>(std::thread::hardware_concurrency());
  threads = std::clamp(threads, 1, kMaxThreads);
  return std::unique_ptr<Backend>(std::make_unique<CpuBackend>(*level, threads));
}

}  // namespace holdfast
