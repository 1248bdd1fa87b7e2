// Plans an attention call as tasks and walks each task's runs tile by tile; the arithmetic is in
// attend_kernels.h.
//
// A *block* is some query rows for one KV head, as a rule of one sequence. Usually a task is a
// block over all that it sees; its splits are merged as they come. Where that gives too few tasks
// for the threads, a block's splits are shared out in *stretches*. Merging goes left to right and
// is not associative, so only a block's first stretch may merge its splits at once; the others
// leave one state per split in `Impl::shared`, and whoever ends the last stretch merges them all.
//
// Sequences whose first splits lie in the same pages (agents behind one prompt, forks) go through
// those as one *common* block, so that the pages are read, and K and V converted, once for all of
// them. Each one's *own* block begins behind it, and its splits are merged onto its rows of the
// common block's states. A row's chains are the same either way.
#include "engine/backend/cpu/attend.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <cstdlib>
#include <new>
#include <utility>
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
  int sequence = 0;                   // whose runs are read
  const int32_t* row = nullptr;       // [positions], as in AttendSequence
  const int32_t* position = nullptr;
  int positions = 0;
  int head = 0;                       // KV head
  int64_t begin = 0, end = 0;         // indices that any row sees, and that are read here
  int stretches = 1;
  int64_t work = 0;                   // pairs of query row and index
  int members = 0;                    // of a common block: sequences with rows in it
  int common = -1;                    // of an own block behind one: which
  int common_position = 0;            // and the first of its positions there
  // Of a block whose states other tasks need:
  int64_t merged = 0;                 // splits that its first stretch merges at once
  int64_t shared = 0;                 // its first state in Impl::shared
  int64_t counter = 0;                // its entry of Impl::left, where it is not a common block

  int64_t FirstSplit() const { return begin / kAttendSplit; }
  int64_t LastSplit() const { return (end + kAttendSplit - 1) / kAttendSplit; }
  bool shares() const { return stretches > 1 || members > 0 || common >= 0; }
  // Its states in Impl::shared: that of the merged splits, which an own block has none of, then one
  // for each further split.
  int64_t first_state() const { return common < 0 ? 1 : 0; }
  int64_t states() const { return first_state() + LastSplit() - FirstSplit() - merged; }
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

}  // namespace

