// The contract's check on unseen contexts, and the files of a report.
#include "tests/bench/quality/report.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "api/card_json.h"
#include "tests/engine/base/temp_dir.h"

using namespace holdfast;

namespace {

Trial Made(uint64_t seed, double kl, CardSetting setting) {
  Trial t;
  t.edit = "A1";
  t.method = setting.link == 0 ? "rot" : "link128";
  t.seed = seed;
  t.setting = setting;
  t.kl = kl;
  t.context = 1000;
  t.min_tokens = 500;
  t.runs = 1;
  t.tokens = 60;
  t.same_top = 59;
  t.rows = setting.link == 0 ? 0.1 : 0.3;
  return t;
}

std::string Read(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

}  // namespace

TEST_CASE("each half of the seeds is judged by the other half's card") {
  std::vector<Trial> trials;
  for (uint64_t seed = 1; seed <= 12; ++seed) {
    trials.push_back(Made(seed, 0.010, {0, 0}));
    trials.push_back(Made(seed, seed == 5 ? 0.009 : 0.001, {128, 0}));
  }
  ContractCheck check = CheckContract(trials, 0.02);
  CHECK(check.contexts == 12);
  CHECK(check.served == 12);
  CHECK(check.kept == 12);
  CHECK(check.rows == doctest::Approx(0.1));
  check = CheckContract(trials, 0.002);  // odd seeds know of 0.009 and refuse; even ones do not
  CHECK(check.contexts == 12);
  CHECK(check.served == 6);
  CHECK(check.kept == 5);
  CHECK(check.rows == doctest::Approx(0.3));
  CHECK(CheckContract(trials, 1e-5).served == 0);
}

TEST_CASE("a report has its tables, its figure and a card per model") {
  testing::TempDir dir;
  MeasuredModel m;
  m.records.name = "some-0.5b";
  for (uint64_t seed = 1; seed <= 8; ++seed) {
    m.records.trials.push_back(Made(seed, 0.010, {0, 0}));
    m.records.trials.push_back(Made(seed, 0.001, {128, 0}));
  }
  m.records.tasks.push_back({"one key", "A", 1, "full", 1, 1, "48213", 1});
  m.records.tasks.push_back({"one key", "A", 1, "rot", 0, 1, "no", 0.1});
  m.card = MakeCard(Digest{}, "some-0.5b", "f16", m.records.trials);
  REQUIRE(WriteReport(dir.path(), "", {m}).ok());
  const std::string text = Read(dir.File("QUALITY.md"));
  CHECK(text.find("| A1 | link128 | 8 | 0.00100 (0.00100-0.00100)") != std::string::npos);
  CHECK(text.find("| <= 0.006 | median 0.00100") != std::string::npos);
  CHECK(text.find("| one key | A | 1.00 (1.00) | 0.00 (0.00) | 1, 1 |") != std::string::npos);
  CHECK(text.find("not measured") != std::string::npos);
  CHECK(Read(dir.File("quality.svg")).find("some-0.5b") != std::string::npos);
  CHECK(ParseCard(Read(dir.File("cards/some-0.5b.json"))).ok());
}

TEST_CASE("records go on where they stopped, broken lines left out") {
  testing::TempDir dir;
  CHECK(ReadRecords(dir.path(), "m").next_seed() == 1);
  AppendRecord(dir.path(), "m", Made(4, 0.1, {0, 0}));
  AppendRecord(dir.path(), "m", TaskResult{"one key", "A", 7, "full", 1, 1, "x", 1});
  std::ofstream(dir.File("m.trials.jsonl"), std::ios::app) << "{\"edit\":\"A1\",\"met";
  const ModelRecords records = ReadRecords(dir.path(), "m");
  REQUIRE(records.trials.size() == 1);
  CHECK(records.trials[0].kl == 0.1);
  CHECK(records.next_seed() == 5);
  CHECK(records.next_task_seed() == 8);
}
