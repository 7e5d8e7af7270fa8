//! The task of one link: everything between its socket and what the threads share of it.
//!
//! One turn writes what waits, reads what came, and looks at the clock; whatever ends it, ends everything that was
//! waiting, at once. A peer that says nothing is asked, and given up if it says nothing still; so is one that takes
//! nothing. While the application lags behind nothing is read, and silence means nothing.

use super::endpoint::{Link, Phase, Role};
use super::hub::{Counters, Event, Hub, What};
use super::pipe::Pipe;
use super::wire::{self, Frame, Kind};
use bytes::{Bytes, BytesMut};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep_until, Instant, Sleep};

/// Taken from the queue at once: what comes later can still go before the rest.
const WRITE_BYTES: usize = 256 << 10;
/// Answers to PINGs that nobody reads.
const CONTROL_BYTES_MAX: usize = 1 << 10;

/// What the other side may say next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Preface,
    Hello,
    /// A HELLO was said and waits for its answer, here or there.
    Greeting,
    Up,
    /// Nothing counts any more but the end.
    Over,
}

/// Why it ended, for LINK_DOWN.
pub struct Ended {
    reason: String,
    /// The peer does not know yet.
    tell: bool,
}

impl Ended {
    /// Found out here: the peer is told, if it can be.
    fn here(reason: impl Into<String>) -> Ended {
        Ended { reason: reason.into(), tell: true }
    }

    /// By the peer, or by what is between us.
    fn there(reason: impl Into<String>) -> Ended {
        Ended { reason: reason.into(), tell: false }
    }
}

/// Of an outgoing link whose preface was not answered as a link answers.
pub const NOT_SPOKEN: &str = "the peer does not speak links";