struct AttendScratch::Impl {
  std::vector<char> is_planned;      // [sequences]
  std::vector<std::pair<int64_t, int>> alike;  // sequences that share pages with one, and splits
  std::vector<int32_t> row, position;  // of the common blocks
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

int GroupOf(const AttendArgs& args) { return args.q_heads / args.group->heads; }
int MostPositions(const AttendArgs& args) { return std::max(1, kBlockRows / GroupOf(args)); }

// Plans `plan`, of which rows and runs are set, for every KV head.
void AddBlock(const AttendArgs& args, BlockPlan plan, Impl& impl) {
  for (plan.head = 0; plan.head < args.group->heads; ++plan.head) {
    impl.blocks.push_back(plan);
    if (plan.common >= 0) ++plan.common;
  }
}

// The blocks of sequence `s`, for the indices from `from` on. `behind`: of a common block, the
// number of the first head's, or -1.
void AddBlocks(const AttendArgs& args, int s, int64_t from, int behind, int common_position,
               Impl& impl) {
  const AttendSequence& sequence = args.sequences[s];
  const int group = GroupOf(args), window = args.group->window;
  const int rows = static_cast<int>(sequence.row.size());
  const int most = MostPositions(args), blocks = (rows + most - 1) / most;
  for (int b = blocks - 1; b >= 0; --b) {  // of a prefill, the long ones first
    const int first = static_cast<int>(int64_t{rows} * b / blocks);
    BlockPlan plan;
    plan.sequence = s;
    plan.row = sequence.row.data() + first;
    plan.position = sequence.position.data() + first;
    plan.positions = static_cast<int>(int64_t{rows} * (b + 1) / blocks) - first;
    plan.begin = INT64_MAX;
    plan.common = behind;
    plan.common_position = common_position;
    for (int n = 0; n < plan.positions; ++n) {
      const int64_t end = int64_t{plan.position[n]} + 1;
      const int64_t begin = std::max(from, window > 0 ? end - window : 0);
      plan.begin = std::min(plan.begin, begin);
      plan.end = std::max(plan.end, end);
      plan.work += (end - begin) * group;
    }
    AddBlock(args, plan, impl);
  }
}

// Splits at the front that every row of a sequence sees whole, with something left behind them; 0:
// its rows are too many to go with others', or it sees through a window.
int64_t SplitsToShare(const AttendArgs& args, const AttendSequence& sequence) {
  const auto rows = static_cast<int64_t>(sequence.position.size());
  if (args.group->window > 0 || rows == 0 || 2 * rows > MostPositions(args)) return 0;
  return *std::min_element(sequence.position.begin(), sequence.position.end()) / kAttendSplit;
}

bool IsSameRun(const KvRun& a, const KvRun& b) {
  return a.page == b.page && a.first == b.first && a.count == b.count && a.shift == b.shift;
}

// Splits at the front, up to `most`, that two sequences have in the same pages.
int64_t SharedSplits(std::span<const KvRun> a, std::span<const KvRun> b, int64_t most) {
  int64_t tokens = 0;
  for (size_t r = 0; r < std::min(a.size(), b.size()) && tokens < most * kAttendSplit; ++r) {
    if (!IsSameRun(a[r], b[r])) break;
    tokens += a[r].count;
  }
  return std::min(most, tokens / kAttendSplit);
}

// Plans sequence `s`, and those that go through their first splits with it: as many of them, for as
// many splits, as save most.
void AddSequence(const AttendArgs& args, int s, Impl& impl) {
  const AttendSequence& sequence = args.sequences[s];
  const int64_t most = SplitsToShare(args, sequence);
  impl.alike.clear();
  for (int t = s + 1; most > 0 && t < static_cast<int>(args.sequences.size()); ++t) {
    if (impl.is_planned[t]) continue;
    const AttendSequence& other = args.sequences[t];
    const int64_t splits = SharedSplits(sequence.runs, other.runs,
                                        std::min(most, SplitsToShare(args, other)));
    if (splits > 0) impl.alike.push_back({-splits, t});
  }
  std::sort(impl.alike.begin(), impl.alike.end());
  size_t count = 0;
  int64_t splits = 0, saved = 0;
  auto positions = static_cast<int64_t>(sequence.row.size());
  for (size_t n = 0; n < impl.alike.size(); ++n) {
    positions += static_cast<int64_t>(args.sequences[impl.alike[n].second].row.size());
    if (positions > MostPositions(args)) break;
    const int64_t here = -impl.alike[n].first, saves = here * static_cast<int64_t>(n + 1);
    if (saves > saved) saved = saves, splits = here, count = n + 1;
  }
  if (count == 0) return AddBlocks(args, s, 0, -1, 0, impl);
  impl.alike.resize(count);
  impl.alike.insert(impl.alike.begin(), {0, s});
  BlockPlan plan;
  plan.sequence = s;
  plan.row = impl.row.data() + impl.row.size();  // reserved: see PlanBlocks
  plan.position = impl.position.data() + impl.position.size();
  plan.members = static_cast<int>(impl.alike.size());
  plan.end = splits * kAttendSplit;
  for (const auto& [unused, t] : impl.alike) {
    const AttendSequence& member = args.sequences[t];
    impl.row.insert(impl.row.end(), member.row.begin(), member.row.end());
    impl.position.insert(impl.position.end(), member.position.begin(), member.position.end());
    plan.positions += static_cast<int>(member.row.size());
  }
  plan.work = plan.end * plan.positions * GroupOf(args);
  const int common = static_cast<int>(impl.blocks.size());
  AddBlock(args, plan, impl);
  int position = 0;
  for (const auto& [unused, t] : impl.alike) {  // in the order that Task::Done counts on
    impl.is_planned[t] = true;
    AddBlocks(args, t, plan.end, common, position, impl);
    position += static_cast<int>(args.sequences[t].row.size());
  }
}

void PlanBlocks(const AttendArgs& args, Impl& impl) {
  size_t rows = 0;
  for (const AttendSequence& sequence : args.sequences) rows += sequence.row.size();
  impl.row.clear();
  impl.position.clear();
  impl.row.reserve(rows);  // blocks point into them
  impl.position.reserve(rows);
  impl.is_planned.assign(args.sequences.size(), false);
  for (size_t s = 0; s < args.sequences.size(); ++s) {
    if (!impl.is_planned[s]) AddSequence(args, static_cast<int>(s), impl);
  }
}

// Makes the tasks: blocks, cut into stretches where there are fewer blocks than `tasks_wanted`.
// `work` is the sum over the blocks.
void CutBlocks(const AttendArgs& args, int64_t work, int64_t tasks_wanted, Impl& impl) {
  int64_t shared = 0, counters = 0;
  for (size_t b = 0; b < impl.blocks.size(); ++b) {
    BlockPlan& block = impl.blocks[b];
    const int64_t first = block.FirstSplit(), splits = block.LastSplit() - first;
    if (static_cast<int64_t>(impl.blocks.size()) < tasks_wanted || block.members > 0) {
      const int64_t share = (block.work * tasks_wanted + work - 1) / work;
      block.stretches = static_cast<int>(std::clamp<int64_t>(share, 1, splits));
    }
    for (int i = 0; i < block.stretches; ++i) {
      impl.tasks.push_back({static_cast<int>(b), i, first + splits * i / block.stretches,
                            first + splits * (i + 1) / block.stretches});
    }
    if (!block.shares()) continue;
    if (block.common < 0) block.merged = splits / block.stretches;
    if (block.members == 0) block.counter = counters++;
    block.shared = shared;
    shared += block.states() *
              RoundUp16(StateFloats(block.positions * GroupOf(args), args.group->v_dim));
  }
  impl.shared.Reserve(shared);
  if (counters > impl.left_size) {
    impl.left = std::make_unique<std::atomic<int>[]>(counters);
    impl.left_size = counters;
  }
  for (const BlockPlan& block : impl.blocks) {
    if (!block.shares() || block.members > 0) continue;
    const int before = block.common < 0 ? 0 : impl.blocks[block.common].stretches;
    impl.left[block.counter].store(before + block.stretches, std::memory_order_relaxed);
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

// Without scratch.
AttendBlock BlockOf(const AttendArgs& args, const BlockPlan& plan) {
  const LayerGroup& group = *args.group;
  const int64_t first_head = int64_t{plan.head} * GroupOf(args);
  AttendBlock block;
  block.k_dim = group.k_dim;
  block.v_dim = group.v_dim;
  block.k_type = group.k_type;
  block.v_type = group.v_type;
  block.group = GroupOf(args);
  block.positions = plan.positions;
  block.position = plan.position;
  block.row = plan.row;
  block.window = group.window;
  block.q = args.q + first_head * group.k_dim;
  block.q_stride = int64_t{args.q_heads} * group.k_dim;
  block.out = args.out + first_head * group.v_dim;
  block.out_stride = int64_t{args.q_heads} * group.v_dim;
  block.scale = args.scale;
  block.table = args.rope->Row(0);
  block.rope_dim = args.rope->dim();
  block.table_rows = args.rope->positions();
  return block;
}

class Task {
 public:
  Task(const AttendArgs& args, const AttendKernels& kernels, const TaskPlan& task, Impl& impl,
       float* scratch, int64_t most_rows);
  void Run();

 private:
  void Fill(const KvRun& run, int lane, int offset, KvPiece& piece) const;
  bool NextTile(KvTile& tile);
  void Done(int block);
  void FinishShared(const BlockPlan& plan);
  SoftmaxStates Shared(const BlockPlan& plan, int64_t n, int64_t row) const;

  const AttendArgs& args_;
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
    : args_(args), kernels_(kernels), task_(task), plan_(impl.blocks[task.block]),
      group_(*args.group), runs_(args.sequences[plan_.sequence].runs), impl_(impl),
      block_(BlockOf(args, plan_)) {
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

// State `n` of a block, from query row `row` on.
SoftmaxStates Task::Shared(const BlockPlan& plan, int64_t n, int64_t row) const {
  const int64_t rows = int64_t{plan.positions} * block_.group;
  const int64_t floats = RoundUp16(StateFloats(rows, group_.v_dim));
  SoftmaxStates states = StatesAt(impl_.shared.data() + plan.shared + n * floats, rows,
                                  group_.v_dim);
  states.m += row;
  states.l += row * kAttendTile;
  states.o += row * group_.v_dim;
  states.seen += row;
  return states;
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
  const bool merges = task_.stretch == 0 && plan_.common < 0;  // its splits, as they come
  if (merges && plan_.shares()) total_ = Shared(plan_, 0, 0);
  KvTile tiles[2];
  bool more = NextTile(tiles[0]);
  int at = 0;
  for (int64_t split = task_.first_split; split < task_.last_split; ++split) {
    const bool first = split == task_.first_split;
    SoftmaxStates states = first ? total_ : fresh_;
    if (!merges) {
      const int64_t n = split - plan_.FirstSplit() - plan_.merged;
      states = Shared(plan_, plan_.first_state() + n, 0);
    }
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
    if (!first && merges) kernels_.merge(block_, total_, fresh_);
  }
  if (!plan_.shares()) return kernels_.finish(block_, total_);
  if (plan_.members == 0) return Done(task_.block);
  for (int n = 1; n <= plan_.members; ++n) Done(task_.block + n * group_.heads);
}

// A task that `block`'s rows wait for has ended; the last one finishes them.
void Task::Done(int block) {
  const BlockPlan& plan = impl_.blocks[block];
  if (impl_.left[plan.counter].fetch_sub(1, std::memory_order_acq_rel) == 1) FinishShared(plan);
}

void Task::FinishShared(const BlockPlan& plan) {
  const AttendBlock block = BlockOf(args_, plan);
  const BlockPlan& front = plan.common < 0 ? plan : impl_.blocks[plan.common];
  const int64_t row = plan.common < 0 ? 0 : int64_t{plan.common_position} * block.group;
  const SoftmaxStates total = Shared(front, 0, row);
  for (int64_t n = 1; n < front.states(); ++n) kernels_.merge(block, total, Shared(front, n, row));
  if (plan.common >= 0) {
    for (int64_t n = 0; n < plan.states(); ++n) kernels_.merge(block, total, Shared(plan, n, 0));
  }
  kernels_.finish(block, total);
}

}  // namespace

void CpuAttend(ThreadPool& pool, const AttendKernels& kernels, const AttendArgs& args,
               AttendScratch& scratch) {
  assert(args.group->k_dim % 16 == 0 && args.group->v_dim % 16 == 0);
  Impl& impl = scratch.impl();
  impl.blocks.clear();
  impl.tasks.clear();
  FindSplits(args, impl);
  PlanBlocks(args, impl);
  if (impl.blocks.empty()) return;
  int64_t rows = 0, work = 0;
  for (const BlockPlan& block : impl.blocks) {
    rows = std::max<int64_t>(rows, block.positions);
    work += block.work;
  }
  rows *= GroupOf(args);
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
