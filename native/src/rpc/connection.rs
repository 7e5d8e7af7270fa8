//! One HTTP/2 connection: what is known of it (`Conn`), and the task that drives it until it ends.
//!
//! It ends when its peer ends it, when it was drained and its last stream is over, or when somebody gave it an
//! `End`. A peer that does not answer a ping, that does not take what is written, or that resets streams faster than
//! the bound is ended.

use super::body::Chunk;
use super::limits::Rate;
use super::server::Server;
use super::share::Share;
use super::wire::Wire;
use crate::peer::Peer;
use h2::server::Connection;
use h2::{Ping, PingPong, Reason};
use std::any::Any;
use std::future::{poll_fn, Future};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{sleep, timeout, Instant, Sleep};

/// How many requests are taken from one connection before others have their turn.
const ACCEPTS_PER_TURN: usize = 128;
/// Frames without data that belong to a call: its headers, windows given, an end of its own, a reset.
const IDLE_FRAMES_PER_CALL: u32 = 8;
/// How long a connection may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);
const FRAME_BYTES_MAX: u32 = 64 << 10;
/// Of header lists, in what metadata may have: up to here a request that has too much gets a status of gRPC, above it
/// h2 refuses the stream.
const HEADER_LISTS: u32 = 4;
/// Per stream, of what h2 takes beyond what is on the wire.
const SEND_BUFFER_BYTES: usize = 256 << 10;
/// h2 counts frames for forgotten streams over the life of a connection; its own bound would end a long one.
const ERROR_RESETS_MAX: usize = 100_000;
/// Streams reset by us that h2 remembers, so that what still comes for them is no error.
const REMEMBERED_RESETS: usize = 1_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Tell the peer why.
    Goodbye(Reason),
    /// At once.
    Cut,
}

#[derive(Default)]
struct Orders {
    drain: bool,
    end: Option<End>,
    waker: Option<Waker>,
}

