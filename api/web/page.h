// The web page at "/" and the description of the API at "/openapi.json", as parts of the binary
// (page.html, page.js, openapi.json; CMake makes page.cc of them).
#pragma once

#include <string_view>

namespace holdfast {

extern const std::string_view kPageHtml, kPageScript, kOpenApi;

// The page may load its own script, talk to its own server, and nothing else.
inline constexpr const char* kPagePolicy =
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'self'; frame-ancestors 'none'";

}  // namespace holdfast
