//! The two buffers between a link and its socket, and nothing of what is in them.

use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{ready, Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const READ_BYTES_FIRST: usize = 8 << 10;
const READ_BYTES_MAX: usize = 256 << 10;
const SLICES_MAX: usize = 32;

pub struct Pipe<IO> {
    io: IO,
    /// Read and not yet taken.
    pub inbox: BytesMut,
    /// How much is asked for at once: what is in use grows with what comes, an idle link keeps little.
    read_bytes: usize,
    /// To be written.
    pub outgoing: VecDeque<Bytes>,
    unflushed: bool,
    shut: bool,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Pipe<IO> {
    pub fn new(io: IO) -> Pipe<IO> {
        Pipe {
            io,
            inbox: BytesMut::new(),
            read_bytes: READ_BYTES_FIRST,
            outgoing: VecDeque::new(),
            unflushed: false,
            shut: false,
        }
    }

    /// Everything was given to the kernel.
    pub fn is_drained(&self) -> bool {
        self.outgoing.is_empty() && !self.unflushed
    }

    /// Write once. How many bytes, of something that is to be written.
    pub fn poll_write(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.unflushed = true;
        let io = Pin::new(&mut self.io);
        let written = if io.is_write_vectored() && self.outgoing.len() > 1 {
            let mut slices = [IoSlice::new(&[]); SLICES_MAX];
            let mut count = 0;
            for (slice, chunk) in slices.iter_mut().zip(&self.outgoing) {
                *slice = IoSlice::new(chunk);
                count += 1;
            }
            ready!(io.poll_write_vectored(cx, &slices[..count]))?
        } else {
            let chunk = self.outgoing.front().map_or(&[][..], |chunk| chunk);
            ready!(io.poll_write(cx, chunk))?
        };
        let mut left = written;
        while let Some(chunk) = self.outgoing.front_mut() {
            if chunk.len() > left {
                chunk.advance(left);
                break;
            }
            left -= chunk.len();
            self.outgoing.pop_front();
        }
        Poll::Ready(if written == 0 { Err(io::ErrorKind::WriteZero.into()) } else { Ok(written) })
    }

    /// Have the layers in between give on what they hold.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unflushed {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Nothing more will be written. That it fails says only that the other side is gone.
    pub fn shut_down(&mut self, cx: &mut Context<'_>) {
        if !self.shut {
            self.shut = Pin::new(&mut self.io).poll_shutdown(cx).is_ready();
        }
    }

    /// Read once into the inbox. The end of the stream is an error.
    pub fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.inbox.capacity() - self.inbox.len() < self.read_bytes / 2 {
            self.inbox.reserve(self.read_bytes);
        }
        let mut buffer = ReadBuf::uninit(self.inbox.spare_capacity_mut());
        ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
        let (bytes, filled) = (buffer.filled().len(), buffer.remaining() == 0);
        if bytes == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        // SAFETY: the reader filled this many bytes of the spare capacity.
        unsafe { self.inbox.set_len(self.inbox.len() + bytes) };
        if filled {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        }
        Poll::Ready(Ok(bytes))
    }
}
