//! JSON in (bounded depth) and out, the way Python's `json` writes it: templates are written against
//! `json.dumps(x, ensure_ascii=False)`, and a blank more or less is another prompt.
use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind};

use crate::{invalid, Fail};

pub const DEPTH_MAX: usize = 64;

/// Refuses deep nesting before a recursive parser sees it.
pub fn parse(text: &str, what: &str) -> Result<serde_json::Value, Fail> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for b in text.bytes() {
        match b {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => depth += 1,
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Err(invalid(format!("{what}: JSON nested more than {DEPTH_MAX} deep")));
        }
    }
    serde_json::from_str(text).map_err(|e| invalid(format!("{what}: {e}")))
}

/// A line of name, tab and JSON for each tool of an array, in order: keys sorted, no blanks. What
/// is no word on the tool itself (`cache_control`) is left out.
pub fn canonical_tools(text: &str) -> Result<String, Fail> {
    let mut tools = parse(text, "tools")?;
    let list = tools.as_array_mut().ok_or_else(|| invalid("tools: not an array"))?;
    let mut lines = Vec::new();
    for tool in list {
        if let Some(object) = tool.as_object_mut() {
            object.shift_remove("cache_control");
        }
        tool.sort_all_objects();
        let name = tool.get("function").unwrap_or(&*tool).get("name").and_then(|n| n.as_str());
        let name = name.unwrap_or_default().replace(['\t', '\n'], " ");
        lines.push(format!("{name}\t{tool}\n"));
    }
    lines.sort();
    Ok(lines.concat())
}

/// Python's repr(float): shortest digits, exponent below 1e-4 and from 1e16 on.
pub fn float_repr(v: f64) -> String {
    if !v.is_finite() {
        let text = if v.is_nan() {
            "nan"
        } else if v > 0.0 {
            "inf"
        } else {
            "-inf"
        };
        return text.to_string();
    }
    let scientific = format!("{v:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap();
    let exponent: i32 = exponent.parse().unwrap();
    if v != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{digits}e{sign}{:02}", exponent.abs());
    }
    let plain = format!("{v}");
    if plain.contains('.') {
        plain
    } else {
        plain + ".0"
    }
}

pub struct Style {
    pub indent: Option<String>,
    pub item_separator: String,
    pub key_separator: String,
    pub ascii: bool,
    pub sort_keys: bool,
    pub mark: Option<char>, // stands for itself even where `ascii`
}

fn unserializable(value: &Value) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("{} is not JSON serializable", value.kind()))
}

impl Style {
    fn string(&self, text: &str, out: &mut String) {
        out.push('"');
        for c in text.chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                c if Some(c) == self.mark => out.push(c),
                c if c < ' ' || (self.ascii && c > '~') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        out.push_str(&format!("\\u{unit:04x}"));
                    }
                }
                c => out.push(c),
            }
        }
        out.push('"');
    }

    fn newline(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn scalar(&self, value: &Value, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => {
                let float = f64::try_from(value.clone())?;
                out.push_str(&match float {
                    f if f.is_nan() => "NaN".to_string(),
                    f if f.is_infinite() => {
                        if f > 0.0 { "Infinity" } else { "-Infinity" }.to_string()
                    }
                    f => float_repr(f),
                });
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default(), out),
            _ => return Err(unserializable(value)),
        }
        Ok(())
    }

    fn key(&self, key: &Value) -> Result<String, Error> {
        match key.as_str() {
            Some(text) => Ok(text.to_string()),
            None => {
                let mut text = String::new();
                self.scalar(key, &mut text)?;
                Ok(text)
            }
        }
    }

    fn close(&self, items: usize, depth: usize, bracket: char, out: &mut String) {
        if items > 0 {
            self.newline(depth, out);
        }
        out.push(bracket);
    }

    fn map(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        let mut keys = value.try_iter()?.collect::<Vec<_>>();
        if self.sort_keys {
            keys.sort();
        }
        out.push('{');
        for (i, key) in keys.iter().enumerate() {
            if i > 0 {
                out.push_str(&self.item_separator);
            }
            self.newline(depth + 1, out);
            self.string(&self.key(key)?, out);
            out.push_str(&self.key_separator);
            self.write(&value.get_item(key)?, depth + 1, out)?;
        }
        self.close(keys.len(), depth, '}', out);
        Ok(())
    }

    pub fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        if depth > 2 * DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested too deep"));
        }
        match value.kind() {
            ValueKind::Map => return self.map(value, depth, out),
            ValueKind::Seq => {}
            _ => return self.scalar(value, out),
        }
        out.push('[');
        let mut items = 0;
        for item in value.try_iter()? {
            if items > 0 {
                out.push_str(&self.item_separator);
            }
            self.newline(depth + 1, out);
            self.write(&item, depth + 1, out)?;
            items += 1;
        }
        self.close(items, depth, ']', out);
        Ok(())
    }
}
