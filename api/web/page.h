// The web page at "/", as part of the binary (page.html, page.js; CMake makes page.cc of them).
#pragma once

#include <string_view>

namespace holdfast {

extern const std::string_view kPageHtml, kPageScript;

// The page may load its own script, talk to its own server, and nothing else.
inline constexpr const char* kPagePolicy =
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

}  // namespace holdfast
