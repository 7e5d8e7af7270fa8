//! One call: a state machine that its stream, its timer, and Python's commands move on.
//!
//! Open: Python may hear of it and owes it an answer. Answering: an outcome is there and is being written. Draining:
//! answered, but the client is still sending; some clients lose an answer whose stream is reset under them, so the
//! rest is read and thrown away, within bounds. A call that leaves Open without Python's answer is named to Python as
//! ended, if Python knew of it.

use super::connection::Conn;
use super::headers::{Head, Metadata};
use super::inbox::{Opening, StreamEvent, Unary, What};
use super::reader::{Read, Reader};
use super::server::Server;
use super::status::{Status, CANCELLED, DEADLINE_EXCEEDED, INTERNAL, RESOURCE_EXHAUSTED};
use super::writer::{Lost, Outcome, Writer};
use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

const DRAIN_BYTES_MAX: usize = 1 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(1);

/// What is queued on a stream: shared with the threads of Python that add to it.
#[derive(Debug, Default)]
pub struct Meter {
    unsent_bytes: AtomicUsize,
    /// Python was told to wait.
    waited_for: AtomicBool,
}

impl Meter {
    /// Before the message is queued. True: the sender should wait until it is told that the stream has drained.
    pub fn add(&self, bytes: usize, high_bytes: usize) -> bool {
        let full = self.unsent_bytes.fetch_add(bytes, SeqCst) + bytes > high_bytes;
        if full {
            self.waited_for.store(true, SeqCst);
        }
        full
    }

    /// True: somebody waits, and there is room again.
    fn take(&self, bytes: usize, low_bytes: usize) -> bool {
        let left = self.unsent_bytes.fetch_sub(bytes, SeqCst) - bytes;
        left <= low_bytes && self.waited_for.swap(false, SeqCst)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Open,
    Answering,
    Draining { left_bytes: usize },
}

#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    Stay,
    Over,
}

/// Which room a call takes up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holds {
    /// Among the calls in flight.
    Call,
    /// Refused; only its rest is being drained.
    Drain,
}

pub struct Call {
    pub id: u64,
    pub holds: Holds,
    pub phase: Phase,
    /// When something must happen by itself.
    pub timer: Option<Instant>,
    pub reader: Reader,
    pub writer: Writer,
    method: u32,
    opened: Instant,
    /// Of a stream; a unary call has none.
    meter: Option<Arc<Meter>>,
    conn: Arc<Conn>,
    metadata: Option<Metadata>,
    /// Of a unary call: the one it may have.
    message: Option<Bytes>,
    input_done: bool,
    /// Python knows of it.
    shown: bool,
    /// As the connection was told.
    held_bytes: usize,
}

impl Call {
    pub fn open(
        conn: &Arc<Conn>,
        method: u32,
        streaming: bool,
        head: Head,
        reader: Reader,
        writer: Writer,
    ) -> Call {
        let opened = Instant::now();
        Call {
            id: 0,
            holds: Holds::Call,
            phase: Phase::Open,
            timer: head.timeout.and_then(|timeout| opened.checked_add(timeout)),
            reader,
            writer,
            method,
            opened,
            meter: streaming.then(Arc::default),
            conn: conn.clone(),
            metadata: head.metadata,
            message: None,
            input_done: false,
            shown: false,
            held_bytes: 0,
        }
    }

    /// A call that is only answered. The outcome, if any, is already in the writer.
    pub fn refused(conn: &Arc<Conn>, reader: Reader, writer: Writer) -> Call {
        let head = Head {
            timeout: None,
            encoding: super::codec::Encoding::Identity,
            metadata: None,
            metadata_bytes: 0,
        };
        let call = Call::open(conn, 0, false, head, reader, writer);
        Call { holds: Holds::Drain, phase: Phase::Answering, ..call }
    }

    /// Let go of a call that was refused and cannot be drained.
    pub fn dismiss(mut self) {
        self.writer.reset(Reason::REFUSED_STREAM);
    }

