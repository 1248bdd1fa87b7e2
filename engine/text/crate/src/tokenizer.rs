//! Text to tokens: special tokens are cut out first, longest first; what lies between them goes to
//! the model.
use aho_corasick::{AhoCorasick, MatchKind};
use std::ops::Range;

use crate::bpe::Bpe;
use crate::spm::Spm;
use crate::{invalid, Fail};

/// A token that is cut out of the text before anything else.
pub struct Special {
    pub id: u32,
    pub text: String,
    pub control: bool, // matches only where special tokens are parsed
}

pub enum Model {
    Bpe(Bpe),
    Spm(Spm),
}

pub struct Tokenizer {
    model: Model,
    space_prefix: bool, // a blank goes before what begins the text or follows a special token
    specials: Vec<Special>, // longest first: the order in which they claim text
    finder: Option<AhoCorasick>,
}

impl Tokenizer {
    pub fn new(
        model: Model,
        space_prefix: bool,
        mut specials: Vec<Special>,
    ) -> Result<Tokenizer, Fail> {
        specials.sort_by(|a, b| b.text.len().cmp(&a.text.len()).then(a.id.cmp(&b.id)));
        let finder = if specials.is_empty() {
            None
        } else {
            let built = AhoCorasick::builder()
                .match_kind(MatchKind::Standard)
                .build(specials.iter().map(|s| s.text.as_bytes()));
            Some(built.map_err(|e| invalid(format!("tokenizer: special tokens: {e}")))?)
        };
        Ok(Tokenizer { model, space_prefix, specials, finder })
    }

    /// Where special tokens stand in `text`: each claims what longer ones left, left to right.
    fn find_specials(&self, text: &str, plain: &[Range<usize>]) -> Vec<(Range<usize>, u32)> {
        let Some(finder) = &self.finder else { return Vec::new() };
        let mut found: Vec<_> = finder
            .find_overlapping_iter(text.as_bytes())
            .filter(|m| {
                // Plain ranges end in ascending order: the first that ends past m's start decides.
                let next = plain.partition_point(|p| p.end <= m.start());
                let hidden = plain.get(next).is_some_and(|p| p.start < m.end());
                !(hidden && self.specials[m.pattern().as_usize()].control)
            })
            .collect();
        found.sort_by_key(|m| (m.pattern(), m.start()));
        let mut taken = std::collections::BTreeMap::<usize, (usize, u32)>::new();
        for m in found {
            let before = taken.range(..m.end()).next_back();
            if before.is_none_or(|(_, &(end, _))| end <= m.start()) {
                taken.insert(m.start(), (m.end(), self.specials[m.pattern().as_usize()].id));
            }
        }
        taken.into_iter().map(|(start, (end, id))| (start..end, id)).collect()
    }

    /// The special tokens proper (never user-defined ones) in `text`.
    pub fn find_control(&self, text: &str) -> Vec<(Range<usize>, u32)> {
        let control = |id| self.specials.iter().any(|s| s.id == id && s.control);
        self.find_specials(text, &[]).into_iter().filter(|(_, id)| control(*id)).collect()
    }

    fn encode_piece(&self, text: &str, prefix: bool, out: &mut Vec<u32>) -> Result<(), Fail> {
        match &self.model {
            Model::Bpe(bpe) => bpe.encode(text, out),
            Model::Spm(spm) => spm.encode(text, prefix && !text.is_empty(), out),
        }
    }

    /// `plain`: ascending, disjoint, not empty.
    pub fn encode(&self, text: &str, plain: &[Range<usize>]) -> Result<Vec<u32>, Fail> {
        self.encode_from(text, plain, self.space_prefix)
    }

    /// Plain text that goes on where other text ended.
    pub fn encode_inside(&self, text: &str) -> Result<Vec<u32>, Fail> {
        let plain = [0..text.len()];
        self.encode_from(text, if text.is_empty() { &[] } else { &plain }, false)
    }

    fn encode_from(
        &self,
        text: &str,
        plain: &[Range<usize>],
        first_prefix: bool,
    ) -> Result<Vec<u32>, Fail> {
        let mut out = Vec::with_capacity(text.len() / 3 + 1);
        let mut at = 0;
        let mut prefix = first_prefix;
        for (place, id) in self.find_specials(text, plain) {
            self.encode_piece(&text[at..place.start], prefix, &mut out)?;
            out.push(id);
            at = place.end;
            prefix = self.space_prefix;
        }
        self.encode_piece(&text[at..], prefix, &mut out)?;
        Ok(out)
    }
}
