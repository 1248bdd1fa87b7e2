// Cards as JSON: there and back, hostile files, and where they are looked for.
#include "api/card_json.h"

#include <doctest/doctest.h>

#include <filesystem>
#include <fstream>

#include "tests/engine/base/temp_dir.h"

using namespace holdfast;

namespace {

ModelCard SomeCard() {
  ModelCard card;
  card.model.bytes[3] = 7;
  card.name = "some";
  card.kv_type = "f16";
  card.seed = 5;
  card.contexts = 12;
  card.noise = 1e-5;
  card.max_context = 3000;
  card.min_tokens = 70;
  card.max_runs = 9;
  card.cells.push_back({CardKind::kIsolated, 2, 1, 2, {32, 20},
                        {.001, .002, .0005, .01, .99, .25, .4, 12}});
  return card;
}

Code RefusalWith(const std::string& from, const std::string& to) {
  std::string text = DumpJson(CardJson(SomeCard()));
  const size_t at = text.find(from);
  REQUIRE(at != std::string::npos);
  text.replace(at, from.size(), to);
  return ParseCard(text).status().code();
}

}  // namespace

TEST_CASE("a card survives JSON") {
  const Json json = CardJson(SomeCard());
  const auto card = ParseCard(DumpJson(json));
  REQUIRE_MESSAGE(card.ok(), card.status().ToString());
  CHECK(CardJson(*card) == json);
  CHECK(card->cells[0].kl.bound == .01);
  CHECK(card->cells[0].setting == CardSetting{32, 20});
  CHECK(card->model == SomeCard().model);
}

TEST_CASE("a bad card is refused with the field's name") {
  CHECK(ParseCard("").status().code() == Code::kInvalid);
  CHECK(ParseCard("[]").status().code() == Code::kInvalid);
  CHECK(RefusalWith("\"version\":1", "\"version\":2") == Code::kInvalid);
  CHECK(RefusalWith("\"isolated\"", "\"alone\"") == Code::kInvalid);
  CHECK(RefusalWith("\"tokens\":2", "\"tokens\":4") == Code::kInvalid);
  CHECK(RefusalWith("\"runs\":1", "\"runs\":-1") == Code::kInvalid);
  CHECK(RefusalWith("\"model\":\"00", "\"model\":\"zz") == Code::kInvalid);
  CHECK(RefusalWith("\"cells\":[", "\"cells\":[3,") == Code::kInvalid);
  CHECK(RefusalWith("\"bound\":0.01", "\"bound\":\"0.01\"") == Code::kInvalid);
  const auto card = ParseCard("{\"version\":1,\"model\":\"\"}");
  CHECK(card.status().message().find("card.model") != std::string::npos);
}

TEST_CASE("the data folder's card is found, a broken one is an error, none is none") {
  testing::TempDir dir;
  const ModelCard card = SomeCard();
  auto found = FindCard(dir.path(), card.model);
  REQUIRE(found.ok());
  CHECK_FALSE(found->has_value());
  const auto path = SaveCard(dir.path(), card);
  REQUIRE_MESSAGE(path.ok(), path.status().ToString());
  found = FindCard(dir.path(), card.model);
  REQUIRE(found.ok());
  CHECK((*found)->name == "some");
  size_t files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(dir.File("cards"))) {
    files += entry.is_regular_file();
  }
  CHECK(files == 1);
  std::ofstream(*path) << "{";
  CHECK(FindCard(dir.path(), card.model).status().code() == Code::kInvalid);
  ModelCard other = card;
  other.model.bytes[0] = 1;
  std::ofstream(*path) << DumpJson(CardJson(other));
  CHECK(FindCard(dir.path(), card.model).status().code() == Code::kInvalid);
}

TEST_CASE("a trial survives a line of a record file") {
  Trial t;
  t.edit = "A1";
  t.method = "link32";
  t.how = ReuseHow::kRandom;
  t.setting = {32, 20};
  t.kind = CardKind::kIsolated;
  t.seed = 9;
  t.context = 1000;
  t.min_tokens = 80;
  t.max_shift = 300;
  t.runs = 4;
  t.tokens = 60;
  t.kl = 0.25;
  t.largest_kl = 3;
  t.same_top = 59;
  t.first_divergence = 20;
  t.recomputed = 0.5;
  t.rows = 0.75;
  const auto back = ParseTrial(DumpJson(TrialJson(t)));
  REQUIRE_MESSAGE(back.ok(), back.status().ToString());
  CHECK(TrialJson(*back) == TrialJson(t));
  CHECK(back->how == ReuseHow::kRandom);
  CHECK_FALSE(ParseTrial("{\"edit\":\"A1\"").ok());
}
