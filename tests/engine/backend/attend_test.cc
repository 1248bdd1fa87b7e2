// Attention at every level against the reference, to the bit (NaN made canonical). Slots that no
// run uses, and every byte around them, hold NaN, infinities and -0.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <complex>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "engine/backend/backend.h"
#include "engine/backend/cpu/attend.h"
#include "engine/backend/cpu/levels.h"
#include "engine/backend/cpu/thread_pool.h"
#include "engine/backend/half.h"
#include "engine/backend/reference/reference.h"

namespace holdfast {
namespace {

size_t FirstDifference(const std::vector<float>& a, const std::vector<float>& b) {
  size_t at = 0;
  while (at < a.size() && std::bit_cast<uint32_t>(a[at]) == std::bit_cast<uint32_t>(b[at])) ++at;
  return at;
}

struct Shape {
  KvType k_type = KvType::kF16, v_type = KvType::kF16;
  int k_dim = 64, v_dim = 64;
  int kv_heads = 1, per_kv_head = 3;
  int window = 0;
  int rope_dim = 0;  // 0 = k_dim
};

enum class Cut {
  kWhole,       // full pages and a partial last one, at home
  kMoved,       // the same, some of them from elsewhere: more shifts than a block keeps queries for
  kMisaligned,  // runs of any count, first slot and shift
  kAgain        // the same, often in the page of the run before
};

// Some sequences, their pages and the rows that look at them.
class Scene {
 public:
  Scene(const Shape& shape, uint32_t seed) : shape_(shape), random_(seed) {
    group_.layers = 2;
    group_.heads = shape.kv_heads;
    group_.k_dim = shape.k_dim;
    group_.v_dim = shape.v_dim;
    group_.k_type = shape.k_type;
    group_.v_type = shape.v_type;
    group_.window = shape.window;
    rope_ = std::make_unique<RopeTable>(shape.rope_dim > 0 ? shape.rope_dim : shape.k_dim, 10000.0,
                                        std::vector<double>());
  }

  int Below(int n) { return static_cast<int>(random_() % static_cast<uint32_t>(n)); }

  Scene& Sequence(int length, Cut cut, std::vector<int32_t> positions) {
    return Branch(-1, 0, length, cut, std::move(positions));
  }

  // A sequence that begins with the first runs of another, `shared` tokens of them or a few less,
  // shifted by so much more.
  Scene& Branch(int of, int shared, int length, Cut cut, std::vector<int32_t> positions,
                int shift = 0) {
    Part part;
    int index = 0;
    for (size_t r = 0; of >= 0 && r < parts_[of].runs.size(); ++r) {
      const KvRun& run = parts_[of].runs[r];
      if (index + run.count > std::min(shared, length)) break;
      part.runs.push_back(run);
      part.runs.back().shift += shift;
      index += run.count;
    }
    while (index < length) {
      KvRun run;
      run.count = std::min(length - index, kPageTokens);
      if (cut == Cut::kMisaligned || cut == Cut::kAgain) {
        run.count = std::min(run.count, 1 + Below(Below(3) == 0 ? 4 : kPageTokens));
        run.first = Below(kPageTokens - run.count + 1);
        const int kind = Below(4);
        if (kind == 0) run.shift = Below(index + 1);
        if (kind == 1) run.shift = -Below(200);
        // Often the shift of the run before, as spans of several pages have.
        if (kind == 2 && index > 0) run.shift = part.runs.back().shift;
      } else if (cut == Cut::kMoved) {
        run.shift = -kPageTokens * Below(8);
      }
      if (cut != Cut::kAgain) {
        run.page = NewPage(run);
      } else if (index > 0 && Below(2) == 0) {
        run.page = part.runs.back().page;
      } else {
        run.page = NewPage({.page = nullptr, .first = 0, .count = kPageTokens, .shift = 0});
      }
      part.runs.push_back(run);
      index += run.count;
    }
    part.position = std::move(positions);
    for (size_t i = 0; i < part.position.size(); ++i) part.row.push_back(rows_++);
    parts_.push_back(std::move(part));
    rope_->Reserve(length + 512);
    return *this;
  }

  // Gives the rows other places in q and out.
  void ShuffleRows() {
    std::vector<int32_t> order(rows_);
    for (int i = 0; i < rows_; ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random_);
    for (Part& part : parts_) {
      for (int32_t& row : part.row) row = order[row];
    }
  }

  std::vector<float>& Query() {
    if (q_.empty()) {
      q_.resize(int64_t{rows_} * QHeads() * shape_.k_dim);
      std::normal_distribution<float> normal(0, 3);
      for (float& x : q_) x = normal(random_);
    }
    return q_;
  }

