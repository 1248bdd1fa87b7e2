// The data folder as a whole: POST /v1/admin/fsck, gc, backup. They concern all tenants and name
// paths of this machine, so that they are for whoever can read DATA/server.json, where the token of
// this process stands (header x-admin-token); server.cc checks it.
#include "api/route.h"
#include "api/upkeep.h"

namespace holdfast {
namespace {

Json KindJson(const LogReport::Kind& kind) {
  return {{"rows", kind.rows}, {"damaged", kind.damaged}};
}

Json FsckJson(const FsckReport& r) {
  Json what = Json::array();
  for (const auto* list : {&r.log.what, &r.pages.what}) {
    for (const std::string& w : *list) what.push_back(w);
  }
  return {{"object", "fsck"},
          {"clean", r.clean()},
          {"database", {{"damaged", r.log.database_damaged}}},
          {"sessions", KindJson(r.log.sessions)},
          {"nodes", KindJson(r.log.nodes)},
          {"items", KindJson(r.log.items)},
          {"recipes", KindJson(r.log.recipes)},
          {"branches", KindJson(r.log.branches)},
          {"turns", KindJson(r.log.turns)},
          {"snapshots", KindJson(r.log.snapshots)},
          {"events", KindJson(r.log.events)},
          {"tails", KindJson(r.log.tails)},
          {"segments", KindJson(r.log.segments)},
          {"variants", KindJson(r.log.variants)},
          {"pages",
           {{"rows", r.pages.pages},
            {"damaged", r.pages.damaged},
            {"bytes", r.pages.bytes},
            {"file_bytes", r.pages.file_bytes},
            {"unindexed", r.pages.unindexed},
            {"unindexed_bytes", r.pages.unindexed_bytes},
            {"dead_bytes", r.pages.dead_bytes},
            {"unaccounted_bytes", r.pages.unaccounted_bytes}}},
          {"what", std::move(what)}};
}

// One field of the body; false after a refusal.
template <typename Read>
bool ReadField(Call& call, const Read& read) {
  const std::optional<Json> body = ReadBody(call);
  if (!body) return false;
  std::optional<ApiError> error;
  Fields fields(*body, "", &error);
  read(fields);
  if (error) call.Refuse(*error);
  return !error;
}

}  // namespace

void HandleFsck(Call& call) {
  bool repair = false;
  if (!ReadField(call, [&](Fields& f) { repair = f.Bool("repair", false); })) return;
  const auto report = Fsck(call.runtime, repair ? FilePageStore::Repair::kRepair
                                                : FilePageStore::Repair::kNo);
  if (!report.ok()) return call.Refuse(report.status());
  call.Reply(200, FsckJson(*report));
}

void HandleGc(Call& call) {
  bool now = false;
  if (!ReadField(call, [&](Fields& f) { now = f.Bool("now", false); })) return;
  const auto report = CollectGarbage(call.runtime, now ? Gc::kNow : Gc::kExpired);
  if (!report.ok()) return call.Refuse(report.status());
  call.Reply(200, {{"object", "gc"},
                   {"sessions", report->deleted.sessions},
                   {"pages", report->deleted.pages.pages},
                   {"bytes_freed", report->deleted.pages.bytes},
                   {"bytes_moved", report->bytes_moved},
                   {"shredded", report->deleted.shredded}});
}

void HandleBackup(Call& call) {
  std::string path;
  if (!ReadField(call, [&](Fields& f) { path = f.Text("path", "", 4096); })) return;
  const auto report = Backup(call.runtime, path);
  if (!report.ok()) return call.Refuse(report.status());
  call.Reply(201, {{"object", "backup"},
                   {"path", path},
                   {"pages", report->pages},
                   {"bytes", report->bytes}});
}

}  // namespace holdfast
