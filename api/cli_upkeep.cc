// sessions fsck|gc|backup: upkeep of the whole data folder (upkeep.h), by the server that holds it.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <iostream>

#include "api/cli_access.h"

namespace holdfast {
namespace {

struct UpkeepFlags {
  bool repair = false, now = false;
  std::string path;
};

Result<int> Fsck(Access& access, const CommonFlags& common, const UpkeepFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json r,
                            access.Ask("POST", "/v1/admin/fsck", {{"repair", flags.repair}}));
  if (common.json) {
    PrintJson(r);
  } else {
    std::printf("%-10s %10s %8s\n", "KIND", "ROWS", "DAMAGED");
    for (const char* kind : {"sessions", "nodes", "items", "recipes", "branches", "turns",
                             "snapshots", "events", "tails", "segments", "variants", "pages"}) {
      std::printf("%-10s %10s %8s\n", kind, DumpJson(r[kind]["rows"]).c_str(),
                  DumpJson(r[kind]["damaged"]).c_str());
    }
    for (const Json& w : r["what"]) std::cout << w.get<std::string>() << std::endl;
    std::cout << (r["clean"].get<bool>() ? "clean" : "damaged") << std::endl;
  }
  return r["clean"].get<bool>() ? 0 : 1;
}

Result<int> Gc(Access& access, const CommonFlags& common, const UpkeepFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json r,
                            access.Ask("POST", "/v1/admin/gc", {{"now", flags.now}}));
  if (common.json) {
    PrintJson(r);
  } else {
    std::cout << r["sessions"] << " expired sessions and " << r["pages"] << " pages deleted, "
              << r["bytes_freed"] << " bytes freed" << std::endl;
    if (flags.now && !r["shredded"].get<bool>()) {
      std::cout << "Deleted texts may still lie in the database's log, which a long read (an "
                   "export, a backup) has held: run it again."
                << std::endl;
    }
  }
  return 0;
}

Result<int> Backup(Access& access, const CommonFlags& common, const UpkeepFlags& flags) {
  const std::string path = std::filesystem::absolute(flags.path).string();
  HOLDFAST_ASSIGN_OR_RETURN(const Json r,
                            access.Ask("POST", "/v1/admin/backup", {{"path", path}}));
  if (common.json) {
    PrintJson(r);
  } else {
    std::cout << path << ": " << r["pages"] << " pages, " << r["bytes"] << " bytes" << std::endl;
  }
  return 0;
}

}  // namespace

void AddUpkeepCommands(CLI::App* sessions, CommonFlags* flags, Command* chosen) {
  auto u = std::make_shared<UpkeepFlags>();
  const auto add = [=](const char* name, const char* help, auto action) {
    return AddAccessCommand(sessions, name, help, flags, chosen,
                            [=](Access& a) { return action(a, *flags, *u); });
  };
  add("fsck", "Verify every row and every page; exit 1 when there is damage", &Fsck)
      ->add_flag("--repair", u->repair, "Drop damaged pages, index records that are not indexed");
  add("gc", "Delete expired sessions", &Gc)
      ->add_flag("--now", u->now,
                 "Also the pages that no session needs, and what files still hold of deleted "
                 "texts; compact");
  add("backup", "Copy the whole data folder while it is used", &Backup)
      ->add_option("dir", u->path, "A folder that does not exist yet")
      ->required();
}

}  // namespace holdfast