  template <class Fn>
  std::vector<float> Out(const Fn& attend) {
    std::vector<AttendSequence> sequences;
    sequences.reserve(parts_.size());
    for (const Part& part : parts_) sequences.push_back({part.runs, part.row, part.position});
    AttendArgs args;
    args.group = &group_;
    args.layer = 1;
    args.rope = rope_.get();
    args.q_heads = QHeads();
    args.scale = 1.0f / std::sqrt(static_cast<float>(shape_.k_dim));
    args.q = Query().data();
    std::vector<float> out(int64_t{rows_} * QHeads() * shape_.v_dim, -7.0f);
    args.out = out.data();
    args.sequences = sequences;
    attend(args);
    for (float& x : out) {
      if (std::isnan(x)) x = std::bit_cast<float>(0x7fc00000u);
    }
    return out;
  }

  // Compares all levels with the reference, each with every pool of `threads`.
  void Check(const std::vector<int>& threads = {1}) {
    const std::vector<float> want = Out([](const AttendArgs& args) { reference::Attend(args); });
    for (int count : threads) {
      ThreadPool pool(count);
      for (const CpuLevel& level : CpuLevels()) {
        if (!level.present()) continue;
        const std::vector<float> got = Out(
            [&](const AttendArgs& args) { CpuAttend(pool, level.attend(), args, scratch_); });
        REQUIRE(got.size() == want.size());
        const size_t at = FirstDifference(got, want);
        if (at == got.size()) continue;
        CAPTURE(level.name);
        CAPTURE(count);
        CAPTURE(at);
        FAIL("got " << got[at] << ", want " << want[at]);
      }
    }
  }

 private:
  struct Part {
    std::vector<KvRun> runs;
    std::vector<int32_t> row, position;
  };

  int QHeads() const { return shape_.kv_heads * shape_.per_kv_head; }

  void Put(KvType type, std::byte* array, int64_t index, float value) {
    const uint16_t half = FloatToHalf(value);
    if (type == KvType::kI8) {
      const float code = std::isfinite(value) ? std::fmod(value * 40.0f, 128.0f) : -128.0f;
      array[index] = static_cast<std::byte>(static_cast<int8_t>(code));
    } else if (type == KvType::kF32) {
      std::memcpy(array + 4 * index, &value, 4);
    } else {
      std::memcpy(array + 2 * index, &half, 2);
    }
  }

  // A payload of exactly its size, garbage but for the run's slots.
  const std::byte* NewPage(const KvRun& run) {
    constexpr std::array<float, 5> kGarbage = {NAN, INFINITY, -INFINITY, -0.0f, 65504.0f};
    std::vector<std::byte>& page = pages_.emplace_back(group_.PayloadBytes());
    std::normal_distribution<float> normal(0, 1);
    for (int head = 0; head < group_.heads; ++head) {
      std::byte* k = page.data() + group_.HeadOffset(1, head);
      std::byte* v = k + group_.KBytes();
      for (int64_t i = 0; i < int64_t{kPageTokens} * (group_.k_dim + 1); ++i) {
        const int slot = static_cast<int>(i % kPageTokens), d = static_cast<int>(i / kPageTokens);
        const bool used = slot >= run.first && slot < run.first + run.count;
        const float value = used || d == group_.k_dim ? normal(random_) : kGarbage[i / 7 % 5];
        if (d < group_.k_dim) {
          const size_t at = group_.KOffset(d, slot) / KvTypeBytes(group_.k_type);
          Put(group_.k_type, k, static_cast<int64_t>(at), value);
        } else if (group_.k_type == KvType::kI8) {
          Put(KvType::kF32, k + group_.KScaleOffset(slot), 0,
              used ? value * 0.02f : kGarbage[slot % 5]);
        }
      }
      for (int64_t i = 0; i < int64_t{kPageTokens} * group_.v_dim; ++i) {
        const int slot = static_cast<int>(i / group_.v_dim);
        const bool used = slot >= run.first && slot < run.first + run.count;
        Put(group_.v_type, v, i, used ? normal(random_) : kGarbage[i % 5]);
      }
    }
    return page.data();
  }

