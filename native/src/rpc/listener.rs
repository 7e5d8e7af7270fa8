//! Where connections come from: TCP and Unix sockets, one task a socket, one a connection.

use super::connection;
use super::server::Server;
use super::socket::Socket;
use crate::io::handle;
use crate::link;
use crate::peer::Peer;
use crate::tls::ALPN_LINK;
use crate::x509::names;
use socket2::{Domain, Type};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;
use tokio::time::timeout;

/// Of the preface of a link; an HTTP/2 connection begins with another.
const LINK_FIRST_BYTE: u8 = b'F';
const BACKLOG: i32 = 1_024;
/// After an accept that failed, mostly for want of file descriptors.
const BREATH: Duration = Duration::from_millis(100);

/// The sockets of a server, as far as others care: whether they are to close, and whether they did.
pub struct Listening {
    closing: watch::Sender<bool>,
    open: AtomicUsize,
}

impl Default for Listening {
    fn default() -> Listening {
        Listening { closing: watch::Sender::new(false), open: AtomicUsize::new(0) }
    }
}

impl Listening {
    pub fn close(&self) {
        self.closing.send_replace(true);
    }

    pub fn is_closed(&self) -> bool {
        self.open.load(SeqCst) == 0
    }
}

enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener, PathBuf),
}

/// Bind all addresses of `host:port`, or `unix:/path`; the port that was bound, 0 for a path.
pub fn listen(server: &Arc<Server>, address: &str) -> io::Result<u16> {
    let (bound, port) = match address.strip_prefix("unix:") {
        Some(path) => (vec![bind_unix(Path::new(path))?], 0),
        None => bind_tcp(address)?,
    };
    let _entered = handle().enter();
    for socket in bound {
        let door = match socket {
            Bound::Tcp(socket) => Door::Tcp(TcpListener::from_std(socket)?),
            Bound::Unix(socket, path) => Door::Unix(UnixListener::from_std(socket)?, path),
        };
        server.listening.open.fetch_add(1, SeqCst);
        handle().spawn(accept_all(server.clone(), door));
    }
    Ok(port)
}

fn bind_tcp(address: &str) -> io::Result<(Vec<Bound>, u16)> {
    let mut addresses: Vec<SocketAddr> = address.to_socket_addrs()?.collect();
    addresses.dedup();
    let mut bound = Vec::new();
    let mut port = 0;
    // A lone wildcard takes both families; of several addresses each takes its own.
    let dual = addresses.len() == 1;
    for mut address in addresses {
        if port != 0 {
            address.set_port(port);
        }
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_nonblocking(true)?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(!dual)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        let socket: std::net::TcpListener = socket.into();
        port = socket.local_addr()?.port();
        bound.push(Bound::Tcp(socket));
    }
    if bound.is_empty() {
        return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, format!("{address} names no address")));
    }
    Ok((bound, port))
}

/// A socket file that nobody listens on is left over from a process that is gone.
fn bind_unix(path: &Path) -> io::Result<Bound> {
    let is_socket = path.symlink_metadata().is_ok_and(|data| data.file_type().is_socket());
    if is_socket && std::os::unix::net::UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let socket = std::os::unix::net::UnixListener::bind(path)?;
    socket.set_nonblocking(true)?;
    Ok(Bound::Unix(socket, path.to_owned()))
}

enum Door {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Door {
    async fn accept(&self, server: &Arc<Server>) -> io::Result<()> {
        match self {
            Door::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // Only a socket that is already dead refuses it.
                let _ = stream.set_nodelay(true);
                take_in(server, Socket::Tcp(stream), Peer::tcp(address));
            }
            Door::Unix(listener, _) => {
                take_in(server, Socket::Unix(listener.accept().await?.0), Peer::unix())
            }
        }
        Ok(())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if let Door::Unix(_, path) = self {
            // Somebody may have cleared the directory.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Until the server drains; then what is waiting in the backlog is still taken, so that no call in it is lost.
async fn accept_all(server: Arc<Server>, door: Door) {
    let mut closing = server.listening.closing.subscribe();
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = door.accept(&server) => accepted,
            // An error would mean that the server is gone, and it is held here.
            _ = closing.wait_for(|closing| *closing) => break,
        };
        if let Err(error) = accepted {
            server.notices.note("accept_failed", &error.to_string());
            tokio::time::sleep(BREATH).await;
        }
    }
    drop(door);
    server.listening.open.fetch_sub(1, SeqCst);
}

/// Serve what came in, and give its room back.
fn take_in(server: &Arc<Server>, socket: Socket, peer: Peer) {
    if !server.connections_room.try_take(1) {
        server.notices.note("too_many_connections", &peer.address);
        return;
    }
    let server = server.clone();
    handle().spawn(async move {
        serve(&server, socket, peer).await;
        server.connections_room.give_back(1);
    });
}

async fn serve(server: &Arc<Server>, socket: Socket, peer: Peer) {
    // Nobody waits for ever for a peer that never says a word.
    let patience = server.options.stall;
    let Some(tls) = &server.tls else {
        return match timeout(patience, socket.first_byte()).await {
            Ok(Ok(Some(LINK_FIRST_BYTE))) if server.links.is_some() => serve_link(server, socket, peer).await,
            Ok(Ok(Some(_))) => serve_grpc(server, socket, peer).await,
            _ => server.counters.failed_handshakes.add(1),
        };
    };
    let Ok(Ok(stream)) = timeout(patience, tls.accept(socket)).await else {
        server.counters.failed_handshakes.add(1);
        server.notices.note("tls_failed", &peer.address);
        return;
    };
    let session = stream.get_ref().1;
    let peer = match session.peer_certificates().and_then(|chain| names(chain.first()?)) {
        Some(names) => Peer { tls_common_name: names.common_name, tls_sans: names.sans, ..peer },
        None => peer,
    };
    if session.alpn_protocol() == Some(ALPN_LINK) {
        serve_link(server, stream, peer).await;
    } else {
        serve_grpc(server, stream, peer).await;
    }
}

async fn serve_link<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(server: &Server, io: T, peer: Peer) {
    if let Some(hub) = &server.links {
        link::dial::serve(hub.clone(), io, peer).await;
    }
}

async fn serve_grpc<T: AsyncRead + AsyncWrite + Unpin>(server: &Arc<Server>, io: T, peer: Peer) {
    let conn = server.add_connection(peer);
    connection::serve(io, conn.clone()).await;
    server.remove_connection(&conn);
}
