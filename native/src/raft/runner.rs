//! The thread that drives a host, and what it shares with its callers: an inbox, an outbox and an eventfd.
//!
//! Both boxes are bounded. Missed ticks are never replayed: a process that was paused must not call an election
//! out of a burst. Whatever ends the thread, a `Fatal` or a panic, is kept as the reason and makes the eventfd
//! readable; nobody waits for it in vain.

use super::commands::Proposal;
use super::error::Fatal;
use super::host::Host;
use super::out::{Out, Reason};
use crate::eventfd::EventFd;
use bytes::Bytes;
use std::io;
use std::os::fd::RawFd;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{mpsc, Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

pub type Task = Box<dyn FnOnce(&mut Host) -> Result<(), Fatal> + Send>;

pub enum Command {
    Propose(Vec<Proposal>),
    Step(Bytes),
    /// Anything else, in its turn.
    Task(Task),
}

#[derive(Default)]
struct Inbox {
    commands: Vec<Command>,
    bytes: u64,
    stop: bool,
    /// A full outbox was emptied: rounds can go on.
    resume: bool,
}

struct Shared {
    inbox: Mutex<Inbox>,
    wake: Condvar,
    out: Mutex<Out>,
    reason: Mutex<Option<Fatal>>,
    event: EventFd,
    frame_bytes_max: usize,
    inbox_bytes_max: u64,
    outbox_bytes_max: u64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn publish(&self, out: &mut Out) {
        if !out.is_empty() {
            let mut shared = lock(&self.out);
            let was_empty = shared.is_empty();
            shared.absorb(out, self.frame_bytes_max);
            drop(shared);
            if was_empty {
                self.event.notify();
            }
        }
    }

    fn fail(&self, reason: Fatal) {
        lock(&self.reason).get_or_insert(reason);
        self.event.notify();
        self.wake.notify_all();
    }
}

/// Run something on a host and turn a panic of the Raft core into the reason the host ended.
pub fn guarded<T>(run: impl FnOnce() -> Result<T, Fatal>) -> Result<T, Fatal> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "a panic without a text".to_owned());
        Err(Fatal::Broken(text))
    })
}

/// The running thread, and how it gives the host back when it ended in order.
type Thread = (JoinHandle<()>, mpsc::Receiver<Option<Host>>);

pub struct Runner {
    shared: Arc<Shared>,
    /// Here before `start` and after `stop`.
    host: Mutex<Option<Host>>,
    thread: Mutex<Option<Thread>>,
    tick: Duration,
}

impl Runner {
    pub fn new(host: Host) -> io::Result<Runner> {
        let shared = Arc::new(Shared {
            inbox: Mutex::default(),
            wake: Condvar::new(),
            out: Mutex::default(),
            reason: Mutex::default(),
            event: EventFd::new()?,
            frame_bytes_max: host.options.message_bytes_max as usize,
            inbox_bytes_max: host.options.inbox_bytes_max,
            outbox_bytes_max: host.options.outbox_bytes_max,
        });
        let tick = Duration::from_millis(host.options.tick_ms);
        Ok(Runner { shared, host: Mutex::new(Some(host)), thread: Mutex::default(), tick })
    }

    pub fn notify_fd(&self) -> RawFd {
        self.shared.event.fd()
    }

    pub fn start(&self) -> Result<(), String> {
        let mut thread = lock(&self.thread);
        let Some(host) = lock(&self.host).take() else {
            return Err("the host was started before".to_owned());
        };
        let (sender, receiver) = mpsc::channel();
        let (shared, tick) = (self.shared.clone(), self.tick);
        let run = move || {
            let mut host = host;
            let ended = guarded(|| run(&mut host, &shared, tick));
            let reason = match ended {
                Ok(()) => Fatal::Stopped,
                Err(reason) => reason,
            };
            shared.publish(host.out());
            let whole = reason == Fatal::Stopped;
            shared.fail(reason);
            // Nobody may look into a host that broke.
            let _ = sender.send(whole.then_some(host));
        };
        let handle = std::thread::Builder::new()
            .name("flotta-raft".to_owned())
            .spawn(run)
            .map_err(|error| format!("the host's thread cannot be started: {error}"))?;
        *thread = Some((handle, receiver));
        Ok(())
    }

    /// End the thread after its current round. False when it did not end in time.
    pub fn stop(&self, timeout: Duration) -> bool {
        let mut thread = lock(&self.thread);
        let Some((handle, receiver)) = thread.take() else { return true };
        lock(&self.shared.inbox).stop = true;
        self.shared.wake.notify_all();
        match receiver.recv_timeout(timeout) {
            Err(mpsc::RecvTimeoutError::Timeout) => {
                *thread = Some((handle, receiver));
                false
            }
            ended => {
                *lock(&self.host) = ended.ok().flatten();
                let _ = handle.join();
                true
            }
        }
    }

    pub fn reason(&self) -> Option<Fatal> {
        lock(&self.shared.reason).clone()
    }

