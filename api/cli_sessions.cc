// sessions ls|show|tree|fork|rewind|snapshot|snapshots|rm. Each is a call of the REST API
// (cli_access.h).
#include <CLI/CLI.hpp>
#include <cstdio>
#include <ctime>

#include "api/cli_access.h"

namespace holdfast {
namespace {

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
  for (const Json& row : branches) {
    const Json& b = row["branch"];
    const std::string of = b["parent"].is_null() ? "" : Text(b["parent"]);
    if (of != parent) continue;
    std::printf("%*s%s%s  %s tokens, %s items%s\n", depth * 2, "", Text(b["name"]).c_str(),
                b["default"].get<bool>() ? " (default)" : "", Text(b["tokens"]).c_str(),
                Text(b["items"]).c_str(),
                parent.empty() ? "" : (", left at token " + Text(b["parent_tokens"])).c_str());
    PrintTree(branches, Text(b["name"]), depth + 1);
  }
}

void PrintSnapshots(const Json& snapshots) {
  for (const Json& n : snapshots) {
    std::printf("snapshot %s %s on %s at token %s%s\n", Text(n["id"]).c_str(),
                Text(n["label"]).c_str(), Text(n["branch"]).c_str(), Text(n["tokens"]).c_str(),
                n["pinned"].get<bool>() ? ", pinned" : "");
  }
}

struct SessionFlags {
  std::string id, branch, name, label, snapshot;
  std::string pin, unpin, remove;  // snapshots
  bool cancel = false;
  int64_t at_item = -1, at_token = -1;
  std::vector<std::string> edits;
  std::vector<int64_t> removed;
  bool retokenise = false;
};

Result<int> List(Access& access, const CommonFlags& flags) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json rows, access.AskAll("/v1/sessions"));
  flags.json ? PrintJson({{"object", "list"}, {"data", rows}}) : PrintSessions(rows);
  return 0;
}

Result<int> Show(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  HOLDFAST_ASSIGN_OR_RETURN(Json session, access.Ask("GET", SessionPath(s.id)));
  std::string path = SessionPath(s.id, "/items");
  if (!s.branch.empty()) path += "?branch=" + Percent(s.branch);
  HOLDFAST_ASSIGN_OR_RETURN(Json items, access.AskAll(path));
  if (flags.json) {
    session["item_list"] = std::move(items);
    PrintJson(session);
  } else {
    PrintSessions(Json::array({session}));
    PrintItems(items);
  }
  return 0;
}

Result<int> Tree(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json tree, access.Ask("GET", SessionPath(s.id, "/tree")));
  if (flags.json) {
    PrintJson(tree);
    return 0;
  }
  PrintTree(tree["branches"], "", 0);
  PrintSnapshots(tree["snapshots"]);
  return 0;
}

Result<int> Snapshots(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json rows, access.AskAll(SessionPath(s.id, "/snapshots")));
  flags.json ? PrintJson({{"object", "list"}, {"data", rows}}) : PrintSnapshots(rows);
  return 0;
}

// fork, rewind and snapshot: a POST whose answer is one object.
Result<int> Post(Access& access, const CommonFlags& flags, const SessionFlags& s,
            const std::string& verb) {
  Json body = Json::object();
  if (!s.branch.empty()) body["branch"] = s.branch;
  if (!s.name.empty()) body["name"] = s.name;
  if (!s.label.empty()) body["label"] = s.label;
  if (!s.snapshot.empty()) body["snapshot"] = s.snapshot;
  if (s.at_item >= 0) body["at_item"] = s.at_item;
  if (s.at_token >= 0) body["at_token"] = s.at_token;
  for (const std::string& text : s.edits) {
    HOLDFAST_ASSIGN_OR_RETURN(Json edit, EditOf(text));
    edit["op"] = "replace";
    body["edits"].push_back(std::move(edit));
  }
  for (const int64_t item : s.removed) body["edits"].push_back({{"op", "remove"}, {"item", item}});
  if (s.retokenise) body["retokenise"] = true;
  HOLDFAST_ASSIGN_OR_RETURN(const Json made,
                            access.Ask("POST", SessionPath(s.id, "/" + verb), body));
  if (flags.json) {
    PrintJson(made);
  } else {
    std::printf("%s at token %s\n",
                Text(made.contains("name") ? made["name"] : made["id"]).c_str(),
                Text(made["tokens"]).c_str());
  }
  return 0;
}

