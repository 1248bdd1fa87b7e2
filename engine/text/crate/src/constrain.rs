//! Constrained decoding: grammars over `llguidance`, one `Matcher` per generation.
//!
//! JSON is written in one fixed way, ", " and ": " and no other blanks, as json.dumps writes it: that
//! is how tool calls look in training data, more tokens are forced, and no model can fill its answer
//! with blanks. End-of-generation tokens never reach the matcher; they are handled here.
use llguidance::api::{StopReason, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use serde_json::{json, Value as Json};
use std::sync::Arc;
use toktrie::{InferenceCapabilities, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

use crate::tokenizer::Tokenizer;
use crate::{exhausted, invalid, json as text_json, Fail};

pub const TOOLS_MAX: usize = 512;

struct Vocabulary {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer
                .encode_inside(text)
                .unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}

pub struct Factory {
    parsers: ParserFactory,
    tokenizer: Arc<Tokenizer>,
    ends: Arc<Vec<u32>>, // the end-of-generation tokens
    vocab_size: usize,
}

/// A tool as it goes into a grammar.
pub struct Tool<'a> {
    pub name: &'a str,
    pub schema: &'a str,
}

pub enum Grammar<'a> {
    Schema(&'a str),
    Object,
    Regex(&'a str),
    ToolCall { tools: Vec<Tool<'a>>, prefix: &'a str, suffix: &'a str, many: bool },
}

/// How closely a schema is followed; each is tried only where the one before fails.
#[derive(Clone, Copy, PartialEq)]
enum Effort {
    Exact,
    Lenient,
    ShapeOnly,
}

fn schema_value(text: &str, effort: Effort, shape: &Json) -> Result<Json, Fail> {
    let text = if text.is_empty() || effort == Effort::ShapeOnly { "{}" } else { text };
    let mut schema = match text_json::parse(text, "schema")? {
        Json::Bool(true) | Json::Null => json!({}),
        Json::Object(map) => Json::Object(map),
        _ => return Err(invalid("schema: must be an object")),
    };
    let map = schema.as_object_mut().unwrap();
    const SHAPING: [&str; 7] = ["type", "$ref", "anyOf", "oneOf", "allOf", "enum", "const"];
    if !SHAPING.iter().any(|key| map.contains_key(*key)) {
        map.extend(shape.as_object().unwrap().clone());
    }
    map.insert(
        "x-guidance".to_string(),
        json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
               "lenient": effort == Effort::Lenient}),
    );
    Ok(schema)
}

fn literal(text: &str) -> String {
    Json::from(text).to_string()
}

/// One line, without the library's dump of its state.
fn tidy(error: &str) -> String {
    const LINE_MAX: usize = 300;
    let text = error.replace("<non-verbose/>", "");
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("constraint: {}", line.chars().take(LINE_MAX).collect::<String>())
}

/// The schemas inside a schema, by name.
fn parts(schema: &Json) -> Vec<(String, Json)> {
    let mut found = Vec::new();
    for key in ["properties", "patternProperties", "$defs", "definitions"] {
        let map = schema.get(key).and_then(Json::as_object);
        found.extend(map.into_iter().flatten().map(|(k, v)| (format!("{key}/{k}"), v.clone())));
    }
    for key in ["anyOf", "oneOf", "allOf", "prefixItems"] {
        let list = schema.get(key).and_then(Json::as_array);
        let list = list.into_iter().flatten().enumerate();
        found.extend(list.map(|(i, v)| (format!("{key}/{i}"), v.clone())));
    }
    for key in ["items", "additionalProperties"] {
        found.extend(schema.get(key).map(|v| (key.to_string(), v.clone())));
    }
    found.retain(|(_, part)| part.is_object());
    found
}

impl Factory {
    /// `words`: the bytes of each token, special ones with 0xff before their literal.
    pub fn new(tokenizer: Arc<Tokenizer>, words: &[Vec<u8>], ends: Vec<u32>) -> Result<Factory, Fail> {
        let end = *ends.first().ok_or_else(|| invalid("tokenizer: no end-of-generation token"))?;
        let info = TokRxInfo::new(words.len() as u32, end);
        let vocabulary = Vocabulary { trie: TokTrie::from(&info, words), tokenizer: tokenizer.clone() };
        let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut parsers = ParserFactory::new(&(Arc::new(vocabulary) as _), capabilities, &slices)
            .map_err(|e| invalid(format!("constraints: {e}")))?;
        parsers.quiet();
        parsers.limits_mut().verbose_errors = false;
        Ok(Factory { parsers, tokenizer, ends: Arc::new(ends), vocab_size: words.len() })
    }

    /// `text` as a sequence of Lark items; literals of special tokens stand for the tokens.
    fn lark_text(&self, text: &str) -> String {
        let mut out = String::new();
        let mut at = 0;
        for (place, id) in self.tokenizer.find_control(text) {
            if place.start > at {
                out += &format!(" {}", literal(&text[at..place.start]));
            }
            out += &format!(" <[{id}]>");
            at = place.end;
        }
        if at < text.len() {
            out += &format!(" {}", literal(&text[at..]));
        }
        out
    }

    fn tool_grammar(&self, grammar: &Grammar, effort: Effort) -> Result<TopLevelGrammar, Fail> {
        let Grammar::ToolCall { tools, prefix, suffix, many } = grammar else { unreachable!() };
        if tools.is_empty() || tools.len() > TOOLS_MAX {
            return Err(invalid(format!("tools: {} given, 1 to {TOOLS_MAX} allowed", tools.len())));
        }
        let repeat = if *many { "(\"\\n\" call)*" } else { "" };
        let names: Vec<String> = (0..tools.len()).map(|i| format!("t{i}")).collect();
        let mut lark = format!(
            "start: call {repeat}\ncall:{} ({}){}\n",
            self.lark_text(prefix),
            names.join(" | "),
            self.lark_text(suffix)
        );
        for (i, tool) in tools.iter().enumerate() {
            let head = format!("{{\"name\": {}, \"arguments\": ", literal(tool.name));
            let schema = schema_value(tool.schema, effort, &json!({"type": "object"}))
                .map_err(|e| invalid(format!("tool '{}': {}", tool.name, e.message)))?;
            lark += &format!("t{i}: {} a{i} \"}}\"\na{i}: %json {schema}\n", literal(&head));
        }
        Ok(TopLevelGrammar::from_lark(lark))
    }

    fn compile_once(&self, grammar: &Grammar, effort: Effort) -> Result<Matcher, Fail> {
        let top = match grammar {
            Grammar::Schema(text) => {
                TopLevelGrammar::from_json_schema(schema_value(text, effort, &json!({}))?)
            }
            Grammar::Object => TopLevelGrammar::from_json_schema(schema_value(
                "",
                effort,
                &json!({"type": "object"}),
            )?),
            Grammar::Regex(text) => TopLevelGrammar::from_regex(text),
            Grammar::ToolCall { .. } => self.tool_grammar(grammar, effort)?,
        };
        let mut matcher = Matcher::new(self.parsers.create_parser(top));
        // The first mask builds the lexer's states: what is too large shows here, not in decoding.
        if !matcher.is_error() && !matcher.is_stopped() {
            let _ = matcher.compute_mask();
        }
        match matcher.get_error() {
            Some(error) => Err(invalid(tidy(&error))),
            None => Ok(matcher),
        }
    }

    fn fails(&self, schema: &Json) -> Option<String> {
        let text = schema.to_string();
        self.compile_once(&Grammar::Schema(&text), Effort::Exact).err().map(|fail| fail.message)
    }

    /// Where in `root` the trouble is: the deepest part that does not compile by itself.
    fn locate(&self, root: &Json, mut tries: usize) -> Option<String> {
        let mut reason = self.fails(root)?;
        let (mut place, mut at) = ("#".to_string(), root.clone());
        'deeper: loop {
            for (name, mut part) in parts(&at) {
                for defs in ["$defs", "definitions"] {
                    if let (Some(map), Some(defined)) = (part.as_object_mut(), root.get(defs)) {
                        map.entry(defs).or_insert_with(|| defined.clone());
                    }
                }
                tries = tries.saturating_sub(1);
                if let Some(why) = if tries > 0 { self.fails(&part) } else { None } {
                    (reason, place, at) = (why, format!("{place}/{name}"), part);
                    continue 'deeper;
                }
            }
            return Some(format!("{reason} (at {place})"));
        }
    }

    /// A better message for a grammar that failed: which tool, and where in its schema.
    fn explain(&self, grammar: &Grammar, fail: Fail) -> Fail {
        const TRIES: usize = 64;
        let locate = |text: &str| {
            let schema = text_json::parse(text, "schema").ok()?;
            if schema.is_object() {
                self.locate(&schema, TRIES)
            } else {
                None
            }
        };
        let better = match grammar {
            Grammar::Schema(text) => locate(text),
            Grammar::ToolCall { tools, .. } => tools
                .iter()
                .take(TRIES)
                .find_map(|tool| Some(format!("tool '{}': {}", tool.name, locate(tool.schema)?))),
            _ => None,
        };
        better.map_or(fail, invalid)
    }

    /// With `relaxed`, less is enforced where the grammar can't be compiled; the warning says so.
    pub fn compile(&self, grammar: &Grammar, relaxed: bool) -> Result<(Constraint, String), Fail> {
        let mut warnings = Vec::new();
        let efforts = if relaxed && !matches!(grammar, Grammar::Regex(_)) {
            &[Effort::Exact, Effort::Lenient, Effort::ShapeOnly][..]
        } else {
            &[Effort::Exact][..]
        };
        for effort in efforts {
            match self.compile_once(grammar, *effort) {
                Ok(mut matcher) => {
                    if warnings.is_empty() {
                        warnings = matcher.grammar_warnings();
                    }
                    let constraint = Constraint {
                        matcher,
                        ends: self.ends.clone(),
                        vocab_size: self.vocab_size,
                        ended: false,
                    };
                    return Ok((constraint, warnings.join("; ")));
                }
                Err(fail) => warnings.push(match effort {
                    Effort::Exact => self.explain(grammar, fail).message,
                    _ => fail.message,
                }),
            }
        }
        Err(invalid(warnings.swap_remove(0)))
    }
}