  Shape shape_;
  std::mt19937 random_;
  LayerGroup group_;
  std::unique_ptr<RopeTable> rope_;
  std::vector<Part> parts_;
  std::vector<std::vector<std::byte>> pages_;
  std::vector<float> q_;
  int32_t rows_ = 0;
  AttendScratch scratch_;
};

// begin, begin + 1, ..., end - 1
std::vector<int32_t> Range(int begin, int end) {
  std::vector<int32_t> out;
  for (int i = begin; i < end; ++i) out.push_back(i);
  return out;
}

TEST_CASE("attend: one row at the end of every length") {
  for (int length = 1; length <= 600; length += length < 70 ? 1 : 1 + length % 23) {
    CAPTURE(length);
    Scene({}, length).Sequence(length, Cut::kWhole, {length - 1}).Check();
  }
}

TEST_CASE("attend: rows of a prompt see their past alone") {
  for (int length : {1, 2, 17, 63, 64, 65, 100}) {
    CAPTURE(length);
    Scene({}, length).Sequence(length, Cut::kWhole, Range(0, length)).Check();
  }
  Scene({.per_kv_head = 7}, 1).Sequence(330, Cut::kWhole, Range(290, 330)).Check();
}

TEST_CASE("attend: dims, dtypes and query heads per KV head") {
  for (KvType k_type : {KvType::kF16, KvType::kF32, KvType::kI8}) {
    for (int dim : {16, 48, 64, 80, 112, 128, 144}) {
      for (int per_kv_head : {1, 3, 6, 7}) {
        Shape shape;
        shape.k_type = k_type;
        shape.v_type = dim % 32 == 0 ? VTypeBeside(k_type) : KvType::kF16;
        shape.k_dim = dim;
        shape.v_dim = per_kv_head == 6 ? 32 : dim;
        shape.kv_heads = 2;
        shape.per_kv_head = per_kv_head;
        shape.rope_dim = dim == 112 ? 56 : 0;
        CAPTURE(dim);
        CAPTURE(per_kv_head);
        Scene(shape, dim).Sequence(100, Cut::kWhole, {99}).Check();
        Scene(shape, dim + 1).Sequence(70, Cut::kMisaligned, Range(66, 70)).Check();
      }
    }
  }
}

TEST_CASE("attend: runs cut and shifted anyhow") {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    Shape shape;
    shape.k_type = std::array{KvType::kF32, KvType::kF16, KvType::kI8}[seed % 3];
    shape.v_type = seed % 4 == 0 ? KvType::kF32 : KvType::kF16;
    shape.k_dim = seed % 5 == 0 ? 128 : 64;
    shape.per_kv_head = std::array{1, 3, 6, 7}[seed % 4];
    Scene scene(shape, seed);
    const int length = 1 + scene.Below(600), rows = 1 + scene.Below(std::min(length, 9));
    scene.Sequence(length, Cut::kMisaligned, Range(length - rows, length)).Check();
  }
}

// Over seeds each type of K, with a number of query heads of its own.
Shape ShapeOfEachType(uint32_t seed) {
  Shape shape;
  shape.k_type = std::array{KvType::kF32, KvType::kF16, KvType::kI8}[seed % 3];
  shape.per_kv_head = std::array{1, 3, 7}[seed % 3];
  return shape;
}

TEST_CASE("attend: pages seen again at other shifts and slots") {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    Shape shape = ShapeOfEachType(seed);
    if (seed % 4 == 0) shape.window = 70;
    Scene scene(shape, seed);
    const int length = 100 + scene.Below(500), rows = 1 + scene.Below(9);
    scene.Sequence(length, Cut::kAgain, Range(length - rows, length)).Check();
  }
}

TEST_CASE("attend: whole pages of many shifts") {
  for (uint32_t seed = 0; seed < 30; ++seed) {
    CAPTURE(seed);
    Shape shape = ShapeOfEachType(seed);
    Scene scene(shape, seed);
    const int length = 300 + scene.Below(600), rows = std::array{1, 3, 40}[scene.Below(3)];
    scene.Sequence(length, Cut::kMoved, Range(length - rows, length)).Check();
  }
}

TEST_CASE("attend: windows, positions in any order, several sequences") {
  for (uint32_t seed = 0; seed < 40; ++seed) {
    CAPTURE(seed);
    Shape shape;
    shape.per_kv_head = std::array{2, 3, 7}[seed % 3];
    shape.kv_heads = 1 + seed % 2;
    Scene dice({}, seed);
    if (seed % 4 != 0) shape.window = std::array{1, 2, 31, 64, 65, 100, 300}[dice.Below(7)];
    Scene scene(shape, seed);
    for (int n = 1 + dice.Below(4); n > 0; --n) {
      const int length = 1 + dice.Below(400);
      std::vector<int32_t> positions;
      for (int i = 1 + dice.Below(12); i > 0; --i) positions.push_back(dice.Below(length));
      scene.Sequence(length, dice.Below(2) == 0 ? Cut::kWhole : Cut::kMisaligned, positions);
    }
    scene.ShuffleRows();
    scene.Check();
  }
}