// Makes a snapshot, or does to one that is there what the flags say.
Result<int> Snapshot(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  const auto path = [&](const std::string& snapshot, const char* verb) {
    return SessionPath(s.id, "/snapshots/" + Percent(snapshot) + verb);
  };
  if (s.pin.empty() && s.unpin.empty() && s.remove.empty()) {
    return Post(access, flags, s, "snapshot");
  }
  Json done;
  if (!s.remove.empty()) {
    HOLDFAST_ASSIGN_OR_RETURN(done, access.Ask("DELETE", path(s.remove, "")));
  } else {
    const std::string& pinned = s.pin.empty() ? s.unpin : s.pin;
    HOLDFAST_ASSIGN_OR_RETURN(
        done, access.Ask("POST", path(pinned, "/pin"), {{"pinned", !s.pin.empty()}}));
  }
  if (flags.json) PrintJson(done);
  return 0;
}

Result<int> Remove(Access& access, const CommonFlags& flags, const SessionFlags& s) {
  HOLDFAST_ASSIGN_OR_RETURN(
      const Json gone,
      access.Ask("DELETE", SessionPath(s.id, s.cancel ? "?cancel=true" : "")));
  if (flags.json) PrintJson(gone);
  return 0;
}

}  // namespace

void AddSessionCommands(CLI::App& app, CommonFlags* flags, Command* chosen) {
  auto s = std::make_shared<SessionFlags>();
  CLI::App* sessions = app.add_subcommand("sessions", "Look at sessions and branch them");
  sessions->require_subcommand(1);
  const auto add = [=](const char* name, const char* help, const AccessAction& action) {
    CLI::App* c = AddAccessCommand(sessions, name, help, flags, chosen, action);
    if (std::string_view(name) != "ls") c->add_option("id", s->id, "The session")->required();
    return c;
  };
  add("ls", "List sessions", [=](Access& a) { return List(a, *flags); });
  add("show", "A session and its items", [=](Access& a) { return Show(a, *flags, *s); })
      ->add_option("--branch", s->branch, "Branch (default: the default one)");
  add("tree", "Branches and snapshots", [=](Access& a) { return Tree(a, *flags, *s); });
  add("rm", "Delete a session", [=](Access& a) { return Remove(a, *flags, *s); })
      ->add_flag("--cancel", s->cancel, "End the turns that run on it first");
  add("snapshots", "List snapshots", [=](Access& a) { return Snapshots(a, *flags, *s); });
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
    c->add_option("--edit", s->edits,
                  "ITEM=CONTENT or ITEM=@FILE, in the place of what is there; may be given again");
    c->add_option("--remove", s->removed, "Leave this item out; may be given again");
    c->add_flag("--retokenise", s->retokenise,
                "What another model has said, in the tokens of this one");
  }
  CLI::App* snapshot =
      add("snapshot", "Label a point that stays, or pin or delete one (replay verifies it)",
          [=](Access& a) { return Snapshot(a, *flags, *s); });
  snapshot->add_option("--branch", s->branch, "Of this branch");
  snapshot->add_option("--label", s->label, "What to call it");
  CLI::App* there = snapshot->add_option_group("of one that is there");
  there->require_option(0, 1);
  there->add_option("--pin", s->pin, "Its pages leave the disk last");
  there->add_option("--unpin", s->unpin, "No longer");
  there->add_option("--rm", s->remove, "Delete it");
  AddBundleCommands(sessions, flags, chosen);
  AddUpkeepCommands(sessions, flags, chosen);
}

}  // namespace holdfast
