// sessions ls|show|tree|fork|rewind|snapshot|rm. Every one is a call of the REST API: to the server
// that holds the data folder, or, where none does, to one that this process starts for itself on a
// free port of this machine. So there is one way to do each thing.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <fstream>
#include <iostream>
#include <sstream>

#include "api/api_error.h"
#include "api/cli.h"
#include "api/http.h"
#include "api/server.h"

namespace holdfast {
namespace {

// Something that answers for the data folder.
class Access {
 public:
  static Result<std::unique_ptr<Access>> Open(const CommonFlags& flags) {
    auto access = std::unique_ptr<Access>(new Access);
    if (access->FindServer(DataDirOf(flags))) return access;
    RuntimeOptions options;
    HOLDFAST_ASSIGN_OR_RETURN(options.engine, EngineOptionsOf(flags));
    options.data_dir = DataDirOf(flags);
    HOLDFAST_ASSIGN_OR_RETURN(access->runtime_, Runtime::Open(options));
    ServerOptions server;
    server.port = 0;
    server.model_name = ModelNameOf(flags);
    access->server_ = std::make_unique<Server>(server);
    HOLDFAST_ASSIGN_OR_RETURN(const int port, access->server_->Listen());
    access->server_->Attach(access->runtime_.get());
    access->url_ = "http://127.0.0.1:" + std::to_string(port);
    return access;
  }
  ~Access() {
    if (server_ == nullptr) return;
    runtime_->Shutdown(0);
    server_->Stop();
    server_->WaitUntilStopped();
  }

  // The body of a good answer; the error of another one becomes a Status with its message.
  Result<Json> Ask(const std::string& method, const std::string& path, const Json& body = nullptr) {
    HttpCallArgs args;
    args.base_url = url_;
    args.method = method;
    args.path = path;
    if (!body.is_null()) args.body = DumpJson(body);
    const char* key = std::getenv("HOLDFAST_CLIENT_KEY");
    args.api_key = key != nullptr ? key : "";
    HOLDFAST_ASSIGN_OR_RETURN(const HttpReply reply, HttpCall(args));
    HOLDFAST_ASSIGN_OR_RETURN(Json json, ParseJson(reply.body));
    if (reply.status < 400) return json;
    std::string message = "HTTP " + std::to_string(reply.status);
    if (json.contains("error") && json["error"].contains("message")) {
      message = json["error"]["message"].get<std::string>();
    }
    return reply.status == 404 ? Status::NotFound(message) : Status::Invalid(message);
  }

  // All rows of a list, page by page.
  Result<Json> AskAll(const std::string& path) {
    Json all = Json::array();
    std::string after;
    do {
      HOLDFAST_ASSIGN_OR_RETURN(
          Json page, Ask("GET", path + (path.find('?') == std::string::npos ? "?" : "&") +
                                    "limit=1000" + (after.empty() ? "" : "&after=" + after)));
      for (Json& row : page["data"]) all.push_back(std::move(row));
      after = page["next"].is_string() ? page["next"].get<std::string>() : "";
    } while (!after.empty());
    return all;
  }

 private:
  bool FindServer(const std::string& data_dir) {
    std::ifstream in(data_dir + "/server.json");
    std::stringstream text;
    text << in.rdbuf();
    auto json = ParseJson(text.str());
    if (!json.ok() || !json->contains("url")) return false;
    url_ = (*json)["url"].get<std::string>();
    const auto health = HttpCall({url_, "GET", "/health", "", "", 5});
    return health.ok() && health->status == 200;
  }

