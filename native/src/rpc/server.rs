//! The server: what its connections and calls share, and the pump that moves them.
//!
//! Python's commands are queued and carried out by the pump on the I/O thread, one wake-up a batch. The pump runs
//! after the tasks that are ready, so that what they brought is told to Python in one piece.

use super::body::Chunk;
use super::call::{Call, Holds, Meter};
use super::calls::{Calls, Ready};
use super::connection::{Conn, End};
use super::headers::{is_grpc, parse_head, Head};
use super::inbox::Inbox;
use super::limits::{Options, Room};
use super::listener::Listening;
use super::reader::Reader;
use super::stats::{Counters, Notices};
use super::status::{Status, RESOURCE_EXHAUSTED, UNIMPLEMENTED};
use super::writer::{Outcome, Writer};
use crate::link::hub::Hub;
use crate::peer::Peer;
use crate::times::Times;
use crate::tls::ServerTls;
use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, StatusCode};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Refused calls whose rest is being drained; more of them are reset.
const DRAINS_MAX: u64 = 1_000;

pub enum Command {
    Reply(u64, Bytes),
    Answer(u64, Option<Bytes>, Outcome),
    Send(u64, Bytes),
    Head(u64, HeaderMap),
    Credit(u64, usize),
}

/// Why a request is no call.
enum Refusal {
    Http(StatusCode),
    Status(Status),
}

struct Route {
    method: u32,
    streaming: bool,
}

/// A method and how long its calls take, by number.
struct Timed {
    path: Box<str>,
    times: Times,
}

