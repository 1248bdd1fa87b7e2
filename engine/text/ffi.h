// What the Rust crate exports (crate/src/ffi.rs declares the same). Private to engine/text.
//
// Every function that can fail returns 0 or a holdfast::Code and then fills `err`. Arguments are
// borrowed for the call; HfBytes that come out go to hf_bytes_free, handles to their _free.
// Tokenizer, template and factory handles may be used by any number of threads at once.
#pragma once

#include <cstddef>
#include <cstdint>

extern "C" {

struct HfTokenizer;
struct HfTemplate;
struct HfFactory;
struct HfConstraint;

struct HfSlice {
  const uint8_t* ptr;
  size_t len;
};

struct HfBytes {
  uint8_t* ptr;
  size_t len;
  size_t cap;
};

struct HfRange {
  size_t begin, end;
};

struct HfSpecial {
  uint32_t id;
  uint32_t control;  // 1: only where special tokens are parsed; 0: in any text
  HfSlice text;
};

struct HfRenderArgs {
  HfSlice messages, tools, extra;
  uint32_t generation_prompt;
  int64_t now;
};

struct HfTool {
  HfSlice name, schema;
};

struct HfGrammar {
  uint32_t kind;  // 0 schema (text), 1 any object, 2 regex (text), 3 tool call
  uint32_t relaxed, many;
  HfSlice text, prefix, suffix;
  const HfTool* tools;
  size_t tools_len;
};

void hf_bytes_free(HfBytes bytes);
void hf_tokenizer_free(HfTokenizer*);
void hf_template_free(HfTemplate*);
void hf_factory_free(HfFactory*);
void hf_constraint_free(HfConstraint*);

// Panics with `text`: how the tests see that a panic stays inside.
int32_t hf_probe_panic(HfSlice text, HfBytes* err);

int32_t hf_tokenizer_new(HfSlice pre, const HfSlice* tokens, size_t tokens_len,
                         const HfSlice* merges, size_t merges_len, const HfSpecial* specials,
                         size_t specials_len, HfTokenizer** out, HfBytes* err);
// scores: as many as tokens, or none. space_prefix: 1 when a blank goes before every text.
int32_t hf_tokenizer_new_spm(const HfSlice* tokens, size_t tokens_len, const float* scores,
                             size_t scores_len, uint32_t space_prefix, const HfSpecial* specials,
                             size_t specials_len, HfTokenizer** out, HfBytes* err);
// `plain`: ascending, disjoint, not empty, inside the text. out: uint32_t ids.
int32_t hf_tokenizer_encode(const HfTokenizer*, HfSlice text, const HfRange* plain,
                            size_t plain_len, HfBytes* out, HfBytes* err);

int32_t hf_template_new(HfSlice source, HfSlice bos, HfSlice eos, const HfSlice* specials,
                        size_t specials_len, HfTemplate** out, HfBytes* err);
// plain: HfRange values.
int32_t hf_template_render(const HfTemplate*, const HfRenderArgs*, HfBytes* text, HfBytes* plain,
                           HfBytes* err);

// lines: name, tab, JSON, newline for each tool, in order; neither holds a tab or a newline.
int32_t hf_tools_canonical(HfSlice tools, HfBytes* lines, HfBytes* err);

// words: the bytes of each token, 0xff before the literal of one that text never matches.
int32_t hf_factory_new(const HfTokenizer*, const HfSlice* words, size_t words_len,
                       const uint32_t* ends, size_t ends_len, HfFactory** out, HfBytes* err);
int32_t hf_factory_compile(const HfFactory*, const HfGrammar*, HfConstraint** out, HfBytes* warning,
                           HfBytes* err);
int32_t hf_constraint_mask(HfConstraint*, uint32_t* bits, size_t len, HfBytes* err);
int32_t hf_constraint_accept(HfConstraint*, uint32_t token, HfBytes* err);
int32_t hf_constraint_state(HfConstraint*, uint32_t* complete, uint32_t* finished, HfBytes* err);
int32_t hf_constraint_forced(HfConstraint*, HfBytes* out, HfBytes* err);  // out: uint32_t ids
int32_t hf_constraint_clone(const HfConstraint*, HfConstraint** out, HfBytes* err);

}  // extern "C"
