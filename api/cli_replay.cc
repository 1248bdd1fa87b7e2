// replay: a recorded session again, through POST /v1/sessions/{id}/replay. Exit status 0: no
// divergence; 1: a divergence, or the command failed.
#include <CLI/CLI.hpp>
#include <cstdio>
#include <fstream>
#include <functional>

#include "api/cli_access.h"

namespace holdfast {
namespace {

struct ReplayFlags {
  std::string session, mode = "verify", branch, snapshot, name, sampling, trace;
  int64_t from = -1, to = -1, from_item = -1, to_item = -1, top_k = -1;
  std::optional<int64_t> seed;
  std::vector<std::string> edits;
  bool ndjson = false;
};

Result<Json> BodyOf(const ReplayFlags& f) {
  Json body = {{"mode", f.mode}, {"stream", true}};
  for (const auto& [name, value] :
       {std::pair("branch", f.branch), std::pair("snapshot", f.snapshot),
        std::pair("name", f.name)}) {
    if (!value.empty()) body[name] = value;
  }
  for (const auto& [name, value] :
       {std::pair("from", f.from), std::pair("to", f.to), std::pair("from_item", f.from_item),
        std::pair("to_item", f.to_item), std::pair("top_k", f.top_k)}) {
    if (value >= 0) body[name] = value;
  }
  if (f.seed) body["seed"] = *f.seed;
  if (!f.sampling.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(body["sampling"], ParseJson(f.sampling));
  }
  for (const std::string& edit : f.edits) {
    HOLDFAST_ASSIGN_OR_RETURN(Json one, EditOf(edit));
    body["edits"].push_back(std::move(one));
  }
  return body;
}

// A token as one word: its text quoted, as JSON.
std::string Word(const Json& token) {
  if (!token.is_object()) return "-";
  if (token.contains("text")) return DumpJson(token["text"]);
  return token.contains("digest") ? token["digest"].get<std::string>() : "-";
}

void PrintStep(const Json& s, bool free) {
  std::printf("%7lld %5lld %6s %9.4f  %-18s", s["index"].get<long long>(),
              s["item"].get<long long>(),
              s.contains("rank") ? std::to_string(s["rank"].get<int64_t>()).c_str() : "-",
              s.value("logprob", 0.0), DumpJson(s["text"]).c_str());
  if (free && !s["same"].get<bool>()) std::printf("  recorded %s", Word(s["recorded"]).c_str());
  for (const Json& t : s.value("top", Json::array())) {
    std::printf("  %s %.3f", DumpJson(t["text"]).c_str(), t["logprob"].get<double>());
  }
  std::printf("\n");
}

void PrintDivergence(const Json& d) {
  std::printf("diverged at token %lld (item %lld, %s, %s): %s, because of: %s\n",
              d["index"].get<long long>(), d["item"].get<long long>(),
              d["role"].is_string() ? d["role"].get<std::string>().c_str() : "-",
              d["turn_id"].is_string() ? d["turn_id"].get<std::string>().c_str() : "-",
              d["what"].get<std::string>().c_str(), d["cause"].get<std::string>().c_str());
  std::printf("  %s\n", d["detail"].get<std::string>().c_str());
  if (d["what"] == "page") return;
  for (const char* side : {"expected", "got"}) {
    const Json& j = d[side];
    std::printf("  %-8s %s%s\n", side, Word(j).c_str(),
                j.is_object() && j.contains("digest")
                    ? ("  logits " + j["digest"].get<std::string>()).c_str()
                    : "");
  }
}

void PrintFree(const Json& free) {
  std::printf("branch %s, %lld tokens (%lld given), finish %s\n",
              free["branch"].get<std::string>().c_str(),
              free["replayed"]["count"].get<long long>(),
              free["replayed"]["forced"].get<long long>(),
              free["finish"].get<std::string>().c_str());
  if (free["first_divergence"].is_null()) {
    std::printf("the same answer%s\n",
                free["miss"].is_object() ? ", though another model gave the recorded one" : "");
    return;
  }
  std::printf("first difference at token %lld of the answer\n",
              free["first_divergence"].get<long long>());
  for (const Json& hunk : free["diff"]) {
    if (hunk["equal"].get<bool>()) {
      std::printf("  %s\n", DumpJson(hunk["recorded"]["text"]).c_str());
      continue;
    }
    if (hunk["recorded"]["count"] > 0) {
      std::printf("- %s\n", DumpJson(hunk["recorded"]["text"]).c_str());
    }
    if (hunk["replayed"]["count"] > 0) {
      std::printf("+ %s\n", DumpJson(hunk["replayed"]["text"]).c_str());
    }
  }
}

void PrintChanged(const Json& r) {
  for (const Json& name : r["changed"]) {
    std::printf("changed since it was recorded: %s\n", name.get<std::string>().c_str());
  }
}

void PrintReport(const Json& r) {
  if (r.contains("free")) {
    PrintChanged(r);
    return PrintFree(r["free"]);
  }
  std::printf("%s of branch %s: %lld tokens computed in %.1f s",
              r["mode"].get<std::string>().c_str(), r["branch"].get<std::string>().c_str(),
              r["tokens"].get<long long>(), r["ms"].get<double>() / 1000);
  if (r["mode"] == "verify") {
    std::printf(", %lld sampled tokens compared, pages %lld in memory and %lld on disk",
                r["steps"].get<long long>(), r["pages"]["memory"].get<long long>(),
                r["pages"]["disk"].get<long long>());
  }
  std::printf("\n");
  PrintChanged(r);
  if (r["mode"] != "verify") return;
  if (r["divergence"].is_null()) {
    std::printf("no divergence\n");
  } else {
    PrintDivergence(r["divergence"]);
  }
}

// The turns as chrome://tracing and Perfetto read them: a span each, its parts inside. Times in
// microseconds. What comes after the decode is the commit.
Json TraceOf(const Json& report) {
  Json events = Json::array();
  const auto add = [&](const std::string& name, double ts, double dur, Json args) {
    events.push_back({{"name", name}, {"cat", "turn"}, {"ph", "X"}, {"ts", ts}, {"dur", dur},
                      {"pid", 1}, {"tid", 1}, {"args", std::move(args)}});
  };
  events.push_back({{"name", "process_name"}, {"ph", "M"}, {"pid", 1}, {"tid", 1},
                    {"args", {{"name", report["session_id"]}}}});
  events.push_back({{"name", "thread_name"}, {"ph", "M"}, {"pid", 1}, {"tid", 1},
                    {"args", {{"name", report["branch"]}}}});
  for (const Json& turn : report["turns"]) {
    const double begin = turn["created_ms"].get<double>() * 1000;
    double parts = 0;
    for (const char* part : {"restore_ms", "queue_ms", "prefill_ms", "decode_ms"}) {
      parts += turn[part].get<double>() * 1000;
    }
    const double end = std::max(turn["ended_ms"].get<double>() * 1000, begin + parts);
    add(turn["turn_id"].get<std::string>(), begin, end - begin,
        {{"tokens", turn["tokens"]}, {"finish", turn["finish"]}});
    double at = begin;
    for (const char* part : {"restore", "queue", "prefill", "decode"}) {
      const double dur = turn[part + std::string("_ms")].get<double>() * 1000;
      if (dur > 0) add(part, at, dur, Json::object());
      at += dur;
    }
    if (end > at) add("commit", at, end - at, Json::object());
  }
  return {{"traceEvents", std::move(events)}, {"displayTimeUnit", "ms"}};
}

Status WriteTrace(const std::string& path, const Json& report) {
  std::ofstream out(path, std::ios::binary);
  out << DumpJson(TraceOf(report)) << "\n";
  out.close();
  return out ? Status() : Status::Io("--trace: " + path + " can't be written");
}

// An answer of lines of JSON, each as it comes; an error may be the last.
Status AskLines(Access& access, const std::string& path, const Json& body,
                const std::function<void(Json line)>& on_line) {
  HttpCallArgs args;
  args.method = "POST";
  args.path = path;
  args.body = DumpJson(body);
  std::string rest;
  args.download = [&](std::string_view piece, uint64_t) -> Status {
    rest += piece;
    size_t begin = 0;
    for (size_t end; (end = rest.find('\n', begin)) != std::string::npos; begin = end + 1) {
      HOLDFAST_ASSIGN_OR_RETURN(
          Json line, ParseJson(std::string_view(rest).substr(begin, end - begin)));
      if (line.contains("error")) {
        return Status::Unavailable(line["error"]["message"].get<std::string>());
      }
      on_line(std::move(line));
    }
    rest.erase(0, begin);
    return Status();
  };
  return access.Call(std::move(args)).status();
}

// 1 where it diverged.
Result<int> RunReplay(Access& access, const CommonFlags& flags, const ReplayFlags& f) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json body, BodyOf(f));
  const bool table = !flags.json && !f.ndjson && f.mode != "verify";
  Json steps = Json::array(), report;
  double total = 1;
  if (table) {
    std::printf("%7s %5s %6s %9s  %-18s  ALTERNATIVES\n", "TOKEN", "ITEM", "RANK", "LOGPROB",
                "TEXT");
  }
  const auto take = [&](Json line) {
    if (f.ndjson) PrintJson(line);
    const std::string type = line.value("type", "");
    if (type == "start") total = std::max(1.0, line["tokens"].get<double>());
    const char* at = type == "progress" ? "done" : "index";
    if (line.contains(at) && !table) {
      ShowProgress("replaying", std::min(0.99, line[at].get<double>() / total));
    }
    if (type == "step") {
      if (table) PrintStep(line, f.mode == "free");
      if (flags.json && f.mode != "verify") steps.push_back(std::move(line));
    } else if (type == "report") {
      report = std::move(line);
    }
  };
  HOLDFAST_RETURN_IF_ERROR(
      AskLines(access, SessionPath(f.session, "/replay"), body, take));
  if (!table) ShowProgress("replaying", 1);
  if (report.is_null()) return Status::Unavailable("the replay ended without a report");
  if (!f.trace.empty()) HOLDFAST_RETURN_IF_ERROR(WriteTrace(f.trace, report));
  if (flags.json && !f.ndjson) {
    report.erase("type");
    if (!steps.empty()) report["data"] = std::move(steps);
    PrintJson(report);
  } else if (!f.ndjson) {
    PrintReport(report);
  }
  return report["diverged"].get<bool>() ? 1 : 0;
}

}  // namespace

