#include "engine/store/data_dir.h"

#include <doctest/doctest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "tests/engine/base/temp_dir.h"

namespace holdfast {
namespace {

using testing::TempDir;

TEST_CASE("a data folder is made private, parents too, and locked") {
  TempDir dir;
  const std::string path = dir.File("a/b/data");
  CHECK(DataDir::Open(path, DataDir::Mode::kOpen).status().code() == Code::kNotFound);
  Result<DataDir> data = DataDir::Open(path, DataDir::Mode::kCreate);
  REQUIRE_MESSAGE(data.ok(), data.status().ToString());
  struct stat info;
  REQUIRE(::stat(path.c_str(), &info) == 0);
  CHECK((info.st_mode & 0777) == 0700);
  CHECK(data->database_path() == path + "/holdfast.db");

  const Status second = DataDir::Open(path, DataDir::Mode::kCreate).status();
  CHECK(second.code() == Code::kConflict);
  CHECK(second.message() == "data folder " + path + " is locked by process " +
                                std::to_string(::getpid()));
}

TEST_CASE("the lock goes with its owner, even when that is killed") {
  TempDir dir;
  const std::string path = dir.File("data");
  { CHECK(DataDir::Open(path, DataDir::Mode::kCreate).ok()); }
  int ready[2];
  REQUIRE(::pipe(ready) == 0);
  const pid_t child = ::fork();
  if (child == 0) {
    Result<DataDir> data = DataDir::Open(path, DataDir::Mode::kOpen);
    const char c = data.ok() ? 'y' : 'n';
    if (::write(ready[1], &c, 1) != 1) ::_exit(1);
    ::pause();
    ::_exit(0);
  }
  char c = 0;
  REQUIRE(::read(ready[0], &c, 1) == 1);
  CHECK(c == 'y');
  const Status held = DataDir::Open(path, DataDir::Mode::kOpen).status();
  CHECK(held.code() == Code::kConflict);
  CHECK(held.message().find("process " + std::to_string(child)) != std::string::npos);
  REQUIRE(::kill(child, SIGKILL) == 0);
  ::waitpid(child, nullptr, 0);
  CHECK(DataDir::Open(path, DataDir::Mode::kOpen).ok());
  ::close(ready[0]);
  ::close(ready[1]);
}

TEST_CASE("versions: newer is a conflict, nonsense is corrupt") {
  TempDir dir;
  const std::string path = dir.File("data");
  { REQUIRE(DataDir::Open(path, DataDir::Mode::kCreate).ok()); }
  auto open_with = [&](const std::string& text) {
    std::ofstream(path + "/version") << text;
    return DataDir::Open(path, DataDir::Mode::kOpen).status();
  };
  const Status newer = open_with("holdfast-data 2\n");
  CHECK(newer.code() == Code::kConflict);
  CHECK(newer.message().find("newer version") != std::string::npos);
  CHECK(open_with("").code() == Code::kCorrupt);
  CHECK(open_with("something else 1\n").code() == Code::kCorrupt);
  CHECK(open_with("holdfast-data 1\n").ok());
}

TEST_CASE("a folder that cannot be used says why") {
  TempDir dir;
  std::ofstream(dir.File("file")) << "x";
  CHECK(DataDir::Open(dir.File("file"), DataDir::Mode::kCreate).status().code() == Code::kIo);
  CHECK(DataDir::Open(dir.File("file/below"), DataDir::Mode::kCreate).status().code() == Code::kIo);
  // root may write anywhere, so that a folder without permissions is no test there
  const Status s = DataDir::Open("/proc/holdfast-cannot-be-made", DataDir::Mode::kCreate).status();
  CHECK_FALSE(s.ok());
  CHECK(s.message().find("/proc/holdfast-cannot-be-made") != std::string::npos);
}

}  // namespace
}  // namespace holdfast
