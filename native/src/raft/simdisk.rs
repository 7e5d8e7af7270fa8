//! An in-memory file layer that behaves as badly as a real disk may.
//!
//! Every write is kept apart until its file is synced. At `crash` each unsynced 512-byte sector of each write is
//! kept or lost by the seed (so writes are lost, torn and reordered), a file that was being extended ends
//! anywhere between its old and its new length, in zeros where sectors were lost, and each unsynced directory
//! operation is kept or lost on its own. Sectors themselves are never torn. Clones share one disk.

use super::files::{Files, LogFile};
use super::mix;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const SECTOR: usize = 512;

#[derive(Default)]
struct Inode {
    durable: Vec<u8>,
    pending: Vec<(u64, Vec<u8>)>,
}

impl Inode {
    fn current(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (offset, bytes) in &self.pending {
            put(&mut content, *offset as usize, bytes);
        }
        content
    }

    fn length(&self) -> u64 {
        self.pending
            .iter()
            .map(|(offset, bytes)| offset + bytes.len() as u64)
            .fold(self.durable.len() as u64, u64::max)
    }

    fn settle(&mut self) {
        for (offset, bytes) in std::mem::take(&mut self.pending) {
            put(&mut self.durable, offset as usize, &bytes);
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if content.len() < offset + bytes.len() {
        content.resize(offset + bytes.len(), 0);
    }
    content[offset..offset + bytes.len()].copy_from_slice(bytes);
}

#[derive(Clone)]
enum DirOp {
    Link(String, u64),
    Unlink(String),
    Rename(String, String),
}

#[derive(Default)]
struct State {
    seed: u64,
    draws: u64,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    names: BTreeMap<String, u64>,
    durable_names: BTreeMap<String, u64>,
    pending_dir: Vec<DirOp>,
    syncs_until_failure: Option<u64>,
    bytes_until_full: Option<u64>,
}

/// What a crash did to the unsynced writes and directory operations.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CrashReport {
    pub lost: u64,
    pub torn: u64,
    pub kept: u64,
}

#[derive(Clone, Default)]
pub struct SimDisk {
    state: Arc<Mutex<State>>,
}

impl State {
    fn draw(&mut self) -> u64 {
        self.draws += 1;
        mix(self.seed ^ mix(self.draws))
    }

    fn take_space(&mut self, wanted: usize) -> usize {
        match &mut self.bytes_until_full {
            None => wanted,
            Some(left) => {
                let granted = (*left).min(wanted as u64);
                *left -= granted;
                granted as usize
            }
        }
    }

    fn sync_allowed(&mut self) -> io::Result<()> {
        match &mut self.syncs_until_failure {
            None => Ok(()),
            Some(0) => Err(io::Error::other("simulated sync failure")),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
        }
    }

