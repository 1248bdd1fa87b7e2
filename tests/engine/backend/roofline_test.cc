#include "engine/backend/cpu/roofline.h"

#include <doctest/doctest.h>

#include <memory>
#include <string>
#include <vector>

#include "engine/backend/cpu/levels.h"

using namespace holdfast;

namespace {

std::vector<std::string> LevelsHere() {
  std::vector<std::string> levels;
  for (const CpuLevel& level : CpuLevels()) {
    if (level.present()) levels.emplace_back(level.name);
  }
  return levels;
}

}  // namespace

TEST_CASE("every word is read once") {
  constexpr int kUnits = 37;
  struct alignas(64) Data {
    uint64_t word[kUnits * kReadUnit / 8];
  };
  auto data = std::make_unique<Data>();
  uint64_t all = 0, next = 1;
  for (uint64_t& w : data->word) {
    next = next * 6364136223846793005u + 1442695040888963407u;
    w = next;
    all ^= w;
  }
  for (const std::string& level : LevelsHere()) {
    const auto* bytes = reinterpret_cast<const uint8_t*>(data->word);
    CHECK_MESSAGE(RooflineOf(level).read(bytes, sizeof(data->word)) == all, level);
  }
}

TEST_CASE("operations are counted by rounds") {
  for (const std::string& level : LevelsHere()) {
    for (auto loop : {RooflineOf(level).int8, RooflineOf(level).fp32}) {
      CHECK(loop(0) == 0);
      CHECK(loop(1) >= 16);
      CHECK(loop(30) == 30 * loop(1));
    }
  }
}

TEST_CASE("every rate is measured, with one thread and with more than there are processors") {
  for (const std::string& level : LevelsHere()) {
    for (const int threads : {1, 2, 5}) {
      const Roofline r = MeasureRoofline({.level = level, .threads = threads,
                                          .dram_bytes = 4 << 20, .seconds = 1e-4, .runs = 2});
      CHECK(r.threads == threads);
      for (const double rate : {r.dram_read, r.l3_read, r.l2_read, r.int8, r.fp32}) {
        CHECK(rate > 1e6);
      }
    }
  }
}

TEST_CASE("caches have a size") {
  CHECK(CacheBytes(2) >= 128 << 10);
  CHECK(CacheBytes(3) > CacheBytes(2));
}
