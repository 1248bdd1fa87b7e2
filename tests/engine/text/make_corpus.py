#!/usr/bin/env python3
"""Writes the corpus on which token ids are compared: over 1 MB of text, the same bytes everywhere.

Own generator of random numbers (splitmix64) and code points by number alone, so that neither the
Python version nor its Unicode tables matter.
usage: make_corpus.py FILE
"""
import hashlib
import sys

MASK = (1 << 64) - 1


class Rng:
    def __init__(self, seed):
        self.state = seed

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def below(self, n):
        return self.next() % n

    def pick(self, seq):
        return seq[self.below(len(seq))]


# Blocks by first and last code point.
CJK = [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x3040, 0x30FF), (0xAC00, 0xD7A3),
       (0x3000, 0x303F), (0xFF00, 0xFFEF), (0x1100, 0x11FF), (0x31F0, 0x31FF)]
RTL = [(0x0590, 0x05FF), (0x0600, 0x06FF), (0x0700, 0x074F), (0x0780, 0x07BF), (0xFB1D, 0xFDFF),
       (0xFE70, 0xFEFF), (0x10800, 0x1083F)]
EMOJI = [(0x1F300, 0x1F64F), (0x1F680, 0x1F6FF), (0x1F900, 0x1F9FF), (0x2600, 0x27BF),
         (0x1F1E6, 0x1F1FF)]
OTHER = [(0x00A1, 0x024F), (0x0250, 0x036F), (0x0370, 0x052F), (0x0900, 0x0DFF), (0x0E00, 0x0EFF),
         (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1200, 0x137F), (0x1E00, 0x1FFF), (0x2000, 0x20CF),
         (0x2100, 0x2BFF), (0xA000, 0xA4CF), (0xE000, 0xE0FF), (0xFFF0, 0xFFFF), (0x1D400, 0x1D7FF)]
BLANKS = " \t\n\r\v\f\x1c\x1f\x85\xa0\u1680\u2000\u2003\u2007\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
DIGITS = "0123456789٠٢٤٦٨०२४६८０３６９²³½Ⅳ〇"
WORDS = """the of and a to in is you that it he was for on are as with his they at be this have from or
one had by word but not what all were we when your can said there use an each which she do how their if
will up other about out many then them these so some her would make like him into time has look two more
write go see number no way could people my than first water been call who oil its now find long down day
did get come made may part over new sound take only little work know place year live me back give most
very after thing our just name good sentence man think say great where help through much before line
don't we're I've she'll he'd it's YOU'RE THEY'LL l'été naïve coöperate façade résumé Zürich""".split()
NAMES = "buffer index node page token state result value count list map key path user i n ctx".split()
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "<|fim_pad|>",
            "<|im_start", "<|", "|>", "<s>", "</s>", "[INST]", "<|im_end|><|im_end|>", "<repo_name>"]


def char(rng, blocks):
    first, last = rng.pick(blocks)
    return chr(first + rng.below(last - first + 1))


def prose(rng):
    words = [rng.pick(WORDS) for _ in range(4 + rng.below(20))]
    words[0] = words[0].capitalize()
    return " ".join(words) + rng.pick([".", "!", "?", "...", ",", ";", ":", ".\n", ".\n\n", "\r\n"])


def identifier(rng):
    parts = [rng.pick(NAMES) for _ in range(1 + rng.below(3))]
    return rng.pick(["_".join(parts), "".join(p.capitalize() for p in parts),
                     parts[0] + "".join(p.capitalize() for p in parts[1:]), "_".join(parts).upper()])