    /// Put a command into the inbox, or run it at once when the thread does not run yet.
    pub fn send(&self, command: Command) -> Result<(), Fatal> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        if let Some(host) = lock(&self.host).as_mut() {
            let done = guarded(|| handle(host, command));
            self.shared.publish(host.out());
            return done.inspect_err(|reason| self.shared.fail(reason.clone()));
        }
        let bytes = match &command {
            Command::Propose(proposals) => {
                proposals.iter().map(|proposal| proposal.2.len() as u64 + 64).sum()
            }
            Command::Step(frame) => frame.len() as u64,
            Command::Task(_) => 0,
        };
        let mut inbox = lock(&self.shared.inbox);
        if bytes > 0 && inbox.bytes > 0 && inbox.bytes + bytes > self.shared.inbox_bytes_max {
            drop(inbox);
            self.refuse(command);
            return Ok(());
        }
        inbox.bytes += bytes;
        inbox.commands.push(command);
        drop(inbox);
        self.shared.wake.notify_one();
        Ok(())
    }

    fn refuse(&self, command: Command) {
        let mut out = Out::default();
        match command {
            Command::Propose(proposals) => {
                for (group, request, _) in proposals {
                    out.drop_one(group, request, Reason::Overloaded, 0);
                }
            }
            _ => out.event(0, "inbox_full", 0, "a frame was dropped"),
        }
        self.shared.publish(&mut out);
    }

    /// Run something between two rounds and wait for its answer.
    pub fn ask<T: Send + 'static>(
        &self,
        run: impl FnOnce(&mut Host) -> Result<T, Fatal> + Send + 'static,
    ) -> Result<T, Fatal> {
        let (sender, receiver) = mpsc::channel();
        let task = move |host: &mut Host| {
            let answer = guarded(|| run(host));
            let fatal = answer.as_ref().err().cloned();
            // The asker may have given up; its answer is then of no use to anybody.
            let _ = sender.send(answer);
            fatal.map_or(Ok(()), Err)
        };
        if self.reason() == Some(Fatal::Stopped) {
            // A stopped host is whole and may still be looked at.
            let mut host = lock(&self.host);
            let Some(host) = host.as_mut() else { return Err(Fatal::Stopped) };
            guarded(|| task(host))?;
        } else {
            self.send(Command::Task(Box::new(task)))?;
        }
        loop {
            match receiver.recv_timeout(Duration::from_millis(100)) {
                // Known to every caller from here on, however long the thread takes to end.
                Ok(answer) => return answer.inspect_err(|fatal| self.shared.fail(fatal.clone())),
                Err(mpsc::RecvTimeoutError::Timeout) => {
                    // A command that came in while the thread ended is never run.
                    if let Some(reason) = self.reason() {
                        return receiver.try_recv().unwrap_or(Err(reason));
                    }
                }
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(self.reason().unwrap_or(Fatal::Stopped))
                }
            }
        }
    }

    /// Manual mode: rounds until nothing is ready.
    pub fn drive(&self) -> Result<u64, Fatal> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        let mut held = lock(&self.host);
        let Some(host) = held.as_mut() else { return Err(Fatal::Stopped) };
        host.backlog_bytes = lock(&self.shared.out).bytes();
        let driven = guarded(|| host.drive(&mut |out| self.shared.publish(out)));
        match &driven {
            Ok(_) => self.shared.publish(host.out()),
            // What was not published before the death never left the process.
            Err(reason) => self.shared.fail(reason.clone()),
        }
        driven
    }

    /// What had left a dead host before it died.
    pub fn salvage(&self) -> Out {
        std::mem::take(&mut *lock(&self.shared.out))
    }

    /// What happened since the last call.
    pub fn poll(&self) -> Result<Out, Fatal> {
        self.shared.event.clear();
        // A host that stopped in order has its last words; one that broke has none but its reason.
        let reason = self.reason();
        if let Some(reason) = reason.as_ref().filter(|reason| **reason != Fatal::Stopped) {
            return Err(reason.clone());
        }
        let out = std::mem::take(&mut *lock(&self.shared.out));
        match reason {
            Some(reason) if out.is_empty() => Err(reason),
            _ => {
                if out.bytes() > self.shared.outbox_bytes_max / 2 {
                    lock(&self.shared.inbox).resume = true;
                    self.shared.wake.notify_one();
                }
                Ok(out)
            }
        }
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(10));
    }
}

fn handle(host: &mut Host, command: Command) -> Result<(), Fatal> {
    match command {
        Command::Propose(proposals) => host.propose(proposals),
        Command::Step(frame) => host.step(&frame),
        Command::Task(task) => return task(host),
    }
    Ok(())
}

fn run(host: &mut Host, shared: &Shared, tick: Duration) -> Result<(), Fatal> {
    let mut next_tick = Instant::now() + tick;
    let publish = &mut |out: &mut Out| shared.publish(out);
    loop {
        let Some(commands) = wait(shared, next_tick) else { break };
        let now = Instant::now();
        host.backlog_bytes = lock(&shared.out).bytes();
        let stalled = host.backlog_bytes > host.options.outbox_bytes_max;
        if now >= next_tick {
            next_tick = if now - next_tick > tick { now + tick } else { next_tick + tick };
            // Nobody fetches what is here: time stands still for this host until somebody does.
            if !stalled {
                host.tick();
            }
        }
        for command in commands {
            handle(host, command)?;
        }
        host.drive(publish)?;
        publish(host.out());
    }
    host.close()
}

/// The commands that came in, at the latest when the tick is due. None: stop.
fn wait(shared: &Shared, until: Instant) -> Option<Vec<Command>> {
    let mut inbox = lock(&shared.inbox);
    loop {
        if inbox.stop {
            return None;
        }
        let now = Instant::now();
        if !inbox.commands.is_empty() || now >= until || std::mem::take(&mut inbox.resume) {
            inbox.bytes = 0;
            return Some(std::mem::take(&mut inbox.commands));
        }
        inbox = shared.wake.wait_timeout(inbox, until - now).unwrap_or_else(PoisonError::into_inner).0;
    }
}
