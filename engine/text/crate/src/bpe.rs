//! Byte-level BPE as GGUF's "gpt2" tokenizers mean it. `tokenizers` does the merging; the cutting
//! into words is done here with linear-time regexes, since the backtracking ones that the crate
//! offers give up on long runs of blanks.
use regex_automata::meta::Regex;
use std::ops::Range;
use tokenizers::models::bpe::{Vocab, BPE};
use tokenizers::Model;

use crate::{invalid, Fail};

/// One pass over the text; every match, and every gap between matches, is a piece of its own.
enum Pass {
    Isolate(Regex),
    /// Pattern 0 is the word pattern; pattern 1 is `\s+` and stands for `\s+(?!\S)|\s+`: a run of
    /// blanks before something else leaves its last blank to the next word.
    Words(Regex),
}

const CONTRACTIONS: &str = "'s|'t|'re|'ve|'m|'ll|'d";
const ANY_CASE: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";

fn pre_passes(pre: &str) -> Option<(Vec<Pass>, bool)> {
    let isolate = |p: &str| Pass::Isolate(Regex::new(p).unwrap());
    let words = |p: &str| Pass::Words(Regex::new_many(&[p, r"\s+"]).unwrap());
    let gpt2 = || words(&format!(r"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+"));
    let cased = |letters: &str, marks: &str, digits: &str| {
        words(&format!(
            r"{ANY_CASE}|[^\r\n\p{{L}}\p{{N}}]?{letters}+|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+[\r\n]*|\s*[\r\n]+"
        ))
    };
    let passes = match pre {
        "gpt-2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "gigachat" => vec![gpt2()],
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" => {
            vec![isolate(r"\p{N}"), gpt2()]
        }
        "qwen2" | "deepseek-r1-qwen" | "stablelm2" | "hunyuan" | "megrez" | "solar-open" => {
            vec![cased(r"\p{L}", "", r"\p{N}")]
        }
        "qwen35" => vec![cased(r"[\p{L}\p{M}]", r"\p{M}", r"\p{N}")],
        "llama-bpe" | "llama3" | "llama-v3" | "falcon3" | "pixtral" | "lfm2" => {
            return Some((vec![cased(r"\p{L}", "", r"\p{N}{1,3}")], true));
        }
        "dbrx" | "smaug-bpe" | "chatglm-bpe" => vec![cased(r"\p{L}", "", r"\p{N}{1,3}")],
        "glm4" => return Some((vec![cased(r"\p{L}", "", r"\p{N}{1,3}")], true)),
        _ => return None,
    };
    Some((passes, false))
}

fn next_piece(pass: &Pass, piece: &str, from: usize) -> Option<Range<usize>> {
    let (Pass::Isolate(re) | Pass::Words(re)) = pass;
    let m = re.find(regex_automata::Input::new(piece).range(from..))?;
    let mut end = m.end();
    if matches!(pass, Pass::Words(_)) && m.pattern().as_usize() == 1 && end < piece.len() {
        let last = piece[m.start()..end].char_indices().next_back().map_or(0, |(i, _)| i);
        if last > 0 {
            end = m.start() + last;
        }
    }
    Some(m.start()..end)
}

fn cut(
    passes: &[Pass],
    piece: &str,
    emit: &mut dyn FnMut(&str) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let Some((pass, rest)) = passes.split_first() else {
        return emit(piece);
    };
    let mut at = 0;
    while at < piece.len() {
        let Some(found) = next_piece(pass, piece, at) else {
            return cut(rest, &piece[at..], emit);
        };
        if found.start > at {
            cut(rest, &piece[at..found.start], emit)?;
        }
        cut(rest, &piece[found.clone()], emit)?;
        at = found.end;
    }
    Ok(())
}

/// The letter that byte-level vocabularies write for each byte.
fn byte_letters() -> [char; 256] {
    let mut letters = ['\0'; 256];
    let mut next = 256;
    for byte in 0..=255u8 {
        let printable = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        letters[byte as usize] = if printable {
            byte as char
        } else {
            next += 1;
            char::from_u32(next - 1).unwrap()
        };
    }
    letters
}

pub struct Bpe {
    passes: Vec<Pass>,
    model: BPE,
    letters: [char; 256],
    missing: [bool; 256], // bytes whose letter is no token
}

impl Bpe {
    pub fn new(pre: &str, tokens: &[&str], merges: &[&str]) -> Result<Bpe, Fail> {
        let (passes, ignore_merges) = pre_passes(pre)
            .ok_or_else(|| invalid(format!("tokenizer: unknown pre-tokenizer '{pre}'")))?;
        let vocab: Vocab =
            tokens.iter().enumerate().map(|(i, t)| (t.to_string(), i as u32)).collect();
        let merges = merges
            .iter()
            .enumerate()
            .map(|(i, m)| match m.split_once(' ') {
                Some((a, b)) if !a.is_empty() && !b.is_empty() => {
                    Ok((a.to_string(), b.to_string()))
                }
                _ => Err(invalid(format!("tokenizer: merge {i} is '{m}', not two tokens"))),
            })
            .collect::<Result<Vec<_>, _>>()?;
        let model = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(ignore_merges)
            .build()
            .map_err(|e| invalid(format!("tokenizer: {e}")))?;
        let letters = byte_letters();
        let missing = letters.map(|c| model.token_to_id(&c.to_string()).is_none());
        Ok(Bpe { passes, model, letters, missing })
    }

    fn merge(&self, word: &str, out: &mut Vec<u32>) -> Result<(), Fail> {
        let tokens = self.model.tokenize(word).map_err(|e| invalid(format!("tokenizer: {e}")))?;
        out.extend(tokens.iter().map(|t| t.id));
        Ok(())
    }

    pub fn encode(&self, text: &str, out: &mut Vec<u32>) -> Result<(), Fail> {
        let mut word = String::new();
        cut(&self.passes, text, &mut |piece| {
            word.clear();
            word.extend(piece.bytes().map(|b| self.letters[b as usize]));
            let whole = self.model.ignore_merges && self.model.token_to_id(&word).is_some();
            if whole || !piece.bytes().any(|b| self.missing[b as usize]) {
                return self.merge(&word, out);
            }
            // A byte that the vocabulary lacks gets no token, and nothing merges across it.
            for run in piece.as_bytes().split(|b| self.missing[*b as usize]) {
                word.clear();
                word.extend(run.iter().map(|b| self.letters[*b as usize]));
                self.merge(&word, out)?;
            }
            Ok(())
        })
    }
}
