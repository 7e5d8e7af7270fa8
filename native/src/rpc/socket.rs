//! A connected socket, of either family.

use socket2::SockRef;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};

pub enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Socket {
    /// The first byte the peer sends, which stays where it is. None: it closes without one.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut byte = [MaybeUninit::new(0)];
        loop {
            let peeked = match self {
                Socket::Tcp(stream) => {
                    stream.readable().await?;
                    stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte))
                }
                Socket::Unix(stream) => {
                    stream.readable().await?;
                    stream.try_io(Interest::READABLE, || SockRef::from(stream).peek(&mut byte))
                }
            };
            match peeked {
                // SAFETY: it was initialised above.
                Ok(length) => return Ok((length > 0).then(|| unsafe { byte[0].assume_init() })),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => (),
                Err(error) => return Err(error),
            }
        }
    }
}

macro_rules! with {
    ($socket:expr, $stream:ident => $does:expr) => {
        match $socket.get_mut() {
            Socket::Tcp($stream) => $does,
            Socket::Unix($stream) => $does,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        with!(self, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        with!(self, stream => Pin::new(stream).poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with!(self, stream => Pin::new(stream).poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with!(self, stream => Pin::new(stream).poll_shutdown(cx))
    }
}
