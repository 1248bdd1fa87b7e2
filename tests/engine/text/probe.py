"""Talks to text_probe (text_probe.cc describes the protocol)."""
import collections
import struct
import subprocess

Model = collections.namedtuple("Model", "chat_template bos eos specials ends")


class Failure(Exception):
    def __init__(self, code, message):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Probe:
    def __init__(self, binary):
        self.process = subprocess.Popen([binary], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, *fields):
        out = self.process.stdin
        out.write(struct.pack("<I", len(fields)))
        for field in fields:
            data = field if isinstance(field, bytes) else field.encode()
            out.write(struct.pack("<I", len(data)) + data)
        out.flush()
        reply = [self._read(self._word()) for _ in range(self._word())]
        if reply[0] != b"ok":
            raise Failure(reply[0].decode(), reply[1].decode())
        return reply[1:]

    def _word(self):
        return struct.unpack("<I", self._read(4))[0]

    def _read(self, size):
        data = self.process.stdout.read(size)
        if len(data) != size:
            raise RuntimeError("text_probe ended")
        return data

    def close(self):
        self.process.stdin.close()
        if self.process.wait() != 0:
            raise RuntimeError(f"text_probe exited {self.process.returncode}")

    def load(self, path):
        source, bos, eos, specials, ends = (f.decode() for f in self.ask("model", path))
        return Model(source, bos, eos, specials.split("\0")[:-1], [int(e) for e in ends.split()])

    def encode(self, text, how):
        """Token ids as little-endian 32-bit integers."""
        return self.ask("encode", text, how)[0]

    def compile(self, source, bos="", eos="", specials=()):
        self.ask("template", source, bos, eos, "".join(s + "\0" for s in specials))

    def render(self, messages, tools="", extra="", add_generation_prompt=True, now=0):
        """The text and its plain ranges."""
        prompt = "1" if add_generation_prompt else "0"
        text, plain = self.ask("render", messages, tools, extra, prompt, str(now))
        return text.decode(), [tuple(map(int, r.split("-"))) for r in plain.decode().split()]
