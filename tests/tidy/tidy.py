#!/usr/bin/env python3
"""The house style as a test: who may include whom, foreign headers in their one place, lengths, names.

  tidy.py ROOT     checks the tree; prints every breach as FILE:LINE: why; exit 1 when there is one
  tidy.py --self   checks that each rule fires on a bad example
"""
import os
import re
import sys
import tempfile

# A folder may include itself, engine/base, and what stands here. Longest prefix wins.
MAY_INCLUDE = {
    "engine/base": [],
    "engine/backend": ["engine/kv/layout.h"],
    "engine/kv": ["engine/backend"],
    "engine/store": ["engine/kv", "engine/backend/backend.h"],
    "engine/text": [],
    "engine/model": ["engine/backend", "engine/kv/layout.h", "engine/text"],
    "engine/sched": ["engine/engine.h", "engine/model", "engine/kv", "engine/backend",
                     "engine/text"],
    "engine/engine.h": ["engine/model", "engine/kv", "engine/backend", "engine/text"],
    "stitcher": ["engine/engine.h", "engine/kv", "engine/store", "engine/text", "engine/model",
                 "engine/backend/half.h"],
    "sessions": ["stitcher", "engine/engine.h", "engine/kv", "engine/model/sampler.h",
                 "engine/store", "engine/text"],
    "rag": ["engine/engine.h", "engine/text"],
    "memory": ["rag", "engine/text"],
    "api": ["memory", "rag", "sessions", "stitcher", "engine"],
    "examples": ["api"],
    "tests": [""],
}

# Foreign headers and the only places that may include them (prefixes of paths).
FOREIGN = {
    r"httplib\.h": ["api/http.cc"],
    r"nlohmann/": ["api/", "tests/"],
    r"CLI/": ["api/cli"],
    r"sqlite3\.h": ["engine/store/", "tests/engine/store/"],
    r"rocksdb/": ["engine/store/page_index.cc", "tests/engine/store/"],
    r"xxhash\.h": ["engine/model/sampler.cc", "engine/store/", "tests/engine/store/"],
    r"faiss/": ["rag/vector_index.cc"],
    r"openssl/": ["engine/base/", "api/server.cc"],
    r"immintrin\.h|arm_neon\.h": ["engine/backend/cpu/", "tests/engine/backend/"],
    r"cuda": ["engine/backend/cuda/", "tests/engine/backend/cuda/"],
    r"doctest/": ["tests/"],
}

FILE_LINES = 800       # outside tests and tables
FUNCTION_LINES = 70
KERNEL_LINES = 90      # in engine/backend
LINE_WIDTH = 100
BANNED = {
    r"\b(TODO|FIXME|XXX|HACK)\b": "unfinished work belongs into no file",
    r"\b\w*(Manager|Helper)\b": "say what it does, not that it manages or helps",
    r"using namespace std\b": "spell std::",
    r"\bstd::(rand|srand|random_shuffle)\b": "randomness comes from Philox or Env",
    r"\bsleep_for\b|\bsleep\(|\busleep\(": "no sleeping: wait for the thing itself",
}
SLEEPERS = ("api/", "tests/e2e/", "tests/soak/", "engine/store/", "tests/engine/store/")
SOURCES = (".h", ".cc", ".cu", ".cuh")
TOP = {"CMakeLists.txt", "sessions", "memory", "rag", "stitcher", "engine", "api", "tests",
       "examples", "README.md", "quickstart", "runtests", "scripts", "CMakePresets.json", "LICENSE",
       "CHANGELOG.md"}
LOCAL = {"build", "build-debug", "build-tsan", "build-aarch64", "models"}  # made by the scripts, ignored by git


def folder_rule(path):
    best = max((k for k in MAY_INCLUDE if path == k or path.startswith(k + "/")),
               key=len, default=None)
    return best


def check_includes(path, number, line, out):
    m = re.match(r'\s*#\s*include\s*([<"])([^">]+)[">]', line)
    if not m:
        return
    target = m.group(2)
    for pattern, places in FOREIGN.items():
        if re.match(pattern, target) and not any(path.startswith(p) for p in places):
            out.append((path, number, "<%s> may only be included in %s" % (target, ", ".join(places))))
    if m.group(1) == "<":
        return
    rule = folder_rule(path)
    if rule is None or rule == "tests":
        return
    own = rule if not rule.endswith(".h") else os.path.dirname(rule)
    allowed = [own, "engine/base"] + MAY_INCLUDE[rule]
    if path.startswith("engine/engine.h") or "/" not in target:
        allowed.append(os.path.dirname(path))
    if not any(target == a or target.startswith(a + "/") or a == "" for a in allowed):
        out.append((path, number, "%s may not include %s" % (rule, target)))


