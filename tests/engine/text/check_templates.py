#!/usr/bin/env python3
"""Rendered chat templates equal Python jinja2's: every model's template, templates/*.jinja over every
conversation of templates/cases.json, and its table of constructs. Where jinja2 refuses, so must we.

usage: check_templates.py PROBE MODELS_DIR VENV NAME...
$HOLDFAST_MODELS goes before MODELS_DIR. jinja2 comes from VENV where that exists. No jinja2, no pass.
"""
import datetime
import json
import os
import pathlib
import sys

import probe

NOW = 1763967907  # 2025-11-24 07:05:07 UTC
HERE = pathlib.Path(__file__).parent / "templates"


def reference():
    """An environment as Hugging Face sets it up for chat templates."""
    import jinja2
    import jinja2.ext
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

        def _pass(self, caller):
            return caller()

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(form):
        return datetime.datetime.fromtimestamp(NOW, datetime.timezone.utc).replace(tzinfo=None).strftime(form)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True,
                                        extensions=[jinja2.ext.loopcontrols, Generation])
    env.filters["tojson"] = tojson
    env.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    return env


def opened(messages):
    """Tool-call arguments as Hugging Face's callers pass them: objects."""
    messages = json.loads(json.dumps(messages))
    for call in (c for m in messages for c in m.get("tool_calls") or []):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except ValueError:
            continue
        if isinstance(arguments, dict):
            call["function"]["arguments"] = arguments
    return messages


class Checker:
    def __init__(self, binary):
        self.env, self.probe = reference(), probe.Probe(binary)
        self.checked = self.failed = self.refused = 0

    def check(self, name, source, case, bos="<s>", eos="</s>", specials=()):
        prompt = case.get("add_generation_prompt", True)
        try:
            want = self.env.from_string(source).render(
                messages=opened(case["messages"]), tools=case.get("tools"), documents=None, bos_token=bos,
                eos_token=eos, add_generation_prompt=prompt, **case.get("extra", {}))
        except Exception as error:  # whatever jinja2 or Python raised in the template
            want = None
            reason = error
        try:
            self.probe.compile(source, bos, eos, specials)
            have, _ = self.probe.render(json.dumps(case["messages"]),
                                        json.dumps(case["tools"]) if "tools" in case else "",
                                        json.dumps(case.get("extra", {})), prompt, NOW)
        except probe.Failure as failure:
            have = None if failure.code == "invalid" else failure.code
            reason = failure
        self.checked += 1
        self.refused += want is None
        if have != want:
            self.failed += 1
            print(f"{name}:\n  jinja2: {want!r}\n  here:   {have!r}")
            if want is None or have is None:
                print(f"  {reason}")


def main(binary, models, names):
    cases = json.loads((HERE / "cases.json").read_text())
    checker = Checker(binary)
    for name, source in cases["constructs"]:
        checker.check(name, source, cases["conversations"]["system"])
    for path in sorted(HERE.glob("*.jinja")):
        for name, case in cases["conversations"].items():
            checker.check(f"{path.name} {name}", path.read_text(), case)
    for model in names:
        loaded = checker.probe.load(f"{models}/{model}.gguf")
        for name, case in cases["conversations"].items():
            checker.check(f"{model} {name}", loaded.chat_template, case, loaded.bos, loaded.eos, loaded.specials)
    checker.probe.close()
    print(f"{checker.checked} renderings, {checker.refused} of them refused, {checker.failed} different")
    return checker.failed


if __name__ == "__main__":
    python = os.path.join(sys.argv[3], "bin", "python")
    if os.path.exists(python) and os.path.realpath(sys.prefix) != os.path.realpath(sys.argv[3]):
        os.execv(python, [python] + sys.argv)
    sys.exit(main(sys.argv[1], os.environ.get("HOLDFAST_MODELS", sys.argv[2]), sys.argv[4:]) > 0)
