// Serves engine/text to the Python tests: requests on standard input, replies on standard output.
// A message is a list of fields, each a little-endian uint32 length and its bytes, after a uint32
// count of fields. Requests: {"model", GGUF file}, {"encode", text, "plain" | "special"},
// {"template", source, bos, eos, special texts}, {"render", messages, tools, extra, "0" | "1", now}.
// Items of a list end with NUL. Replies: {code name, message} or {"ok", fields...}.
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "engine/model/config.h"
#include "engine/model/file_map.h"
#include "engine/model/gguf.h"
#include "engine/text/text.h"

namespace holdfast {
namespace {

using Fields = std::vector<std::string>;

bool ReadWord(uint32_t* word) {
  return static_cast<bool>(std::cin.read(reinterpret_cast<char*>(word), sizeof(*word)));
}

bool ReadFields(Fields* fields) {
  uint32_t count = 0, length = 0;
  if (!ReadWord(&count)) return false;
  fields->assign(count, {});
  for (std::string& field : *fields) {
    if (!ReadWord(&length)) return false;
    field.resize(length);
    if (!std::cin.read(field.data(), length)) return false;
  }
  return true;
}

void WriteFields(const Fields& fields) {
  auto write_word = [](size_t n) {
    auto word = static_cast<uint32_t>(n);
    std::cout.write(reinterpret_cast<const char*>(&word), sizeof(word));
  };
  write_word(fields.size());
  for (const std::string& field : fields) {
    write_word(field.size());
    std::cout.write(field.data(), static_cast<std::streamsize>(field.size()));
  }
  std::cout.flush();
}

// Items end with a NUL each.
std::vector<std::string> SplitList(const std::string& joined) {
  std::vector<std::string> items;
  for (size_t at = 0; at < joined.size();) {
    size_t end = joined.find('\0', at);
    items.push_back(joined.substr(at, end - at));
    at = end + 1;
  }
  return items;
}

Fields Failure(const Status& status) {
  return {std::string(CodeName(status.code())), status.message()};
}

class Probe {
 public:
  Fields Answer(const Fields& request) {
    const std::string& verb = request[0];
    if (verb == "model") return LoadModel(request);
    if (verb == "encode") return Encode(request);
    if (verb == "template") return MakeTemplate(request);
    if (verb == "render") return Render(request);
    return {"invalid", "no such request"};
  }

 private:
  Fields LoadModel(const Fields& request) {
    auto map = FileMap::Open(request[1]);
    if (!map.ok()) return Failure(map.status());
    auto gguf = Gguf::Parse((*map)->bytes());
    if (!gguf.ok()) return Failure(gguf.status());
    auto meta = ReadModelMetadata(*gguf, "model");
    if (!meta.ok()) return Failure(meta.status());
    auto made = Tokenizer::Create(meta->tokenizer);
    if (!made.ok()) return Failure(made.status());
    tokenizer_ = std::move(made).value();
    std::string specials, ends;
    for (const std::string& text : tokenizer_->SpecialTexts()) specials += text + '\0';
    for (TokenId id : tokenizer_->end_of_generation()) ends += std::to_string(id) + " ";
    return {"ok", meta->chat_template, tokenizer_->TokenText(tokenizer_->bos()),
            tokenizer_->TokenText(tokenizer_->eos()), specials, ends};
  }

  Fields Encode(const Fields& request) {
    auto ids = request[2] == "plain" ? tokenizer_->EncodePlain(request[1])
                                     : tokenizer_->Encode(request[1]);
    if (!ids.ok()) return Failure(ids.status());
    const char* bytes = reinterpret_cast<const char*>(ids->data());
    return {"ok", std::string(bytes, ids->size() * sizeof(TokenId))};
  }

  Fields MakeTemplate(const Fields& request) {
    auto made = ChatTemplate::Create({request[1], request[2], request[3], SplitList(request[4])});
    if (!made.ok()) return Failure(made.status());
    template_ = std::move(made).value();
    return {"ok"};
  }

  Fields Render(const Fields& request) {
    RenderArgs args;
    args.messages_json = request[1];
    args.tools_json = request[2];
    args.extra_json = request[3];
    args.generation_prompt = request[4] == "1" ? GenerationPrompt::kAdd : GenerationPrompt::kOmit;
    args.now_unix_s = std::stoll(request[5]);
    auto rendered = template_->Render(args);
    if (!rendered.ok()) return Failure(rendered.status());
    std::string plain;
    for (const PlainRange& range : rendered->plain) {
      plain += std::to_string(range.begin) + "-" + std::to_string(range.end) + " ";
    }
    return {"ok", rendered->text, plain};
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<ChatTemplate> template_;
};

}  // namespace
}  // namespace holdfast

int main() {
  holdfast::Probe probe;
  holdfast::Fields request;
  while (holdfast::ReadFields(&request)) holdfast::WriteFields(probe.Answer(request));
  return 0;
}
