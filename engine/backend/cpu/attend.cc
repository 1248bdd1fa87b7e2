// Plans an attention call as tasks and walks each task's runs tile by tile; the arithmetic is in
// attend_kernels.h.
//
// A *block* is some rows of one sequence for one KV head. Usually a task is a block over all that
// it sees; its splits are merged as they come. Where that gives too few tasks for the threads, a
// block's splits are shared out in *stretches*. Merging goes left to right and is not associative,
// so only a block's first stretch may merge its splits at once; the others leave one state per
// split in `Impl::shared`, and whoever finishes the block's last stretch merges them all.
#include "engine/backend/cpu/attend.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdlib>
#include <new>
#include <vector>

#include "engine/backend/cpu/attend_tile.h"

namespace holdfast {
namespace {

// Query rows of a block: enough to pay for a tile's conversion, few enough that turned queries and
// states (about 1 KiB a row) stay in a core's second-level cache.
constexpr int kBlockRows = 192;
// Tasks per thread that a call is cut into if it can be: the last one to finish is then short.
constexpr int kTasksPerThread = 4;
// Multiplications below which waking other threads costs more than they save (some microseconds).
constexpr int64_t kAloneBelow = 400'000;

// Memory of floats at a multiple of 64 bytes; what it holds is lost when it grows.
class Floats {
 public:
  float* Reserve(int64_t count) {
    if (count > size_) {
      size_ = (count + count / 4 + 15) / 16 * 16;
      data_.reset(static_cast<float*>(std::aligned_alloc(64, size_ * sizeof(float))));
      if (data_ == nullptr) throw std::bad_alloc();
    }
    return data_.get();
  }
  float* data() { return data_.get(); }

