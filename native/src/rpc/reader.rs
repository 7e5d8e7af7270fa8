//! The request side of a call: from h2's chunks to whole messages, unpacked, charged and flow-controlled.
//!
//! Bytes are taken from h2 as they come, which keeps them compact, and charged to the server's room for requests. The
//! peer's window is opened again for what was handed on, and for a message that cannot become whole otherwise; never
//! for what waits behind a full `owed`. So a stream holds at most its window here, its window at its handler and one
//! message more.

use super::codec::{unpack, Encoding, Unpack, INLINE_BYTES_MAX, INLINE_UNPACKED_BYTES_MAX, PREFIX_BYTES};
use super::deframer::{Deframer, Frame};
use super::server::Server;
use super::status::{Status, INTERNAL, RESOURCE_EXHAUSTED};
use bytes::Bytes;
use h2::RecvStream;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use std::time::Instant;
use tokio::task::JoinHandle;

/// What an object in Python costs beside its bytes: many empty messages are not free.
const OWED_OVERHEAD_BYTES: usize = 64;

pub enum Read {
    Message(Bytes),
    /// The client has said everything.
    End,
    Failed(Status),
    /// The stream or its connection is gone.
    Lost,
}

/// A message being unpacked elsewhere.
struct Unpacking {
    wire_bytes: usize,
    job: JoinHandle<Result<Vec<u8>, Unpack>>,
}

pub struct Reader {
    body: RecvStream,
    deframer: Deframer,
    encoding: Encoding,
    unpacking: Option<Unpacking>,
    ended: bool,
    /// Lengths of messages handed to a stream's handler that it has not consumed.
    owed: VecDeque<usize>,
    owed_bytes: usize,
    credit_bytes: usize,
    /// Taken from h2, the peer's window not yet opened for it.
    unreleased_bytes: usize,
    charged_bytes: u64,
    /// Since when the client owes us the rest of a message.
    pub waiting_since: Option<Instant>,
}

impl Reader {
    pub fn new(body: RecvStream, encoding: Encoding, message_bytes_max: usize) -> Reader {
        Reader {
            ended: body.is_end_stream(),
            body,
            deframer: Deframer::new(message_bytes_max),
            encoding,
            unpacking: None,
            owed: VecDeque::new(),
            owed_bytes: 0,
            credit_bytes: 0,
            unreleased_bytes: 0,
            charged_bytes: 0,
            waiting_since: None,
        }
    }

    /// Bytes for which the peer's window stays closed.
    pub fn held_bytes(&self) -> usize {
        self.unreleased_bytes
    }

    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// The rest of the request is of no interest: give back what it holds.
    pub fn forget(&mut self, server: &Server) {
        server.request_bytes.give_back(std::mem::take(&mut self.charged_bytes));
        self.deframer = Deframer::new(0);
        self.waiting_since = None;
        if let Some(unpacking) = self.unpacking.take() {
            unpacking.job.abort();
        }
    }

    /// Charge the call with bytes beside those of its messages.
    pub fn charge(&mut self, server: &Server, bytes: usize) -> Result<(), Status> {
        if !server.request_bytes.try_take(bytes as u64) {
            return Err(Status::new(RESOURCE_EXHAUSTED, "too many bytes of requests are in work"));
        }
        self.charged_bytes += bytes as u64;
        Ok(())
    }

    fn uncharge(&mut self, server: &Server, bytes: usize) {
        let bytes = (bytes as u64).min(self.charged_bytes);
        self.charged_bytes -= bytes;
        server.request_bytes.give_back(bytes);
    }

