//! Chat templates: Jinja as Python's jinja2 runs it for chat templates (trim_blocks, lstrip_blocks,
//! loop controls, json.dumps in `tojson`, raise_exception, strftime_now).
//!
//! Special tokens in a user's text must stay text. Before rendering, every string of messages, tools
//! and extra variables is searched for the literals of special tokens, and one character that occurs
//! nowhere else (the mark, a noncharacter) is put *behind* each: there it survives trim, split and
//! replace, and whatever cuts the mark's literal from the front breaks the literal. After rendering,
//! marks are taken out and the literal before each becomes a plain range.
use aho_corasick::AhoCorasick;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State};
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;

use crate::json::{self, Style};
use crate::{exhausted, invalid, Fail};

const FUEL: u64 = 1_000_000;
const OUTPUT_MAX: usize = 16 << 20;
const NAME: &str = "chat";

pub struct Args<'a> {
    pub messages: &'a str,
    pub tools: &'a str,
    pub extra: &'a str,
    pub generation_prompt: bool,
    pub now: i64,
}

pub struct Template {
    env: Environment<'static>,
    source: String,
    bos: String,
    eos: String,
    specials: Vec<String>,
    finder: Option<AhoCorasick>,
}

/// Hugging Face's `{% generation %}` blocks only mark spans for training: here they are `if true`.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(len) = rest[open..].find("%}") else { break };
        let tag = &rest[open + 2..open + len];
        let word = tag.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        out.push_str(&rest[..open + 2]);
        out.push_str(&match word {
            "generation" => tag.replacen(word, " if true ", 1),
            "endgeneration" => tag.replacen(word, " endif ", 1),
            _ => tag.to_string(),
        });
        rest = &rest[open + len..];
    }
    out + rest
}