NOT_FUNCTIONS = re.compile(
    r"^\s*(\}|if|else|for|while|do|switch|case|default|namespace|class|struct|union|enum|extern|"
    r"try|catch|return|constexpr \w+ k|static const|const \w+ k|#|//)")


def statement_start(lines, i):
    """The first line of the statement that line i ends."""
    while i > 0:
        before = lines[i - 1].strip()
        if not before or before[-1] in ";{}:" or before.startswith(("//", "#")):
            break
        i -= 1
    return i


def indent_of(line):
    return len(line) - len(line.lstrip())


def check_functions(path, lines, out):
    cap = KERNEL_LINES if path.startswith("engine/backend/") else FUNCTION_LINES
    for i, line in enumerate(lines):
        if not line.rstrip().endswith("{") or line.lstrip().startswith("//"):
            continue
        head = statement_start(lines, i)
        if NOT_FUNCTIONS.match(lines[head]) or "(" not in "".join(lines[head:i + 1]):
            continue
        indent = indent_of(lines[head])
        j = i + 1
        while j < len(lines) and not (lines[j].strip().startswith("}") and
                                      indent_of(lines[j]) <= indent):
            j += 1
        if j - head + 1 > cap:
            out.append((path, head + 1, "a function of %d lines (at most %d)" % (j - head + 1, cap)))


def check_file(root, path, out):
    text = open(os.path.join(root, path), encoding="utf-8", errors="replace").read()
    lines = text.split("\n")
    in_tests = path.startswith("tests/")
    if os.path.basename(path) in ("utils.h", "util.h", "common.h", "misc.h"):
        out.append((path, 1, "a file is named after what it holds"))
    if len(lines) > FILE_LINES and not in_tests and "table" not in path:
        out.append((path, len(lines), "a file of %d lines (at most %d)" % (len(lines), FILE_LINES)))
    for n, line in enumerate(lines, 1):
        check_includes(path, n, line, out)
        if len(line) > LINE_WIDTH and "R\"" not in line and not in_tests:
            out.append((path, n, "a line of %d columns (at most %d)" % (len(line), LINE_WIDTH)))
        for pattern, why in BANNED.items():
            if re.search(pattern, line):
                if "sleep" in pattern and path.startswith(SLEEPERS):
                    continue
                out.append((path, n, "'%s': %s" % (re.search(pattern, line).group(0), why)))
    if not in_tests:
        check_functions(path, lines, out)
    if path.endswith(".h") and "#pragma once" not in text:
        out.append((path, 1, "no #pragma once"))


def check_tree(root):
    out = []
    for name in sorted(os.listdir(root)):
        if not name.startswith(".") and name not in TOP | LOCAL:
            out.append((name, 1, "does not belong at the top level"))
    for folder, dirs, files in os.walk(root):
        rel = os.path.relpath(folder, root)
        dirs[:] = sorted(d for d in dirs if not d.startswith(".") and d not in
                         LOCAL | {"target", "node_modules", "__pycache__"})
        for f in sorted(files):
            path = os.path.normpath(os.path.join(rel, f))
            if f.endswith(SOURCES):
                check_file(root, path, out)
    boundary = os.path.join(root, "engine/engine.h")
    if os.path.exists(boundary) and sum(1 for _ in open(boundary)) > 200:
        out.append(("engine/engine.h", 200, "the boundary header has more than 200 lines"))
    return out


BAD = {
    "engine/kv/a.cc": '#include "engine/model/model.h"\n',
    "sessions/b.cc": "#include <nlohmann/json.hpp>\n",
    "engine/kv/utils.h": "#pragma once\n",
    "engine/kv/c.h": "int a;\n",
    "api/d.cc": "int F(int a) {\n" + "  a += 1;\n" * 70 + "  return a;\n}\n",
    "api/e.cc": "int a;\n" * 801,
    "api/f.cc": "// TODO: later\n",
    "api/g.cc": "class PageManager;\n",
    "stray.txt": "\n",
    "sessions/h.cc": "std::this_thread::sleep_for(x);\n",
    "api/i.cc": "//" + "x" * 120 + "\n",
    "stitcher/j.cc": '#include "sessions/keeper.h"\n',
}


def self_test():
    with tempfile.TemporaryDirectory() as root:
        for path, text in BAD.items():
            os.makedirs(os.path.dirname(os.path.join(root, path)) or root, exist_ok=True)
            open(os.path.join(root, path), "w").write(text)
        caught = {path for path, _, _ in check_tree(root)}
    missed = set(BAD) - caught
    for path in sorted(missed):
        print("the rule that %s breaks did not fire" % path)
    return 1 if missed else 0


def main():
    if sys.argv[1:] == ["--self"]:
        return self_test()
    breaches = check_tree(sys.argv[1])
    for path, line, why in breaches:
        print("%s:%d: %s" % (path, line, why))
    print("%d breaches" % len(breaches))
    return 1 if breaches else 0


sys.exit(main())
