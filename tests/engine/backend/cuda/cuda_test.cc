// The CUDA kernels' own source, run by the emulation, against reference: the same bits.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>

#include "engine/backend/cuda/decode_attend.cu"
#include "engine/backend/cuda/gemv.cu"
#include "engine/backend/reference/blocks.h"
#include "engine/backend/reference/reference.h"
#include "tests/engine/backend/fixtures.h"

using namespace holdfast;
using testing::Cut;
using testing::Difference;
using testing::Numbers;
using testing::Random;

namespace {

// GGUF blocks in the order of GemvWeight.
struct DeviceWeight {
  explicit DeviceWeight(const testing::TestMatrix& m) {
    const int64_t groups = m.inputs / 32, blocks = m.inputs / WeightBlock(m.type).elements;
    const int64_t block_bytes = WeightBlock(m.type).bytes;
    for (int64_t n = 0; n < m.outputs * groups; ++n) {
      const std::byte* row = m.bytes.data() + n / groups * blocks * block_bytes;
      const WeightGroup group = ReadWeightGroup(m.type, row, n % groups);
      if (m.type == WeightType::kQ4_K) {
        AddQ4_K(row + n % groups / 8 * block_bytes, static_cast<int>(n % 8), group);
      } else {
        codes.insert(codes.end(), group.w, group.w + 32);
        PushHalf(row + n % groups * block_bytes, d);
      }
    }
    view = {m.type, static_cast<int>(m.outputs), static_cast<int>(groups), codes.data(),
            d.data(), dmin.data(), scale.data(), min.data()};
  }

  void AddQ4_K(const std::byte* block, int group_index, const WeightGroup& group) {
    for (int j = 0; j < 16; ++j) {
      codes.push_back(static_cast<int8_t>(group.w[j] | group.w[j + 16] << 4));
    }
    if (group_index == 0) {
      PushHalf(block, d);
      PushHalf(block + 2, dmin);
    }
    const auto byte = [&](int i) { return std::to_integer<int>(block[4 + i]); };
    const int g = group_index;
    scale.push_back(static_cast<uint8_t>(
        g < 4 ? byte(g) & 63 : (byte(g + 4) & 15) | byte(g - 4) >> 6 << 4));
    min.push_back(static_cast<uint8_t>(g < 4 ? byte(g + 4) & 63
                                             : byte(g + 4) >> 4 | byte(g) >> 6 << 4));
  }

  static void PushHalf(const std::byte* at, std::vector<uint16_t>& out) {
    uint16_t half;
    std::memcpy(&half, at, 2);
    out.push_back(half);
  }

