//! The thread that drives a host.
//!
//! Missed ticks are never replayed: a process that was paused must not call an election out of a burst. Whatever ends
//! the thread, a `Fatal` or a panic, is told through the mailbox.

use super::clock::Clock;
use super::error::Fatal;
use super::host::Host;
use super::mailbox::{Command, Mailbox};
use super::out::Out;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::{mpsc, Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    mailbox: Arc<Mailbox>,
    /// Here before `start` and after `stop`.
    host: Mutex<Option<Host>>,
    thread: Mutex<Option<Thread>>,
    tick: Duration,
}

impl Runner {
    pub fn new(host: Host, clock: Clock) -> io::Result<Runner> {
        let mailbox = Arc::new(Mailbox::new(&host.options, clock)?);
        let tick = Duration::from_millis(host.options.tick_ms);
        Ok(Runner { mailbox, host: Mutex::new(Some(host)), thread: Mutex::default(), tick })
    }

    pub fn mailbox(&self) -> &Arc<Mailbox> {
        &self.mailbox
    }

    pub fn start(&self) -> Result<(), String> {
        let mut thread = lock(&self.thread);
        let Some(host) = lock(&self.host).take() else {
            return Err("the host was started before".to_owned());
        };
        let (sender, receiver) = mpsc::channel();
        let (mailbox, tick) = (self.mailbox.clone(), self.tick);
        let run = move || {
            let mut host = host;
            let ended = guarded(|| run(&mut host, &mailbox, tick));
            let reason = match ended {
                Ok(()) => Fatal::Stopped,
                Err(reason) => reason,
            };
            mailbox.publish(host.out());
            let whole = reason == Fatal::Stopped;
            mailbox.fail(reason);
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
        self.mailbox.stop();
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
        self.mailbox.reason()
    }

    /// Put a command into the inbox, or run it at once when the thread does not run yet.
    pub fn send(&self, command: Command) -> Result<(), Fatal> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        if let Some(host) = lock(&self.host).as_mut() {
            let done = guarded(|| handle(host, command));
            self.mailbox.publish(host.out());
            return done.inspect_err(|reason| self.mailbox.fail(reason.clone()));
        }
        self.mailbox.send(command)
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
                Ok(answer) => return answer.inspect_err(|fatal| self.mailbox.fail(fatal.clone())),
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

    /// Manual mode: rounds until nothing is ready, at a time that has passed by hand.
    pub fn drive(&self, now_us: u64) -> Result<u64, Fatal> {
        if let Some(reason) = self.reason() {
            return Err(reason);
        }
        let mut held = lock(&self.host);
        let Some(host) = held.as_mut() else { return Err(Fatal::Stopped) };
        let clock = self.mailbox.clock();
        clock.set_us(now_us);
        host.tell_if_due(clock.now());
        host.backlog_bytes = self.mailbox.backlog_bytes();
        let driven = guarded(|| host.drive(&mut |out| self.mailbox.publish(out)));
        match &driven {
            Ok(_) => {
                self.mailbox.publish(host.out());
                host.hold_news(|| clock.now());
            }
            // What was not published before the death never left the process.
            Err(reason) => self.mailbox.fail(reason.clone()),
        }
        driven
    }

    /// Manual mode: when `drive` has to be called at the latest, in time passed by hand.
    pub fn due_us(&self) -> Option<u64> {
        let tell_at = lock(&self.host).as_ref().and_then(Host::tell_at);
        let due_at = tell_at.into_iter().chain(self.mailbox.due_at()).min()?;
        self.mailbox.clock().us_at(due_at)
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        self.stop(Duration::from_secs(10));
        // Also when it never ran: whoever carries its messages must let go of it.
        self.mailbox.fail(Fatal::Stopped);
    }
}

fn handle(host: &mut Host, command: Command) -> Result<(), Fatal> {
    match command {
        Command::Propose(proposals) => host.propose(proposals),
        Command::Step(frames) => frames.iter().for_each(|frame| host.step(frame)),
        Command::Unreachable(node_num) => host.report_unreachable(node_num),
        Command::Task(task) => return task(host),
    }
    Ok(())
}

fn run(host: &mut Host, mailbox: &Mailbox, tick: Duration) -> Result<(), Fatal> {
    let mut next_tick = Instant::now() + tick;
    let publish = &mut |out: &mut Out| mailbox.publish(out);
    while let Some(commands) = mailbox.wait(host.tell_at().map_or(next_tick, |at| at.min(next_tick))) {
        let now = Instant::now();
        host.backlog_bytes = mailbox.backlog_bytes();
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
        host.tell_if_due(now);
        host.drive(publish)?;
        publish(host.out());
        host.hold_news(|| mailbox.clock().now());
    }
    host.close()
}
