//! How connections are made: dialled from here, or taken from a listener.
//!
//! Addresses are `host:port`, `[::1]:port` or `unix:/path`. All addresses of a name are tried, each for its share of
//! the time; the time is for everything until the link is accepted.

use super::connection::{end, Connection, NOT_SPOKEN};
use super::endpoint::{Link, Phase};
use super::hub::{Counters, Hub};
use super::wire::{self, Kind};
use crate::peer::Peer;
use crate::rpc::socket::Socket;
use crate::tls::ClientTls;
use bytes::BytesMut;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{lookup_host, TcpListener, TcpStream, UnixStream};
use tokio::time::{timeout, Instant};
use tokio_rustls::client::TlsStream;

/// Take an incoming connection that begins with the preface (none of which was read yet), until it ends.
pub async fn serve(hub: Arc<Hub>, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer) {
    let Some(link) = hub.add(peer) else {
        Counters::add(&hub.counters.turned_away, 1);
        // Who does not take even this in time goes without.
        let _ = timeout(hub.options.hello_timeout, turn_away(io)).await;
        return;
    };
    let deadline = Instant::now() + hub.options.hello_timeout;
    Connection::run(hub, link, io, true, deadline).await;
}

async fn turn_away(mut io: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut refusal = BytesMut::new();
    wire::put(&mut refusal, Kind::Refuse, b"there are too many links");
    io.write_all(&refusal).await?;
    io.shutdown().await?;
    // Closing on unread bytes would take the refusal back.
    let mut unread = [0; 1024];
    while io.read(&mut unread).await? > 0 {}
    Ok(())
}

/// Make a link to somebody who listens. Its number at once; what becomes of it is told as events.
pub fn connect(
    hub: &Arc<Hub>,
    address: &str,
    tls: Option<Arc<ClientTls>>,
    purpose: &str,
    hello: &[u8],
    within: Duration,
) -> u64 {
    let Some(link) = hub.add(Peer::default()) else {
        let link = hub.spare_link(Peer::default());
        end(hub, &link, "there are too many links".to_owned());
        return link.number;
    };
    link.lock().queue.put_hello(purpose, hello);
    let (number, hub, address) = (link.number, hub.clone(), address.to_owned());
    crate::io::handle().spawn(async move { dial(hub, link, &address, tls, within).await });
    number
}

async fn dial(hub: Arc<Hub>, link: Arc<Link>, address: &str, tls: Option<Arc<ClientTls>>, within: Duration) {
    let deadline = Instant::now() + within;
    let made = tokio::select! {
        biased;
        reason = closed(&link) => Err(reason),
        made = reach(address, tls.as_deref(), deadline) => made.map_err(|error| unreachable(address, within, &error)),
    };
    match made {
        Err(reason) => end(&hub, &link, reason),
        Ok(Reached::Plain(socket)) => Connection::run(hub, link, socket, false, deadline).await,
        Ok(Reached::Secure(stream)) => Connection::run(hub, link, stream, false, deadline).await,
    }
}

/// The same text for the same trouble: whoever tries again and again tells it once.
fn unreachable(address: &str, within: Duration, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::Unsupported => NOT_SPOKEN.to_owned(),
        io::ErrorKind::TimedOut => {
            format!("{address} cannot be reached: no answer in {} ms", within.as_millis())
        }
        _ => format!("{address} cannot be reached: {error}"),
    }
}

/// Until it is closed from here.
async fn closed(link: &Link) -> String {
    std::future::poll_fn(|cx| {
        let mut state = link.lock();
        state.watch(cx);
        if state.phase < Phase::Closing {
            return Poll::Pending;
        }
        Poll::Ready(state.reason.clone())
    })
    .await
}

enum Reached {
    Plain(Socket),
    Secure(Box<TlsStream<Socket>>),
}

async fn in_time<T>(time: Duration, making: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(time, making).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn reach(address: &str, tls: Option<&ClientTls>, deadline: Instant) -> io::Result<Reached> {
    let socket = open(address, deadline).await?;
    let Some(tls) = tls else { return Ok(Reached::Plain(socket)) };
    let left = deadline.saturating_duration_since(Instant::now());
    let stream = in_time(left, tls.connect(host_of(address), socket)).await?;
    Ok(Reached::Secure(Box::new(stream)))
}

/// What a certificate must be for.
fn host_of(address: &str) -> &str {
    let host = match address.rsplit_once(':') {
        Some(("unix", _)) => "localhost",
        Some((host, _)) => host,
        None => address,
    };
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

async fn open(address: &str, deadline: Instant) -> io::Result<Socket> {
    let left = || deadline.saturating_duration_since(Instant::now());
    if let Some(path) = address.strip_prefix("unix:") {
        return in_time(left(), UnixStream::connect(path)).await.map(Socket::Unix);
    }
    let found: Vec<SocketAddr> = in_time(left(), lookup_host(address)).await?.collect();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for (at, one) in found.iter().enumerate() {
        match in_time(left() / (found.len() - at) as u32, TcpStream::connect(one)).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(Socket::Tcp(stream));
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Listen for links alone. Returns the bound address.
pub fn listen(hub: &Arc<Hub>, address: &str) -> io::Result<SocketAddr> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let bound = listener.local_addr()?;
    let _on_the_io_thread = crate::io::handle().enter();
    let listener = TcpListener::from_std(listener)?;
    let taken = hub.clone();
    let task = crate::io::handle().spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, from)) => take(&taken, stream, from),
                // Out of descriptors, most likely: others may be closed meanwhile.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    });
    hub.own(task.abort_handle());
    Ok(bound)
}

fn take(hub: &Arc<Hub>, stream: TcpStream, from: SocketAddr) {
    // Slower without it, and never wrong.
    let _ = stream.set_nodelay(true);
    tokio::spawn(serve(hub.clone(), stream, Peer::tcp(from)));
}

#[cfg(test)]
mod tests {
    use super::host_of;

    #[test]
    fn the_host_of_an_address_is_what_its_certificate_is_for() {
        assert_eq!(host_of("node-1.local:7000"), "node-1.local");
        assert_eq!(host_of("10.0.0.7:7000"), "10.0.0.7");
        assert_eq!(host_of("[::1]:7000"), "::1");
        assert_eq!(host_of("unix:/run/flotta.sock"), "localhost");
    }
}
