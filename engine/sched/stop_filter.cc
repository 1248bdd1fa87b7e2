#include "engine/sched/stop_filter.h"

#include <algorithm>

namespace holdfast {

size_t StopFilter::FindStop() const {
  size_t first = std::string::npos;
  for (const std::string& stop : stops_) first = std::min(first, text_.find(stop));
  return first;
}

// Length of the longest end of the text that a stop string begins with.
size_t StopFilter::DoubtfulBytes() const {
  size_t longest = 0;
  for (const std::string& stop : stops_) {
    size_t n = std::min(stop.size() - 1, text_.size());
    while (n > longest && text_.compare(text_.size() - n, n, stop, 0, n) != 0) --n;
    longest = std::max(longest, n);
  }
  return longest;
}

void StopFilter::ReleaseUpTo(size_t end, std::vector<TokenEvent>* out) {
  size_t count = 0;
  for (size_t i = 0; i < held_.size() && held_[i].end <= end; ++i) {
    if (!held_[i].open) count = i + 1;
  }
  if (count == 0) return;
  const size_t bytes = held_[count - 1].end;
  for (size_t i = 0; i < count; ++i) {
    out->push_back(std::move(held_.front().token));
    held_.pop_front();
  }
  text_.erase(0, bytes);
  for (Held& held : held_) held.end -= bytes;
  stop_at_ -= std::min(stop_at_, bytes);
}

void StopFilter::Push(TokenEvent token, size_t open_bytes, std::vector<TokenEvent>* certain) {
  text_ += token.text;
  held_.push_back({std::move(token), text_.size(), open_bytes > 0});
  stop_at_ = FindStop();
  stopped_ = stop_at_ != std::string::npos;
  ReleaseUpTo(stopped_ ? stop_at_ : text_.size() - DoubtfulBytes(), certain);
}

StopFilter::Rest StopFilter::Finish() {
  Rest rest;
  if (stopped_) {
    rest.cut = static_cast<int64_t>(held_.size());
    rest.text = text_.substr(0, stop_at_);
  } else {
    for (Held& held : held_) rest.tokens.push_back(std::move(held.token));
  }
  held_.clear();
  text_.clear();
  return rest;
}

}  // namespace holdfast