    /// The next message or the end. `owing`: messages are handed on only as fast as they are consumed.
    pub fn poll_read(&mut self, cx: &mut Context<'_>, server: &Server, owing: bool) -> Poll<Read> {
        let paused = owing && self.owed_bytes >= server.options.stream_window_bytes;
        loop {
            if !paused {
                match self.poll_message(cx, server, owing) {
                    Poll::Ready(Ok(Some(message))) => return Poll::Ready(Read::Message(message)),
                    Poll::Ready(Ok(None)) => (),
                    Poll::Ready(Err(status)) => return Poll::Ready(Read::Failed(status)),
                    Poll::Pending => return Poll::Pending,
                }
            }
            if self.ended {
                if paused && (!self.deframer.is_empty() || self.unpacking.is_some()) {
                    return Poll::Pending;
                }
                return Poll::Ready(if self.deframer.is_empty() {
                    Read::End
                } else {
                    Read::Failed(Status::new(INTERNAL, "the request ends within a message"))
                });
            }
            if !paused {
                self.release(self.unreleased_bytes);
            }
            match self.body.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    self.waiting_since = None;
                    self.unreleased_bytes += bytes.len();
                    self.ended = self.body.is_end_stream();
                    if let Err(status) = self.charge(server, bytes.len()) {
                        return Poll::Ready(Read::Failed(status));
                    }
                    self.deframer.feed(bytes);
                }
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Read::Lost),
                // Also where trailers follow: a client has nothing to say in them.
                Poll::Ready(None) => self.ended = true,
                Poll::Pending => {
                    if !paused && (!owing || !self.deframer.is_empty()) {
                        self.waiting_since.get_or_insert_with(Instant::now);
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// A message out of what is here. Ok(None): there is no whole one.
    fn poll_message(
        &mut self,
        cx: &mut Context<'_>,
        server: &Server,
        owing: bool,
    ) -> Poll<Result<Option<Bytes>, Status>> {
        let bytes_max = server.options.message_bytes_max;
        let (wire_bytes, message) = if let Some(unpacking) = &mut self.unpacking {
            let done = ready!(Pin::new(&mut unpacking.job).poll(cx));
            let wire_bytes = unpacking.wire_bytes;
            self.unpacking = None;
            let unpacked =
                done.map_err(|error| Status::new(INTERNAL, format!("unpacking failed: {error}")))?;
            (wire_bytes, unpacked.map_err(|fault| fault.status(bytes_max))?.into())
        } else {
            let Some(Frame { compressed, payload }) = self.deframer.take()? else {
                return Poll::Ready(Ok(None));
            };
            let wire_bytes = PREFIX_BYTES + payload.len();
            if compressed {
                server.counters.packed_messages_in.add(1);
                let Some(message) = self.unpack(payload, wire_bytes, bytes_max)? else {
                    return self.poll_message(cx, server, owing);
                };
                (wire_bytes, message)
            } else {
                (wire_bytes, payload)
            }
        };
        server.counters.messages_in.add(1);
        let cost = message.len() + if owing { OWED_OVERHEAD_BYTES } else { 0 };
        if cost > wire_bytes {
            self.charge(server, cost - wire_bytes)?;
        } else {
            self.uncharge(server, wire_bytes - cost);
        }
        if owing {
            self.owed.push_back(message.len());
            self.owed_bytes += cost;
            self.release(wire_bytes);
        }
        Poll::Ready(Ok(Some(message)))
    }

    /// None: it is big, and being unpacked elsewhere.
    fn unpack(
        &mut self,
        packed: Bytes,
        wire_bytes: usize,
        bytes_max: usize,
    ) -> Result<Option<Bytes>, Status> {
        let encoding = self.encoding;
        if packed.len() <= INLINE_BYTES_MAX || encoding == Encoding::Identity {
            match unpack(encoding, &packed, bytes_max.min(INLINE_UNPACKED_BYTES_MAX)) {
                Ok(message) => return Ok(Some(message.into())),
                Err(Unpack::TooBig) if bytes_max > INLINE_UNPACKED_BYTES_MAX => (),
                Err(fault) => return Err(fault.status(bytes_max)),
            }
        }
        let job = tokio::task::spawn_blocking(move || unpack(encoding, &packed, bytes_max));
        self.unpacking = Some(Unpacking { wire_bytes, job });
        Ok(None)
    }

    fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.unreleased_bytes);
        if bytes > 0 {
            self.unreleased_bytes -= bytes;
            // Refused only for a stream that is closed, whose window is of no use to anybody.
            let _ = self.body.flow_control().release_capacity(bytes);
        }
    }

    /// The handler consumed so many bytes of messages; an empty message counts when a later one does, or by a credit
    /// of its own of zero.
    pub fn credit(&mut self, server: &Server, bytes: usize) {
        self.credit_bytes += bytes;
        let mut covered = 0;
        let mut left = self.credit_bytes;
        for (position, length) in self.owed.iter().enumerate() {
            if *length > left {
                break;
            }
            left -= length;
            if *length > 0 || (bytes == 0 && position == 0) {
                covered = position + 1;
                self.credit_bytes = left;
            }
            if bytes == 0 {
                break;
            }
        }
        let cost: usize = self.owed.drain(..covered).map(|length| length + OWED_OVERHEAD_BYTES).sum();
        self.owed_bytes -= cost;
        self.uncharge(server, cost);
    }

    /// Throw away what still comes. True: it has ended, or is gone.
    pub fn poll_discard(&mut self, cx: &mut Context<'_>, left_bytes: &mut usize) -> bool {
        loop {
            self.release(self.unreleased_bytes);
            if self.ended {
                return true;
            }
            match self.body.poll_data(cx) {
                Poll::Ready(Some(Ok(bytes))) => {
                    self.unreleased_bytes += bytes.len();
                    self.ended = self.body.is_end_stream();
                    let Some(left) = left_bytes.checked_sub(bytes.len()) else { return true };
                    *left_bytes = left;
                }
                Poll::Ready(_) => return true,
                Poll::Pending => return false,
            }
        }
    }
}
