#include "engine/sched/batch.h"

#include <doctest/doctest.h>

#include <string>
#include <vector>

namespace holdfast {
namespace {

PageKey Block(uint8_t name) {
  PageKey key;
  key.bytes.fill(name);
  return key;
}

// Rows by candidate, "-" where it was not picked.
std::string Rows(const std::vector<Pick>& picks, size_t candidates) {
  std::vector<int64_t> rows(candidates, 0);
  for (const Pick& pick : picks) rows[pick.candidate] += pick.rows;
  std::string s;
  for (int64_t r : rows) {
    if (!s.empty()) s += ' ';
    if (r == 0) s += '-';
    else s += std::to_string(r);
  }
  return s;
}

struct PickCase {
  const char* name;
  std::vector<Candidate> candidates;
  int64_t rows_max;
  const char* rows;
};

Candidate C(uint64_t id, std::string_view tenant, int64_t pending, uint64_t last_step = 0,
            int64_t chunk = 0, uint8_t block = 0) {
  return {.id = id, .tenant = tenant, .pending = pending, .context = 0, .chunk = chunk,
          .last_step = last_step, .next_block = Block(block)};
}

TEST_CASE("PickShort takes tenants in turn, who waited longest first") {
  const PickCase cases[] = {
      {"nobody", {}, 8, ""},
      {"all fit", {C(1, "a", 1), C(2, "a", 3), C(3, "b", 1)}, 8, "1 3 1"},
      {"tenants in turn", {C(1, "a", 1), C(2, "a", 1), C(3, "a", 1), C(4, "b", 1)}, 2, "1 - - 1"},
      {"rotation in a tenant", {C(1, "a", 1, 9), C(2, "a", 1, 7), C(3, "a", 1, 8)}, 2, "- 1 1"},
      {"the tenant served last waits", {C(1, "a", 1, 9), C(2, "b", 1, 8)}, 1, "- 1"},
      {"a part of what does not fit", {C(1, "a", 5), C(2, "b", 5)}, 8, "5 3"},
      {"a chunk of its own", {C(1, "a", 5, 0, 2)}, 8, "2"},
      {"one row at least", {C(1, "a", 16)}, 1, "1"},
  };
  for (const PickCase& c : cases) {
    CAPTURE(std::string(c.name));
    CHECK(Rows(PickShort(c.candidates, c.rows_max), c.candidates.size()) == c.rows);
  }
}

TEST_CASE("PickLong shares rows among tenants, and in a tenant between first and shortest") {
  const PickCase cases[] = {
      {"nobody", {}, 8, ""},
      {"one", {C(1, "a", 1000)}, 256, "256"},
      {"one that ends", {C(1, "a", 100)}, 256, "100"},
      {"equal parts", {C(1, "a", 1000), C(2, "b", 1000)}, 256, "128 128"},
      {"a part that is not used", {C(1, "a", 20), C(2, "b", 1000)}, 256, "20 236"},
      {"also of a later tenant", {C(1, "a", 1000), C(2, "b", 20)}, 256, "236 20"},
      {"half to the shortest", {C(1, "a", 1000), C(2, "a", 500), C(3, "a", 200)}, 256,
       "128 - 128"},
      {"the shortest ends", {C(1, "a", 1000), C(2, "a", 500), C(3, "a", 50)}, 256, "206 - 50"},
      {"the first ends", {C(1, "a", 100), C(2, "a", 500), C(3, "a", 600)}, 256, "100 156 -"},
      {"the first of equals", {C(9, "a", 500), C(3, "a", 500)}, 100, "- 100"},
      {"order of submission, not of place", {C(9, "a", 400), C(3, "a", 500)}, 100, "50 50"},
      {"chunks of their own", {C(1, "a", 500, 0, 32), C(2, "b", 500, 0, 7)}, 256, "32 7"},
      {"odd rows go to who waited longest", {C(1, "a", 500, 5), C(2, "b", 500, 4)}, 3, "1 2"},
      {"followers wait for the oldest", {C(2, "a", 500, 0, 0, 1), C(1, "a", 500, 0, 0, 1)}, 256,
       "- 256"},
      {"other pages follow nobody", {C(1, "a", 500, 0, 0, 1), C(2, "a", 400, 0, 0, 2)}, 256,
       "128 128"},
  };
  for (const PickCase& c : cases) {
    CAPTURE(std::string(c.name));
    CHECK(Rows(PickLong(c.candidates, c.rows_max), c.candidates.size()) == c.rows);
  }
}

TEST_CASE("MeanContext counts each row of the picks") {
  std::vector<Candidate> candidates = {C(1, "a", 500), C(2, "a", 500), C(3, "a", 500)};
  candidates[0].context = 1000;
  candidates[1].context = 10;
  CHECK(MeanContext(candidates, {}) == 0);
  CHECK(MeanContext(candidates, std::vector<Pick>{{0, 3}}) == 1001);
  CHECK(MeanContext(candidates, std::vector<Pick>{{0, 1}, {1, 3}}) == (1000 + 3 * 11) / 4.0);
}

TEST_CASE("PickAdmission prefers the tenant with the fewest running, then the oldest request") {
  const Room room{.running = 2, .running_max = 4, .starved = 0, .pages = 10};
  const std::vector<Waiting> waiting = {{5, 2, 1, 0}, {9, 0, 1, 0}, {7, 0, 1, 0}, {1, 3, 1, 0}};
  CHECK(PickAdmission(waiting, room) == std::vector<size_t>{2});
  CHECK(PickAdmission({}, room).empty());
}

TEST_CASE("PickAdmission lets nobody in without room") {
  const Room base{.running = 2, .running_max = 4, .starved = 0, .pages = 3};
  const auto admitted = [](const Room& room) {
    return PickAdmission(std::vector<Waiting>{{1, 0, 3, 0}}, room).size();
  };
  CHECK(admitted(base) == 1);
  Room room = base;
  room.running = 4;
  CHECK(admitted(room) == 0);
  room = base;
  room.starved = 1;
  CHECK(admitted(room) == 0);
  room = base;
  room.pages = 2;
  CHECK(admitted(room) == 0);
  room.running = 0;  // an empty engine takes anything
  CHECK(admitted(room) == 1);
}

TEST_CASE("PickAdmission lets small requests pass large ones, for a while") {
  const Room room{.running = 1, .running_max = 9, .starved = 0, .pages = 5};
  std::vector<Waiting> waiting = {{1, 1, 50, 0}, {2, 1, 6, 3}, {3, 1, 5, 0}, {4, 1, 1, 0}};
  CHECK(PickAdmission(waiting, room) == std::vector<size_t>{0, 1, 2});
  waiting[1].passed_over = kPassedOverMax;
  CHECK(PickAdmission(waiting, room).empty());
  waiting[1].pages = 5;
  CHECK(PickAdmission(waiting, room) == std::vector<size_t>{0, 1});
}

TEST_CASE("PickVictim takes the youngest that holds pages") {
  CHECK(PickVictim(std::vector<Holder>{{4, 1}, {9, 2}, {7, 3}}) == 1);
  CHECK(PickVictim(std::vector<Holder>{{4, 1}, {9, 0}, {7, 3}}) == 2);
  CHECK(PickVictim(std::vector<Holder>{{4, 0}, {9, 0}}) == kNobody);
  CHECK(PickVictim(std::vector<Holder>{{4, 5}}) == 0);
  CHECK(PickVictim({}) == kNobody);
}

}  // namespace
}  // namespace holdfast