TEST_CASE("store: INT8 K by hand") {
  LayerGroup group;
  group.layers = group.heads = 1;
  group.k_dim = group.v_dim = 4;
  group.k_type = KvType::kI8;
  RopeTable rope(4, 10000.0, {});
  rope.Reserve(1);  // position 0 turns nothing
  const float k[] = {0.875f, -0.125f, -1.375f, 1.625f}, v[] = {0, 0, 0, 0};  // mixed: 1 -2 0.5 4
  std::vector<std::byte> payload(group.PayloadBytes(), std::byte{0x55});
  std::byte* const page = payload.data();
  const int32_t position = 0, slot = 5;
  uint8_t failed = 0;
  reference::StoreKv({.group = &group, .layer = 0, .rope = &rope, .rows = 1, .k = k, .v = v,
                      .position = &position, .page = &page, .slot = &slot, .row_failed = &failed});
  CHECK(failed == 0);
  CHECK(group.KBytes() == 4 * 32 + 4 * 32);
  constexpr int8_t kCodes[] = {32, -64, 16, 127};  // 31.75, -63.5 (a tie, to even), 15.875, 127
  CHECK(std::memcmp(page + 5 * 4, kCodes, 4) == 0);
  const float scale = 4.0f / 127.0f;
  CHECK(std::memcmp(page + 4 * 32 + 5 * 4, &scale, 4) == 0);
  CHECK(page[4 * 4] == std::byte{0x55});
}

// Scores come back as logarithms of probabilities, since V is the identity.
TEST_CASE("attend: INT8 K is off by half a code of mixed numbers at most") {
  std::mt19937 random(17);
  std::normal_distribution<float> normal(0, 1);
  for (int dim : {16, 48, 64, 20}) {
    CAPTURE(dim);
    constexpr int kTokens = 16;
    LayerGroup group;
    group.layers = group.heads = 1;
    group.k_dim = dim;
    group.v_dim = kTokens;
    group.k_type = KvType::kI8;
    group.v_type = KvType::kF32;
    RopeTable rope(dim, 10000.0, {});
    rope.Reserve(kTokens);
    std::vector<std::byte> payload(group.PayloadBytes());
    std::byte* const page = payload.data();
    std::vector<float> k(dim), q(dim), out(kTokens);
    std::vector<double> want;
    double allowed = 0, length = 0;
    for (int d = 0; d < dim; ++d) q[d] = normal(random), length += q[d] * q[d];
    const float* last = rope.Row(kTokens - 1);
    for (int32_t i = 0; i < kTokens; ++i) {
      for (float& x : k) x = 0.3f * normal(random);
      k[5] += 4.0f;  // an outlier
      std::vector<float> v(kTokens);
      v[i] = 1;
      uint8_t failed = 0;
      reference::StoreKv({.group = &group, .layer = 0, .rope = &rope, .rows = 1, .k = k.data(),
                          .v = v.data(), .position = &i, .page = &page, .slot = &i,
                          .row_failed = &failed});
      REQUIRE(failed == 0);
      float scale;
      std::memcpy(&scale, page + group.KScaleOffset(i), 4);
      const int block = dim & -dim;
      allowed = std::max(allowed, std::sqrt(length * dim / block) * scale / 2);
      double score = 0;
      for (int a = 0, b = dim / 2; b < dim; ++a, ++b) {
        const auto turn = [&](const float* row, const std::vector<float>& x) {
          return std::complex<double>(x[a], x[b]) * std::complex<double>(row[a], row[b]);
        };
        score += (turn(last, q) * std::conj(turn(rope.Row(i), k))).real();
      }
      want.push_back(score);
    }
    const int32_t row = 0, position = kTokens - 1;
    const KvRun run = {.page = page, .first = 0, .count = kTokens, .shift = 0};
    const AttendSequence sequence = {{&run, 1}, {&row, 1}, {&position, 1}};
    reference::Attend({.group = &group, .layer = 0, .rope = &rope, .q_heads = 1, .scale = 1.0f,
                       .q = q.data(), .out = out.data(), .sequences = {&sequence, 1}});
    for (int i = 0; i < kTokens; ++i) {
      const double off = std::log(out[i] / out[0]) - (want[i] - want[0]);
      CHECK(std::abs(off) < 2 * allowed);
    }
  }
}