pub struct Connection<IO> {
    hub: Arc<Hub>,
    link: Arc<Link>,
    pipe: Pipe<IO>,
    incoming: bool,
    stage: Stage,
    closing: bool,
    heard_at: Instant,
    asked_at: Option<Instant>,
    wrote_at: Instant,
    paused: bool,
    /// Of the handshake, later of the last words.
    deadline: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    events: Vec<Event>,
    role: Role,
    /// Of this turn, with the clock of the last.
    steps: Vec<Bytes>,
    sender_wall_ms: u64,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Connection<IO> {
    /// Run an outgoing link whose HELLO is in its queue, until `deadline` at the latest if nobody accepts it; or an
    /// incoming one, from its preface on. Tells the end.
    pub async fn run(hub: Arc<Hub>, link: Arc<Link>, io: IO, incoming: bool, deadline: Instant) {
        let now = Instant::now();
        let mut connection = Connection {
            incoming,
            stage: if incoming { Stage::Preface } else { Stage::Greeting },
            hub,
            link,
            pipe: Pipe::new(io),
            closing: false,
            heard_at: now,
            asked_at: None,
            wrote_at: now,
            paused: false,
            deadline: Some(deadline),
            timer: Box::pin(sleep_until(deadline)),
            events: Vec::new(),
            role: Role::Plain,
            steps: Vec::new(),
            sender_wall_ms: 0,
        };
        let ended = std::future::poll_fn(|cx| connection.turn(cx)).await;
        connection.finish(ended);
    }

    /// Told before the socket is closed, so that whoever sees the one can rely on the other.
    fn finish(self, ended: Ended) {
        if self.incoming && matches!(self.stage, Stage::Preface | Stage::Hello) {
            // Nobody has heard of it.
            Counters::add(&self.hub.counters.turned_away, 1);
            self.link.lock().finish();
            self.hub.remove(&self.link);
        } else {
            end(&self.hub, &self.link, ended.reason);
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let worked = self.work(cx);
        let ended = self.step().and(worked);
        self.hub.publish(&mut self.events);
        match ended {
            Err(ended) => {
                if ended.tell {
                    self.say_bye(cx, &ended.reason);
                }
                Poll::Ready(ended)
            }
            Ok(()) => Poll::Pending,
        }
    }

    fn work(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        self.look(cx)?;
        loop {
            self.write(cx)?;
            if !self.read(cx)? {
                break;
            }
        }
        self.write(cx)?;
        loop {
            let next = self.mind_the_time()?;
            if self.link.lock().queue.has_waiting() && self.pipe.outgoing.is_empty() {
                self.write(cx)?;
            }
            if self.timer.is_elapsed() || next < self.timer.deadline() {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Ok(());
            }
        }
    }

    /// Once, if a frame can begin now: a peer that takes nothing is not waited for.
    fn say_bye(&mut self, cx: &mut Context<'_>, reason: &str) {
        let begun = !self.pipe.outgoing.is_empty() || self.link.lock().queue.is_mid_frame();
        if begun || matches!(self.stage, Stage::Preface | Stage::Hello) {
            return;
        }
        let mut bye = BytesMut::new();
        wire::put(&mut bye, Kind::Bye, wire::short(reason).as_bytes());
        self.pipe.outgoing.push_back(bye.freeze());
        // What becomes of it is nobody's concern any more.
        let _ = self.pipe.poll_write(cx);
        let _ = self.pipe.poll_flush(cx);
    }

    /// Everything for the host that came in this turn.
    fn step(&mut self) -> Result<(), Ended> {
        match self.role {
            Role::RaftFrom(node_num) if !self.steps.is_empty() => {
                Counters::add(&self.hub.counters.raft_frames_in, self.steps.len() as u64);
                let steps = std::mem::take(&mut self.steps);
                self.hub.raft.step(node_num, self.sender_wall_ms, steps).map_err(Ended::here)
            }
            _ => Ok(()),
        }
    }

    /// See what others want of this link.
    fn look(&mut self, cx: &Context<'_>) -> Result<(), Ended> {
        let mut state = self.link.lock();
        state.watch(cx);
        self.role = state.role;
        if state.abort {
            return Err(Ended::here(state.reason.clone()));
        }
        if state.phase == Phase::Up && self.stage == Stage::Greeting {
            self.stage = Stage::Up;
            self.deadline = None;
        }
        if state.phase == Phase::Closing && !self.closing {
            if !self.incoming && self.stage == Stage::Greeting {
                return Err(Ended::here(state.reason.clone()));
            }
            self.closing = true;
            self.stage = Stage::Over;
            self.deadline = Some(Instant::now() + self.hub.options.keepalive_timeout);
        }
        Ok(())
    }

    /// Write until nothing waits or nothing is taken.
    fn write(&mut self, cx: &mut Context<'_>) -> Result<(), Ended> {
        loop {
            if self.pipe.outgoing.is_empty() && !self.take_outgoing() {
                break;
            }
            match self.pipe.poll_write(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(self.broken(&error)),
                Poll::Ready(Ok(bytes)) => self.note_written(bytes),
            }
        }
        if let Poll::Ready(Err(error)) = self.pipe.poll_flush(cx) {
            return Err(self.broken(&error));
        }
        if self.closing && self.pipe.is_drained() {
            self.pipe.shut_down(cx);
        }
        Ok(())
    }

    fn take_outgoing(&mut self) -> bool {
        let mut state = self.link.lock();
        if self.closing && state.bye_due && !state.queue.has_waiting() {
            state.bye_due = false;
            let reason = state.reason.clone();
            state.queue.put_control(Kind::Bye, reason.as_bytes());
        }
        if !state.queue.has_waiting() {
            return false;
        }
        state.queue.take(&mut self.pipe.outgoing, WRITE_BYTES, wall_ms());
        self.wrote_at = Instant::now();
        true
    }

    fn note_written(&mut self, bytes: usize) {
        self.wrote_at = Instant::now();
        Counters::add(&self.hub.counters.bytes_out, bytes as u64);
        let mut state = self.link.lock();
        state.queue.written(bytes);
        if state.full && state.queue.unsent_bytes() <= self.hub.options.unsent_bytes_max / 2 {
            state.full = false;
        }
    }

    /// Read once. True: there may be more.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<bool, Ended> {
        let now_paused =
            self.link.pause_if_unread(self.hub.options.unread_bytes_max) || self.link.lock().full;
        if self.paused && !now_paused {
            self.heard_at = Instant::now();
        }
        // Whoever is leaving waits for the peer's end only.
        self.paused = now_paused && !self.closing;
        if self.paused {
            return Ok(false);
        }
        let bytes = match self.pipe.poll_read(cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(self.broken(&error)),
            Poll::Ready(Ok(bytes)) => bytes,
        };
        Counters::add(&self.hub.counters.bytes_in, bytes as u64);
        self.heard_at = Instant::now();
        self.asked_at = None;
        self.take_frames()?;
        Ok(true)
    }

    fn take_frames(&mut self) -> Result<(), Ended> {
        let greeting = !self.incoming && self.stage == Stage::Greeting;
        let refused = |error: wire::WireError| match greeting {
            true => Ended::there(NOT_SPOKEN),
            false => Ended::here(format!("the peer broke the protocol: {error}")),
        };
        if self.stage == Stage::Preface {
            if !wire::take_preface(&mut self.pipe.inbox).map_err(refused)? {
                return Ok(());
            }
            self.stage = Stage::Hello;
        }
        if self.stage == Stage::Over {
            self.pipe.inbox.clear();
        }
        while let Some(frame) =
            wire::take_frame(&mut self.pipe.inbox, self.hub.options.frame_bytes_max).map_err(refused)?
        {
            self.take_frame(frame)?;
        }
        Ok(())
    }

    fn take_frame(&mut self, frame: Frame) -> Result<(), Ended> {
        match (self.stage, frame) {
            (Stage::Hello, Frame::Hello { purpose, hello }) => {
                self.link.lock().phase = Phase::Asked;
                self.stage = Stage::Greeting;
                self.deadline = Some(self.heard_at + self.hub.options.hello_timeout);
                self.tell(What::Hello { purpose, hello });
            }
            (Stage::Greeting, Frame::Accept(greeting)) if !self.incoming => {
                self.link.lock().phase = Phase::Up;
                self.stage = Stage::Up;
                self.deadline = None;
                self.tell(What::Up(greeting));
            }
            (Stage::Greeting, Frame::Refuse(reason)) if !self.incoming => {
                let ended = Ended::there(format!("refused: {reason}"));
                self.tell(What::Refused(reason));
                return Err(ended);
            }
            (Stage::Up, Frame::Data(body)) => {
                self.link.note_unread(body.len());
                Counters::add(&self.hub.counters.frames_in, 1);
                self.tell(What::Frame(body));
            }
            (Stage::Up, Frame::Raft { sender_wall_ms, frame }) if matches!(self.role, Role::RaftFrom(_)) => {
                self.sender_wall_ms = sender_wall_ms;
                // Entries live long: they must not keep everything in memory that was read with them.
                self.steps.push(Bytes::copy_from_slice(&frame));
            }
            (Stage::Greeting | Stage::Up, Frame::Ping) => {
                let mut state = self.link.lock();
                if state.queue.control_bytes() < CONTROL_BYTES_MAX {
                    state.queue.put_control(Kind::Pong, b"");
                }
            }
            (Stage::Greeting | Stage::Up, Frame::Pong) => {}
            (Stage::Greeting | Stage::Up, Frame::Bye(reason)) => {
                return Err(Ended::there(format!("the peer closed it: {reason}")))
            }
            (stage, frame) => {
                let kind = frame.kind();
                return Err(Ended::here(format!("the peer broke the protocol: {kind:?} while {stage:?}")));
            }
        }
        Ok(())
    }

    fn tell(&mut self, what: What) {
        self.events.push(Event { link: self.link.clone(), what });
    }

    /// What a broken socket means: after our last words it is the end that was asked for.
    fn broken(&self, error: &io::Error) -> Ended {
        if self.closing {
            return Ended::there(self.link.lock().reason.clone());
        }
        let gone = matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe
        );
        match error.kind() {
            _ if gone && !self.incoming && self.stage == Stage::Greeting => Ended::there(NOT_SPOKEN),
            io::ErrorKind::UnexpectedEof => Ended::there("the peer went away"),
            _ => Ended::there(format!("the connection broke: {error}")),
        }
    }

