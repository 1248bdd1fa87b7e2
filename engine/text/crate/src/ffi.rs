//! The C boundary; engine/text/ffi.h declares the same, and says what each thing means.
use std::cell::RefCell;
use std::ops::Range;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{Arc, Once};

use crate::bpe::Bpe;
use crate::constrain::{Constraint, Factory, Grammar, Tool};
use crate::spm::Spm;
use crate::template::{Args, Template};
use crate::tokenizer::{Model, Special, Tokenizer};
use crate::{invalid, json, Fail, CORRUPT};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HfSlice {
    ptr: *const u8,
    len: usize,
}

#[repr(C)]
pub struct HfBytes {
    ptr: *mut u8,
    len: usize,
    cap: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct HfRange {
    begin: usize,
    end: usize,
}

#[repr(C)]
pub struct HfSpecial {
    id: u32,
    control: u32,
    text: HfSlice,
}

#[repr(C)]
pub struct HfRenderArgs {
    messages: HfSlice,
    tools: HfSlice,
    extra: HfSlice,
    generation_prompt: u32,
    now: i64,
}

#[repr(C)]
pub struct HfTool {
    name: HfSlice,
    schema: HfSlice,
}

#[repr(C)]
pub struct HfGrammar {
    kind: u32, // 0 schema, 1 object, 2 regex, 3 tool call
    relaxed: u32,
    many: u32,
    text: HfSlice,
    prefix: HfSlice,
    suffix: HfSlice,
    tools: *const HfTool,
    tools_len: usize,
}

impl HfSlice {
    fn bytes<'a>(&self) -> &'a [u8] {
        view(self.ptr, self.len)
    }
    fn text<'a>(&self, what: &str) -> Result<&'a str, Fail> {
        std::str::from_utf8(self.bytes())
            .map_err(|e| invalid(format!("{what}: not UTF-8 at byte {}", e.valid_up_to())))
    }
}

/// The caller vouches that `ptr` points to `len` values that live through the call.
fn view<'a, T>(ptr: *const T, len: usize) -> &'a [T] {
    if len == 0 {
        &[]
    } else {
        unsafe { std::slice::from_raw_parts(ptr, len) }
    }
}

fn texts<'a>(ptr: *const HfSlice, len: usize, what: &str) -> Result<Vec<&'a str>, Fail> {
    view(ptr, len).iter().map(|s| s.text(what)).collect()
}

fn special_tokens(ptr: *const HfSpecial, len: usize) -> Result<Vec<Special>, Fail> {
    let special = |s: &HfSpecial| {
        Ok(Special { id: s.id, control: s.control != 0, text: s.text.text("token")?.to_string() })
    };
    view(ptr, len).iter().map(special).collect()
}

fn put(out: *mut HfBytes, bytes: Vec<u8>) {
    let mut bytes = std::mem::ManuallyDrop::new(bytes);
    let value = HfBytes { ptr: bytes.as_mut_ptr(), len: bytes.len(), cap: bytes.capacity() };
    unsafe { out.write(value) };
}

fn put_words(out: *mut HfBytes, words: &[u32]) {
    put(out, words.iter().flat_map(|w| w.to_ne_bytes()).collect());
}

fn handle<T>(out: *mut *mut T, value: T) {
    unsafe { out.write(Box::into_raw(Box::new(value))) };
}

// What ffi.h promises about threads, checked by the compiler.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    const fn one_thread_at_a_time<T: Send>() {}
    any_thread::<Arc<Tokenizer>>();
    any_thread::<Template>();
    any_thread::<Factory>();
    one_thread_at_a_time::<Constraint>();
};

thread_local! {
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}
static HOOK: Once = Once::new();

/// Runs `f`; an error or a panic goes into `err` and its code is returned, else 0.
fn guard(err: *mut HfBytes, f: impl FnOnce() -> Result<(), Fail>) -> i32 {
    HOOK.call_once(|| {
        // Say nothing on standard error: the message travels in the Status.
        std::panic::set_hook(Box::new(|info| PANIC.set(Some(info.to_string()))));
    });
    let fail = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(())) => return 0,
        Ok(Err(fail)) => fail,
        Err(_) => {
            let message = PANIC.take().unwrap_or_default().replace('\n', " ");
            Fail { code: CORRUPT, message: format!("engine/text: {message}") }
        }
    };
    put(err, fail.message.into_bytes());
    fail.code
}

macro_rules! export {
    ($(fn $name:ident($($arg:ident: $ty:ty),* ; $err:ident) $body:block)*) => {$(
        #[no_mangle]
        pub extern "C" fn $name($($arg: $ty,)* $err: *mut HfBytes) -> i32 {
            guard($err, move || $body)
        }
    )*};
}

macro_rules! export_free {
    ($($name:ident($ty:ty)),*) => {$(
        #[no_mangle]
        pub extern "C" fn $name(handle: *mut $ty) {
            let _ = catch_unwind(AssertUnwindSafe(|| drop(unsafe { Box::from_raw(handle) })));
        }
    )*};
}

export_free!(
    hf_tokenizer_free(Arc<Tokenizer>),
    hf_template_free(Template),
    hf_factory_free(Factory),
    hf_constraint_free(Constraint)
);

#[no_mangle]
pub extern "C" fn hf_bytes_free(bytes: HfBytes) {
    if !bytes.ptr.is_null() {
        drop(unsafe { Vec::from_raw_parts(bytes.ptr, bytes.len, bytes.cap) });
    }
}