pub struct Server {
    pub options: Options,
    pub counters: Counters,
    pub notices: Notices,
    pub inbox: Inbox,
    pub calls_room: Room,
    pub drains_room: Room,
    pub connections_room: Room,
    pub request_bytes: Room,
    pub reply_bytes: Room,
    pub listening: Listening,
    /// Every port speaks it, or none.
    pub tls: Option<Arc<ServerTls>>,
    /// Whose connections come to the same port.
    pub links: Option<Arc<Hub>>,
    routes: HashMap<Box<str>, Route>,
    timed: Vec<Timed>,
    calls: Mutex<Calls>,
    ready: Arc<Ready>,
    commands: Mutex<Vec<Command>>,
    meters: Mutex<HashMap<u64, Arc<Meter>>>,
    connections: Mutex<HashMap<u64, Arc<Conn>>>,
    connection_gone: Condvar,
    next_connection: AtomicU64,
    draining: AtomicBool,
    /// Nothing is served any more, and nobody will ask.
    closed: AtomicBool,
    began: Instant,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Server {
    pub fn new(
        methods: Vec<(String, bool)>,
        options: Options,
        tls: Option<Arc<ServerTls>>,
        links: Option<Arc<Hub>>,
    ) -> io::Result<Arc<Server>> {
        let ready = Arc::new(Ready::default());
        let timed =
            |(path, _): &(String, bool)| Timed { path: path.as_str().into(), times: Times::default() };
        let route = |(number, (path, streaming)): (usize, (String, bool))| {
            (path.into_boxed_str(), Route { method: number as u32, streaming })
        };
        Ok(Arc::new(Server {
            counters: Counters::default(),
            notices: Notices::default(),
            inbox: Inbox::new()?,
            calls_room: Room::new(options.calls_max),
            drains_room: Room::new(DRAINS_MAX),
            connections_room: Room::new(options.connections_max),
            request_bytes: Room::new(options.request_bytes_max),
            reply_bytes: Room::new(options.reply_bytes_max),
            listening: Listening::default(),
            tls,
            links,
            timed: methods.iter().map(timed).collect(),
            routes: methods.into_iter().enumerate().map(route).collect(),
            calls: Mutex::new(Calls::new(ready.clone())),
            ready,
            commands: Mutex::default(),
            meters: Mutex::default(),
            connections: Mutex::default(),
            connection_gone: Condvar::new(),
            next_connection: AtomicU64::new(1),
            draining: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            began: Instant::now(),
            options,
        }))
    }

    pub fn now_ms(&self) -> u64 {
        self.began.elapsed().as_millis() as u64
    }

    // ---- from Python's threads

    /// Carry out a batch of commands: one wake-up.
    pub fn command(&self, mut batch: Vec<Command>) {
        if batch.is_empty() {
            return;
        }
        let mut commands = lock(&self.commands);
        if commands.is_empty() {
            *commands = batch;
        } else {
            commands.append(&mut batch);
        }
        drop(commands);
        self.ready.pump.notify_one();
    }

    /// Queue framed messages on streams; those of the streams that are above their high-water mark.
    pub fn send(&self, messages: Vec<(u64, Bytes)>) -> Vec<u64> {
        let mut above = Vec::new();
        let mut commands = Vec::with_capacity(messages.len());
        {
            let meters = lock(&self.meters);
            for (call, framed) in messages {
                let Some(meter) = meters.get(&call) else { continue };
                if meter.add(framed.len(), self.options.stream_window_bytes) && above.last() != Some(&call) {
                    above.push(call);
                }
                commands.push(Command::Send(call, framed));
            }
        }
        self.command(commands);
        above
    }

    pub fn is_draining(&self) -> bool {
        self.draining.load(SeqCst)
    }

    /// No new connections, no new calls on those there are.
    pub fn drain(&self) {
        self.draining.store(true, SeqCst);
        self.listening.close();
        for conn in lock(&self.connections).values() {
            conn.drain();
        }
    }

    /// Drain, wait for calls in flight, then cut. Blocks.
    pub fn stop(&self, grace: Duration) {
        self.drain();
        let until = Instant::now() + grace;
        self.wait_for_connections(until);
        for conn in lock(&self.connections).values() {
            conn.end(End::Goodbye(Reason::NO_ERROR));
        }
        self.wait_for_connections(Instant::now() + Duration::from_secs(2));
        self.close();
    }

    /// Cut everything, without waiting.
    pub fn close(&self) {
        self.drain();
        self.closed.store(true, SeqCst);
        for conn in lock(&self.connections).values() {
            conn.end(End::Cut);
        }
        self.ready.pump.notify_one();
    }

    fn wait_for_connections(&self, until: Instant) {
        let mut connections = lock(&self.connections);
        while !connections.is_empty() || !self.listening.is_closed() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            let waited = self.connection_gone.wait_timeout(connections, left.min(Duration::from_millis(100)));
            connections = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Deadlines being waited for.
    pub fn timers(&self) -> usize {
        lock(&self.calls).timers()
    }

    // ---- on the I/O thread

    pub fn add_connection(self: &Arc<Server>, peer: Peer) -> Arc<Conn> {
        let number = self.next_connection.fetch_add(1, SeqCst);
        let conn = Arc::new(Conn::new(number, peer, self.clone()));
        self.counters.accepted_connections.add(1);
        lock(&self.connections).insert(number, conn.clone());
        // Looked at after it was added: a drain that did not see it is seen here.
        if self.is_draining() {
            conn.drain();
        }
        conn
    }

    pub fn remove_connection(&self, conn: &Conn) {
        lock(&self.connections).remove(&conn.number);
        self.connection_gone.notify_all();
        self.ready.pump.notify_one();
    }

    /// Something has changed that others wait for.
    pub fn wake_pump(&self) {
        self.ready.pump.notify_one();
    }

    /// A unary call that Python saw is over, answered or not.
    pub fn note_time(&self, method: u32, took: Duration) {
        self.timed[method as usize].times.add(took);
    }

    /// (path, how many in each slot, nanoseconds) of the methods that were called.
    pub fn call_times(&self) -> Vec<(String, Vec<u64>, u64)> {
        let seen = self.timed.iter().map(|each| (each.path.to_string(), each.times.seen()));
        let called = seen.filter(|(_, (slots, _))| slots.iter().any(|count| *count > 0));
        called.map(|(path, (slots, total_ns))| (path, slots, total_ns)).collect()
    }

    pub fn add_meter(&self, call: u64, meter: Arc<Meter>) {
        lock(&self.meters).insert(call, meter);
    }

    pub fn remove_meter(&self, call: u64) {
        lock(&self.meters).remove(&call);
    }

    /// A client reset a stream of ours.
    pub fn note_reset(&self, conn: &Conn) {
        self.counters.resets.add(1);
        if conn.count_reset(self.now_ms(), self.options.resets_per_second_max) {
            self.counters.reset_floods.add(1);
            self.notices.note("reset_flood", &conn.peer.address);
            conn.end(End::Goodbye(Reason::ENHANCE_YOUR_CALM));
        }
    }

    /// A request has come.
    pub fn accept(&self, conn: &Arc<Conn>, request: Request<RecvStream>, respond: SendResponse<Chunk>) {
        self.counters.calls.add(1);
        conn.note_call(self.now_ms());
        let (parts, body) = request.into_parts();
        let admitted = self.admit(conn, &parts);
        let encoding = admitted.as_ref().map_or(super::codec::Encoding::Identity, |(_, head)| head.encoding);
        let mut reader = Reader::new(body, encoding, self.options.message_bytes_max);
        let mut writer = Writer::new(respond, encoding);
        let charged = admitted.and_then(|(route, head)| {
            let charged = reader.charge(self, if head.metadata.is_some() { head.metadata_bytes } else { 0 });
            match charged {
                Ok(()) => Ok((route, head)),
                Err(status) => {
                    self.calls_room.give_back(1);
                    Err(Refusal::Status(status))
                }
            }
        });
        let call = match charged {
            Ok((route, head)) => Call::open(conn, route.method, route.streaming, head, reader, writer),
            Err(refusal) => {
                match refusal {
                    // A stream that is lost is noticed when it is driven.
                    Refusal::Http(status) => drop(writer.send_http(status)),
                    Refusal::Status(status) => writer.finish(Outcome::of(status)),
                }
                Call::refused(conn, reader, writer)
            }
        };
        if call.holds == Holds::Drain && !self.drains_room.try_take(1) {
            call.dismiss();
            return;
        }
        lock(&self.calls).insert(call, self);
        self.ready.pump.notify_one();
    }

    fn admit(&self, conn: &Conn, parts: &http::request::Parts) -> Result<(&Route, Head), Refusal> {
        if parts.method != Method::POST {
            return Err(Refusal::Http(StatusCode::METHOD_NOT_ALLOWED));
        }
        if !is_grpc(&parts.headers) {
            return Err(Refusal::Http(StatusCode::UNSUPPORTED_MEDIA_TYPE));
        }
        let refuse = |code, text: String| Err(Refusal::Status(Status::new(code, text)));
        let Some(route) = self.routes.get(parts.uri.path()) else {
            return refuse(UNIMPLEMENTED, format!("there is no method {}", parts.uri.path()));
        };
        let head = parse_head(&parts.headers, self.options.metadata_bytes_max).map_err(Refusal::Status)?;
        // Only those who do not read their replies are turned away for replies that are not read.
        let share = self.options.reply_bytes_max / 8;
        let unwritten_bytes = conn.share.unwritten_bytes();
        if unwritten_bytes > share || (self.reply_bytes.is_full() && unwritten_bytes > 0) {
            self.reply_bytes.refuse();
            self.notices.note("unread_replies", &conn.peer.address);
            return refuse(RESOURCE_EXHAUSTED, "too many replies are not read".to_owned());
        }
        if !self.calls_room.try_take(1) {
            self.notices.note("too_many_calls", &conn.peer.address);
            return refuse(RESOURCE_EXHAUSTED, "too many calls are in flight".to_owned());
        }
        Ok((route, head))
    }

    /// Runs until the server is closed and its last call is over.
    pub async fn pump(self: Arc<Server>) {
        let stall_every = (self.options.stall / 4).max(Duration::from_millis(10));
        let mut next_check = Instant::now() + stall_every;
        let sleep = tokio::time::sleep_until(next_check.into());
        tokio::pin!(sleep);
        loop {
            tokio::select! {
                () = self.ready.pump.notified() => (),
                () = &mut sleep => (),
            }
            let due = self.turn();
            let now = Instant::now();
            if now >= next_check {
                self.check_stalls(now);
                next_check = now + stall_every;
            }
            // The last turn as well: it may have ended calls that Python knows of.
            self.inbox.flush();
            if self.closed.load(SeqCst) && lock(&self.calls).is_empty() && lock(&self.connections).is_empty()
            {
                return;
            }
            let wanted = due.map_or(next_check, |due| due.min(next_check));
            if sleep.deadline() > wanted.into() || sleep.is_elapsed() {
                sleep.as_mut().reset(wanted.into());
            }
        }
    }

    /// Everything that is to be done now; when the next timer rings.
    fn turn(&self) -> Option<Instant> {
        let commands = std::mem::take(&mut *lock(&self.commands));
        let mut calls = lock(&self.calls);
        for command in commands {
            self.carry_out(&mut calls, command);
        }
        calls.drive_ready(self);
        calls.ring(Instant::now(), self)
    }

    fn carry_out(&self, calls: &mut Calls, command: Command) {
        match command {
            Command::Reply(id, framed) => {
                calls.with(id, self, |call| call.answer(self, Some(framed), Outcome::OK));
            }
            Command::Answer(id, framed, outcome) => {
                calls.with(id, self, |call| call.answer(self, framed, outcome));
            }
            Command::Send(id, framed) => calls.with(id, self, |call| call.send(framed)),
            Command::Head(id, headers) => calls.with(id, self, |call| call.send_head(headers)),
            Command::Credit(id, bytes) => calls.with(id, self, |call| call.reader.credit(self, bytes)),
        }
    }

    fn check_stalls(&self, now: Instant) {
        lock(&self.calls).check_stalls(now, self);
        let now_ms = self.now_ms();
        for conn in lock(&self.connections).values() {
            if conn.is_blocked(now_ms, self.options.stall) {
                self.counters.stalled_replies.add(1);
                self.notices.note("unread_connection", &conn.peer.address);
                conn.end(End::Cut);
            }
        }
    }
}