fn refuse(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

fn tojson(mark: Option<char>, value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = options.get::<Option<Value>>("indent")?.filter(|v| !v.is_none());
    let separators = options.get::<Option<Vec<String>>>("separators")?.unwrap_or_default();
    let indent = indent.map(|v| match v.as_str() {
        Some(text) => text.to_string(),
        None => " ".repeat(v.as_usize().unwrap_or(0).min(64)),
    });
    let item = if indent.is_some() { "," } else { ", " };
    let style = Style {
        item_separator: separators.first().cloned().unwrap_or(item.to_string()),
        key_separator: separators.get(1).cloned().unwrap_or(": ".to_string()),
        indent,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        mark,
    };
    options.assert_all_used()?;
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

/// Days since 1970-01-01 to (year, month, day), proleptic Gregorian.
fn civil(days: i64) -> (i64, usize, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    (year + era * 400 + i64::from(month <= 2), month as usize, day)
}

fn strftime(now: i64, format: &str) -> Result<String, Error> {
    const DAYS: [&str; 7] =
        ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let (days, second) = (now.div_euclid(86_400), now.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let weekday = DAYS[days.rem_euclid(7) as usize];
    let hour12 = (hour + 11) % 12 + 1;
    let year_day = days - (0..=366).map(|d| days - d).find(|d| civil(*d).0 != year).unwrap();
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let bare = chars.as_str().starts_with('-');
        let spec = if bare { chars.nth(1) } else { chars.next() };
        let number =
            |v: i64, width: usize| if bare { v.to_string() } else { format!("{v:0width$}") };
        out.push_str(&match spec {
            Some('Y') => year.to_string(),
            Some('y') => number(year.rem_euclid(100), 2),
            Some('m') => number(month as i64, 2),
            Some('d') => number(day, 2),
            Some('e') => format!("{day:2}"),
            Some('H') => number(hour, 2),
            Some('I') => number(hour12, 2),
            Some('M') => number(minute, 2),
            Some('S') => number(second, 2),
            Some('j') => number(year_day, 3),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_string(),
            Some('B') => MONTHS[month - 1].to_string(),
            Some('b') => MONTHS[month - 1][..3].to_string(),
            Some('A') => weekday.to_string(),
            Some('a') => weekday[..3].to_string(),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z' | 'z') => String::new(),
            Some('%') => "%".to_string(),
            _ => return refuse(format!("strftime_now: format '{format}'")).map(|_| String::new()),
        });
    }
    Ok(out)
}

fn each_string(value: &Json, see: &mut dyn FnMut(&str)) {
    match value {
        Json::String(text) => see(text),
        Json::Array(items) => items.iter().for_each(|v| each_string(v, see)),
        Json::Object(map) => map.iter().for_each(|(key, v)| {
            see(key);
            each_string(v, see);
        }),
        _ => {}
    }
}

/// OpenAI sends tool-call arguments as a string; templates want the object that it spells.
fn open_arguments(messages: &mut Json) {
    let Some(messages) = messages.as_array_mut() else { return };
    for call in
        messages.iter_mut().filter_map(|m| m.get_mut("tool_calls")?.as_array_mut()).flatten()
    {
        let function = if call.get("function").is_some() { &mut call["function"] } else { call };
        let Some(arguments) = function.get_mut("arguments") else { continue };
        let opened = arguments.as_str().and_then(|text| json::parse(text, "arguments").ok());
        if let Some(object) = opened.filter(Json::is_object) {
            *arguments = object;
        }
    }
}

struct Bounded {
    bytes: Vec<u8>,
    full: bool,
}

impl Write for Bounded {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + data.len() > OUTPUT_MAX {
            self.full = true;
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// The string methods that templates use and minijinja_contrib lacks.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let first = args.first().and_then(Value::as_str);
    match (value.as_str(), name, first) {
        (Some(text), "removeprefix", Some(cut)) => {
            Ok(text.strip_prefix(cut).unwrap_or(text).into())
        }
        (Some(text), "removesuffix", Some(cut)) => {
            Ok(text.strip_suffix(cut).unwrap_or(text).into())
        }
        (Some(text), "rsplit", Some(cut)) if !cut.is_empty() => {
            let limit = args.get(1).and_then(Value::as_i64).and_then(|n| usize::try_from(n).ok());
            let mut parts: Vec<&str> = match limit {
                Some(n) => text.rsplitn(n.saturating_add(1), cut).collect(),
                None => text.rsplit(cut).collect(),
            };
            parts.reverse();
            Ok(parts.into_iter().collect())
        }
        _ => minijinja_contrib::pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Floats print as Python prints them; everything else minijinja prints so by itself.
fn print(out: &mut Output, state: &mut State, value: &Value) -> Result<(), Error> {
    if value.kind() == ValueKind::Number && !value.is_integer() {
        let text = json::float_repr(f64::try_from(value.clone())?);
        return out.write_str(&text).map_err(|_| Error::from(ErrorKind::WriteFailure));
    }
    minijinja::escape_formatter(out, state, value)
}

fn base_env() -> Environment<'static> {
    let mut env = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.expect("these settings are sound"));
    env.set_fuel(Some(FUEL));
    env.set_formatter(print);
    env.set_unknown_method_callback(method);
    env.add_function("raise_exception", |message: String| refuse(format!("refused: {message}")));
    env.add_test("callable", |v: &Value| v.kind() == ValueKind::Plain);
    env.add_test("iterable", |v: &Value| !v.is_none() && v.try_iter().is_ok());
    env.add_test("sequence", |v: &Value| {
        v.is_undefined() || matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env
}

impl Template {
    pub fn new(
        source: &str,
        bos: &str,
        eos: &str,
        specials: Vec<String>,
    ) -> Result<Template, Fail> {
        let mut env = base_env();
        let unix = source.replace("\r\n", "\n").replace('\r', "\n");
        env.add_template_owned(NAME, without_generation_tags(&unix))
            .map_err(|e| invalid(format!("chat template: {e}")))?;
        let finder = if specials.is_empty() {
            None
        } else {
            Some(AhoCorasick::new(&specials).map_err(|e| invalid(format!("special texts: {e}")))?)
        };
        Ok(Template {
            env,
            source: source.to_string(),
            bos: bos.to_string(),
            eos: eos.to_string(),
            specials,
            finder,
        })
    }

    /// A character to mark with, or None where nothing needs marking.
    fn choose_mark(&self, inputs: [&Json; 3]) -> Option<char> {
        let finder = self.finder.as_ref()?;
        let mut found = false;
        let mut used: BTreeSet<char> = self.source.chars().filter(|c| *c >= '\u{fdd0}').collect();
        for input in inputs {
            each_string(input, &mut |text| {
                found = found || finder.is_match(text);
                used.extend(text.chars().filter(|c| *c >= '\u{fdd0}'));
            });
        }
        // Noncharacters first, then private use: more of them than any request can use up.
        let mut candidates = ('\u{fdd0}'..='\u{fdef}').chain('\u{100000}'..='\u{10fffd}');
        if found {
            candidates.find(|c| !used.contains(c))
        } else {
            None
        }
    }

    fn marked(&self, text: &str, mark: Option<char>) -> String {
        let (Some(finder), Some(mark)) = (&self.finder, mark) else { return text.to_string() };
        let ends: BTreeSet<usize> = finder.find_overlapping_iter(text).map(|m| m.end()).collect();
        let mut out = String::with_capacity(text.len() + 4 * ends.len());
        let mut at = 0;
        for end in ends {
            out.push_str(&text[at..end]);
            out.push(mark);
            at = end;
        }
        out + &text[at..]
    }

    fn value(&self, json: &Json, mark: Option<char>) -> Value {
        match json {
            Json::Null => Value::from(()),
            Json::Bool(b) => Value::from(*b),
            Json::Number(n) => match (n.as_i64(), n.as_u64()) {
                (Some(i), _) => Value::from(i),
                (_, Some(u)) => Value::from(u),
                _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
            },
            Json::String(text) => Value::from(self.marked(text, mark)),
            Json::Array(items) => items.iter().map(|v| self.value(v, mark)).collect(),
            Json::Object(map) => Value::from_pairs(
                map.iter().map(|(k, v)| (self.marked(k, mark), self.value(v, mark))),
            ),
        }
    }

    /// Takes the marks out; a mark's range is the longest special literal that ends there.
    fn unmark(&self, text: &str, mark: Option<char>) -> (String, Vec<Range<usize>>) {
        let Some(mark) = mark else { return (text.to_string(), Vec::new()) };
        let mut out = String::with_capacity(text.len());
        let mut ranges: Vec<Range<usize>> = Vec::new();
        for (i, part) in text.split(mark).enumerate() {
            let ending = self.specials.iter().filter(|s| i > 0 && out.ends_with(s.as_str()));
            if let Some(len) = ending.map(String::len).max() {
                let mut start = out.len() - len;
                while ranges.last().is_some_and(|r| r.end > start) {
                    start = start.min(ranges.pop().unwrap().start);
                }
                ranges.push(start..out.len());
            }
            out.push_str(part);
        }
        (out, ranges)
    }

    fn failure(&self, error: Error, mark: Option<char>) -> Fail {
        let detail = error.detail().map_or(error.kind().to_string(), str::to_string);
        let place = error.line().map_or(String::new(), |line| format!(" (line {line})"));
        let text = format!("chat template: {detail}{place}");
        let message = text.chars().filter(|c| Some(*c) != mark).collect::<String>();
        match error.kind() {
            ErrorKind::OutOfFuel => exhausted(format!("chat template: more than {FUEL} steps")),
            _ if detail.contains("recursion limit") => exhausted(message),
            _ => invalid(message),
        }
    }

    pub fn render(&self, args: &Args) -> Result<(String, Vec<Range<usize>>), Fail> {
        let or = |text, default| if str::is_empty(text) { default } else { text };
        let mut messages = json::parse(args.messages, "messages")?;
        let tools = json::parse(or(args.tools, "null"), "tools")?;
        let extra = json::parse(or(args.extra, "{}"), "template variables")?;
        if !messages.is_array() || !(tools.is_array() || tools.is_null()) || !extra.is_object() {
            return Err(invalid(
                "chat template: messages and tools are arrays, variables an object",
            ));
        }
        open_arguments(&mut messages);
        let mark = self.choose_mark([&messages, &tools, &extra]);
        let mut env = self.env.clone();
        let now = args.now;
        env.add_filter("tojson", move |v: &Value, o: Kwargs| tojson(mark, v, o));
        env.add_function("strftime_now", move |format: String| strftime(now, &format));
        let own = [
            ("messages", self.value(&messages, mark)),
            ("tools", self.value(&tools, mark)),
            ("documents", Value::from(())),
            ("add_generation_prompt", Value::from(args.generation_prompt)),
            ("bos_token", Value::from(self.bos.as_str())),
            ("eos_token", Value::from(self.eos.as_str())),
        ];
        let extra =
            extra.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), self.value(v, mark)));
        let context = Value::from_pairs(extra.chain(own));
        let mut out = Bounded { bytes: Vec::new(), full: false };
        let template = env.get_template(NAME).map_err(|e| self.failure(e, mark))?;
        let result = template.render_captured_to(context, &mut out).map(|_| ());
        if out.full {
            return Err(exhausted(format!(
                "chat template: more than {OUTPUT_MAX} bytes of output"
            )));
        }
        result.map_err(|e| self.failure(e, mark))?;
        let text =
            String::from_utf8(out.bytes).map_err(|e| invalid(format!("chat template: {e}")))?;
        Ok(self.unmark(&text, mark))
    }
}