 private:
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  int64_t size_ = 0;
  std::unique_ptr<float, Free> data_;
};

// A place in a sequence: `offset` tokens into run `run`.
struct RunPlace {
  int64_t run = 0;
  int offset = 0;
};

struct BlockPlan {
  int sequence = 0;
  int first_row = 0, positions = 0;   // of the sequence's rows
  int head = 0;                       // KV head
  int64_t begin = 0, end = 0;         // indices that any row sees
  int stretches = 1;
  int64_t work = 0;                   // pairs of query row and index
  int64_t shared = 0;                 // where stretches > 1: its first state in Impl::shared
  int64_t counter = 0;                // and its entry of Impl::left
};

struct TaskPlan {
  int block = 0;
  int stretch = 0;
  int64_t first_split = 0, last_split = 0;  // [first, last)
};

int64_t RoundUp16(int64_t n) { return (n + 15) / 16 * 16; }

// States of `rows` query rows, laid one behind another.
int64_t StateFloats(int64_t rows, int v_dim) {
  return RoundUp16(rows) + rows * (kAttendTile + v_dim) + RoundUp16((rows + 3) / 4);
}

SoftmaxStates StatesAt(float* at, int64_t rows, int v_dim) {
  SoftmaxStates states;
  states.m = at;
  states.l = at + RoundUp16(rows);
  states.o = states.l + rows * kAttendTile;
  states.seen = reinterpret_cast<uint8_t*>(states.o + rows * v_dim);
  return states;
}

int64_t FirstSplit(const BlockPlan& block) { return block.begin / kAttendSplit; }
int64_t LastSplit(const BlockPlan& block) {
  return (block.end + kAttendSplit - 1) / kAttendSplit;
}

}  // namespace

struct AttendScratch::Impl {
  std::vector<RunPlace> places;      // of every split of every sequence
  std::vector<int64_t> first_place;  // [sequences] its split 0 in `places`
  std::vector<BlockPlan> blocks;
  std::vector<TaskPlan> tasks;
  std::vector<Floats> thread;  // [threads]
  Floats shared;
  std::unique_ptr<std::atomic<int>[]> left;  // stretches that a shared block still waits for
  int64_t left_size = 0;
};

AttendScratch::AttendScratch() : impl_(std::make_unique<Impl>()) {}
AttendScratch::~AttendScratch() = default;

namespace {

using Impl = AttendScratch::Impl;

// Planning, on the caller's thread.

void FindSplits(const AttendArgs& args, Impl& impl) {
  impl.places.clear();
  impl.first_place.clear();
  for (const AttendSequence& sequence : args.sequences) {
    impl.first_place.push_back(static_cast<int64_t>(impl.places.size()));
    int64_t begin = 0, next = 0;  // index of the run's first token; of the next split
    for (size_t r = 0; r < sequence.runs.size(); ++r) {
      const int64_t end = begin + sequence.runs[r].count;
      for (; next < end; next += kAttendSplit) {
        impl.places.push_back({static_cast<int64_t>(r), static_cast<int>(next - begin)});
      }
      begin = end;
    }
  }
}

void AddBlocks(const AttendArgs& args, int s, Impl& impl) {
  const AttendSequence& sequence = args.sequences[s];
  const int group = args.q_heads / args.group->heads, window = args.group->window;
  const int rows = static_cast<int>(sequence.row.size());
  const int most = std::max(1, kBlockRows / group), blocks = (rows + most - 1) / most;
  for (int b = blocks - 1; b >= 0; --b) {  // of a prefill, the long ones first
    BlockPlan plan;
    plan.sequence = s;
    plan.first_row = static_cast<int>(int64_t{rows} * b / blocks);
    plan.positions = static_cast<int>(int64_t{rows} * (b + 1) / blocks) - plan.first_row;
    plan.begin = INT64_MAX;
    for (int n = plan.first_row; n < plan.first_row + plan.positions; ++n) {
      const int64_t end = int64_t{sequence.position[n]} + 1;
      const int64_t begin = window > 0 ? std::max<int64_t>(0, end - window) : 0;
      plan.begin = std::min(plan.begin, begin);
      plan.end = std::max(plan.end, end);
      plan.work += (end - begin) * group;
    }
    for (plan.head = 0; plan.head < args.group->heads; ++plan.head) impl.blocks.push_back(plan);
  }
}

// Makes the tasks: blocks, cut into stretches where there are fewer blocks than `tasks_wanted`.
// `work` is the sum over the blocks.
void CutBlocks(const AttendArgs& args, int64_t work, int64_t tasks_wanted, Impl& impl) {
  int64_t shared = 0, counters = 0;
  const int group = args.q_heads / args.group->heads;
  for (size_t b = 0; b < impl.blocks.size(); ++b) {
    BlockPlan& block = impl.blocks[b];
    const int64_t first = FirstSplit(block), splits = LastSplit(block) - first;
    if (static_cast<int64_t>(impl.blocks.size()) < tasks_wanted) {
      const int64_t share = (block.work * tasks_wanted + work - 1) / work;
      block.stretches = static_cast<int>(std::clamp<int64_t>(share, 1, splits));
    }
    for (int i = 0; i < block.stretches; ++i) {
      impl.tasks.push_back({static_cast<int>(b), i, first + splits * i / block.stretches,
                            first + splits * (i + 1) / block.stretches});
    }
    if (block.stretches == 1) continue;
    block.shared = shared;
    block.counter = counters++;
    const int64_t merged_at_once = splits / block.stretches;  // those of the first stretch
    shared += (splits - merged_at_once + 1) *
              RoundUp16(StateFloats(block.positions * group, args.group->v_dim));
  }
  impl.shared.Reserve(shared);
  if (counters > impl.left_size) {
    impl.left = std::make_unique<std::atomic<int>[]>(counters);
    impl.left_size = counters;
  }
  for (const BlockPlan& block : impl.blocks) {
    if (block.stretches > 1) {
      impl.left[block.counter].store(block.stretches, std::memory_order_relaxed);
    }
  }
}

// Scratch of one thread for blocks of up to `rows` query rows, in the order of AttendBlock.
struct ThreadLayout {
  int64_t turned, seam, k32, v32, cut, states, total;

  ThreadLayout(int64_t rows, const LayerGroup& group) {
    int64_t at = 0;
    const auto take = [&](int64_t floats) {
      const int64_t begin = at;
      at += RoundUp16(floats);
      return begin;
    };
    turned = take(kTurnedSlots * TurnedFloats(rows, group.k_dim));
    seam = take(TurnedFloats(kMaxBlockRows, group.k_dim));
    k32 = take(int64_t{kAttendTile} * group.k_dim + 16);
    v32 = take(int64_t{kAttendTile} * group.v_dim);
    cut = take(rows * kAttendTile);
    states = take(2 * RoundUp16(StateFloats(rows, group.v_dim)));
    total = at;
  }
};

// Running, on any thread.

class Task {
 public:
  Task(const AttendArgs& args, const AttendKernels& kernels, const TaskPlan& task, Impl& impl,
       float* scratch, int64_t most_rows);
  void Run();

