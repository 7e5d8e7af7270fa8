//! The task of one link: everything between its socket and what the threads share of it.
//!
//! One turn writes what waits, reads what came, and looks at the clock; whatever ends it, ends everything that was
//! waiting, at once. A peer that says nothing is asked, and given up if it says nothing still; so is one that takes
//! nothing. While the application lags behind nothing is read, and silence means nothing.

use super::endpoint::{Link, Phase, Role};
use super::hub::{Counters, Event, Hub, What};
use super::wire::{self, Frame, Kind};
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{sleep_until, Instant, Sleep};

const READ_BYTES_FIRST: usize = 8 << 10;
const READ_BYTES_MAX: usize = 256 << 10;
/// Taken from the queue at once: what comes later can still go before the rest.
const WRITE_BYTES: usize = 256 << 10;
const SLICES_MAX: usize = 32;
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
type Ended = String;

pub struct Connection<IO> {
    hub: Arc<Hub>,
    link: Arc<Link>,
    io: IO,
    incoming: bool,
    stage: Stage,
    inbox: BytesMut,
    read_bytes: usize,
    outgoing: VecDeque<Bytes>,
    unflushed: bool,
    closing: bool,
    shut: bool,
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
            io,
            inbox: BytesMut::new(),
            read_bytes: READ_BYTES_FIRST,
            outgoing: VecDeque::new(),
            unflushed: false,
            closing: false,
            shut: false,
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
            end(&self.hub, &self.link, ended);
        }
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        let worked = self.work(cx);
        let ended = self.step().and(worked);
        self.hub.publish(&mut self.events);
        match ended {
            Err(ended) => Poll::Ready(ended),
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
            if self.link.lock().queue.has_waiting() && self.outgoing.is_empty() {
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

    /// Everything for the host that came in this turn.
    fn step(&mut self) -> Result<(), Ended> {
        match self.role {
            Role::RaftFrom(node_num) if !self.steps.is_empty() => {
                Counters::add(&self.hub.counters.raft_frames_in, self.steps.len() as u64);
                let steps = std::mem::take(&mut self.steps);
                self.hub.raft.step(node_num, self.sender_wall_ms, steps)
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
            return Err(state.reason.clone());
        }
        if state.phase == Phase::Up && self.stage == Stage::Greeting {
            self.stage = Stage::Up;
            self.deadline = None;
        }
        if state.phase == Phase::Closing && !self.closing {
            if !self.incoming && self.stage == Stage::Greeting {
                return Err(state.reason.clone());
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
            if self.outgoing.is_empty() && !self.take_outgoing() {
                break;
            }
            match self.write_some(cx) {
                Poll::Pending => break,
                Poll::Ready(Err(error)) => return Err(self.broken(&error)),
                Poll::Ready(Ok(bytes)) => self.note_written(bytes),
            }
        }
        if self.unflushed {
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(self.broken(&error)),
                Poll::Pending => {}
            }
        }
        if self.closing && self.outgoing.is_empty() && !self.unflushed && !self.shut {
            match Pin::new(&mut self.io).poll_shutdown(cx) {
                Poll::Ready(_) => self.shut = true,
                Poll::Pending => {}
            }
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
        state.queue.take(&mut self.outgoing, WRITE_BYTES, wall_ms());
        self.wrote_at = Instant::now();
        true
    }

    fn write_some(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        let written = if self.io.is_write_vectored() && self.outgoing.len() > 1 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..count])
        } else {
            let chunk = self.outgoing.front().map_or(&[][..], |chunk| chunk);
            Pin::new(&mut self.io).poll_write(cx, chunk)
        };
        match written {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => written,
        }
    }

    fn note_written(&mut self, bytes: usize) {
        let mut left = bytes;
        while let Some(chunk) = self.outgoing.front_mut() {
            if chunk.len() > left {
                chunk.advance(left);
                break;
            }
            left -= chunk.len();
            self.outgoing.pop_front();
        }
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
        if self.inbox.capacity() - self.inbox.len() < self.read_bytes / 2 {
            self.inbox.reserve(self.read_bytes);
        }
        let mut buffer = ReadBuf::uninit(self.inbox.spare_capacity_mut());
        match Pin::new(&mut self.io).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(self.broken(&error)),
            Poll::Ready(Ok(())) => {}
        }
        let (bytes, filled) = (buffer.filled().len(), buffer.remaining() == 0);
        if bytes == 0 {
            return Err(self.broken(&io::ErrorKind::UnexpectedEof.into()));
        }
        // SAFETY: the reader filled this many bytes of the spare capacity.
        unsafe { self.inbox.set_len(self.inbox.len() + bytes) };
        if filled {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        Counters::add(&self.hub.counters.bytes_in, bytes as u64);
        self.heard_at = Instant::now();
        self.asked_at = None;
        self.take_frames()?;
        Ok(true)
    }

    fn take_frames(&mut self) -> Result<(), Ended> {
        let refused = |error: wire::WireError| format!("the peer broke the protocol: {error}");
        if self.stage == Stage::Preface {
            if !wire::take_preface(&mut self.inbox).map_err(refused)? {
                return Ok(());
            }
            self.stage = Stage::Hello;
        }
        if self.stage == Stage::Over {
            self.inbox.clear();
        }
        while let Some(frame) =
            wire::take_frame(&mut self.inbox, self.hub.options.frame_bytes_max).map_err(refused)?
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
                let ended = format!("refused: {reason}");
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
                return Err(format!("the peer closed it: {reason}"))
            }
            (stage, frame) => {
                return Err(format!("the peer broke the protocol: {:?} while {stage:?}", frame.kind()));
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
            return self.link.lock().reason.clone();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => "the peer went away".to_owned(),
            _ => format!("the connection broke: {error}"),
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
                Stage::Over => self.link.lock().reason.clone(),
                Stage::Greeting if !self.incoming => "nobody accepted it in time".to_owned(),
                Stage::Greeting => "it was not answered in time".to_owned(),
                _ => "it said no hello in time".to_owned(),
            });
        }
        let silence_max = options.silence_max();
        let mut next = now + options.keepalive;
        if !self.outgoing.is_empty() {
            let given_up_at = self.wrote_at + silence_max;
            if now >= given_up_at {
                return Err(format!("the peer took nothing for {} ms", silence_max.as_millis()));
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
                let silent = now - self.heard_at;
                return Err(format!("the peer said nothing for {} ms", silent.as_millis()));
            }
        }
        Ok(next)
    }
}

/// Nothing may be told of a link after this.
pub fn end(hub: &Hub, link: &Arc<Link>, reason: Ended) {
    let role = link.lock().finish();
    hub.remove(link);
    hub.raft.forget(link, role);
    hub.publish(&mut vec![Event { link: link.clone(), what: What::Down(reason) }]);
}

pub fn wall_ms() -> u64 {
    // A clock before 1970 is out of everybody's bounds; zero says that as well as anything.
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_millis() as u64
}
