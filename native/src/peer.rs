//! Who is at the other end of a connection: its address as gRPC spells it, and what a verified certificate says.

use std::net::SocketAddr;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    /// `ipv4:127.0.0.1:1234`, `ipv6:[::1]:1234` or `unix:`.
    pub address: String,
    /// Of a client certificate that was verified; without one there is neither name.
    pub tls_common_name: Option<String>,
    pub tls_sans: Vec<String>,
}

impl Peer {
    pub fn tcp(address: SocketAddr) -> Peer {
        // Somebody who came over IPv4 to a socket of both kinds is still somebody who came over IPv4.
        let address = SocketAddr::new(address.ip().to_canonical(), address.port());
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        Peer { address: format!("{family}:{address}"), ..Peer::default() }
    }

    pub fn unix() -> Peer {
        Peer { address: "unix:".to_owned(), ..Peer::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_spelled_as_grpc_does() {
        let spelled = |text: &str| Peer::tcp(text.parse().unwrap()).address;
        assert_eq!(spelled("127.0.0.1:80"), "ipv4:127.0.0.1:80");
        assert_eq!(spelled("[::1]:80"), "ipv6:[::1]:80");
        assert_eq!(spelled("[::ffff:10.0.0.1]:80"), "ipv4:10.0.0.1:80");
        assert_eq!(Peer::unix().address, "unix:");
    }
}
