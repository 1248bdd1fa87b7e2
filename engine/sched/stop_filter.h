// Holds tokens back while their text may turn out to be (the beginning of) a stop string.
//
// A stop string is looked for in the text as the client would see it, across tokens. The tokens
// that it cuts (any that has a byte of it) are dropped; the text before it in the first of these is
// kept. Not thread-safe.
#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace holdfast {

class StopFilter {
 public:
  explicit StopFilter(std::vector<std::string> stops) : stops_(std::move(stops)) {}

  // Adds a token; appends those that are certain now to *certain. `open_bytes`: what the decoder
  // holds of a character that begins in this token (it shares the fate of the token that ends it).
  void Push(TokenEvent token, size_t open_bytes, std::vector<TokenEvent>* certain);
  bool stopped() const { return stopped_; }  // a stop string is complete

  // The end: tokens that belong to the answer after all, text of a cut token, number of tokens cut.
  struct Rest {
    std::vector<TokenEvent> tokens;
    std::string text;
    int64_t cut = 0;
  };
  Rest Finish();

 private:
  struct Held {
    TokenEvent token;
    size_t end = 0;  // of its text in text_
    bool open = false;
  };
  size_t FindStop() const;  // where the first complete stop string begins, or npos
  size_t DoubtfulBytes() const;
  void ReleaseUpTo(size_t end, std::vector<TokenEvent>* out);

  std::vector<std::string> stops_;
  std::deque<Held> held_;
  std::string text_;  // of held_
  bool stopped_ = false;
  size_t stop_at_ = 0;
};

}  // namespace holdfast