TEST_CASE("attend: INT8 K under many rows, windows and threads") {
  for (int window : {0, 70}) {
    Shape shape;
    shape.k_type = KvType::kI8;
    shape.per_kv_head = 7;
    shape.kv_heads = 2;
    shape.window = window;
    Scene(shape, 21).Sequence(700, Cut::kWhole, Range(620, 700)).Check({1, 3});
    Scene(shape, 22).Sequence(600, Cut::kMisaligned, Range(560, 600)).Check({3});
  }
}

TEST_CASE("attend: a sequence without rows, and a call without sequences") {
  Scene scene({}, 5);
  scene.Check();
  scene.Sequence(40, Cut::kWhole, {}).Sequence(50, Cut::kWhole, {49}).Check();
}

TEST_CASE("attend: the cut among threads shows nowhere") {
  Shape shape;
  shape.per_kv_head = 7;
  shape.kv_heads = 2;
  Scene(shape, 1).Sequence(2000, Cut::kWhole, {1999}).Check({1, 2, 3, 4});
  Scene(shape, 2).Sequence(1300, Cut::kMisaligned, {1299, 100, 257, 0}).Check({1, 2, 3, 4});
  Scene(shape, 3)
      .Sequence(700, Cut::kMisaligned, {699})
      .Sequence(10, Cut::kWhole, {9})
      .Sequence(1025, Cut::kWhole, {1023, 1024})
      .Check({2, 4});
  shape.window = 700;
  Scene(shape, 4).Sequence(2000, Cut::kMisaligned, Range(1990, 2000)).Check({1, 3});
  shape.window = 0;
  shape.k_dim = shape.v_dim = 16;
  shape.per_kv_head = 2;
  Scene(shape, 5).Sequence(250, Cut::kWhole, Range(0, 250)).Check({3});
}

TEST_CASE("attend: sequences that begin in the same pages") {
  for (uint32_t seed = 0; seed < 60; ++seed) {
    CAPTURE(seed);
    Shape shape = ShapeOfEachType(seed);
    shape.kv_heads = 1 + seed % 2;
    if (seed % 10 == 9) shape.window = 300;
    Scene dice({}, seed);
    const Cut cuts[] = {Cut::kWhole, Cut::kMoved, Cut::kMisaligned};
    const Cut cut = cuts[seed % 3];
    Scene scene(shape, seed);
    std::vector<int> lengths;
    for (int n = 0, count = 2 + dice.Below(6); n < count; ++n) {
      const int of = n == 0 || dice.Below(6) == 0 ? -1 : dice.Below(n);
      const int shared = of < 0 ? 0 : std::min(lengths[of], 200 + dice.Below(1000));
      const int length = shared + 1 + dice.Below(n == 0 ? 1500 : 500);
      const int rows = std::array{1, 1, 1, 3, 20}[dice.Below(5)];
      std::vector<int32_t> positions = Range(std::max(0, length - rows), length);
      if (dice.Below(8) == 0) positions.push_back(dice.Below(length));  // may see less than others
      scene.Branch(of, shared, length, cut, positions, dice.Below(5) == 0 ? -32 : 0);
      lengths.push_back(length);
    }
    scene.ShuffleRows();
    scene.Check({1, 3});
  }
}

TEST_CASE("attend: more sequences on one beginning than a block has rows for") {
  Shape shape;
  shape.per_kv_head = 7;
  Scene scene(shape, 3);
  scene.Sequence(1100, Cut::kWhole, {1099});
  for (int n = 0; n < 40; ++n) scene.Branch(0, 1024, 1030 + n, Cut::kWhole, {1029 + n});
  scene.Check({1, 4});
}

TEST_CASE("attend: queries that are huge or not finite") {
  for (float special : {NAN, INFINITY, -INFINITY, 3e38f, -3e38f, 1e19f, -0.0f, 1e-40f}) {
    CAPTURE(special);
    for (KvType k_type : {KvType::kF16, KvType::kI8}) {
      Scene scene({.k_type = k_type}, 9);
      scene.Sequence(300, Cut::kWhole, {299, 130, 5}).Sequence(70, Cut::kMisaligned, {69});
      std::vector<float>& q = scene.Query();
      for (size_t i = 0; i < q.size(); i += 37) q[i] = special;
      scene.Check();
    }
  }
}

TEST_CASE("attend: scores far apart, so that rescaling and vanishing weights occur") {
  for (float factor : {0.0f, 1e-3f, 10.0f, 40.0f}) {
    CAPTURE(factor);
    Scene scene({.per_kv_head = 6}, 11);
    scene.Sequence(520, Cut::kWhole, {519, 518, 300, 64, 63});
    for (float& x : scene.Query()) x *= factor;
    scene.Check();
  }
}

}  // namespace
}  // namespace holdfast
