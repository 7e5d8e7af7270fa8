//! The answer side of a call: headers, messages as fast as the client takes them, and the outcome at the end.
//!
//! A message is given to h2 only as far as the client's window has room; what waits is counted as unwritten, and
//! since when the client has kept it waiting is known.

use super::body::Chunk;
use super::codec::{packed_frame, Encoding, INLINE_BYTES_MAX, PREFIX_BYTES};
use super::connection::Conn;
use super::headers::{add_status, response_head, status_head};
use super::server::Server;
use super::status::Status;
use bytes::{Buf, Bytes};
use h2::server::SendResponse;
use h2::{Reason, SendStream};
use http::{HeaderMap, Response};
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{ready, Context, Poll};
use std::time::Instant;
use tokio::task::JoinHandle;

/// The stream or its connection is gone.
#[derive(Debug)]
pub struct Lost;

pub struct Outcome {
    pub code: u32,
    pub message: String,
    pub trailers: Option<HeaderMap>,
}

impl Outcome {
    pub const OK: Outcome = Outcome { code: 0, message: String::new(), trailers: None };

    pub fn of(status: Status) -> Outcome {
        Outcome { code: status.code, message: status.message.into_owned(), trailers: None }
    }
}

enum Side {
    Headers(SendResponse<Chunk>),
    Messages(SendStream<Chunk>),
}

pub struct Writer {
    side: Side,
    encoding: Encoding,
    queue: VecDeque<Chunk>,
    packing: Option<JoinHandle<Bytes>>,
    sending: Option<Chunk>,
    end: Option<Outcome>,
    /// Since when the client has not made room for what waits.
    pub blocked_since: Option<Instant>,
}

impl Writer {
    pub fn new(respond: SendResponse<Chunk>, encoding: Encoding) -> Writer {
        Writer {
            side: Side::Headers(respond),
            encoding,
            queue: VecDeque::new(),
            packing: None,
            sending: None,
            end: None,
            blocked_since: None,
        }
    }

    /// Ready: the client reset the stream (and why), or the connection is gone.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<Option<Reason>> {
        match &mut self.side {
            Side::Headers(respond) => respond.poll_reset(cx),
            Side::Messages(stream) => stream.poll_reset(cx),
        }
        .map(Result::ok)
    }

    pub fn reset(&mut self, reason: Reason) {
        match &mut self.side {
            Side::Headers(respond) => respond.send_reset(reason),
            Side::Messages(stream) => stream.send_reset(reason),
        }
    }

    /// Queue a framed message.
    pub fn push(&mut self, framed: Bytes, conn: &Arc<Conn>) {
        self.queue.push_back(Chunk::new(framed, conn));
    }

    /// Nothing follows what is queued.
    pub fn finish(&mut self, outcome: Outcome) {
        self.end = Some(outcome);
    }

    /// Drop what is queued and end with an outcome instead.
    pub fn fail(&mut self, outcome: Outcome) {
        self.queue.clear();
        self.packing = None;
        if self.sending.take().is_some() {
            // Half a message is on its way: no outcome can follow it.
            self.reset(Reason::CANCEL);
            self.end = None;
        } else {
            self.end = Some(outcome);
        }
    }

    /// Headers of our own choice, before any message; later ones are ignored, as are empty ones.
    pub fn send_head(&mut self, extra: HeaderMap) -> Result<(), Lost> {
        if let Side::Headers(respond) = &mut self.side {
            let mut headers = response_head(self.encoding);
            headers.extend(extra);
            let stream = respond.send_response(response(headers), false).map_err(|_| Lost)?;
            self.side = Side::Messages(stream);
        }
        Ok(())
    }

    /// Refuse something that is not gRPC.
    pub fn send_http(&mut self, status: http::StatusCode) -> Result<(), Lost> {
        if let Side::Headers(respond) = &mut self.side {
            let mut response = Response::new(());
            *response.status_mut() = status;
            respond.send_response(response, true).map_err(|_| Lost)?;
        }
        Ok(())
    }

    /// Write what there is. Ready: everything up to the end, or everything there is so far. `taken` counts bytes of
    /// messages that h2 has taken.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        server: &Server,
        conn: &Arc<Conn>,
        taken: &mut usize,
    ) -> Poll<Result<(), Lost>> {
        loop {
            if let Some(job) = &mut self.packing {
                // A job fails only with the runtime, and then there is nobody to write to.
                let packed = ready!(Pin::new(job).poll(cx)).map_err(|_| Lost)?;
                self.packing = None;
                self.count_packed(server, &packed);
                self.sending = Some(Chunk::new(packed, conn));
            }
            if self.sending.is_some() {
                ready!(self.poll_send(cx))?;
            }
            if let Some(chunk) = self.queue.pop_front() {
                *taken += chunk.len();
                server.counters.messages_out.add(1);
                self.begin(chunk, server, conn)?;
                continue;
            }
            if let Some(outcome) = self.end.take() {
                self.send_end(outcome)?;
            }
            return Poll::Ready(Ok(()));
        }
    }

    fn begin(&mut self, chunk: Chunk, server: &Server, conn: &Arc<Conn>) -> Result<(), Lost> {
        self.send_head(HeaderMap::new())?;
        let encoding = self.encoding;
        let payload_bytes = chunk.len() - PREFIX_BYTES;
        if encoding == Encoding::Identity || payload_bytes < server.options.compress_bytes_min {
            self.sending = Some(chunk);
        } else if payload_bytes <= INLINE_BYTES_MAX {
            let packed = packed_frame(encoding, chunk.take_bytes());
            self.count_packed(server, &packed);
            self.sending = Some(Chunk::new(packed, conn));
        } else {
            let framed = chunk.take_bytes();
            self.packing = Some(tokio::task::spawn_blocking(move || packed_frame(encoding, framed)));
        }
        Ok(())
    }

    fn count_packed(&self, server: &Server, framed: &Bytes) {
        server.counters.packed_messages_out.add(u64::from(framed[0]));
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
        let (Side::Messages(stream), Some(chunk)) = (&mut self.side, &mut self.sending) else {
            return Poll::Ready(Ok(()));
        };
        while chunk.has_remaining() {
            stream.reserve_capacity(chunk.len());
            let room = stream.capacity();
            if room == 0 {
                match stream.poll_capacity(cx) {
                    Poll::Ready(Some(Ok(_))) => continue,
                    Poll::Ready(_) => return Poll::Ready(Err(Lost)),
                    Poll::Pending => {
                        self.blocked_since.get_or_insert_with(Instant::now);
                        return Poll::Pending;
                    }
                }
            }
            self.blocked_since = None;
            let piece = chunk.split_to(room.min(chunk.len()));
            stream.send_data(piece, false).map_err(|_| Lost)?;
        }
        self.sending = None;
        Poll::Ready(Ok(()))
    }

    fn send_end(&mut self, outcome: Outcome) -> Result<(), Lost> {
        let Outcome { code, message, trailers } = outcome;
        let sent = match &mut self.side {
            Side::Headers(respond) => {
                let mut headers = status_head(code, &message);
                headers.extend(trailers.unwrap_or_default());
                respond.send_response(response(headers), true).map(drop)
            }
            Side::Messages(stream) => {
                let mut trailers = trailers.unwrap_or_default();
                add_status(&mut trailers, code, &message);
                stream.send_trailers(trailers)
            }
        };
        sent.map_err(|_| Lost)
    }
}

fn response(headers: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = headers;
    response
}
