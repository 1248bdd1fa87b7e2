//! The Rust half of engine/text, reached only through engine/text/ffi.h.
//!
//! Every exported function runs inside `guard`: a panic becomes code CORRUPT with its message and
//! place, and never unwinds into C++. Buffers that go out (`HfBytes`) are freed by `hf_bytes_free`,
//! handles by their own `_free`; arguments are borrowed for the length of the call alone.
mod bpe;
mod constrain;
mod ffi;
mod json;
mod spm;
mod template;
mod tokenizer;

/// An error on its way to a C++ Status: `code` is a holdfast::Code.
#[derive(Debug)]
pub struct Fail {
    pub code: i32,
    pub message: String,
}

pub const INVALID: i32 = 1;
pub const EXHAUSTED: i32 = 4;
pub const CORRUPT: i32 = 6;

pub fn invalid(message: impl Into<String>) -> Fail {
    Fail { code: INVALID, message: message.into() }
}

pub fn exhausted(message: impl Into<String>) -> Fail {
    Fail { code: EXHAUSTED, message: message.into() }
}
