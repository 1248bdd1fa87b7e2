#include "sessions/lease.h"

#include <doctest/doctest.h>

#include <chrono>
#include <future>

namespace holdfast {
namespace {

TEST_CASE("a head is lent to one at a time") {
  HeadLeases leases(1);
  auto a = leases.TryTake(1, 10);
  REQUIRE(a);
  CHECK_FALSE(leases.TryTake(1, 10));
  CHECK(leases.TryTake(1, 11));  // and given back at once
  CHECK(leases.IsBusy(10));
  CHECK(leases.held() == 1);
  a.reset();
  CHECK_FALSE(leases.IsBusy(10));
  CHECK(leases.TryTake(1, 10));
}

TEST_CASE("a session is shut while a turn runs: nothing more is lent, who waits gives up") {
  HeadLeases leases(1);
  auto held = leases.TryTake(1, 10);
  auto waits = std::async(std::launch::async, [&] { return leases.Wait(1, 10).status().code(); });
  leases.ShutSession(1);
  CHECK(waits.get() == Code::kNotFound);
  CHECK_FALSE(leases.TryTake(1, 11));
  CHECK(leases.TryTake(2, 20));
  CHECK_FALSE(leases.AwaitFree(1, 1));
  auto free = std::async(std::launch::async, [&] { return leases.AwaitFree(1, 60'000); });
  held.reset();
  CHECK(free.get());
  CHECK(leases.CloseSession(1));
  leases.ReopenSession(1);
  CHECK(leases.TryTake(1, 10));
}

TEST_CASE("who waits gets the head; more than the limit are refused") {
  HeadLeases leases(1);
  auto held = leases.TryTake(1, 10);
  // Of two that ask, one waits and one is refused, whichever comes first.
  auto ask = [&] { return leases.Wait(1, 10).status().code(); };
  auto a = std::async(std::launch::async, ask);
  auto b = std::async(std::launch::async, ask);
  std::future<Code>* refused = nullptr;
  while (refused == nullptr) {
    for (auto* f : {&a, &b}) {
      if (f->wait_for(std::chrono::milliseconds(1)) == std::future_status::ready) refused = f;
    }
  }
  CHECK(refused->get() == Code::kExhausted);
  CHECK_FALSE(leases.CloseSession(1));
  held.reset();
  CHECK((refused == &a ? b : a).get() == Code::kOk);
}

TEST_CASE("closing lets waiters go") {
  HeadLeases leases(4);
  auto held = leases.TryTake(1, 10);
  auto waiter = std::async(std::launch::async, [&] { return leases.Wait(1, 10).status().code(); });
  leases.Close();
  CHECK(waiter.get() == Code::kUnavailable);
  CHECK_FALSE(leases.TryTake(2, 20));
}

TEST_CASE("a session closes only while nothing of it runs") {
  HeadLeases leases(4);
  auto held = leases.TryTake(1, 10);
  CHECK_FALSE(leases.CloseSession(1));
  CHECK(leases.CloseSession(2));
  CHECK_FALSE(leases.TryTake(2, 20));
  leases.ReopenSession(2);
  CHECK(leases.TryTake(2, 20));
}

}  // namespace
}  // namespace holdfast