pub struct Constraint {
    matcher: Matcher,
    ends: Arc<Vec<u32>>,
    vocab_size: usize,
    ended: bool,
}

impl Constraint {
    fn check(&self) -> Result<(), Fail> {
        match self.matcher.get_error() {
            Some(error) => Err(exhausted(format!("constraint: {error}"))),
            None => Ok(()),
        }
    }

    pub fn is_complete(&mut self) -> bool {
        self.ended || self.is_finished() || self.matcher.is_accepting().unwrap_or(false)
    }

    pub fn is_finished(&self) -> bool {
        let done = [StopReason::NoExtension, StopReason::EndOfSentence];
        self.ended || done.contains(&self.matcher.stop_reason())
    }

    pub fn fill_mask(&mut self, bits: &mut [u32]) -> Result<(), Fail> {
        if bits.len() != self.vocab_size.div_ceil(32) {
            return Err(invalid("constraint: the mask has a wrong length"));
        }
        bits.fill(0);
        if self.ended {
            return Ok(());
        }
        if !self.is_finished() {
            self.check()?;
            let mask =
                self.matcher.compute_mask().map_err(|e| exhausted(format!("constraint: {e}")))?;
            let words = mask.as_slice();
            let shared = words.len().min(bits.len());
            bits[..shared].copy_from_slice(&words[..shared]);
        }
        let complete = self.is_complete();
        for &end in self.ends.iter() {
            let (word, bit) = (end as usize / 32, 1 << (end % 32));
            bits[word] = if complete { bits[word] | bit } else { bits[word] & !bit };
        }
        Ok(())
    }

    pub fn accept(&mut self, token: u32) -> Result<(), Fail> {
        let refused = || invalid(format!("constraint: token {token} may not come here"));
        if self.ends.contains(&token) {
            if self.ended || !self.is_complete() {
                return Err(refused());
            }
            self.ended = true;
            return Ok(());
        }
        if self.is_finished() || token as usize >= self.vocab_size {
            return Err(refused());
        }
        self.check()?;
        if self.matcher.validate_tokens(&[token]).unwrap_or(0) != 1 {
            self.check()?;
            return Err(refused());
        }
        self.matcher.consume_token(token).map_err(|e| exhausted(format!("constraint: {e}")))
    }

    pub fn forced(&mut self) -> Vec<u32> {
        if self.is_finished() {
            Vec::new()
        } else {
            self.matcher.compute_ff_tokens()
        }
    }

    pub fn fork(&self) -> Constraint {
        Constraint {
            matcher: self.matcher.deep_clone(),
            ends: self.ends.clone(),
            vocab_size: self.vocab_size,
            ended: self.ended,
        }
    }
}
