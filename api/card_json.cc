#include "api/card_json.h"

#include <unistd.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "api/cards/cards.h"

namespace holdfast {
namespace {

namespace fs = std::filesystem;

Json SettingJson(const CardSetting& s) { return {{"link", s.link}, {"windows", s.windows}}; }

Json KlJson(const CardKl& kl) {
  return {{"mean", kl.mean},           {"mean_upper", kl.mean_upper}, {"median", kl.median},
          {"bound", kl.bound},         {"top1", kl.top1},             {"recomputed", kl.recomputed},
          {"rows", kl.rows},           {"contexts", kl.contexts}};
}

// Reads fields of one object; the first that is missing or out of range stays as `error`.
class Fields {
 public:
  Fields(const Json& object, std::string where) : object_(object), where_(std::move(where)) {}

  template <typename T>
  void Read(const char* key, double most, T* out) {
    const Json* v = Find(key);
    if (v == nullptr) return;
    if (!v->is_number() || !(v->get<double>() >= 0 && v->get<double>() <= most)) {
      return Fail(key, "is not a number from 0 to " + std::to_string(most));
    }
    *out = v->get<T>();
  }
  void Read(const char* key, std::string* out) {
    const Json* v = Find(key);
    if (v == nullptr) return;
    if (!v->is_string()) return Fail(key, "is not a string");
    *out = v->get<std::string>();
  }
  // An object or array, empty where it is none.
  const Json& Child(const char* key, Json::value_t type) {
    static const Json kEmpty = Json::object();
    const Json* v = Find(key);
    if (v != nullptr && v->type() == type) return *v;
    Fail(key, "has the wrong type");
    return kEmpty;
  }
  void Fail(const std::string& key, const std::string& why) {
    if (error_.empty()) error_ = where_ + "." + key + " " + why;
  }
  Status status() const { return error_.empty() ? Status() : Status::Invalid(error_); }

 private:
  const Json* Find(const char* key) {
    if (object_.is_object() && object_.contains(key)) return &object_[key];
    Fail(key, "is missing");
    return nullptr;
  }
  const Json& object_;
  std::string where_, error_;
};

constexpr double kManyTokens = 1e9, kMuchKl = 1e6;

bool ReadKind(Fields* fields, CardKind* kind) {
  std::string text;
  fields->Read("kind", &text);
  for (const CardKind k : {CardKind::kInContext, CardKind::kIsolated}) {
    if (text != CardKindName(k)) continue;
    *kind = k;
    return true;
  }
  fields->Fail("kind", "is neither in_context nor isolated");
  return false;
}

Status ReadSetting(const Json& json, const std::string& where, CardSetting* setting) {
  Fields fields(json, where);
  fields.Read("link", kManyTokens, &setting->link);
  fields.Read("windows", 100, &setting->windows);
  return fields.status();
}

Status ReadKl(const Json& json, const std::string& where, CardKl* kl) {
  Fields fields(json, where);
  fields.Read("mean", kMuchKl, &kl->mean);
  fields.Read("mean_upper", kMuchKl, &kl->mean_upper);
  fields.Read("median", kMuchKl, &kl->median);
  fields.Read("bound", kMuchKl, &kl->bound);
  fields.Read("top1", 1, &kl->top1);
  fields.Read("recomputed", 1, &kl->recomputed);
  fields.Read("rows", 100, &kl->rows);
  fields.Read("contexts", kManyTokens, &kl->contexts);
  return fields.status();
}

Status ReadCell(const Json& json, const std::string& where, CardCell* cell) {
  Fields fields(json, where);
  ReadKind(&fields, &cell->kind);
  fields.Read("tokens", kCardTokens.size() - 1, &cell->tokens);
  fields.Read("runs", kCardRuns.size() - 1, &cell->runs);
  fields.Read("shift", kCardShift.size() - 1, &cell->shift);
  const Json& setting = fields.Child("setting", Json::value_t::object);
  const Json& kl = fields.Child("kl", Json::value_t::object);
  HOLDFAST_RETURN_IF_ERROR(fields.status());
  HOLDFAST_RETURN_IF_ERROR(ReadSetting(setting, where + ".setting", &cell->setting));
  return ReadKl(kl, where + ".kl", &cell->kl);
}

Result<ModelCard> CardOf(const Json& json) {
  ModelCard card;
  Fields fields(json, "card");
  int version = 0;
  std::string model;
  fields.Read("version", kManyTokens, &version);
  HOLDFAST_RETURN_IF_ERROR(fields.status());
  if (version != ModelCard::kVersion) {
    return Status::Invalid("card.version " + std::to_string(version) + " is not known");
  }
  fields.Read("model", &model);
  if (!Digest::FromHex(model, &card.model)) fields.Fail("model", "is not a digest");
  fields.Read("name", &card.name);
  fields.Read("kv_type", &card.kv_type);
  fields.Read("seed", 1e18, &card.seed);
  fields.Read("contexts", kManyTokens, &card.contexts);
  fields.Read("noise", kMuchKl, &card.noise);
  fields.Read("max_context", kManyTokens, &card.max_context);
  fields.Read("min_tokens", kManyTokens, &card.min_tokens);
  fields.Read("max_runs", kManyTokens, &card.max_runs);
  fields.Read("max_generation", kManyTokens, &card.max_generation);
  const Json& cells = fields.Child("cells", Json::value_t::array);
  HOLDFAST_RETURN_IF_ERROR(fields.status());
  for (size_t i = 0; i < cells.size(); ++i) {
    HOLDFAST_RETURN_IF_ERROR(
        ReadCell(cells[i], "card.cells[" + std::to_string(i) + "]", &card.cells.emplace_back()));
  }
  return card;
}

std::string CardPath(const std::string& data_dir, const Digest& model) {
  return CardFolder(data_dir) + "/" + model.Hex() + ".json";
}

}  // namespace

std::string CardFolder(const std::string& data_dir) { return data_dir + "/cards"; }

Json CardJson(const ModelCard& card) {
  Json cells = Json::array();
  for (const CardCell& c : card.cells) {
    cells.push_back({{"kind", CardKindName(c.kind)},
                     {"tokens", c.tokens},
                     {"runs", c.runs},
                     {"shift", c.shift},
                     {"setting", SettingJson(c.setting)},
                     {"kl", KlJson(c.kl)}});
  }
  return {{"version", ModelCard::kVersion},
          {"model", card.model.Hex()},
          {"name", card.name},
          {"kv_type", card.kv_type},
          {"seed", card.seed},
          {"contexts", card.contexts},
          {"noise", card.noise},
          {"max_context", card.max_context},
          {"min_tokens", card.min_tokens},
          {"max_runs", card.max_runs},
          {"max_generation", card.max_generation},
          {"classes", {{"tokens", kCardTokens}, {"runs", kCardRuns}, {"shift", kCardShift}}},
          {"cells", std::move(cells)}};
}

Result<ModelCard> ParseCard(std::string_view text) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json json, ParseJson(text));
  return CardOf(json);
}

