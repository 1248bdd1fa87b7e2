// ExpectedKl, CardSettings and CheapestUnder as tables.
#include "stitcher/card.h"

#include <doctest/doctest.h>

#include <string>

using namespace holdfast;

namespace {

constexpr auto kIn = CardKind::kInContext, kAlone = CardKind::kIsolated;

CardCell Cell(CardKind kind, int tokens, int runs, int shift, CardSetting setting, double mean,
              double rows, int contexts = 10) {
  CardCell c{kind, tokens, runs, shift, setting, {}};
  c.kl.mean = mean;
  c.kl.bound = 3 * mean;
  c.kl.rows = rows;
  c.kl.contexts = contexts;
  return c;
}

ModelCard Card() {
  ModelCard card;
  card.max_context = 4000;
  card.min_tokens = 64;
  card.max_runs = 8;
  card.cells = {Cell(kIn, 1, 0, 0, {0, 0}, .08, .1),    Cell(kIn, 3, 0, 0, {0, 0}, .04, .1),
                Cell(kIn, 3, 0, 2, {0, 0}, .05, .1),    Cell(kIn, 3, 2, 0, {0, 0}, .06, .1),
                Cell(kIn, 1, 2, 1, {32, 0}, .02, .2),   Cell(kIn, 1, 2, 1, {128, 0}, .01, .4),
                Cell(kAlone, 2, 1, 0, {32, 20}, .003, .5),
                Cell(kAlone, 2, 1, 0, {64, 0}, .03, .25),
                Cell(kAlone, 3, 1, 0, {128, 0}, .001, .3, kCardMinContexts - 1)};
  return card;
}

CardChoice Choice(CardKind kind, int64_t tokens, int runs, int64_t shift, CardSetting setting) {
  return {.kind = kind, .tokens = tokens, .runs = runs, .shift = shift, .context = 2000,
          .setting = setting};
}

// -1: outside.
double MeanOf(const CardChoice& choice) {
  const auto kl = ExpectedKl(Card(), choice);
  return kl ? kl->mean : -1;
}

}  // namespace

TEST_CASE("a cell of the choice's own classes answers") {
  CHECK(MeanOf(Choice(kIn, 800, 1, -10, {0, 0})) == .04);
  CHECK(MeanOf(Choice(kIn, 800, 1, 2000, {0, 0})) == .05);
  CHECK(MeanOf(Choice(kIn, 200, 2, 100, {0, 0})) == .08);
  CHECK(MeanOf(Choice(kIn, 900, 7, 0, {0, 0})) == .06);
}

TEST_CASE("where there is none, the nearest harder one does") {
  CHECK(MeanOf(Choice(kIn, 500, 1, 0, {0, 0})) == .08);  // shorter runs are harder
  CHECK(MeanOf(Choice(kIn, 800, 3, 0, {0, 0})) == .06);  // more runs are
  CHECK(MeanOf(Choice(kIn, 800, 1, 300, {0, 0})) == .05);  // of two shifts equally near: the larger
  CHECK(MeanOf(Choice(kIn, 100, 1, 0, {0, 0})) == -1);   // shorter than any cell
  CHECK(MeanOf(Choice(kIn, 500, 7, 0, {0, 0})) == -1);   // short and many at once
}

TEST_CASE("a setting between two counts as the weaker, windows before link") {
  CHECK(MeanOf(Choice(kIn, 800, 1, 0, {16, 0})) == .04);
  CHECK(MeanOf(Choice(kIn, 800, 1, 0, {127, 0})) == .02);
  CHECK(MeanOf(Choice(kIn, 800, 1, 0, {500, 40})) == .01);
  CHECK(MeanOf(Choice(kAlone, 512, 3, 0, {128, 25})) == .003);
  CHECK(MeanOf(Choice(kAlone, 512, 3, 0, {128, 19})) == .03);
  CHECK(MeanOf(Choice(kAlone, 512, 3, 0, {16, 20})) == -1);
}

TEST_CASE("outside the card's limits it promises nothing") {
  CardChoice good = Choice(kIn, 800, 1, 0, {0, 0});
  CHECK(MeanOf(good) == .04);
  for (int what = 0; what < 4; ++what) {
    CardChoice choice = good;
    if (what == 0) choice.context = 4001;
    if (what == 1) choice.runs = 9;
    if (what == 2) choice.tokens = 63;
    if (what == 3) choice.generation = 2;
    CHECK(MeanOf(choice) == -1);
  }
  CHECK_FALSE(ExpectedKl(ModelCard(), good));
}

TEST_CASE("cells with few contexts are not used") {
  CHECK(MeanOf(Choice(kAlone, 1000, 3, 0, {128, 0})) == .03);
}

TEST_CASE("settings come cheapest first, and the first that keeps the contract is taken") {
  const auto settings = CardSettings(Card(), kIn);
  REQUIRE(settings.size() == 3);
  CHECK(settings[0] == CardSetting{0, 0});
  CHECK(settings[1] == CardSetting{32, 0});
  CHECK(settings[2] == CardSetting{128, 0});
  const CardChoice choice = Choice(kIn, 800, 1, 0, {});
  CHECK(CheapestUnder(Card(), choice, 1) == CardSetting{0, 0});
  CHECK(CheapestUnder(Card(), choice, .1) == CardSetting{32, 0});
  CHECK(CheapestUnder(Card(), choice, .03) == CardSetting{128, 0});
  CHECK_FALSE(CheapestUnder(Card(), choice, .02));
}

TEST_CASE("classes") {
  CHECK(CardClass(kCardTokens, 1) == 0);
  CHECK(CardClass(kCardTokens, 191) == 0);
  CHECK(CardClass(kCardTokens, 192) == 1);
  CHECK(CardClass(kCardTokens, 100000) == 3);
  CHECK(CardClass(kCardRuns, 3) == 1);
}
