//! The outcome of a call as gRPC tells it: a code and a sentence.

use std::borrow::Cow;

pub const OK: u32 = 0;
pub const CANCELLED: u32 = 1;
pub const DEADLINE_EXCEEDED: u32 = 4;
pub const RESOURCE_EXHAUSTED: u32 = 8;
pub const UNIMPLEMENTED: u32 = 12;
pub const INTERNAL: u32 = 13;
pub const UNAVAILABLE: u32 = 14;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    pub code: u32,
    pub message: Cow<'static, str>,
}

impl Status {
    pub fn new(code: u32, message: impl Into<Cow<'static, str>>) -> Status {
        Status { code, message: message.into() }
    }
}
