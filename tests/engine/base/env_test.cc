// What every Env does, for the operating system's and for the one of the fault tests.
#include "engine/base/env.h"

#include <doctest/doctest.h>

#include <array>

#include "tests/engine/base/fault_env.h"
#include "tests/engine/base/temp_dir.h"

namespace holdfast {
namespace {

using testing::FaultEnv;
using testing::TempDir;


Status WriteText(File* file, uint64_t offset, const std::vector<std::string>& texts) {
  std::vector<std::span<const std::byte>> parts;
  for (const std::string& t : texts) parts.push_back(std::as_bytes(std::span(t)));
  return file->WriteAt(offset, parts);
}

std::string ReadText(File* file, uint64_t offset, size_t size) {
  std::string text(size, '?');
  const std::span<std::byte> part = std::as_writable_bytes(std::span(text));
  const Status s = file->ReadAt(offset, {&part, 1});
  return s.ok() ? text : s.ToString();
}

void KeepsTheContract(Env* env, const std::string& folder) {
  const std::string path = folder + "/a";
  CHECK(env->Open(path, FileMode::kRead).status().code() == Code::kNotFound);
  CHECK(env->Open(path, FileMode::kReadWrite).status().code() == Code::kNotFound);
  Result<std::unique_ptr<File>> file = env->Open(path, FileMode::kCreate);
  REQUIRE_MESSAGE(file.ok(), file.status().ToString());
  CHECK_FALSE(env->Open(path, FileMode::kCreate).ok());
  File* f = file->get();
  CHECK(WriteText(f, 3, {"def", "", "ghi"}).ok());
  CHECK(WriteText(f, 0, {"abc"}).ok());
  CHECK(*f->Size() == 9);
  CHECK(ReadText(f, 0, 9) == "abcdefghi");
  std::string one(2, '?'), two(4, '?');
  const std::vector<std::span<std::byte>> parts = {std::as_writable_bytes(std::span(one)),
                                                   std::as_writable_bytes(std::span(two))};
  CHECK(f->ReadAt(2, parts).ok());
  CHECK(one + two == "cdefgh");
  std::string beyond(5, '?');
  const std::span<std::byte> part = std::as_writable_bytes(std::span(beyond));
  CHECK(f->ReadAt(6, {&part, 1}).code() == Code::kCorrupt);
  CHECK(WriteText(f, 3 * 4096, {"far"}).ok());
  CHECK(ReadText(f, 4096, 2) == std::string(2, '\0'));
  CHECK(f->Sync().ok());
  const Status punched = f->PunchHole(0, 4096);
  CHECK((punched.ok() || punched.code() == Code::kUnavailable));
  if (punched.ok()) CHECK(ReadText(f, 0, 3) == std::string(3, '\0'));
  CHECK(*f->Size() == 3 * 4096 + 3);
  CHECK(env->SyncDirectory(folder).ok());

  CHECK(env->Rename(path, folder + "/b").ok());
  CHECK(env->Open(folder + "/c", FileMode::kCreate).ok());
  CHECK(*env->List(folder) == std::vector<std::string>{"b", "c"});
  CHECK(env->Remove(folder + "/b").ok());
  CHECK(env->Remove(folder + "/b").code() == Code::kNotFound);
  CHECK(ReadText(f, 3 * 4096, 3) == "far");  // an open file outlives its name
  CHECK(*env->List(folder) == std::vector<std::string>{"c"});
  CHECK(*env->FreeBytes(folder) > 0);
  CHECK(env->MakeDirectory(folder).ok());
  std::array<std::byte, 16> random{};
  CHECK(env->FillRandom(random).ok());
  CHECK(random != std::array<std::byte, 16>{});
  const int64_t before = env->SteadyNanos();
  CHECK(before <= env->SteadyNanos());
}

TEST_CASE("the real Env keeps the contract") {
  TempDir dir;
  RealEnv env;
  KeepsTheContract(&env, dir.path());
  CHECK(env.WallMicros() > 1700000000000000);
  CHECK(env.List(dir.File("absent")).status().code() == Code::kNotFound);
}

TEST_CASE("a write of more parts than one system call takes goes through") {
  TempDir dir;
  RealEnv env;
  auto file = env.Open(dir.File("a"), FileMode::kCreate);
  REQUIRE(file.ok());
  const std::vector<std::string> texts(3000, "xyz");
  CHECK(WriteText(file->get(), 0, texts).ok());
  CHECK(*(*file)->Size() == 9000);
  CHECK(ReadText(file->get(), 8997, 3) == "xyz");
}

TEST_CASE("a full device is kExhausted") {
  RealEnv env;
  auto file = env.Open("/dev/full", FileMode::kReadWrite);
  REQUIRE(file.ok());
  CHECK(WriteText(file->get(), 0, {"x"}).code() == Code::kExhausted);
}

TEST_CASE("the Env of the fault tests keeps the contract") {
  FaultEnv env;
  KeepsTheContract(&env, "/disk");
}

TEST_CASE("a crash keeps what was synced and no whole of what was not") {
  int kept = 0, lost = 0;
  for (uint64_t seed = 0; seed < 64; ++seed) {
    FaultEnv env(seed);
    auto file = env.Open("/disk/a", FileMode::kCreate);
    REQUIRE(file.ok());
    REQUIRE(WriteText(file->get(), 0, {"synced"}).ok());
    REQUIRE((*file)->Sync().ok());
    REQUIRE(env.SyncDirectory("/disk").ok());
    REQUIRE(WriteText(file->get(), 512, {"more"}).ok());
    REQUIRE(env.Open("/disk/b", FileMode::kCreate).ok());
    env.Crash();
    auto again = env.Open("/disk/a", FileMode::kRead);
    REQUIRE(again.ok());
    CHECK(ReadText(again->get(), 0, 6) == "synced");
    ++(*(*again)->Size() == 516 ? kept : lost);
    ++(env.Exists("/disk/b") ? kept : lost);
  }
  CHECK(kept > 0);
  CHECK(lost > 0);
}

TEST_CASE("faults come where they were asked for") {
  FaultEnv env;
  auto file = env.Open("/disk/a", FileMode::kCreate);
  REQUIRE(file.ok());
  env.FailAt(2, FaultEnv::Fault::kNoSpace, FaultEnv::Repeat::kOnce);
  CHECK(WriteText(file->get(), 0, {"1"}).ok());
  CHECK(WriteText(file->get(), 1, {"2"}).code() == Code::kExhausted);
  CHECK(WriteText(file->get(), 1, {"3"}).ok());
  env.FailAt(1, FaultEnv::Fault::kIoError, FaultEnv::Repeat::kFromThenOn);
  CHECK((*file)->Sync().code() == Code::kIo);
  CHECK((*file)->Sync().code() == Code::kIo);
  env.Heal();
  CHECK((*file)->Sync().ok());
  env.FailReadAt(1);
  CHECK(ReadText(file->get(), 0, 1) == "io: fault: read");
  CHECK(ReadText(file->get(), 0, 2) == "13");
}

}  // namespace
}  // namespace holdfast