    pub fn meter(&self) -> Option<&Arc<Meter>> {
        self.meter.as_ref()
    }

    fn event(&self, server: &Server, what: What) {
        server.inbox.lock().streams.push(StreamEvent { call: self.id, method: self.method, what });
    }

    /// Tell Python of a stream, before anything else of it.
    pub fn show_stream(&mut self, server: &Server) {
        let (metadata, deadline, conn) = (self.metadata.take(), self.timer, self.conn.clone());
        self.shown = true;
        self.event(server, What::Open(Box::new(Opening { metadata, deadline, conn })));
    }

    fn show_unary(&mut self, server: &Server, message: Bytes) {
        let (metadata, deadline, conn) = (self.metadata.take(), self.timer, self.conn.clone());
        let unary = Unary { call: self.id, method: self.method, message, metadata, deadline, conn };
        self.shown = true;
        self.conn.share.begin_call();
        server.inbox.lock().push(unary);
    }

    /// The call leaves Open, and not by Python's doing.
    fn end_open(&mut self, server: &Server) {
        if self.phase == Phase::Open && std::mem::take(&mut self.shown) {
            if self.meter.is_some() {
                self.event(server, What::Cancelled);
            } else {
                // Whoever ends it, client or deadline, it counts: the two race, and slow calls would be missed.
                server.note_time(self.method, self.opened.elapsed());
                self.conn.share.end_call();
                server.inbox.lock().ended.push(self.id);
            }
        }
        self.phase = Phase::Answering;
    }

    fn lost(&mut self, server: &Server) -> Next {
        self.end_open(server);
        Next::Over
    }

    fn refuse(&mut self, server: &Server, status: Status) {
        self.end_open(server);
        self.reader.forget(server);
        self.writer.fail(Outcome::of(status));
    }

    /// Python's answer; too late where there is an outcome already.
    pub fn answer(&mut self, server: &Server, payload: Option<Bytes>, outcome: Outcome) {
        if self.phase != Phase::Open {
            return;
        }
        self.phase = Phase::Answering;
        self.reader.forget(server);
        if self.meter.is_some() {
            server.remove_meter(self.id);
        } else if self.shown {
            server.note_time(self.method, self.opened.elapsed());
            self.conn.share.end_with(payload.as_ref().map_or(0, Bytes::len));
        }
        if let Some(framed) = payload {
            self.writer.push(framed, &self.conn);
        }
        self.writer.finish(outcome);
    }

    pub fn send(&mut self, framed: Bytes) {
        if self.phase == Phase::Open {
            self.writer.push(framed, &self.conn);
        }
    }

    pub fn send_head(&mut self, extra: HeaderMap) {
        if self.phase == Phase::Open {
            // A stream that is lost is noticed when it is driven.
            let _ = self.writer.send_head(extra);
        }
    }

    /// Its timer has run out.
    pub fn ring(&mut self, server: &Server) -> Next {
        self.timer = None;
        match self.phase {
            Phase::Open => {
                server.counters.deadlines_exceeded.add(1);
                self.refuse(server, Status::new(DEADLINE_EXCEEDED, "the deadline has passed"));
                Next::Stay
            }
            Phase::Answering => {
                self.writer.reset(Reason::CANCEL);
                Next::Over
            }
            Phase::Draining { .. } => Next::Over,
        }
    }

    /// Look whether the client leaves us waiting too long.
    pub fn check_stall(&mut self, server: &Server, now: Instant) -> Option<Next> {
        let stalled = |since: Option<Instant>| {
            since.is_some_and(|since| now.saturating_duration_since(since) >= server.options.stall)
        };
        if stalled(self.writer.blocked_since) {
            server.counters.stalled_replies.add(1);
            server.notices.note("unread_reply", &self.conn.peer.address);
            self.writer.reset(Reason::CANCEL);
            return Some(self.lost(server));
        }
        if self.phase == Phase::Open && stalled(self.reader.waiting_since) {
            server.counters.stalled_requests.add(1);
            server.notices.note("unfinished_request", &self.conn.peer.address);
            self.refuse(server, Status::new(CANCELLED, "the rest of the message did not come in time"));
            return Some(Next::Stay);
        }
        None
    }

