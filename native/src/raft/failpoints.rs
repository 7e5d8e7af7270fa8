//! Named points at which a process can be made to die, to see what a crash there leaves behind.
//!
//! Manual mode: an armed point returns `Fatal::Failpoint` and the simulated process is dead. Threaded mode:
//! `FLOTTA_FAILPOINTS="raft.before_sync=abort@3,raft.after_sync=sleep:200"` ends (or delays) the real one.
//! When nothing is armed a point costs one relaxed load.

use super::error::Fatal;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

pub const BEFORE_APPEND: &str = "raft.before_append";
pub const AFTER_APPEND: &str = "raft.after_append";
pub const BEFORE_SYNC: &str = "raft.before_sync";
pub const AFTER_SYNC: &str = "raft.after_sync";
pub const BEFORE_SEND: &str = "raft.before_send";
pub const BEFORE_DELIVER: &str = "raft.before_deliver";
pub const BEFORE_ROTATE: &str = "raft.before_rotate";
pub const AFTER_ROTATE: &str = "raft.after_rotate";
pub const BEFORE_COMPACT_RECORD: &str = "raft.before_compact_record";
pub const BEFORE_SEGMENT_REMOVE: &str = "raft.before_segment_remove";
pub const AFTER_SNAPSHOT_RECORD: &str = "raft.after_snapshot_record";
pub const BEFORE_CREATE_RECORD: &str = "raft.before_create_record";
pub const BEFORE_REMOVE_RECORD: &str = "raft.before_remove_record";

pub const ALL: [&str; 13] = [
    BEFORE_APPEND,
    AFTER_APPEND,
    BEFORE_SYNC,
    AFTER_SYNC,
    BEFORE_SEND,
    BEFORE_DELIVER,
    BEFORE_ROTATE,
    AFTER_ROTATE,
    BEFORE_COMPACT_RECORD,
    BEFORE_SEGMENT_REMOVE,
    AFTER_SNAPSHOT_RECORD,
    BEFORE_CREATE_RECORD,
    BEFORE_REMOVE_RECORD,
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// Manual mode: report the death of the simulated process.
    Report,
    /// Leave at once, as kill -9 would.
    Abort,
    Sleep(Duration),
}

struct Armed {
    action: Action,
    passes_left: u64,
}

#[derive(Clone, Default)]
pub struct Failpoints {
    any: Arc<AtomicBool>,
    armed: Arc<Mutex<BTreeMap<&'static str, Armed>>>,
}

impl Failpoints {
    /// Read `FLOTTA_FAILPOINTS`; entries that are not ours (no `raft.` prefix) belong to other layers.
    pub fn from_text(text: &str) -> Result<Failpoints, String> {
        let points = Failpoints::default();
        for item in text.split(',').map(str::trim).filter(|item| item.starts_with("raft.")) {
            let (name, action) =
                item.split_once('=').ok_or_else(|| format!("failpoint {item:?}: expected name=action"))?;
            let (action, hits) = match action.split_once('@') {
                Some((action, hits)) => (action, parse(item, hits)?),
                None => (action, 1),
            };
            let action = match action.split_once(':') {
                None if action == "abort" => Action::Abort,
                Some(("sleep", ms)) => Action::Sleep(Duration::from_millis(parse(item, ms)?)),
                _ => return Err(format!("failpoint {item:?}: expected abort[@N] or sleep:MS")),
            };
            points.insert(name, action, hits)?;
        }
        Ok(points)
    }

    /// Die at the `hits`-th pass (manual mode).
    pub fn arm(&self, name: &str, hits: u64) -> Result<(), String> {
        self.insert(name, Action::Report, hits)
    }

    fn insert(&self, name: &str, action: Action, hits: u64) -> Result<(), String> {
        let name =
            ALL.iter().find(|known| **known == name).ok_or_else(|| format!("unknown failpoint {name:?}"))?;
        if hits == 0 {
            return Err(format!("failpoint {name}: hits must be at least 1"));
        }
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        armed.insert(name, Armed { action, passes_left: hits });
        self.any.store(true, Ordering::Relaxed);
        Ok(())
    }

    pub fn pass(&self, name: &'static str) -> Result<(), Fatal> {
        if !self.any.load(Ordering::Relaxed) {
            return Ok(());
        }
        let action = {
            let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(point) = armed.get_mut(name) else { return Ok(()) };
            if let Action::Sleep(_) = point.action {
                point.action
            } else {
                point.passes_left -= 1;
                if point.passes_left > 0 {
                    return Ok(());
                }
                let action = point.action;
                armed.remove(name);
                action
            }
        };
        match action {
            Action::Report => Err(Fatal::Failpoint(name)),
            // SAFETY: leaves the process without running anything of it, which is the point.
            Action::Abort => unsafe { libc::_exit(86) },
            Action::Sleep(time) => {
                std::thread::sleep(time);
                Ok(())
            }
        }
    }
}

fn parse(item: &str, number: &str) -> Result<u64, String> {
    number.parse().map_err(|_| format!("failpoint {item:?}: {number:?} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dies_at_the_nth_pass_only() {
        let points = Failpoints::default();
        points.arm(BEFORE_SYNC, 2).unwrap();
        assert_eq!(points.pass(BEFORE_SYNC), Ok(()));
        assert_eq!(points.pass(AFTER_SYNC), Ok(()));
        assert_eq!(points.pass(BEFORE_SYNC), Err(Fatal::Failpoint(BEFORE_SYNC)));
    }

    #[test]
    fn reads_the_environment_form_and_names_what_it_cannot_read() {
        assert!(Failpoints::from_text("raft.before_sync=abort@3,storage.other=sleep:9").is_ok());
        for bad in
            ["raft.nowhere=abort", "raft.before_sync", "raft.before_sync=jump", "raft.before_sync=abort@x"]
        {
            assert!(Failpoints::from_text(bad).is_err_and(|text| text.contains("raft.")), "{bad}");
        }
    }
}
