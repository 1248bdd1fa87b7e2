#include "tests/engine/backend/contract.h"

#include <doctest/doctest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <iostream>
#include <limits>

#include "engine/backend/reference/reference.h"
#include "tests/engine/backend/fixtures.h"

namespace holdfast {
namespace testing {
namespace {

constexpr Numbers kFinite[] = {Numbers::kPlain, Numbers::kWide, Numbers::kExtreme};
constexpr Numbers kAll[] = {Numbers::kPlain, Numbers::kWide, Numbers::kExtreme, Numbers::kPoison};
constexpr float kUnwritten = -12345.0f;  // what no operation may touch

#define CHECK_SAME(got, want) CHECK_MESSAGE(Difference(got, want).empty(), Difference(got, want))

std::span<const float> Rows(const std::vector<float>& x, int64_t begin, int64_t rows, int64_t cols) {
  return std::span(x).subspan(begin * cols, rows * cols);
}

void CheckPackRefusals(Backend& backend) {
  const std::byte data[512] = {};
  const WeightSource bad[] = {
      {WeightType::kQ8_0, 0, 32, data},      {WeightType::kQ8_0, 1, 0, data},
      {WeightType::kQ8_0, 1, 33, data},      {WeightType::kQ4_K, 1, 128, data},
      {WeightType::kQ6_K, 1, 32, data},      {WeightType::kF16, -1, 4, data},
      {WeightType::kF32, 1, 4, nullptr},     {static_cast<WeightType>(5), 1, 32, data},
      {static_cast<WeightType>(99), 1, 32, data},
  };
  for (const WeightSource& source : bad) {
    CAPTURE(static_cast<uint32_t>(source.type));
    CAPTURE(source.inputs);
    const auto weight = backend.Pack(source);
    REQUIRE(!weight.ok());
    CHECK(weight.status().code() == Code::kInvalid);
    CHECK(!weight.status().message().empty());
  }
}

void CheckEmbed(Backend& backend) {
  Random random(1);
  for (WeightType type : AllWeightTypes()) {
    for (int64_t blocks : {1, 3}) {
      const int64_t inputs = blocks * WeightBlock(type).elements * (NeedsQuantized(type) ? 1 : 37);
      const TestMatrix m(random, type, 37, inputs, blocks == 1 ? Numbers::kExtreme : Numbers::kPlain);
      const auto weight = backend.Pack(m.Source());
      const auto want_weight = reference::Pack(m.Source());
      REQUIRE(weight.ok());
      CHECK(weight.value()->bytes() > 0);
      std::vector<TokenId> ids;
      for (int i = 0; i < 70; ++i) ids.push_back(static_cast<TokenId>(random.Below(37)));
      std::vector<float> got(ids.size() * inputs), want(got.size());
      backend.Embed(**weight, ids, got.data());
      reference::Embed(**want_weight, ids, want.data());
      CAPTURE(WeightTypeName(type));
      CHECK_SAME(got, want);
    }
  }
}

// Compares one row of `got` with one row of `want`.
bool SameQuantizedRow(const QuantizedRows& got, const QuantizedRows& want, int64_t r) {
  const int64_t groups = want.cols / kQuantGroup, at = r * groups;
  return std::memcmp(&got.q[r * want.cols], &want.q[r * want.cols], want.cols) == 0 &&
         std::memcmp(&got.scale[at], &want.scale[at], groups * sizeof(float)) == 0 &&
         std::memcmp(&got.sum_lo[at], &want.sum_lo[at], groups * sizeof(int32_t)) == 0 &&
         std::memcmp(&got.sum_hi[at], &want.sum_hi[at], groups * sizeof(int32_t)) == 0;
}

// What an operation of the backend that is given a target makes of it must be `x` quantised.
void CheckQuantized(const std::vector<float>& x, int64_t rows, int64_t cols,
                    const std::function<void(const QuantizeTarget& to)>& operation) {
  QuantizedRows got, want;
  std::vector<uint8_t> got_failed(rows), want_failed(rows);
  got_failed[0] = want_failed[0] = 1;  // never cleared
  reference::Quantize({rows, cols, x.data(), {&want, want_failed.data()}});
  operation({&got, got_failed.data()});
  CAPTURE(rows);
  CAPTURE(cols);
  CHECK(got.rows == want.rows);
  CHECK(got.cols == want.cols);
  CHECK(got_failed == want_failed);
  for (int64_t r = 0; r < rows; ++r) {
    if (r > 0 && want_failed[r]) continue;
    CAPTURE(r);
    CHECK(SameQuantizedRow(got, want, r));
  }
}

void CheckQuantizeCase(Backend& backend, const std::vector<float>& x, int64_t rows, int64_t cols) {
  CheckQuantized(x, rows, cols, [&](const QuantizeTarget& to) {
    backend.Quantize({rows, cols, x.data(), to});
  });
}

void CheckRmsNorm(Backend& backend) {
  Random random(2);
  for (Numbers numbers : kAll) {
    for (int64_t cols : {1, 7, 63, 64, 65, 128, 200, 576, 896, 4099}) {
      const int64_t rows = cols > 1000 ? 9 : 1 + random.Below(70);
      const std::vector<float> x = RandomFloats(random, rows * cols, numbers);
      const std::vector<float> w = RandomFloats(random, cols, Numbers::kWide);
      std::vector<float> want(x.size()), got(x.size()), in_place = x;
      reference::RmsNorm({rows, cols, x.data(), w.data(), 1e-5f, want.data()});
      backend.RmsNorm({rows, cols, x.data(), w.data(), 1e-5f, got.data()});
      CAPTURE(cols);
      CheckQuantized(want, rows, cols, [&](const QuantizeTarget& to) {
        backend.RmsNorm({rows, cols, in_place.data(), w.data(), 1e-5f, in_place.data(), to});
      });
      CHECK_SAME(got, want);
      CHECK_SAME(in_place, want);
    }
  }
}

void CheckQuantize(Backend& backend) {
  Random random(3);
  for (Numbers numbers : kFinite) {
    for (int64_t cols : {1, 15, 16, 17, 31, 32, 33, 100, 896, 4864}) {
      const int64_t rows = 1 + random.Below(70);
      std::vector<float> x = RandomFloats(random, rows * cols, numbers);
      CheckQuantizeCase(backend, x, rows, cols);
      // One bad number fails its own row alone.
      for (int64_t r = 1; r < rows; r += 3) {
        constexpr float kInf = std::numeric_limits<float>::infinity();
        constexpr float kBad[] = {NAN, kInf, -kInf};
        x[r * cols + random.Below(cols)] = kBad[random.Below(3)];
      }
      CheckQuantizeCase(backend, x, rows, cols);
    }
  }
  // The edge of "all zero", and ties that round to even.
  std::vector<float> edge;
  for (float amax : {0x1.0p-100f, 0x1.fffffep-101f, 0x1.0p-126f, 127.0f, 254.0f, 63.5f}) {
    for (int i = 0; i < 32; ++i) {
      edge.push_back(i == 0 ? amax : (static_cast<float>(i) - 15.5f) / 127.0f * amax);
    }
  }
  CheckQuantizeCase(backend, edge, 6, 32);
}

QuantizedRows FirstRows(const QuantizedRows& all, int64_t rows) {
  QuantizedRows some = all;
  some.Resize(rows, all.cols);  // a shorter prefix of every array
  return some;
}

std::vector<int64_t> UpTo(int64_t rows) {
  std::vector<int64_t> counts;
  for (int64_t n = 1; n <= rows; ++n) counts.push_back(n);
  return counts;
}

// Calls of fewer rows give the first rows of the largest call: rows are computed alone.
void CheckMatMulCase(Backend& backend, const TestMatrix& m, const std::vector<float>& x,
                     const std::vector<int64_t>& row_counts) {
  const int64_t max_rows = row_counts.back();
  const auto weight = backend.Pack(m.Source());
  const auto want_weight = reference::Pack(m.Source());
  REQUIRE(weight.ok());
  CHECK(weight.value()->outputs() == m.outputs);
  CHECK(weight.value()->inputs() == m.inputs);
  Random random(max_rows);
  const bool quantized = NeedsQuantized(m.type);
  const QuantizedRows xq = quantized ? QuantizeRows(x, max_rows, m.inputs) : QuantizedRows();
  const std::vector<float> bias = RandomFloats(random, m.outputs, Numbers::kPlain);
  std::vector<float> want(max_rows * m.outputs);
  reference::MatMul({.w = want_weight->get(), .rows = max_rows, .x = x.data(), .xq = &xq,
                     .bias = bias.data(), .y = want.data(), .y_stride = m.outputs});
  CAPTURE(WeightTypeName(m.type));
  CAPTURE(m.outputs);
  CAPTURE(m.inputs);
  const int64_t stride = m.outputs + 3;
  for (int64_t rows : row_counts) {
    const QuantizedRows some = quantized ? FirstRows(xq, rows) : QuantizedRows();
    std::vector<float> y(rows * stride, kUnwritten), got(rows * m.outputs);
    backend.MatMul({.w = weight->get(), .rows = rows, .x = x.data(), .xq = &some,
                    .bias = bias.data(), .y = y.data(), .y_stride = stride});
    bool gaps_kept = true;
    for (int64_t r = 0; r < rows; ++r) {
      std::copy_n(&y[r * stride], m.outputs, &got[r * m.outputs]);
      for (int64_t i = m.outputs; i < stride; ++i) gaps_kept &= y[r * stride + i] == kUnwritten;
    }
    CAPTURE(rows);
    CHECK(gaps_kept);
    CHECK_SAME(got, Rows(want, 0, rows, m.outputs));
  }
}

void CheckMatMul(Backend& backend) {
  Random random(4);
  for (WeightType type : AllWeightTypes()) {
    const int64_t block = WeightBlock(type).elements;
    const bool quantized = NeedsQuantized(type);
    for (Numbers numbers : kFinite) {
      for (int64_t outputs : {1, 15, 16, 17, 47, 64, 129}) {
        for (int64_t inputs : {1, 33, 512, 513, 1024, 1300, 2304}) {
          if (random.Skips()) continue;
          if (quantized) inputs = (inputs + block - 1) / block * block;
          const bool many = random.OneIn(8);
          const int64_t rows = many ? 70 : 1 + random.Below(6);
          const TestMatrix m(random, type, outputs, inputs, numbers);
          CheckMatMulCase(backend, m, RandomFloats(random, rows * inputs, numbers), UpTo(rows));
        }
      }
    }
    // Rows that hold NaN and infinity: only float weights see them.
    if (!quantized) {
      const TestMatrix m(random, type, 40, 700);
      std::vector<float> x = RandomFloats(random, 9 * 700, Numbers::kPlain);
      for (int i = 0; i < 5; ++i) x[random.Below(9 * 700)] = RandomFloat(random, Numbers::kPoison);
      CheckMatMulCase(backend, m, x, UpTo(9));
    }
  }
}

// More rows than fit any block of rows, and more outputs than threads.
void CheckMatMulOfManyRows(Backend& backend) {
  Random random(11);
  for (WeightType type : AllWeightTypes()) {
    if (random.Skips()) continue;
    const int64_t inputs = WeightBlock(type).elements == 1 ? 65 : 256;
    const TestMatrix m(random, type, 21, inputs);
    CheckMatMulCase(backend, m, RandomFloats(random, 1040 * inputs, Numbers::kPlain),
                    {384, 385, 513, 1040});
  }
}

void CheckNoBias(Backend& backend) {
  Random random(5);
  for (WeightType type : AllWeightTypes()) {
    const TestMatrix m(random, type, 40, 2048);
    const auto weight = backend.Pack(m.Source());
    const auto want_weight = reference::Pack(m.Source());
    REQUIRE(weight.ok());
    const std::vector<float> x = RandomFloats(random, 5 * 2048, Numbers::kPlain);
    const QuantizedRows xq = QuantizeRows(x, 5, 2048);
    std::vector<float> got(5 * 40), want(got.size());
    MatMulArgs args = {.w = weight->get(), .rows = 5, .x = x.data(), .xq = &xq, .y = got.data(),
                       .y_stride = 40};
    backend.MatMul(args);
    args.w = want_weight->get();
    args.y = want.data();
    reference::MatMul(args);
    CAPTURE(WeightTypeName(type));
    CHECK_SAME(got, want);
  }
}

// Every type beside every other kind, over the same rows: each product is as if it were alone.
void CheckMatMuls(Backend& backend) {
  Random random(12);
  constexpr int64_t kInputs = 512, kMaxRows = 40;
  const std::vector<float> x = RandomFloats(random, kMaxRows * kInputs, Numbers::kPlain);
  const QuantizedRows xq = QuantizeRows(x, kMaxRows, kInputs);
  const auto types = AllWeightTypes();
  for (size_t first = 0; first < types.size(); ++first) {
    const int64_t rows = random.OneIn(3) ? kMaxRows : 1 + random.Below(9);
    const QuantizedRows some = FirstRows(xq, rows);
    std::vector<std::unique_ptr<Weight>> weights;
    std::vector<std::vector<float>> got, want;
    std::vector<MatMulArgs> products;
    for (size_t i = 0; i < 6; ++i) {  // the last two are of types that were there
      const int64_t outputs = 1 + random.Below(90);
      const TestMatrix m(random, types[(first + i % 4 * (i % 4)) % types.size()], outputs, kInputs);
      got.emplace_back(rows * outputs);
      want.emplace_back(rows * outputs);
      MatMulArgs args = {.rows = rows, .x = x.data(), .xq = &some, .y_stride = outputs};
      const auto want_weight = reference::Pack(m.Source());
      args.w = want_weight->get();
      args.y = want.back().data();
      reference::MatMul(args);
      weights.push_back(std::move(backend.Pack(m.Source()).value()));
      args.w = weights.back().get();
      args.y = got.back().data();
      products.push_back(args);
    }
    backend.MatMuls(products);
    CAPTURE(first);
    CAPTURE(rows);
    for (size_t i = 0; i < got.size(); ++i) CHECK_SAME(got[i], want[i]);
  }
}

void CheckElementwise(Backend& backend) {
  Random random(6);
  for (Numbers numbers : kAll) {
    for (int64_t cols : {1, 15, 16, 17, 100, 4864}) {
      const int64_t rows = 1 + random.Below(30), n = rows * cols;
      const std::vector<float> a = RandomFloats(random, n, numbers);
      const std::vector<float> b = RandomFloats(random, n, numbers);
      std::vector<float> want(n), got(n);
      CAPTURE(n);
      for (const Activation activation : {Activation::kSilu, Activation::kGelu}) {
        std::vector<float> in_place = a;
        reference::Glu({activation, rows, cols, a.data(), b.data(), want.data()});
        backend.Glu({activation, rows, cols, a.data(), b.data(), got.data()});
        CheckQuantized(want, rows, cols, [&](const QuantizeTarget& to) {
          backend.Glu({activation, rows, cols, in_place.data(), b.data(), in_place.data(), to});
        });
        CHECK_SAME(got, want);
        CHECK_SAME(in_place, want);
      }
      for (float factor : {25.298221f, 0.37f}) {
        got = want = a;
        reference::Scale(n, factor, want.data());
        backend.Scale(n, factor, got.data());
        CHECK_SAME(got, want);
        got = want = a;
        reference::SoftCap(n, factor, want.data());
        backend.SoftCap(n, factor, got.data());
        CHECK_SAME(got, want);
      }
      std::vector<float> got_sum = b, want_sum = b;
      reference::Add(n, a.data(), want_sum.data());
      backend.Add(n, a.data(), got_sum.data());
      CHECK_SAME(got_sum, want_sum);
    }
  }
}

void CheckCheckFinite(Backend& backend) {
  Random random(7);
  for (int64_t cols : {1, 16, 17, 1000}) {
    for (int64_t rows : {1, 40}) {
      std::vector<float> x = RandomFloats(random, rows * cols, Numbers::kExtreme);
      for (int i = 0; i < 8; ++i) {
        x[random.Below(rows * cols)] = RandomFloat(random, Numbers::kPoison);
      }
      std::vector<uint8_t> got(rows), want(rows);
      got[0] = want[0] = 1;
      reference::CheckFinite(rows, cols, x.data(), want.data());
      backend.CheckFinite(rows, cols, x.data(), got.data());
      CHECK(got == want);
    }
  }
}

LayerGroup MakeGroup(int heads, int k_dim, int v_dim, KvType k_type, KvType v_type, int window) {
  LayerGroup group;
  group.layers = 2;
  group.heads = heads;
  group.k_dim = k_dim;
  group.v_dim = v_dim;
  group.k_type = k_type;
  group.v_type = v_type;
  group.window = window;
  return group;
}

// Every row of a call writes its own slot; everything else in the pages keeps its bytes.
void CheckStoreCase(Backend& backend, const LayerGroup& group, int rope_dim, Numbers numbers) {
  Random random(8);
  const int pages = 3;
  const int64_t rows = 70;
  TestPages got(random, group, pages), want(random, group, pages);
  for (int p = 0; p < pages; ++p) std::memcpy(got.page(p), want.page(p), group.PayloadBytes());
  RopeTable rope(rope_dim, 10000.0, {});
  rope.Reserve(500);
  const std::vector<float> k = RandomFloats(random, rows * group.heads * group.k_dim, numbers);
  const std::vector<float> v = RandomFloats(random, rows * group.heads * group.v_dim, numbers);
  std::vector<int32_t> position, slot, page_index;
  std::vector<std::byte*> got_page, want_page;
  for (int64_t r = 0; r < rows; ++r) {
    position.push_back(static_cast<int32_t>(random.Below(500)));
    page_index.push_back(static_cast<int32_t>(r * 37 % (pages * kPageTokens) / kPageTokens));
    slot.push_back(static_cast<int32_t>(r * 37 % kPageTokens));
    got_page.push_back(got.page(page_index.back()));
    want_page.push_back(want.page(page_index.back()));
  }
  std::vector<uint8_t> got_failed(rows), want_failed(rows);
  StoreKvArgs args = {.group = &group, .layer = 1, .rope = &rope, .rows = rows, .k = k.data(),
                      .v = v.data(), .position = position.data(), .page = want_page.data(),
                      .slot = slot.data(), .row_failed = want_failed.data()};
  reference::StoreKv(args);
  args.page = got_page.data();
  args.row_failed = got_failed.data();
  backend.StoreKv(args);
  CHECK(got_failed == want_failed);
  for (int64_t r = 0; r < rows; ++r) {
    if (!want_failed[r]) continue;
    Random same(r);
    got.FillSlot(same, page_index[r], slot[r], Numbers::kPlain);
    same = Random(r);
    want.FillSlot(same, page_index[r], slot[r], Numbers::kPlain);
  }
  for (int p = 0; p < pages; ++p) {
    CAPTURE(p);
    CHECK(std::memcmp(got.page(p), want.page(p), group.PayloadBytes()) == 0);
  }
}

void CheckStoreKv(Backend& backend) {
  constexpr KvType kF32 = KvType::kF32, kF16 = KvType::kF16, kI8 = KvType::kI8;
  for (Numbers numbers : kAll) {
    CheckStoreCase(backend, MakeGroup(1, 16, 16, kF16, kF16, 0), 16, numbers);
    CheckStoreCase(backend, MakeGroup(3, 64, 64, kF16, kF16, 0), 64, numbers);
    CheckStoreCase(backend, MakeGroup(2, 128, 64, kF32, kF32, 0), 128, numbers);
    CheckStoreCase(backend, MakeGroup(2, 80, 40, kF32, kF16, 0), 80, numbers);
    CheckStoreCase(backend, MakeGroup(2, 64, 48, kF16, kF32, 0), 32, numbers);
    CheckStoreCase(backend, MakeGroup(3, 64, 64, kI8, kF16, 0), 64, numbers);
    CheckStoreCase(backend, MakeGroup(2, 128, 40, kI8, kF32, 0), 96, numbers);
    CheckStoreCase(backend, MakeGroup(1, 20, 7, kI8, kF16, 0), 6, numbers);
    CheckStoreCase(backend, MakeGroup(1, 22, 7, kF16, kF16, 0), 6, numbers);
  }
}

struct AttendCase {
  LayerGroup group;
  int q_heads = 0;
  Cut cut = Cut::kAligned;
  std::vector<int64_t> lengths;  // of the sequences
  int64_t rows = 0;              // query rows of each, at positions anywhere
  bool from_end = false;         // rows at the last positions instead
};

std::vector<int32_t> QueryPositions(Random& random, const AttendCase& c, int64_t length) {
  std::vector<int32_t> positions;
  for (int64_t r = 0; r < c.rows; ++r) {
    const int64_t last = length - 1 - r % length;
    positions.push_back(static_cast<int32_t>(c.from_end ? last : random.Below(length)));
  }
  return positions;
}

// Poisons everything that none of `positions` sees, and sometimes one index that some of them see.
void PoisonUnseen(Random& random, const LayerGroup& group, const std::vector<int32_t>& positions,
                  int64_t length, TestSequence& sequence) {
  for (int64_t i = 0; i < length; ++i) {
    const bool seen = std::any_of(positions.begin(), positions.end(), [&](int64_t p) {
      return i <= p && (group.window == 0 || i > p - group.window);
    });
    if (!seen) sequence.Poison(random, i);
  }
  if (random.OneIn(3)) sequence.Poison(random, random.Below(length));
}

void CheckAttendCase(Backend& backend, Random& random, const AttendCase& c) {
  const LayerGroup& group = c.group;
  RopeTable rope(group.k_dim, 10000.0, {});
  rope.Reserve(*std::max_element(c.lengths.begin(), c.lengths.end()) + kMaxTestShift + 1);
  // The rows of the sequences are interleaved, and two rows of q and out belong to nobody.
  const int64_t count = static_cast<int64_t>(c.lengths.size());
  const int64_t total = c.rows * count + 2;
  std::vector<TestSequence> sequences;
  std::vector<std::vector<int32_t>> rows(count), positions;
  for (int64_t s = 0; s < count; ++s) {
    positions.push_back(QueryPositions(random, c, c.lengths[s]));
    sequences.emplace_back(random, group, c.lengths[s], c.cut);
    PoisonUnseen(random, group, positions[s], c.lengths[s], sequences[s]);
    for (int64_t r = 0; r < c.rows; ++r) rows[s].push_back(static_cast<int32_t>(1 + r * count + s));
  }
  std::vector<AttendSequence> views;
  for (int64_t s = 0; s < count; ++s) views.push_back({sequences[s].runs, rows[s], positions[s]});
  std::vector<float> q = RandomFloats(random, total * c.q_heads * group.k_dim, Numbers::kPlain);
  if (random.OneIn(4)) q[random.Below(static_cast<int64_t>(q.size()))] = NAN;
  std::vector<float> got(total * c.q_heads * group.v_dim, kUnwritten), want = got;
  AttendArgs args = {.group = &group, .layer = 1, .rope = &rope, .q_heads = c.q_heads,
                     .scale = 1.0f / std::sqrt(static_cast<float>(group.k_dim)), .q = q.data(),
                     .out = want.data(), .sequences = views};
  reference::Attend(args);
  args.out = got.data();
  backend.Attend(args);
  CAPTURE(group.heads);
  CAPTURE(group.k_dim);
  CAPTURE(group.v_dim);
  CAPTURE(group.window);
  CAPTURE(static_cast<int>(group.k_type));
  CAPTURE(static_cast<int>(c.cut));
  CAPTURE(c.q_heads);
  CAPTURE(c.lengths[0]);
  CAPTURE(c.rows);
  CHECK_SAME(got, want);
}

void CheckAttend(Backend& backend) {
  Random random(9);
  constexpr int kHeads[][2] = {{1, 1}, {3, 3}, {1, 7}, {2, 6}, {3, 9}};  // KV, query
  constexpr int kDims[][2] = {{64, 64}, {128, 128}, {16, 32}, {48, 16}, {32, 64}};
  constexpr int kWindows[] = {0, 0, 1, 40, 64, 300};
  constexpr KvType kKv[][2] = {{KvType::kF16, KvType::kF16}, {KvType::kF32, KvType::kF32},
                               {KvType::kF16, KvType::kF32}, {KvType::kF32, KvType::kF16},
                               {KvType::kI8, KvType::kF16},  {KvType::kI8, KvType::kF32}};
  constexpr Cut kCuts[] = {Cut::kAligned, Cut::kMisaligned, Cut::kShifted};
  constexpr int64_t kLengths[] = {1, 2, 31, 32, 33, 63, 64, 65, 255, 256, 257, 300, 520};
  constexpr int64_t kRows[] = {1, 1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 70};
  for (int n = 0; n < 160; ++n) {
    if (random.Skips()) continue;
    const auto& heads = kHeads[random.Below(5)];
    const auto& dims = kDims[random.Below(5)];
    const auto& types = kKv[n % 4 == 1 ? 4 + random.OneIn(3)
                                                      : random.Below(8) % (n % 2 == 0 ? 1 : 4)];
    AttendCase c;
    c.group = MakeGroup(heads[0], dims[0], dims[1], types[0], types[1], kWindows[random.Below(6)]);
    c.q_heads = heads[1];
    c.cut = kCuts[n % 3];
    c.rows = kRows[random.Below(12)];
    c.from_end = random.OneIn(2);
    const int64_t sequences = c.rows > 17 ? 1 : 1 + random.Below(4);
    for (int64_t s = 0; s < sequences; ++s) c.lengths.push_back(kLengths[random.Below(13)]);
    CheckAttendCase(backend, random, c);
  }
}

// One long sequence, decoded one row at a time: the shape that backends cut along its length.
void CheckLongAttend(Backend& backend) {
  Random random(10);
  for (Cut cut : {Cut::kAligned, Cut::kShifted}) {
    AttendCase c;
    const KvType k_type = cut == Cut::kAligned ? KvType::kF16 : KvType::kI8;
    c.group = MakeGroup(2, 64, 64, k_type, KvType::kF16, 0);
    c.q_heads = 14;
    c.cut = cut;
    c.lengths = {4099};
    c.rows = 2;
    c.from_end = true;
    CheckAttendCase(backend, random, c);
  }
}

constexpr ContractPart kParts[] = {
    {"pack refuses what is not a matrix", CheckPackRefusals},
    {"embed", CheckEmbed},
    {"rms norm", CheckRmsNorm},
    {"quantize", CheckQuantize},
    {"matmul", CheckMatMul},
    {"matmul of many rows", CheckMatMulOfManyRows},
    {"matmul without bias", CheckNoBias},
    {"several matmuls at once", CheckMatMuls},
    {"swiglu, geglu, add, scale and soft cap", CheckElementwise},
    {"check finite", CheckCheckFinite},
    {"store kv", CheckStoreKv},
    {"attend", CheckAttend},
    {"attend over a long sequence", CheckLongAttend},
};

bool ProcessorLists(const std::string& flag) {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string word;
  while (cpuinfo >> word) {
    if (word == flag) return true;
  }
  return false;
}

}  // namespace

std::span<const ContractPart> ContractParts() { return kParts; }

std::unique_ptr<Backend> MakeLevel(const std::string& level, const std::string& cpu_flag,
                                   int threads) {
  auto backend = MakeCpuBackend({.threads = threads, .level = level});
  if (backend.ok()) {
    CHECK(backend.value()->name() == level);
    return std::move(backend).value();
  }
  std::cout << "level not tested: " << backend.status().ToString() << "\n";
  CHECK(backend.status().code() == Code::kInvalid);
  CHECK(!cpu_flag.empty());
  CHECK(!ProcessorLists(cpu_flag));
  return nullptr;
}

void CheckLevel(const std::string& level, const std::string& cpu_flag) {
  for (int threads : {1, 3}) {
    const std::unique_ptr<Backend> backend = MakeLevel(level, cpu_flag, threads);
    if (backend == nullptr) return;
    CAPTURE(threads);
    for (const ContractPart& part : ContractParts()) {
      INFO(part.name);
      part.check(*backend);
    }
  }
}

}  // namespace testing
}  // namespace holdfast
