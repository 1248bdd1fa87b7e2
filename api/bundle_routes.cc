// Bundles over HTTP: GET /v1/sessions/{id}/export streams one, POST /v1/sessions/import takes one.
// The key of the signature, as hexadecimal digits, comes in the header x-bundle-key and is kept
// nowhere.
#include "api/openai_chat.h"
#include "api/route.h"
#include "api/spool.h"

namespace holdfast {
namespace {

constexpr uint64_t kMinFreeBytes = uint64_t{256} << 20;  // that an upload leaves on the disk

Result<std::string> KeyOf(const Call& call) {
  const std::string_view hex = call.request.header("x-bundle-key");
  const auto digit = [](char c) {
    return static_cast<int>(std::string_view("0123456789abcdef").find(c));
  };
  std::string key;
  for (size_t i = 0; i + 1 < hex.size(); i += 2) {
    const int high = digit(hex[i]), low = digit(hex[i + 1]);
    if (high < 0 || low < 0) break;
    key += static_cast<char>(high * 16 + low);
  }
  if (key.size() * 2 == hex.size()) return key;
  return Status::Invalid("x-bundle-key: must be pairs of hexadecimal digits in lower case");
}

}  // namespace

void HandleExport(Call& call) {
  const Result<std::string> key = KeyOf(call);
  if (!key.ok()) return call.Refuse(key.status());
  ExportOptions options;
  options.key = *key;
  options.pages = QueryText(call, "pages") != "0";
  options.snapshot = QueryText(call, "snapshot");
  auto plan = call.runtime.keeper().Export(call.tenant, call.request.segments[0], options);
  if (!plan.ok()) return call.Refuse(plan.status());
  call.exchange.AddHeader("x-bundle-bytes", std::to_string((*plan)->bytes_expected()));
  call.exchange.AddHeader("content-disposition", "attachment; filename=\"" +
                                                     (*plan)->session_id() + ".bundle\"");
  std::shared_ptr<BundleExport> bundle = std::move(*plan);
  call.exchange.Stream(200, "application/vnd.holdfast.bundle", [bundle](HttpBody& body) {
    const auto written = bundle->WriteTo([&body](std::span<const std::byte> piece) {
      return body.Write({reinterpret_cast<const char*>(piece.data()), piece.size()})
                 ? Status()
                 : Status::Cancelled("the client is gone");
    });
    if (!written.ok()) body.Break();
  });
}

void HandleImport(Call& call) {
  Result<std::string> key = KeyOf(call);
  if (!key.ok()) return call.Refuse(key.status());
  auto spool = Spool::Make(call.runtime.data_path(), kMinFreeBytes);
  if (!spool.ok()) return call.Refuse(spool.status());
  Status read = call.request.read_body([&](std::string_view p) { return (*spool)->Append(p); });
  if (read.ok()) read = (*spool)->Finish();
  if (!read.ok()) return call.Refuse(read);
  ImportOptions options;
  options.key = std::move(*key);
  options.as = QueryText(call, "as");
  const auto done = call.runtime.keeper().Import(call.tenant, (*spool)->file(), (*spool)->size(),
                                                 options);
  if (!done.ok()) {
    // Bytes that are not a bundle are the client's fault, not ours.
    ApiError error = ErrorOf(done.status());
    if (done.status().code() == Code::kCorrupt) error = ErrorOf(400, done.status().message());
    return call.Refuse(error);
  }
  call.Reply(201, {{"object", "session.imported"},
                   {"session", SessionJson(done->session)},
                   {"bundle_session_id", done->bundle_id},
                   {"signed", done->is_signed},
                   {"authentic", done->authentic},
                   {"miss", MissJson(done->miss)},
                   {"approximate_turns", done->approximate_turns},
                   {"pages", done->pages},
                   {"pages_taken", done->pages_taken},
                   {"pages_left_why", done->pages_left_why.empty()
                                          ? Json(nullptr)
                                          : Json(done->pages_left_why)}});
}

}  // namespace holdfast
