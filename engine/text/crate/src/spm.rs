//! SentencePiece's BPE as GGUF's "llama" tokenizers mean it: blanks become U+2581, characters are
//! merged in pairs, the pair whose token scores best first (then the leftmost), and characters that
//! are no token become bytes. Any token may come out of merging, whatever its type.
use std::cmp::{Ordering, Reverse};
use std::collections::{BinaryHeap, HashMap};

use crate::{invalid, Fail};

const BLANK: &str = "\u{2581}";
const NOBODY: usize = usize::MAX;

pub struct Spm {
    tokens: HashMap<Box<str>, (u32, f32)>, // id and score by text; of equal texts the last
    bytes: [Option<u32>; 256],
}

/// A piece of the text that is one token, or one character; empty once its left neighbour took it.
struct Piece {
    begin: usize,
    end: usize,
    left: usize,
    right: usize,
}

/// Two neighbours whose text is a token. Stale once either has changed: then `len` differs.
struct Pair {
    score: f32,
    left: usize,
    right: usize,
    len: usize,
}

impl Pair {
    fn rank(&self, other: &Pair) -> Ordering {
        self.score.total_cmp(&other.score).then(Reverse(self.left).cmp(&Reverse(other.left)))
    }
}
impl Ord for Pair {
    fn cmp(&self, other: &Pair) -> Ordering {
        self.rank(other)
    }
}
impl PartialOrd for Pair {
    fn partial_cmp(&self, other: &Pair) -> Option<Ordering> {
        Some(self.rank(other))
    }
}
impl PartialEq for Pair {
    fn eq(&self, other: &Pair) -> bool {
        self.rank(other).is_eq()
    }
}
impl Eq for Pair {}

impl Spm {
    /// `scores`: as many as tokens, or none (all are equal then).
    pub fn new(tokens: &[&str], scores: &[f32]) -> Spm {
        let mut map = HashMap::with_capacity(tokens.len());
        for (i, token) in tokens.iter().enumerate() {
            // 0.0 makes a score of -0.0 a zero: total_cmp would tell them apart.
            let score = scores.get(i).map_or(0.0, |s| s + 0.0);
            map.insert(Box::from(*token), (i as u32, score));
        }
        let bytes = std::array::from_fn(|b| {
            let written = map.get(format!("<0x{b:02X}>").as_str());
            let plain = || map.get(std::str::from_utf8(&[b as u8]).ok()?);
            written.or_else(plain).map(|&(id, _)| id)
        });
        Spm { tokens: map, bytes }
    }

    fn try_pair(&self, text: &str, pieces: &[Piece], left: usize, heap: &mut BinaryHeap<Pair>) {
        let right = if left == NOBODY { NOBODY } else { pieces[left].right };
        if right == NOBODY {
            return;
        }
        let (begin, end) = (pieces[left].begin, pieces[right].end);
        if let Some(&(_, score)) = self.tokens.get(&text[begin..end]) {
            heap.push(Pair { score, left, right, len: end - begin });
        }
    }

    fn merge(&self, text: &str, pieces: &mut [Piece]) {
        let mut heap = BinaryHeap::new();
        for i in 0..pieces.len() {
            self.try_pair(text, pieces, i, &mut heap);
        }
        while let Some(pair) = heap.pop() {
            let (left, right) = (&pieces[pair.left], &pieces[pair.right]);
            let gone = left.begin == left.end || right.begin == right.end;
            if gone || right.end - left.begin != pair.len || left.right != pair.right {
                continue;
            }
            let (end, next) = (right.end, right.right);
            pieces[pair.right].begin = end; // empty from now on
            pieces[pair.left].end = end;
            pieces[pair.left].right = next;
            if next != NOBODY {
                pieces[next].left = pair.left;
            }
            self.try_pair(text, pieces, pieces[pair.left].left, &mut heap);
            self.try_pair(text, pieces, pair.left, &mut heap);
        }
    }

    /// With `prefix`, as if a blank stood before `text`.
    pub fn encode(&self, text: &str, prefix: bool, out: &mut Vec<u32>) -> Result<(), Fail> {
        let text = if prefix { BLANK } else { "" }.to_string() + &text.replace(' ', BLANK);
        let mut pieces: Vec<Piece> = text
            .char_indices()
            .enumerate()
            .map(|(i, (at, c))| Piece {
                begin: at,
                end: at + c.len_utf8(),
                left: i.wrapping_sub(1),
                right: i + 1,
            })
            .collect();
        let Some(last) = pieces.last_mut() else { return Ok(()) };
        last.right = NOBODY;
        self.merge(&text, &mut pieces);
        for piece in pieces.iter().filter(|p| p.begin < p.end) {
            let word = &text[piece.begin..piece.end];
            if let Some(&(id, _)) = self.tokens.get(word) {
                out.push(id);
                continue;
            }
            for b in word.bytes() {
                let id = self.bytes[b as usize];
                out.push(id.ok_or_else(|| {
                    invalid(format!("tokenizer: no token for '{word}' nor for byte {b:#04x}"))
                })?);
            }
        }
        Ok(())
    }
}