 private:
  void Fill(const KvRun& run, int lane, int offset, KvPiece& piece) const;
  bool NextTile(KvTile& tile);
  void FinishShared();
  SoftmaxStates Shared(int64_t n) const;

  const AttendKernels& kernels_;
  const TaskPlan& task_;
  const BlockPlan& plan_;
  const LayerGroup& group_;
  std::span<const KvRun> runs_;
  Impl& impl_;
  AttendBlock block_;
  SoftmaxStates total_, fresh_;
  size_t head_offset_;
  RunPlace place_;         // of the index next_
  int64_t next_, end_;     // indices that are still to be read
};

Task::Task(const AttendArgs& args, const AttendKernels& kernels, const TaskPlan& task, Impl& impl,
           float* scratch, int64_t most_rows)
    : kernels_(kernels), task_(task), plan_(impl.blocks[task.block]), group_(*args.group),
      runs_(args.sequences[plan_.sequence].runs), impl_(impl) {
  const AttendSequence& sequence = args.sequences[plan_.sequence];
  const int group = args.q_heads / group_.heads;
  block_.k_dim = group_.k_dim;
  block_.v_dim = group_.v_dim;
  block_.k_type = group_.k_type;
  block_.v_type = group_.v_type;
  block_.group = group;
  block_.positions = plan_.positions;
  block_.position = sequence.position.data() + plan_.first_row;
  block_.row = sequence.row.data() + plan_.first_row;
  block_.window = group_.window;
  block_.q = args.q + int64_t{plan_.head} * group * group_.k_dim;
  block_.q_stride = int64_t{args.q_heads} * group_.k_dim;
  block_.out = args.out + int64_t{plan_.head} * group * group_.v_dim;
  block_.out_stride = int64_t{args.q_heads} * group_.v_dim;
  block_.scale = args.scale;
  block_.table = args.rope->Row(0);
  block_.rope_dim = args.rope->dim();
  block_.table_rows = args.rope->positions();
  const ThreadLayout layout(most_rows, group_);
  const int64_t rows = block_.rows();
  for (int i = 0; i < kTurnedSlots; ++i) {
    block_.turned[i] = scratch + layout.turned + i * TurnedFloats(rows, group_.k_dim);
  }
  block_.seam = scratch + layout.seam;
  block_.k32 = scratch + layout.k32;
  block_.v32 = scratch + layout.v32;
  block_.cut = reinterpret_cast<CutScores*>(scratch + layout.cut);
  for (int64_t r = 0; r < rows; ++r) block_.cut[r].k = nullptr;
  float* states = scratch + layout.states;
  total_ = StatesAt(states, rows, group_.v_dim);
  fresh_ = StatesAt(states + RoundUp16(StateFloats(rows, group_.v_dim)), rows, group_.v_dim);
  head_offset_ = group_.HeadOffset(args.layer, plan_.head);
  next_ = task.first_split * kAttendSplit;
  end_ = std::min(plan_.end, task.last_split * kAttendSplit);
  place_ = impl.places[impl.first_place[plan_.sequence] + task.first_split];
}

SoftmaxStates Task::Shared(int64_t n) const {
  const int64_t floats = RoundUp16(StateFloats(block_.rows(), group_.v_dim));
  return StatesAt(impl_.shared.data() + plan_.shared + n * floats, block_.rows(), group_.v_dim);
}

void Task::Fill(const KvRun& run, int lane, int offset, KvPiece& piece) const {
  piece.k = run.page + head_offset_;
  piece.v = piece.k + group_.KBytes();
  piece.slot = run.first + offset;
  piece.lane = lane;
  piece.shift = run.shift;
}

// The tile of index next_, as far as the sequence goes; false at the end of the task.
bool Task::NextTile(KvTile& tile) {
  if (next_ >= end_) return false;
  tile.begin = next_;
  tile.pieces = 0;
  int lane = 0;
  while (lane < kAttendTile && place_.run < static_cast<int64_t>(runs_.size())) {
    const KvRun& run = runs_[place_.run];
    const int count = std::min(kAttendTile - lane, run.count - place_.offset);
    if (count > 0) {
      KvPiece& piece = tile.piece[tile.pieces++];
      Fill(run, lane, place_.offset, piece);
      piece.count = count;
    }
    lane += count;
    place_.offset += count;
    if (place_.offset == run.count) place_ = {place_.run + 1, 0};
  }
  next_ += kAttendTile;
  return true;
}

void Task::Run() {
  const bool alone = plan_.stretches == 1;
  // Where splits are kept, the first stretch's merged state is number 0, then one per split.
  const int64_t first_stretch = (LastSplit(plan_) - FirstSplit(plan_)) / plan_.stretches;
  if (!alone && task_.stretch == 0) total_ = Shared(0);
  KvTile tiles[2];
  bool more = NextTile(tiles[0]);
  int at = 0;
  for (int64_t split = task_.first_split; split < task_.last_split; ++split) {
    const bool first = split == task_.first_split;
    SoftmaxStates states = first ? total_ : fresh_;
    if (task_.stretch > 0) states = Shared(1 + split - FirstSplit(plan_) - first_stretch);
    kernels_.start(block_, states);
    while (more && tiles[at].begin < (split + 1) * kAttendSplit) {
      const KvTile& tile = tiles[at];
      more = NextTile(tiles[1 - at]);
      // `end_` cuts behind; what lies before `begin` is skipped here.
      if (tile.begin + kAttendTile > plan_.begin) {
        kernels_.tile(block_, tile, more ? &tiles[1 - at] : nullptr, states);
      }
      at = 1 - at;
    }
    if (!first && task_.stretch == 0) kernels_.merge(block_, total_, fresh_);
  }
  if (alone) {
    kernels_.finish(block_, total_);
  } else if (impl_.left[plan_.counter].fetch_sub(1, std::memory_order_acq_rel) == 1) {
    FinishShared();
  }
}

void Task::FinishShared() {
  const int64_t splits = LastSplit(plan_) - FirstSplit(plan_);
  const int64_t kept = splits - splits / plan_.stretches;
  const SoftmaxStates total = Shared(0);
  for (int64_t n = 1; n <= kept; ++n) kernels_.merge(block_, total, Shared(n));
  kernels_.finish(block_, total);
}

}  // namespace

void CpuAttend(ThreadPool& pool, const AttendKernels& kernels, const AttendArgs& args,
               AttendScratch& scratch) {
  assert(args.group->k_dim % 16 == 0 && args.group->v_dim % 16 == 0);
  Impl& impl = scratch.impl();
  impl.blocks.clear();
  impl.tasks.clear();
  FindSplits(args, impl);
  for (size_t s = 0; s < args.sequences.size(); ++s) AddBlocks(args, static_cast<int>(s), impl);
  if (impl.blocks.empty()) return;
  int64_t rows = 0, work = 0;
  for (const BlockPlan& block : impl.blocks) {
    rows = std::max<int64_t>(rows, block.positions);
    work += block.work;
  }
  rows *= args.q_heads / args.group->heads;
  const int threads = pool.threads();
  const bool alone = work * (args.group->k_dim + args.group->v_dim) < kAloneBelow;
  CutBlocks(args, work, alone || threads == 1 ? 1 : threads * kTasksPerThread, impl);
  impl.thread.resize(std::max<size_t>(impl.thread.size(), threads));
  const int64_t floats = ThreadLayout(rows, *args.group).total;
  for (Floats& thread : impl.thread) thread.Reserve(floats);

  const auto run = [&](int64_t task, int thread) {
    Task(args, kernels, impl.tasks[task], impl, impl.thread[thread].data(), rows).Run();
  };
  const int64_t tasks = static_cast<int64_t>(impl.tasks.size());
  if (!alone) {
    pool.Run(tasks, run);
    return;
  }
  const auto run_all = [&](int64_t, int thread) {
    for (int64_t task = 0; task < tasks; ++task) run(task, thread);
  };
  pool.Run(1, run_all);
}

}  // namespace holdfast