def code(rng):
    def name():
        return identifier(rng)

    indent = rng.pick(["  ", "    ", "\t", "        ", "\t\t", ""]) * (1 + rng.below(3))
    number = rng.pick([str(rng.next()), hex(rng.next() & 0xFFFF), f"{rng.below(10**6) / 1000}e-{rng.below(20)}"])
    return indent + rng.pick([
        f"for (int {name()} = 0; i < {name()}.size(); ++i) {{\n{indent}}}\n",
        f"std::vector<{name()}> {name()}{{{number}, {number}u}};  // {prose(rng)}\n",
        f"def {name()}(self, {name()}: str = '{name()}') -> None:\n{indent}    return {number}\n",
        f"if not ({name()} & 0xff) and {name()} != {number}:\n",
        f"#include <{name()}/{name()}.h>\n#define {name()}(x) ((x) << {rng.below(64)})\n",
        f'{{"{name()}": [{number}, null, true], "{name()}": "\\u00e9\\n"}}\n',
        f"<div class=\"{name()}\">&nbsp;{name()}</div>\n",
        f"$ {name()} --{name()}={number} | grep -E '^[a-z]+$' >> /tmp/{name()}.log 2>&1\n",
        f"SELECT {name()}, COUNT(*) FROM {name()} WHERE {name()} LIKE '%{name()}%';\n",
        f"x = y ** {rng.below(9)} // z -= w <<= {number} ?: !~^ &&||\n",
    ])


def run(rng, blocks):
    return "".join(char(rng, blocks) for _ in range(1 + rng.below(12)))


def mixed(rng):
    makers = [lambda: run(rng, CJK), lambda: run(rng, RTL), lambda: run(rng, EMOJI), lambda: run(rng, OTHER),
              lambda: rng.pick(WORDS), lambda: rng.pick(DIGITS) * (1 + rng.below(5)),
              lambda: rng.pick(BLANKS) * (1 + rng.below(4)), lambda: rng.pick("'\"`.,-_/\\|()[]{}<>@#$%^&*+=~"),
              lambda: chr(rng.below(32)), lambda: rng.pick(SPECIALS)]
    return "".join(rng.pick(makers)() for _ in range(3 + rng.below(20)))


def blanks(rng):
    return "".join(rng.pick(BLANKS[:6] if rng.below(2) else BLANKS) * (1 + rng.below(1 << rng.below(8)))
                   for _ in range(1 + rng.below(4))) + rng.pick(WORDS + [""])


def digits(rng):
    return "".join(rng.pick(DIGITS if rng.below(4) == 0 else DIGITS[:10]) for _ in range(1 + rng.below(30)))


def zwj(rng):
    return "\u200d".join(char(rng, EMOJI) + rng.pick(["", "\ufe0f", "\U0001f3fd"]) for _ in range(2 + rng.below(3)))


def controls(rng):
    return "".join(chr(rng.pick([rng.below(32), 127 + rng.below(33), 0xFEFF, 0x200B + rng.below(5), 0xFFFD]))
                   for _ in range(1 + rng.below(16)))


def combining(rng):
    return "".join(rng.pick("aeionu") + chr(0x300 + rng.below(112)) for _ in range(1 + rng.below(8)))


def every_code_point():
    """Each code point once between letters, in steps that keep the part small."""
    points = list(range(0, 0x3000)) + list(range(0x3000, 0x110000, 61))
    points = [p for p in points if not 0xD800 <= p <= 0xDFFF]
    return "".join(f"a{chr(p)}b {chr(p)}{chr(p)}\n" for p in points)


def build():
    rng = Rng(20261124)
    makers = [prose, code, code, lambda r: run(r, CJK), lambda r: run(r, RTL), lambda r: run(r, EMOJI),
              lambda r: run(r, OTHER), mixed, blanks, digits, zwj, controls, combining,
              lambda r: r.pick(SPECIALS)]
    parts, size = [every_code_point(), " " * 5000, "\n" * 3000, " \n" * 1000, "a" * 4000, "9" * 3000], 0
    while size < 1_000_000:
        part = rng.pick(makers)(rng) + rng.pick(["", "", " ", "\n"])
        parts.append(part)
        size += len(part.encode())
    return "".join(parts).encode()


if __name__ == "__main__":
    data = build()
    with open(sys.argv[1], "wb") as out:
        out.write(data)
    print(len(data), hashlib.sha256(data).hexdigest())
