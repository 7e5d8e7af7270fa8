//! What can go wrong, and what it means: an error at open stops the start, a `Fatal` ends the process.

use std::fmt;
use std::io;

/// Why a host could not be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The log is damaged before its end; the text names file and offset.
    Corruption(String),
    Io(io::Error),
    /// A bad option, or an `applied` map that contradicts the log.
    Invalid(String),
    Fatal(Fatal),
}

impl From<io::Error> for OpenError {
    fn from(error: io::Error) -> Self {
        OpenError::Io(error)
    }
}

impl From<Fatal> for OpenError {
    fn from(fatal: Fatal) -> Self {
        OpenError::Fatal(fatal)
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Corruption(text) | OpenError::Invalid(text) => f.write_str(text),
            OpenError::Io(error) => write!(f, "{error}"),
            OpenError::Fatal(fatal) => write!(f, "{fatal}"),
        }
    }
}

/// The host cannot go on. After a failed write or sync nobody knows what the disk holds, so nothing is retried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fatal {
    Disk(String),
    /// A panic in the Raft core or a broken invariant of ours.
    Broken(String),
    /// Manual mode: the simulated process died here.
    Failpoint(&'static str),
    Stopped,
}

impl Fatal {
    pub fn disk(what: &str, error: &io::Error) -> Fatal {
        Fatal::Disk(format!("{what}: {error}"))
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fatal::Disk(text) => write!(f, "the log cannot be written: {text}"),
            Fatal::Broken(text) => write!(f, "broken invariant: {text}"),
            Fatal::Failpoint(name) => write!(f, "failpoint {name} was reached"),
            Fatal::Stopped => f.write_str("the host is stopped"),
        }
    }
}