  std::vector<int8_t> codes;
  std::vector<uint16_t> d, dmin;
  std::vector<uint8_t> scale, min;
  cuda::GemvWeight view;
};

void CheckGemv(Random& random, WeightType type, int outputs, int inputs, int rows) {
  const testing::TestMatrix m(random, type, outputs, inputs);
  const auto weight = reference::Pack(m.Source());
  const DeviceWeight device(m);
  const auto x = testing::RandomFloats(random, int64_t{rows} * inputs, Numbers::kPlain);
  const auto bias = testing::RandomFloats(random, outputs, Numbers::kPlain);
  const QuantizedRows xq = testing::QuantizeRows(x, rows, inputs);
  std::vector<int32_t> sum = xq.sum_lo;
  for (size_t i = 0; i < sum.size(); ++i) sum[i] += xq.sum_hi[i];
  for (const float* b : {static_cast<const float*>(nullptr), bias.data()}) {
    std::vector<float> want(rows * outputs), got(rows * outputs);
    reference::MatMul({.w = weight->get(), .rows = rows, .x = nullptr, .xq = &xq, .bias = b,
                       .y = want.data(), .y_stride = outputs});
    const Status status = cuda::LaunchGemv({device.view, rows, xq.q.data(), xq.scale.data(),
                                            sum.data(), b, got.data()}, nullptr);
    REQUIRE(status.ok());
    CAPTURE(outputs);
    CAPTURE(inputs);
    CHECK_MESSAGE(Difference(got, want).empty(), Difference(got, want));
  }
}

struct DecodeCase {
  int heads, group, k_dim, v_dim, rope_dim, window;
  Cut cut;
  std::vector<int> lengths;
  int behind;  // positions of the queries before the end
};

// The splits of a sequence that have a visible index, and where they begin.
void AddSplits(const testing::TestSequence& kv, int sequence, int position, int window,
               std::vector<cuda::DecodeSplit>& splits) {
  int index = 0;
  for (int r = 0; r < static_cast<int>(kv.runs.size()); ++r) {
    for (int n = 0; n < kv.runs[r].count; ++n, ++index) {
      const bool seen = index <= position && (window == 0 || index + 256 > position + 1 - window);
      if (index % 256 == 0 && seen) splits.push_back({sequence, index / 256, r, n});
    }
  }
}

void CheckDecode(Random& random, const DecodeCase& c) {
  LayerGroup group;
  group.layers = 2;
  group.heads = c.heads;
  group.k_dim = c.k_dim;
  group.v_dim = c.v_dim;
  group.window = c.window;
  const int q_heads = c.heads * c.group, count = static_cast<int>(c.lengths.size());
  RopeTable rope(c.rope_dim, 10000.0, {});
  rope.Reserve(1000);
  std::vector<testing::TestSequence> kv;
  std::vector<std::vector<int32_t>> row, position;
  for (int s = 0; s < count; ++s) {
    kv.emplace_back(random, group, c.lengths[s], c.cut);
    row.push_back({count - 1 - s});
    position.push_back({std::max(0, c.lengths[s] - 1 - c.behind)});
    for (int i = 0; i < c.lengths[s]; ++i) {
      const int p = position[s][0];
      if (i > p || (c.window > 0 && i <= p - c.window)) kv[s].Poison(random, i);
    }
  }
  std::vector<AttendSequence> sequences;
  std::vector<cuda::DecodeSequence> device;
  std::vector<cuda::DecodeSplit> splits;
  for (int s = 0; s < count; ++s) {
    sequences.push_back({kv[s].runs, row[s], position[s]});
    device.push_back({kv[s].runs.data(), static_cast<int>(kv[s].runs.size()), position[s][0],
                      row[s][0], static_cast<int>(splits.size())});
    AddSplits(kv[s], s, position[s][0], c.window, splits);
  }
  const auto q = testing::RandomFloats(random, int64_t{count} * q_heads * c.k_dim, Numbers::kPlain);
  std::vector<float> want(count * q_heads * c.v_dim), got(want.size());
  std::vector<float> states(splits.size() * q_heads * (1 + 64 + c.v_dim));
  reference::Attend({.group = &group, .layer = 1, .rope = &rope, .q_heads = q_heads,
                     .scale = 0.125f, .q = q.data(), .out = want.data(), .sequences = sequences});
  const Status status = cuda::LaunchDecodeAttend(
      {.layer = 1, .heads = c.heads, .q_heads = q_heads, .k_dim = c.k_dim, .v_dim = c.v_dim,
       .window = c.window, .layer_bytes = group.LayerBytes(), .head_bytes = group.HeadBytes(),
       .scale = 0.125f, .rope = rope.Row(0), .rope_dim = c.rope_dim, .q = q.data(),
       .out = got.data(), .sequences = device.data(), .sequence_count = count,
       .splits = splits.data(), .split_count = static_cast<int>(splits.size()),
       .states = states.data()}, nullptr);
  REQUIRE(status.ok());
  CHECK(std::all_of(want.begin(), want.end(), [](float y) { return std::isfinite(y); }));
  CHECK_MESSAGE(Difference(got, want).empty(), Difference(got, want));
}

}  // namespace

TEST_CASE("gemv: ragged outputs, parts of K, rows, with and without bias") {
  Random random(1);
  CheckGemv(random, WeightType::kQ8_0, 3, 32, 1);
  CheckGemv(random, WeightType::kQ8_0, 37, 1056, 2);
  CheckGemv(random, WeightType::kQ8_0, 16, 2080, 1);
  CheckGemv(random, WeightType::kQ4_K, 37, 1280, 2);
  CheckGemv(random, WeightType::kQ4_K, 5, 2304, 1);
}

TEST_CASE("gemv refuses what it can't take") {
  cuda::GemvArgs args;
  CHECK(cuda::LaunchGemv(args, nullptr).code() == Code::kInvalid);
  args.w = {WeightType::kQ6_K, 16, 8, nullptr, nullptr, nullptr, nullptr, nullptr};
  args.rows = 1;
  CHECK(cuda::LaunchGemv(args, nullptr).code() == Code::kInvalid);
}

TEST_CASE("decode attention: runs, shifts, windows, masked poison, partial rotation") {
  Random random(2);
  CheckDecode(random, {1, 1, 64, 64, 64, 0, Cut::kAligned, {40}, 0});
  CheckDecode(random, {1, 2, 64, 64, 64, 0, Cut::kMisaligned, {300, 65}, 0});
  CheckDecode(random, {2, 2, 64, 128, 64, 0, Cut::kShifted, {520, 1, 64}, 0});
  CheckDecode(random, {1, 3, 128, 64, 128, 70, Cut::kShifted, {600, 33}, 5});
  CheckDecode(random, {1, 1, 80, 64, 32, 300, Cut::kShifted, {700}, 50});
}

TEST_CASE("decode attention refuses what it can't take") {
  cuda::DecodeAttendArgs args;
  args.heads = 1;
  args.q_heads = 9;
  args.k_dim = args.v_dim = args.rope_dim = 64;
  args.sequence_count = args.split_count = 1;
  CHECK(cuda::LaunchDecodeAttend(args, nullptr).code() == Code::kInvalid);
}
