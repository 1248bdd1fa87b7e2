// Something that answers the REST API for a data folder: the server that holds it, or, where none
// does, one that this process starts for itself on a free port of this machine. So there is one way
// to do each thing.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "api/cli.h"
#include "api/http.h"
#include "api/server.h"

namespace holdfast {

class Access {
 public:
  static Result<std::unique_ptr<Access>> Open(const CommonFlags& flags);
  ~Access();

  // The body of a good answer; the error of another one becomes a Status with its message.
  Result<Json> Ask(const std::string& method, const std::string& path, const Json& body = nullptr);
  // A call with all that HttpCallArgs offers; address and API key are filled in. A download has no
  // body: null.
  Result<Json> Call(HttpCallArgs args);
  // All rows of a list, page by page.
  Result<Json> AskAll(const std::string& path);

 private:
  Access() = default;
  bool FindServer(const std::string& data_dir);

  std::string url_, admin_token_;
  std::unique_ptr<Runtime> runtime_;
  std::unique_ptr<Server> server_;
};

// A text as one part of a path or a value of a query.
std::string Percent(std::string_view text);
// "/v1/sessions/ID" and what follows.
std::string SessionPath(std::string_view id, std::string_view rest = "");

// {"item":4,"content":...} of an --edit: "4=new content", or "4=@FILE".
Result<Json> EditOf(const std::string& text);

// Adds a subcommand that needs the access: `action` gives the exit status, an error is printed. It
// runs when the flags have been read.
using AccessAction = std::function<Result<int>(Access&)>;
CLI::App* AddAccessCommand(CLI::App* parent, const char* name, const char* help,
                           CommonFlags* flags, Command* chosen, AccessAction action);

}  // namespace holdfast