export! {
    fn hf_probe_panic(text: HfSlice; err) {
        panic!("{}", text.text("probe")?)
    }

    fn hf_tokenizer_new(pre: HfSlice, tokens: *const HfSlice, tokens_len: usize,
                        merges: *const HfSlice, merges_len: usize, specials: *const HfSpecial,
                        specials_len: usize, out: *mut *mut Arc<Tokenizer>; err) {
        let bpe = Bpe::new(
            pre.text("pre-tokenizer")?,
            &texts(tokens, tokens_len, "token")?,
            &texts(merges, merges_len, "merge")?,
        )?;
        let specials = special_tokens(specials, specials_len)?;
        handle(out, Arc::new(Tokenizer::new(Model::Bpe(bpe), false, specials)?));
        Ok(())
    }

    fn hf_tokenizer_new_spm(tokens: *const HfSlice, tokens_len: usize, scores: *const f32,
                            scores_len: usize, space_prefix: u32, specials: *const HfSpecial,
                            specials_len: usize, out: *mut *mut Arc<Tokenizer>; err) {
        let spm = Spm::new(&texts(tokens, tokens_len, "token")?, view(scores, scores_len));
        let specials = special_tokens(specials, specials_len)?;
        handle(out, Arc::new(Tokenizer::new(Model::Spm(spm), space_prefix != 0, specials)?));
        Ok(())
    }

    fn hf_tokenizer_encode(tokenizer: *const Arc<Tokenizer>, text: HfSlice, plain: *const HfRange,
                           plain_len: usize, out: *mut HfBytes; err) {
        let plain: Vec<_> = view(plain, plain_len).iter().map(|r| r.begin..r.end).collect();
        let ids = unsafe { &*tokenizer }.encode(text.text("text")?, &plain)?;
        put_words(out, &ids);
        Ok(())
    }

    fn hf_template_new(source: HfSlice, bos: HfSlice, eos: HfSlice, specials: *const HfSlice,
                       specials_len: usize, out: *mut *mut Template; err) {
        let specials = texts(specials, specials_len, "special text")?;
        let specials = specials.into_iter().filter(|s| !s.is_empty()).map(str::to_string).collect();
        let source = source.text("chat template")?;
        handle(out, Template::new(source, bos.text("bos")?, eos.text("eos")?, specials)?);
        Ok(())
    }

    fn hf_template_render(template: *const Template, args: *const HfRenderArgs, text: *mut HfBytes,
                          plain: *mut HfBytes; err) {
        let args = unsafe { &*args };
        let (rendered, ranges) = unsafe { &*template }.render(&Args {
            messages: args.messages.text("messages")?,
            tools: args.tools.text("tools")?,
            extra: args.extra.text("template variables")?,
            generation_prompt: args.generation_prompt != 0,
            now: args.now,
        })?;
        put(text, rendered.into_bytes());
        let ends = |r: Range<usize>| [r.start.to_ne_bytes(), r.end.to_ne_bytes()].concat();
        put(plain, ranges.into_iter().flat_map(ends).collect());
        Ok(())
    }

    fn hf_tools_canonical(tools: HfSlice, lines: *mut HfBytes; err) {
        put(lines, json::canonical_tools(tools.text("tools")?)?.into_bytes());
        Ok(())
    }

    fn hf_factory_new(tokenizer: *const Arc<Tokenizer>, words: *const HfSlice, words_len: usize,
                      ends: *const u32, ends_len: usize, out: *mut *mut Factory; err) {
        let words: Vec<_> = view(words, words_len).iter().map(|w| w.bytes().to_vec()).collect();
        let tokenizer = unsafe { &*tokenizer }.clone();
        handle(out, Factory::new(tokenizer, &words, view(ends, ends_len).to_vec())?);
        Ok(())
    }

    fn hf_factory_compile(factory: *const Factory, grammar: *const HfGrammar,
                          out: *mut *mut Constraint, warning: *mut HfBytes; err) {
        let g = unsafe { &*grammar };
        let text = g.text.text("grammar")?;
        let tool = |t: &HfTool| {
            Ok(Tool { name: t.name.text("tool name")?, schema: t.schema.text("tool schema")? })
        };
        let grammar = match g.kind {
            0 => Grammar::Schema(text),
            1 => Grammar::Object,
            2 => Grammar::Regex(text),
            _ => Grammar::ToolCall {
                tools: view(g.tools, g.tools_len).iter().map(tool).collect::<Result<_, Fail>>()?,
                prefix: g.prefix.text("prefix")?,
                suffix: g.suffix.text("suffix")?,
                many: g.many != 0,
            },
        };
        let (constraint, said) = unsafe { &*factory }.compile(&grammar, g.relaxed != 0)?;
        put(warning, said.into_bytes());
        handle(out, constraint);
        Ok(())
    }

    fn hf_constraint_mask(constraint: *mut Constraint, bits: *mut u32, len: usize; err) {
        let bits = unsafe { std::slice::from_raw_parts_mut(bits, len) };
        unsafe { &mut *constraint }.fill_mask(bits)
    }

    fn hf_constraint_accept(constraint: *mut Constraint, token: u32; err) {
        unsafe { &mut *constraint }.accept(token)
    }

    fn hf_constraint_state(constraint: *mut Constraint, complete: *mut u32, finished: *mut u32; err) {
        let constraint = unsafe { &mut *constraint };
        unsafe {
            complete.write(constraint.is_complete() as u32);
            finished.write(constraint.is_finished() as u32);
        }
        Ok(())
    }

    fn hf_constraint_forced(constraint: *mut Constraint, out: *mut HfBytes; err) {
        put_words(out, &unsafe { &mut *constraint }.forced());
        Ok(())
    }

    fn hf_constraint_clone(constraint: *const Constraint, out: *mut *mut Constraint; err) {
        handle(out, unsafe { &*constraint }.fork());
        Ok(())
    }
}