    /// Ask silent peers, give up dead ones. Returns when to look again.
    fn mind_the_time(&mut self) -> Result<Instant, Ended> {
        let now = Instant::now();
        let options = &self.hub.options;
        if let Some(deadline) = self.deadline {
            if now < deadline {
                return Ok(deadline);
            }
            return Err(match self.stage {
                Stage::Over => Ended::there(self.link.lock().reason.clone()),
                Stage::Greeting if !self.incoming => Ended::here("nobody accepted it in time"),
                Stage::Greeting => Ended::here("it was not answered in time"),
                _ => Ended::here("it said no hello in time"),
            });
        }
        let silence_max = options.silence_max();
        let mut next = now + options.keepalive;
        if !self.pipe.outgoing.is_empty() {
            let given_up_at = self.wrote_at + silence_max;
            if now >= given_up_at {
                return Err(Ended::here(format!("the peer took nothing for {} ms", silence_max.as_millis())));
            }
            next = next.min(given_up_at);
        }
        if self.paused {
            return Ok(next);
        }
        match self.asked_at {
            None if now < self.heard_at + options.keepalive => next = self.heard_at + options.keepalive,
            None => {
                self.asked_at = Some(now);
                self.link.lock().queue.put_control(Kind::Ping, b"");
                next = next.min(now + options.keepalive_timeout);
            }
            Some(asked_at) if now < asked_at + options.keepalive_timeout => {
                next = next.min(asked_at + options.keepalive_timeout);
            }
            Some(_) => {
                return Err(Ended::here(format!("the peer said nothing for {} ms", silence_max.as_millis())));
            }
        }
        Ok(next)
    }
}

/// Nothing may be told of a link after this.
pub fn end(hub: &Hub, link: &Arc<Link>, reason: String) {
    let role = link.lock().finish();
    hub.remove(link);
    hub.raft.forget(link, role);
    hub.publish(&mut vec![Event { link: link.clone(), what: What::Down(reason) }]);
}

pub fn wall_ms() -> u64 {
    // A clock before 1970 is out of everybody's bounds; zero says that as well as anything.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}
