#include "api/cli_access.h"

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

namespace holdfast {

Result<std::unique_ptr<Access>> Access::Open(const CommonFlags& flags) {
  auto access = std::unique_ptr<Access>(new Access);
  if (access->FindServer(DataDirOf(flags))) return access;
  RuntimeOptions options;
  HOLDFAST_ASSIGN_OR_RETURN(options.engine, EngineOptionsOf(flags));
  options.data_dir = DataDirOf(flags);
  options.gc_every_ms = 0;  // a command ends soon
  HOLDFAST_ASSIGN_OR_RETURN(access->runtime_, Runtime::Open(options));
  ServerOptions server;
  server.port = 0;
  server.model_name = ModelNameOf(flags);
  access->server_ = std::make_unique<Server>(server);
  HOLDFAST_ASSIGN_OR_RETURN(const int port, access->server_->Listen());
  access->server_->Attach(access->runtime_.get());
  access->url_ = "http://127.0.0.1:" + std::to_string(port);
  access->admin_token_ = access->server_->admin_token();
  return access;
}

Access::~Access() {
  if (server_ == nullptr) return;
  runtime_->Shutdown(0);
  server_->Stop();
  server_->WaitUntilStopped();
}

Result<Json> Access::Ask(const std::string& method, const std::string& path, const Json& body) {
  HttpCallArgs args;
  args.method = method;
  args.path = path;
  if (!body.is_null()) args.body = DumpJson(body);
  return Call(std::move(args));
}

Result<Json> Access::Call(HttpCallArgs args) {
  args.base_url = url_;
  const char* key = std::getenv("HOLDFAST_CLIENT_KEY");
  args.api_key = key != nullptr ? key : "";
  if (args.path.starts_with("/v1/admin/")) args.headers.emplace_back("x-admin-token", admin_token_);
  HOLDFAST_ASSIGN_OR_RETURN(const HttpReply reply, HttpCall(args));
  if (reply.status < 400 && args.download) return Json(nullptr);
  HOLDFAST_ASSIGN_OR_RETURN(Json json, ParseJson(reply.body));
  if (reply.status < 400) return json;
  std::string message = "HTTP " + std::to_string(reply.status);
  if (json.contains("error") && json["error"].contains("message")) {
    message = json["error"]["message"].get<std::string>();
  }
  if (reply.status == 404) return Status::NotFound(message);
  return reply.status == 409 ? Status::Conflict(message) : Status::Invalid(message);
}

Result<Json> Access::AskAll(const std::string& path) {
  Json all = Json::array();
  std::string after;
  do {
    HOLDFAST_ASSIGN_OR_RETURN(
        Json page,
        Ask("GET", path + (path.find('?') == std::string::npos ? "?" : "&") + "limit=1000" +
                       (after.empty() ? "" : "&after=" + Percent(after))));
    for (Json& row : page["data"]) all.push_back(std::move(row));
    after = page["next"].is_string() ? page["next"].get<std::string>() : "";
  } while (!after.empty());
  return all;
}

bool Access::FindServer(const std::string& data_dir) {
  std::ifstream in(data_dir + "/server.json");
  std::stringstream text;
  text << in.rdbuf();
  auto json = ParseJson(text.str());
  if (!json.ok() || !json->contains("url")) return false;
  url_ = (*json)["url"].get<std::string>();
  if (json->contains("admin_token")) admin_token_ = (*json)["admin_token"].get<std::string>();
  const auto health = HttpCall({url_, "GET", "/health", "", "", 5});
  return health.ok() && health->status == 200;
}

std::string Percent(std::string_view text) {
  constexpr std::string_view kPlain =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.~";
  std::string out;
  for (const char c : text) {
    if (kPlain.find(c) != std::string_view::npos) {
      out += c;
    } else {
      char code[4];
      std::snprintf(code, sizeof(code), "%%%02X", static_cast<unsigned char>(c));
      out += code;
    }
  }
  return out;
}

std::string SessionPath(std::string_view id, std::string_view rest) {
  return "/v1/sessions/" + Percent(id) + std::string(rest);
}

Result<Json> EditOf(const std::string& text) {
  const size_t at = text.find('=');
  if (at == 0 || at == std::string::npos ||
      text.find_first_not_of("0123456789") != at || at > 9) {
    return Status::Invalid("--edit: '" + text + "' is not ITEM=CONTENT or ITEM=@FILE");
  }
  std::string content = text.substr(at + 1);
  if (content.starts_with('@')) {
    std::ifstream in(content.substr(1), std::ios::binary);
    std::stringstream all;
    all << in.rdbuf();
    if (!in) return Status::Io("--edit: " + content.substr(1) + " can't be read");
    content = all.str();
  }
  return Json{{"item", std::stoll(text.substr(0, at))}, {"content", content}};
}

CLI::App* AddAccessCommand(CLI::App* parent, const char* name, const char* help,
                           CommonFlags* flags, Command* chosen, AccessAction action) {
  CLI::App* command = parent->add_subcommand(name, help);
  AddCommonFlags(command, flags, true);
  command->callback([=] {
    *chosen = [=] {
      auto access = Access::Open(*flags);
      if (!access.ok()) return Fail(*flags, access.status());
      const Result<int> status = action(**access);
      return status.ok() ? *status : Fail(*flags, status.status());
    };
  });
  return command;
}

}  // namespace holdfast
