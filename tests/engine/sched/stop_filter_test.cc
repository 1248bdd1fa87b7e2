#include "engine/sched/stop_filter.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace holdfast {
namespace {

struct Heard {
  std::string events;  // texts of the tokens that came, '|' after each
  std::string rest;
  int64_t cut = 0;
  bool stopped = false;
};

// Pushes the pieces until one stops. "<" at the end of a piece: the token begins a character.
Heard Hear(std::vector<std::string> stops, const std::vector<std::string>& pieces) {
  StopFilter filter(std::move(stops));
  Heard heard;
  for (std::string piece : pieces) {
    const bool open = !piece.empty() && piece.back() == '<';
    if (open) piece.pop_back();
    std::vector<TokenEvent> certain;
    filter.Push({{}, false, piece}, open ? 1 : 0, &certain);
    for (const TokenEvent& token : certain) heard.events += token.text + "|";
    if (filter.stopped()) break;
  }
  heard.stopped = filter.stopped();
  StopFilter::Rest rest = filter.Finish();
  for (const TokenEvent& token : rest.tokens) heard.events += token.text + "|";
  heard.rest = rest.text;
  heard.cut = rest.cut;
  return heard;
}

TEST_CASE("stop strings cut tokens and text") {
  struct Case {
    const char* name;
    std::vector<std::string> stops, pieces;
    const char* events;
    const char* rest;
    int64_t cut;
    bool stopped;
  };
  const Case cases[] = {
      {"none", {}, {"a", "b"}, "a|b|", "", 0, false},
      {"a whole token", {"b"}, {"a", "b"}, "a|", "", 1, true},
      {"over three tokens", {"bcd"}, {"a", "b", "c", "d"}, "a|", "", 3, true},
      {"begins in a token", {"stop"}, {"xs", "t", "opy"}, "", "x", 3, true},
      {"ends in a token", {"b"}, {"a", "bcd"}, "a|", "", 1, true},
      {"in the middle of one", {"lo"}, {"hello world"}, "", "hel", 1, true},
      {"held back and let go", {"xyz"}, {"x", "y", "a"}, "x|y|a|", "", 0, false},
      {"held back at the end", {"xyz"}, {"a", "x", "y"}, "a|x|y|", "", 0, false},
      {"a false start in a true one", {"aab"}, {"a", "a", "a", "b"}, "a|", "", 3, true},
      {"the first of several", {"zz", "d", "bc"}, {"abcd"}, "", "a", 1, true},
      {"the shorter of two with one beginning", {"bcd", "b"}, {"a", "b", "c"}, "a|", "", 1, true},
      {"nothing before it", {"a"}, {"a"}, "", "", 1, true},
      {"a hidden token stays", {"b"}, {"a", "", "b"}, "a||", "", 1, true},
      {"half a character goes with its other half", {"é"}, {"a", "<", "é"}, "a|", "", 2, true},
      {"half a character waits", {"b"}, {"a", "<", "é"}, "a||é|", "", 0, false},
  };
  for (const Case& c : cases) {
    CAPTURE(std::string(c.name));
    const Heard heard = Hear(c.stops, c.pieces);
    CHECK(heard.events == c.events);
    CHECK(heard.rest == c.rest);
    CHECK(heard.cut == c.cut);
    CHECK(heard.stopped == c.stopped);
  }
}

TEST_CASE("a token comes as soon as it is certain") {
  StopFilter filter({"xyz"});
  std::vector<TokenEvent> certain;
  filter.Push({{}, false, "a"}, 0, &certain);
  CHECK(certain.size() == 1);
  filter.Push({{}, false, "bx"}, 0, &certain);
  CHECK(certain.size() == 1);
  filter.Push({{}, false, "yq"}, 0, &certain);
  CHECK(certain.size() == 3);
}

}  // namespace
}  // namespace holdfast
