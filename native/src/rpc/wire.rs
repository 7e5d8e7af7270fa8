//! The stream under HTTP/2: gathers the frames of a turn into one write, and notes when bytes move.
//!
//! h2 flushes after every larger frame. Here a flush does nothing: the connection calls `poll_drain` when h2 has
//! nothing more to say in this turn. No more than `GATHER_BYTES` wait here, and they count as written. What comes in
//! passes `frames` on its way, and no more of it in a turn than others can wait for.

use super::connection::Conn;
use super::frames::Frames;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{ready, Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const GATHER_BYTES: usize = 64 << 10;
const READ_BYTES: usize = 8 << 10;
/// What one connection may bring before others have their turn.
const TURN_BYTES: usize = 64 << 10;
const TURN_FRAMES: u32 = 1_024;

struct Gathered<T> {
    io: T,
    out: Vec<u8>,
    /// Of `out`, already written.
    sent: usize,
    conn: Arc<Conn>,
    frames: Frames,
    /// Read and looked at, not yet passed on; only while frames are changed.
    passing: Vec<u8>,
    /// Read, and part of a frame's head.
    held: Vec<u8>,
    turn_bytes: usize,
    turn_frames: u32,
}

/// Two handles: h2 owns one, the connection's driver drains through the other.
pub struct Wire<T>(Arc<Mutex<Gathered<T>>>);

impl<T> Clone for Wire<T> {
    fn clone(&self) -> Self {
        Wire(self.0.clone())
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    pub fn new(io: T, conn: Arc<Conn>) -> Wire<T> {
        Wire(Arc::new(Mutex::new(Gathered {
            io,
            out: Vec::new(),
            sent: 0,
            conn,
            frames: Frames::default(),
            passing: Vec::new(),
            held: Vec::new(),
            turn_bytes: 0,
            turn_frames: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Gathered<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection has its turn: it may read again.
    pub fn begin_turn(&self) {
        let mut inner = self.lock();
        inner.turn_bytes = 0;
        inner.turn_frames = 0;
    }

    /// Write what was gathered.
    pub fn poll_drain(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().poll_drain(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Gathered<T> {
    fn poll_out(&mut self, cx: &mut Context<'_>, direct: Option<&[u8]>) -> Poll<io::Result<usize>> {
        let bytes = direct.unwrap_or(&self.out[self.sent..]);
        let polled = Pin::new(&mut self.io).poll_write(cx, bytes);
        self.conn.note_write(&polled);
        match ready!(polled)? {
            0 => Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => Poll::Ready(Ok(written)),
        }
    }

    fn count(&mut self) {
        let counted = self.frames.take_counted();
        self.turn_frames += counted.frames;
        if counted.idle > 0 {
            self.conn.note_idle_frames(counted.idle);
        }
    }

    fn poll_in(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        let after = buf.filled().len();
        self.turn_bytes += after - before;
        self.conn.note_read(after - before);
        let back = self.frames.look(&mut buf.filled_mut()[before..]);
        self.held.extend_from_slice(&buf.filled()[after - back..]);
        // Something is left: what is held back came after the frame that made it so.
        buf.set_filled(after - back);
        Poll::Ready(Ok(()))
    }

    /// The same, once frames are changed.
    fn poll_in_changed(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.passing.is_empty() {
            let mut room = [0; READ_BYTES];
            let mut chunk = ReadBuf::new(&mut room);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk))?;
            let read = chunk.filled();
            self.turn_bytes += read.len();
            self.conn.note_read(read.len());
            self.passing.append(&mut self.held);
            if read.is_empty() {
                break; // the end
            }
            self.passing.extend_from_slice(read);
            let back = self.frames.look(&mut self.passing);
            self.held = self.passing.split_off(self.passing.len() - back);
        }
        let passed = self.passing.len().min(buf.remaining());
        buf.put_slice(&self.passing[..passed]);
        self.passing.drain(..passed);
        Poll::Ready(Ok(()))
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.out.is_empty() {
            return Poll::Ready(Ok(()));
        }
        while self.sent < self.out.len() {
            self.sent += ready!(self.poll_out(cx, None))?;
        }
        self.out.clear();
        self.sent = 0;
        // A TLS stream holds records of its own.
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.turn_bytes >= TURN_BYTES || inner.turn_frames >= TURN_FRAMES {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled =
            if inner.frames.filters() { inner.poll_in_changed(cx, buf) } else { inner.poll_in(cx, buf) };
        inner.count();
        polled
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.lock();
        if inner.out.len() + bytes.len() > GATHER_BYTES {
            ready!(inner.poll_drain(cx))?;
            if bytes.len() >= GATHER_BYTES / 2 {
                return inner.poll_out(cx, Some(bytes));
            }
        }
        inner.out.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.io).poll_shutdown(cx)
    }
}