void AddReplayCommand(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto f = std::make_shared<ReplayFlags>();
  CLI::App* c = AddAccessCommand(&app, "replay", "Compute a recorded session again and compare",
                                 flags, chosen,
                                 [=](Access& a) { return RunReplay(a, *flags, *f); });
  c->add_option("session", f->session, "The session")->required();
  c->add_option("--mode", f->mode, "verify, forced (alternatives at each step) or free (a branch)")
      ->check(CLI::IsMember({"verify", "forced", "free"}))
      ->capture_default_str();
  c->add_option("--branch", f->branch, "Branch (default: the default one)");
  c->add_option("--snapshot", f->snapshot, "Instead of a branch: the way to this snapshot");
  c->add_option("--from", f->from, "From this token; free: the point to go on from");
  c->add_option("--to", f->to, "Up to this token");
  c->add_option("--from-item", f->from_item, "From this item");
  c->add_option("--to-item", f->to_item, "Up to this item");
  c->add_option("--top-k", f->top_k, "Alternatives of each step, 0 to 20");
  c->add_option("--seed", f->seed, "Draw with this seed");
  c->add_option("--sampling", f->sampling, "Draw with these parameters, a JSON object");
  c->add_option("--edit", f->edits, "free: ITEM=CONTENT or ITEM=@FILE, in the place of an input");
  c->add_option("--name", f->name, "free: name of the new branch");
  c->add_option("--trace", f->trace, "Write the turns' timing as Chrome Trace JSON");
  c->add_flag("--ndjson", f->ndjson, "A line of JSON per step on standard output");
}

}  // namespace holdfast