pub struct Conn {
    pub number: u64,
    pub peer: Peer,
    pub server: Arc<Server>,
    /// What the face to Python keeps with a connection.
    pub face: OnceLock<Box<dyn Any + Send + Sync>>,
    pub share: Share,
    /// Of requests, taken while the peer's window stays closed for them: their handlers are slow.
    held_bytes: AtomicU64,
    read_at_ms: AtomicU64,
    /// Since when the peer takes nothing; 0: it does.
    blocked_since_ms: AtomicU64,
    resets: Mutex<Rate>,
    idle_frames: Mutex<Rate>,
    calls: Mutex<Rate>,
    /// It was ended for its idle frames.
    flooded: AtomicBool,
    orders: Mutex<Orders>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Conn {
    pub fn new(number: u64, peer: Peer, server: Arc<Server>) -> Conn {
        Conn {
            number,
            peer,
            read_at_ms: AtomicU64::new(server.now_ms()),
            server,
            face: OnceLock::new(),
            share: Share::default(),
            held_bytes: AtomicU64::new(0),
            blocked_since_ms: AtomicU64::new(0),
            resets: Mutex::default(),
            idle_frames: Mutex::default(),
            calls: Mutex::default(),
            flooded: AtomicBool::new(false),
            orders: Mutex::default(),
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        lock(&self.orders)
    }

    fn order(&self, change: impl FnOnce(&mut Orders)) {
        let mut orders = self.orders();
        change(&mut orders);
        if let Some(waker) = orders.waker.take() {
            drop(orders);
            waker.wake();
        }
    }

    /// No new calls; those in flight go on.
    pub fn drain(&self) {
        self.order(|orders| orders.drain = true);
    }

    /// The first end given counts, but for a cut, which always does.
    pub fn end(&self, end: End) {
        self.order(|orders| {
            if orders.end.is_none() || end == End::Cut {
                orders.end = Some(end);
            }
        });
    }

    /// Count a reset by the client. True: it is one too many.
    pub fn count_reset(&self, now_ms: u64, per_second_max: u32) -> bool {
        lock(&self.resets).count(now_ms) == per_second_max + 1
    }

    /// A call was taken in.
    pub fn note_call(&self, now_ms: u64) {
        lock(&self.calls).count(now_ms);
    }

    /// Frames without data have come. More of them than its calls and the bound explain: it is ended.
    pub fn note_idle_frames(&self, frames: u32) {
        let now_ms = self.server.now_ms();
        let most = self.server.options.idle_frames_per_second_max;
        let sent = lock(&self.idle_frames).add(now_ms, frames);
        if sent <= most {
            return;
        }
        let of_calls = lock(&self.calls).add(now_ms, 0).saturating_mul(IDLE_FRAMES_PER_CALL);
        if sent > most.saturating_add(of_calls) && !self.flooded.swap(true, Relaxed) {
            self.server.counters.frame_floods.add(1);
            self.server.notices.note("frame_flood", &self.peer.address);
            self.end(End::Goodbye(Reason::ENHANCE_YOUR_CALM));
        }
    }

    pub fn add_unwritten(&self, bytes: usize) {
        self.share.add_unwritten(bytes);
        self.server.reply_bytes.take(bytes as u64);
    }

    pub fn give_back_unwritten(&self, bytes: usize) {
        self.server.reply_bytes.give_back(bytes as u64);
        if self.share.give_back_unwritten(bytes) {
            self.server.wake_pump();
        }
    }

    /// What a call holds back has changed. Slow handlers must not use up the connection's window for all others, so
    /// it grows by what they hold; how much that is, the room for requests bounds.
    pub fn note_held(&self, before_bytes: usize, now_bytes: usize) {
        let step = u64::from(self.server.options.connection_window_bytes()) / 8;
        let was_bytes = self.held_bytes.load(Relaxed);
        let is_bytes = was_bytes + now_bytes as u64 - before_bytes as u64;
        // Only the I/O thread comes here.
        self.held_bytes.store(is_bytes, Relaxed);
        if was_bytes / step != is_bytes / step {
            self.order(|_| ());
        }
    }

    /// The window the whole connection should have.
    fn window_bytes(&self) -> u32 {
        let base = u64::from(self.server.options.connection_window_bytes());
        let steps = self.held_bytes.load(Relaxed) / (base / 8);
        (base + steps * (base / 8)).min((1 << 31) - 1) as u32
    }

    pub fn note_read(&self, bytes: usize) {
        self.server.counters.bytes_in.add(bytes as u64);
        self.read_at_ms.store(self.server.now_ms(), Relaxed);
    }

    pub fn note_write(&self, polled: &Poll<io::Result<usize>>) {
        match polled {
            Poll::Ready(written) => {
                self.blocked_since_ms.store(0, Relaxed);
                self.server.counters.bytes_out.add(*written.as_ref().unwrap_or(&0) as u64);
            }
            Poll::Pending if self.blocked_since_ms.load(Relaxed) == 0 => {
                self.blocked_since_ms.store(self.server.now_ms().max(1), Relaxed);
            }
            Poll::Pending => (),
        }
    }

    /// Has the peer taken nothing for so long?
    pub fn is_blocked(&self, now_ms: u64, stall: Duration) -> bool {
        let since_ms = self.blocked_since_ms.load(Relaxed);
        since_ms != 0 && now_ms.saturating_sub(since_ms) >= stall.as_millis() as u64
    }
}

/// Serve a connection over a stream that is ready for HTTP/2.
pub async fn serve<T: AsyncRead + AsyncWrite + Unpin>(io: T, conn: Arc<Conn>) {
    let server = conn.server.clone();
    let options = &server.options;
    let wire = Wire::new(io, conn.clone());
    let mut builder = h2::server::Builder::new();
    builder
        .initial_window_size(options.stream_window_bytes as u32)
        .initial_connection_window_size(options.connection_window_bytes())
        .max_concurrent_streams(options.streams_per_connection_max)
        .max_frame_size(FRAME_BYTES_MAX)
        .max_header_list_size(HEADER_LISTS * options.metadata_bytes_max as u32)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_concurrent_reset_streams(REMEMBERED_RESETS)
        .max_pending_accept_reset_streams(options.resets_per_second_max as usize)
        .max_local_error_reset_streams(Some(ERROR_RESETS_MAX));
    let mut handshake = builder.handshake::<_, Chunk>(wire.clone());
    let shaken = timeout(
        options.stall,
        poll_fn(|cx| {
            wire.begin_turn();
            let shaken = Pin::new(&mut handshake).poll(cx);
            match wire.poll_drain(cx) {
                Poll::Ready(Err(_)) => Poll::Ready(None),
                _ => shaken.map(Result::ok),
            }
        }),
    );
    let Ok(Some(mut h2)) = shaken.await else {
        server.counters.failed_handshakes.add(1);
        return;
    };
    let keepalive = Keepalive::new(h2.ping_pong(), options.keepalive, options.keepalive_timeout);
    let window_bytes = options.connection_window_bytes();
    let mut driver = Driver { conn, wire, draining: false, window_bytes, ending: None, keepalive };
    poll_fn(|cx| driver.poll(cx, &mut h2)).await;
}

struct Driver<T> {
    conn: Arc<Conn>,
    wire: Wire<T>,
    draining: bool,
    /// As h2 was told.
    window_bytes: u32,
    /// Said goodbye; until then it must have been heard.
    ending: Option<Pin<Box<Sleep>>>,
    keepalive: Keepalive,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Driver<T> {
    fn poll(&mut self, cx: &mut Context<'_>, h2: &mut Connection<Wire<T>, Chunk>) -> Poll<()> {
        if self.obey(cx, h2).is_ready() {
            return Poll::Ready(());
        }
        self.wire.begin_turn();
        let mut accepted = 0;
        let done = loop {
            if accepted == ACCEPTS_PER_TURN {
                cx.waker().wake_by_ref();
                break false;
            }
            match h2.poll_accept(cx) {
                Poll::Ready(Some(Ok((request, respond)))) => {
                    accepted += 1;
                    self.conn.server.accept(&self.conn, request, respond);
                }
                Poll::Ready(Some(Err(error))) => {
                    self.explain(&error);
                    break true;
                }
                Poll::Ready(None) => break true,
                Poll::Pending => break false,
            }
        };
        match self.wire.poll_drain(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            _ if done => Poll::Ready(()),
            _ => self.keepalive.poll(cx, &self.conn),
        }
    }

    fn obey(&mut self, cx: &mut Context<'_>, h2: &mut Connection<Wire<T>, Chunk>) -> Poll<()> {
        let (drain, end) = {
            let mut orders = self.conn.orders();
            if !orders.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                orders.waker = Some(cx.waker().clone());
            }
            (orders.drain, orders.end)
        };
        match end {
            Some(End::Cut) => return Poll::Ready(()),
            Some(End::Goodbye(reason)) if self.ending.is_none() => {
                h2.abrupt_shutdown(reason);
                self.ending = Some(Box::pin(sleep(GOODBYE)));
            }
            _ => (),
        }
        let window_bytes = self.conn.window_bytes();
        if window_bytes != self.window_bytes {
            self.window_bytes = window_bytes;
            h2.set_target_window_size(window_bytes);
        }
        if drain && !self.draining {
            self.draining = true;
            h2.graceful_shutdown();
        }
        match &mut self.ending {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }

    fn explain(&self, error: &h2::Error) {
        if error.is_library() && error.reason() == Some(Reason::ENHANCE_YOUR_CALM) {
            self.conn.server.counters.frame_floods.add(1);
            self.conn.server.notices.note("frame_flood", &self.conn.peer.address);
        }
    }
}

/// Pings a peer that has been silent, and gives it up when it stays so.
struct Keepalive {
    pings: Option<PingPong>,
    every: Duration,
    patience: Duration,
    sleep: Pin<Box<Sleep>>,
    pinged: bool,
}

impl Keepalive {
    fn new(pings: Option<PingPong>, every: Duration, patience: Duration) -> Keepalive {
        Keepalive { pings, every, patience, sleep: Box::pin(sleep(every)), pinged: false }
    }

    /// Ready: the peer is gone.
    fn poll(&mut self, cx: &mut Context<'_>, conn: &Conn) -> Poll<()> {
        let Some(pings) = &mut self.pings else { return Poll::Pending };
        if self.pinged && pings.poll_pong(cx).is_ready() {
            self.pinged = false;
            self.sleep.as_mut().reset(Instant::now() + self.every);
        }
        while self.sleep.as_mut().poll(cx).is_ready() {
            if self.pinged {
                conn.server.counters.keepalive_timeouts.add(1);
                return Poll::Ready(());
            }
            let silent_ms = conn.server.now_ms().saturating_sub(conn.read_at_ms.load(Relaxed));
            let silent = Duration::from_millis(silent_ms);
            if silent < self.every {
                self.sleep.as_mut().reset(Instant::now() + (self.every - silent));
                continue;
            }
            if pings.send_ping(Ping::opaque()).is_err() || pings.poll_pong(cx).is_ready() {
                return Poll::Ready(());
            }
            self.pinged = true;
            self.sleep.as_mut().reset(Instant::now() + self.patience);
            // The ping is written when the connection is polled again.
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