    /// Move on as far as possible.
    pub fn drive(&mut self, cx: &mut Context<'_>, server: &Server) -> Next {
        let next = self.advance(cx, server);
        self.note_held(self.reader.held_bytes());
        next
    }

    fn note_held(&mut self, held_bytes: usize) {
        if held_bytes != self.held_bytes {
            self.conn.note_held(self.held_bytes, held_bytes);
            self.held_bytes = held_bytes;
        }
    }

    /// It is over: give back what it holds.
    pub fn close(mut self, server: &Server) {
        self.reader.forget(server);
        self.note_held(0);
        if self.meter.is_some() {
            server.remove_meter(self.id);
        }
        match self.holds {
            Holds::Call => server.calls_room.give_back(1),
            Holds::Drain => server.drains_room.give_back(1),
        }
    }

    fn advance(&mut self, cx: &mut Context<'_>, server: &Server) -> Next {
        if let Poll::Ready(reset) = self.writer.poll_reset(cx) {
            if reset.is_some() {
                server.note_reset(&self.conn);
            }
            return self.lost(server);
        }
        if self.phase == Phase::Open && !self.input_done && self.read(cx, server).is_err() {
            return self.lost(server);
        }
        let mut taken_bytes = 0;
        let written = self.writer.poll_write(cx, server, &self.conn, &mut taken_bytes);
        if let (Some(meter), true) = (&self.meter, taken_bytes > 0) {
            let low_bytes = server.options.stream_window_bytes / 4;
            if meter.take(taken_bytes, low_bytes) && self.phase == Phase::Open {
                self.event(server, What::Drained);
            }
        }
        match (written, self.phase) {
            (Poll::Ready(Err(Lost)), _) => self.lost(server),
            (Poll::Ready(Ok(())), Phase::Answering) => {
                if self.reader.has_ended() {
                    return Next::Over;
                }
                self.timer = Some(Instant::now() + DRAIN_TIME);
                self.drain(cx, DRAIN_BYTES_MAX)
            }
            (Poll::Ready(Ok(())), Phase::Draining { left_bytes }) => self.drain(cx, left_bytes),
            _ => Next::Stay,
        }
    }

    fn drain(&mut self, cx: &mut Context<'_>, mut left_bytes: usize) -> Next {
        let done = self.reader.poll_discard(cx, &mut left_bytes);
        self.phase = Phase::Draining { left_bytes };
        if done {
            Next::Over
        } else {
            Next::Stay
        }
    }

    fn read(&mut self, cx: &mut Context<'_>, server: &Server) -> Result<(), Lost> {
        let streaming = self.meter.is_some();
        while let Poll::Ready(read) = self.reader.poll_read(cx, server, streaming) {
            match read {
                Read::Message(message) if streaming => self.event(server, What::Message(message)),
                Read::Message(message) => {
                    if self.message.replace(message).is_some() {
                        self.refuse(
                            server,
                            Status::new(INTERNAL, "a unary call has one message, not several"),
                        );
                        break;
                    }
                }
                Read::End => {
                    self.input_done = true;
                    match self.message.take() {
                        _ if streaming => self.event(server, What::HalfClose),
                        Some(message) => self.show_unary(server, message),
                        None => self
                            .refuse(server, Status::new(INTERNAL, "a unary call has one message, not none")),
                    }
                    break;
                }
                Read::Failed(status) => {
                    if status.code == RESOURCE_EXHAUSTED {
                        server.notices.note("too_big", &self.conn.peer.address);
                    }
                    self.refuse(server, status);
                    break;
                }
                Read::Lost => return Err(Lost),
            }
        }
        Ok(())
    }
}