Result<std::optional<ModelCard>> FindCard(const std::string& data_dir, const Digest& model) {
  const std::string path = CardPath(data_dir, model);
  std::error_code ignored;
  if (fs::exists(path, ignored)) {
    std::ifstream in(path, std::ios::binary);
    std::stringstream text;
    text << in.rdbuf();
    if (!in) return Status::Io("cannot read " + path);
    auto card = ParseCard(text.str());
    if (!card.ok()) return Status::Invalid(path + ": " + card.status().message());
    if (card->model == model) return std::optional(std::move(*card));
    return Status::Invalid(path + ": the card is of another model");
  }
  HOLDFAST_ASSIGN_OR_RETURN(const Json cards, ParseJson(kBuiltInCards));
  for (const Json& json : cards) {
    HOLDFAST_ASSIGN_OR_RETURN(ModelCard card, CardOf(json));
    if (card.model == model) return std::optional(std::move(card));
  }
  return std::optional<ModelCard>();
}

Result<std::string> SaveCard(const std::string& data_dir, const ModelCard& card) {
  const std::string path = CardPath(data_dir, card.model);
  const std::string part = path + "." + std::to_string(getpid());
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  out << DumpJson(CardJson(card)) << "\n" << std::flush;
  if (!out) return Status::Io("cannot write " + part);
  out.close();
  fs::rename(part, path, error);
  if (error) return Status::Io("cannot rename to " + path + ": " + error.message());
  return path;
}

Json TrialJson(const Trial& t) {
  return {{"edit", t.edit},
          {"method", t.method},
          {"how", static_cast<int>(t.how)},
          {"setting", SettingJson(t.setting)},
          {"kind", CardKindName(t.kind)},
          {"seed", t.seed},
          {"context", t.context},
          {"min_tokens", t.min_tokens},
          {"max_shift", t.max_shift},
          {"runs", t.runs},
          {"tokens", t.tokens},
          {"kl", t.kl},
          {"largest_kl", t.largest_kl},
          {"same_top", t.same_top},
          {"first_divergence", t.first_divergence},
          {"recomputed", t.recomputed},
          {"rows", t.rows}};
}

Result<Trial> ParseTrial(std::string_view line) {
  HOLDFAST_ASSIGN_OR_RETURN(const Json json, ParseJson(line));
  Trial t;
  Fields fields(json, "trial");
  int how = 0;
  fields.Read("edit", &t.edit);
  fields.Read("method", &t.method);
  fields.Read("how", static_cast<double>(ReuseHow::kOtherKv), &how);
  t.how = static_cast<ReuseHow>(how);
  ReadKind(&fields, &t.kind);
  fields.Read("seed", 1e18, &t.seed);
  fields.Read("context", kManyTokens, &t.context);
  fields.Read("min_tokens", kManyTokens, &t.min_tokens);
  fields.Read("max_shift", kManyTokens, &t.max_shift);
  fields.Read("runs", kManyTokens, &t.runs);
  fields.Read("tokens", kManyTokens, &t.tokens);
  fields.Read("kl", kMuchKl, &t.kl);
  fields.Read("largest_kl", kMuchKl, &t.largest_kl);
  fields.Read("same_top", kManyTokens, &t.same_top);
  fields.Read("first_divergence", kManyTokens, &t.first_divergence);
  fields.Read("recomputed", 1, &t.recomputed);
  fields.Read("rows", 100, &t.rows);
  const Json& setting = fields.Child("setting", Json::value_t::object);
  HOLDFAST_RETURN_IF_ERROR(fields.status());
  HOLDFAST_RETURN_IF_ERROR(ReadSetting(setting, "trial.setting", &t.setting));
  return t;
}

}  // namespace holdfast