  std::string url_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Server> server_;
};

std::string Text(const Json& v) {
  if (v.is_null()) return "-";
  return v.is_string() ? v.get<std::string>() : DumpJson(v);
}

std::string TimeText(const Json& unix_s) {
  const auto t = static_cast<std::time_t>(unix_s.get<int64_t>());
  char text[32];
  std::tm local{};
  localtime_r(&t, &local);
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M", &local);
  return text;
}

void PrintSessions(const Json& rows) {
  std::printf("%-30s %-24s %6s %6s %8s  %s\n", "ID", "EXTERNAL", "TURNS", "ITEMS",
              "TOKENS", "UPDATED");
  for (const Json& s : rows) {
    std::printf("%-30s %-24s %6s %6s %8s  %s\n", Text(s["id"]).c_str(),
                Text(s["external_id"]).substr(0, 24).c_str(), Text(s["turns"]).c_str(),
                Text(s["items"]).c_str(), Text(s["tokens"]).c_str(),
                TimeText(s["updated_at"]).c_str());
  }
}

void PrintItems(const Json& items) {
  std::printf("%5s %-10s %8s %7s  %s\n", "ITEM", "ROLE", "TOKENS", "COUNT", "TEXT");
  for (const Json& i : items) {
    std::string text;
    if (i["message"].is_object()) {
      text = i["message"].contains("content") ? Text(i["message"]["content"]) : "";
      if (i["message"].contains("tool_calls")) text += " " + DumpJson(i["message"]["tool_calls"]);
    }
    for (char& c : text) c = c == '\n' ? ' ' : c;
    std::printf("%5s %-10s %8s %7s  %s\n", Text(i["index"]).c_str(), Text(i["role"]).c_str(),
                Text(i["tokens"]["first"]).c_str(), Text(i["tokens"]["count"]).c_str(),
                text.substr(0, 80).c_str());
  }
}

// Branches as a tree, children under the branch that they left.
void PrintTree(const Json& branches, const std::string& parent, int depth) {
  for (const Json& b : branches) {
    const std::string of = b["parent"].is_null() ? "" : Text(b["parent"]);
    if (of != parent) continue;
    std::printf("%*s%s%s  %s tokens, %s items%s\n", depth * 2, "", Text(b["name"]).c_str(),
                b["default"].get<bool>() ? " (default)" : "", Text(b["tokens"]).c_str(),
                Text(b["items"]).c_str(),
                parent.empty() ? "" : (", left at token " + Text(b["parent_tokens"])).c_str());
    PrintTree(branches, Text(b["name"]), depth + 1);
  }
}

struct SessionFlags {
  std::string id, branch, name, label, snapshot;
  int64_t at_item = -1, at_token = -1;
};

Status List(Access& access, const CommonFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json rows, access.AskAll("/v1/sessions"));
  flags.json ? PrintJson({{"object", "list"}, {"data", rows}}) : PrintSessions(rows);
  return Status();
}

Status Show(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  const std::string path = "/v1/sessions/" + s.id;
  HOLDFAST_ASSIGN_OR_RETURN(Json session, access.Ask("GET", path));
  HOLDFAST_ASSIGN_OR_RETURN(
      Json items, access.AskAll(path + "/items" + (s.branch.empty() ? "" : "?branch=" + s.branch)));
  if (flags.json) {
    session["item_list"] = std::move(items);
    PrintJson(session);
  } else {
    PrintSessions(Json::array({session}));
    PrintItems(items);
  }
  return Status();
}

Status Tree(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json branches,
                            access.AskAll("/v1/sessions/" + s.id + "/branches"));
  HOLDFAST_ASSIGN_OR_RETURN(const Json snapshots,
                            access.AskAll("/v1/sessions/" + s.id + "/snapshots"));
  if (flags.json) {
    PrintJson({{"branches", branches}, {"snapshots", snapshots}});
    return Status();
  }
  PrintTree(branches, "", 0);
  for (const Json& n : snapshots) {
    std::printf("snapshot %s %s on %s at token %s\n", Text(n["id"]).c_str(),
                Text(n["label"]).c_str(), Text(n["branch"]).c_str(), Text(n["tokens"]).c_str());
  }
  return Status();
}

// fork, rewind and snapshot: a POST whose answer is one object.
Status Post(Access& access, const CommonFlags& flags, const SessionFlags& s,
            const std::string& verb) {
  Json body = Json::object();
  if (!s.branch.empty()) body["branch"] = s.branch;
  if (!s.name.empty()) body["name"] = s.name;
  if (!s.label.empty()) body["label"] = s.label;
  if (!s.snapshot.empty()) body["snapshot"] = s.snapshot;
  if (s.at_item >= 0) body["at_item"] = s.at_item;
  if (s.at_token >= 0) body["at_token"] = s.at_token;
  HOLDFAST_ASSIGN_OR_RETURN(const Json made,
                            access.Ask("POST", "/v1/sessions/" + s.id + "/" + verb, body));
  if (flags.json) {
    PrintJson(made);
  } else {
    std::printf("%s at token %s\n",
                Text(made.contains("name") ? made["name"] : made["id"]).c_str(),
                Text(made["tokens"]).c_str());
  }
  return Status();
}

Status Remove(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json gone, access.Ask("DELETE", "/v1/sessions/" + s.id));
  if (flags.json) PrintJson(gone);
  return Status();
}

}  // namespace

void AddSessionCommands(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto s = std::make_shared<SessionFlags>();
  CLI::App* sessions = app.add_subcommand("sessions", "Look at sessions and branch them");
  sessions->require_subcommand(1);
  using Action = std::function<Status(Access&)>;
  const auto add = [=](const char* name, const char* help, const Action& action) {
    CLI::App* c = sessions->add_subcommand(name, help);
    AddCommonFlags(c, flags, true);
    c->callback([=] {
      *chosen = [=] {
        auto access = Access::Open(*flags);
        if (!access.ok()) return Fail(*flags, access.status());
        const Status status = action(**access);
        return status.ok() ? 0 : Fail(*flags, status);
      };
    });
    if (std::string_view(name) != "ls") c->add_option("id", s->id, "The session")->required();
    return c;
  };
  add("ls", "List sessions", [=](Access& a) { return List(a, *flags); });
  add("show", "A session and its items", [=](Access& a) { return Show(a, *flags, *s); })
      ->add_option("--branch", s->branch, "Branch (default: the default one)");
  add("tree", "Branches and snapshots", [=](Access& a) { return Tree(a, *flags, *s); });
  add("rm", "Delete a session", [=](Access& a) { return Remove(a, *flags, *s); });
  for (const char* verb : {"fork", "rewind"}) {
    CLI::App* c = add(verb, verb == std::string_view("fork")
                                ? "A new branch from a point"
                                : "A new branch from a point, made the default one",
                      [=](Access& a) { return Post(a, *flags, *s, verb); });
    c->add_option("--branch", s->branch, "From this branch");
    c->add_option("--at-item", s->at_item, "Keep so many items");
    c->add_option("--at-token", s->at_token, "Keep so many tokens");
    c->add_option("--snapshot", s->snapshot, "From this snapshot");
    c->add_option("--name", s->name, "Name of the new branch");
  }
  CLI::App* snapshot = add("snapshot", "Label a point that stays",
                           [=](Access& a) { return Post(a, *flags, *s, "snapshot"); });
  snapshot->add_option("--branch", s->branch, "Of this branch");
  snapshot->add_option("--label", s->label, "What to call it");
}

}  // namespace holdfast