    /// Keep or lose each sector of one write. The file may also stop growing anywhere inside it.
    fn crash_write(&mut self, content: &mut Vec<u8>, offset: usize, bytes: &[u8]) -> CrashReport {
        let fate = self.draw() % 4;
        let end = offset + bytes.len();
        let (mut kept, mut lost) = (0, 0);
        let mut at = offset;
        while at < end {
            let next = ((at / SECTOR + 1) * SECTOR).min(end);
            let keep = match fate {
                0 => false,
                1 => true,
                _ => self.draw() % 2 == 0,
            };
            if keep {
                put(content, at, &bytes[at - offset..next - offset]);
                kept += 1;
            } else {
                lost += 1;
            }
            at = next;
        }
        if end > content.len() && self.draw() % 2 == 0 {
            let grown = self.draw() as usize % (end - content.len() + 1);
            content.resize(content.len() + grown, 0);
        }
        match (kept, lost) {
            (_, 0) => CrashReport { kept: 1, ..Default::default() },
            (0, _) => CrashReport { lost: 1, ..Default::default() },
            _ => CrashReport { torn: 1, ..Default::default() },
        }
    }
}

fn apply(names: &mut BTreeMap<String, u64>, op: DirOp) {
    match op {
        DirOp::Link(name, inode) => {
            names.insert(name, inode);
        }
        DirOp::Unlink(name) => {
            names.remove(&name);
        }
        DirOp::Rename(from, to) => {
            if let Some(inode) = names.remove(&from) {
                names.insert(to, inode);
            }
        }
    }
}

impl SimDisk {
    pub fn new(seed: u64) -> SimDisk {
        let disk = SimDisk::default();
        disk.lock().seed = seed;
        disk
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A power cut. Files opened before it must not be used after it.
    pub fn crash(&self) -> CrashReport {
        let mut state = self.lock();
        let mut report = CrashReport::default();
        for id in state.inodes.keys().copied().collect::<Vec<_>>() {
            let Some(inode) = state.inodes.get_mut(&id) else { continue };
            let (mut content, pending) =
                (std::mem::take(&mut inode.durable), std::mem::take(&mut inode.pending));
            for (offset, bytes) in pending {
                let one = state.crash_write(&mut content, offset as usize, &bytes);
                report = CrashReport {
                    lost: report.lost + one.lost,
                    torn: report.torn + one.torn,
                    kept: report.kept + one.kept,
                };
            }
            if let Some(inode) = state.inodes.get_mut(&id) {
                inode.durable = content;
            }
        }
        for op in std::mem::take(&mut state.pending_dir) {
            if state.draw() % 2 == 0 {
                apply(&mut state.durable_names, op);
                report.kept += 1;
            } else {
                report.lost += 1;
            }
        }
        state.names = state.durable_names.clone();
        let named: Vec<u64> = state.names.values().copied().collect();
        state.inodes.retain(|id, _| named.contains(id));
        state.syncs_until_failure = None;
        state.bytes_until_full = None;
        report
    }

    pub fn reset_faults(&self) {
        let mut state = self.lock();
        state.syncs_until_failure = None;
        state.bytes_until_full = None;
    }

    pub fn fail_sync_after(&self, syncs: u64) {
        self.lock().syncs_until_failure = Some(syncs);
    }

    pub fn fill_up_after(&self, bytes: u64) {
        self.lock().bytes_until_full = Some(bytes);
    }

    /// Damage one durable or pending bit; false when there is no such byte.
    pub fn flip_bit(&self, path: &str, offset: u64) -> bool {
        let mut state = self.lock();
        let Some(id) = state.names.get(path).copied() else { return false };
        let Some(inode) = state.inodes.get_mut(&id) else { return false };
        inode.settle();
        match inode.durable.get_mut(offset as usize) {
            Some(byte) => {
                *byte ^= 1;
                true
            }
            None => false,
        }
    }

    pub fn files(&self) -> BTreeMap<String, u64> {
        let state = self.lock();
        state.names.iter().map(|(name, id)| (name.clone(), state.inodes[id].length())).collect()
    }

    pub fn content(&self, path: &str) -> Option<Vec<u8>> {
        let state = self.lock();
        Some(state.inodes.get(state.names.get(path)?)?.current())
    }

    /// Put a file there as if it had always been.
    pub fn put_file(&self, path: &str, content: Vec<u8>) {
        let mut state = self.lock();
        let id = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(id, Inode { durable: content, pending: Vec::new() });
        state.names.insert(path.to_owned(), id);
        state.durable_names.insert(path.to_owned(), id);
    }

    pub fn unsynced_bytes(&self) -> u64 {
        let state = self.lock();
        state.inodes.values().flat_map(|inode| &inode.pending).map(|(_, bytes)| bytes.len() as u64).sum()
    }

    /// The files of one host: names are prefixed with its directory.
    pub fn dir(&self, dir: &str) -> SimDir {
        SimDir { disk: self.clone(), prefix: format!("{}/", dir.trim_end_matches('/')) }
    }
}

pub struct SimDir {
    disk: SimDisk,
    prefix: String,
}

impl SimDir {
    fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn inode(&self, name: &str) -> io::Result<u64> {
        let state = self.disk.lock();
        state.names.get(&self.path(name)).copied().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }
}

struct SimFile {
    disk: SimDisk,
    inode: u64,
}

impl LogFile for SimFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.disk.lock();
        let granted = state.take_space(bytes.len());
        let Some(inode) = state.inodes.get_mut(&self.inode) else {
            return Err(io::Error::other("the file was lost in a simulated crash"));
        };
        inode.pending.push((offset, bytes[..granted].to_vec()));
        if granted < bytes.len() {
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.sync_allowed()?;
        if let Some(inode) = state.inodes.get_mut(&self.inode) {
            inode.settle();
        }
        Ok(())
    }
}

impl Files for SimDir {
    fn list(&self) -> io::Result<Vec<String>> {
        let state = self.disk.lock();
        Ok(state.names.keys().filter_map(|name| name.strip_prefix(&self.prefix)).map(str::to_owned).collect())
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let id = self.inode(name)?;
        Ok(self.disk.lock().inodes[&id].current())
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn LogFile>> {
        let path = self.path(name);
        let mut state = self.disk.lock();
        let inode = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(inode, Inode::default());
        state.names.insert(path.clone(), inode);
        state.pending_dir.push(DirOp::Link(path, inode));
        Ok(Box::new(SimFile { disk: self.disk.clone(), inode }))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn LogFile>> {
        Ok(Box::new(SimFile { disk: self.disk.clone(), inode: self.inode(name)? }))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.inode(from)?;
        let op = DirOp::Rename(self.path(from), self.path(to));
        let mut state = self.disk.lock();
        apply(&mut state.names, op.clone());
        state.pending_dir.push(op);
        Ok(())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        self.inode(name)?;
        let op = DirOp::Unlink(self.path(name));
        let mut state = self.disk.lock();
        apply(&mut state.names, op.clone());
        state.pending_dir.push(op);
        Ok(())
    }

    fn sync_dir(&self) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.sync_allowed()?;
        state.durable_names = state.names.clone();
        state.pending_dir.clear();
        Ok(())
    }

    fn describe(&self, name: &str) -> String {
        self.path(name)
    }
}
