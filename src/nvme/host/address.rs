//! Where a remote namespace is, as text.

use std::fmt;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::str::FromStr;

use crate::nvme::spec::{NQN_MAX_LEN, NSID_BROADCAST};

/// Port of NVMe/TCP I/O controllers (TCP §3.1.2); discovery controllers have 8009.
pub const DEFAULT_PORT: u16 = 4420;

/// `nvme-tcp://HOST[:PORT]/NQN[?nsid=N]`, IPv6 addresses in brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Name or address, IPv6 without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Subsystem.
    pub nqn: String,
    /// Namespace, 1 to FFFFFFFEh.
    pub nsid: u32,
}

/// What is wrong with the text of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Another form.
    #[error("write nvme-tcp://HOST:PORT/NQN?nsid=1")]
    Form,
    /// An IPv6 address without brackets, or with one bracket.
    #[error("write an IPv6 address in brackets: nvme-tcp://[::1]:4420/NQN")]
    Brackets,
    /// Not a port.
    #[error("\"{0}\" is not a port: write 1 to 65535")]
    Port(String),
    /// Not an NQN.
    #[error("\"{0}\" is not an NQN: write nqn.YYYY-MM.REVERSED-DOMAIN:NAME, at most {NQN_MAX_LEN} bytes")]
    Nqn(String),
    /// Not a namespace identifier.
    #[error("\"{0}\" is not a namespace identifier: write 1 to 4294967294")]
    Nsid(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Address, AddressError> {
        let rest = text.strip_prefix("nvme-tcp://").ok_or(AddressError::Form)?;
        let (authority, path) = rest.split_once('/').ok_or(AddressError::Form)?;
        let (host, port) = match authority.strip_prefix('[') {
            Some(inner) => {
                let (host, after) = inner.split_once(']').ok_or(AddressError::Brackets)?;
                match after {
                    "" => (host, None),
                    _ => (host, Some(after.strip_prefix(':').ok_or(AddressError::Form)?)),
                }
            }
            None => match authority.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(AddressError::Brackets),
                Some((host, port)) => (host, Some(port)),
                None => (authority, None),
            },
        };
        if host.is_empty() || host.contains(['[', ']']) {
            return Err(AddressError::Form);
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(port) => port.parse().ok().filter(|p| *p != 0).ok_or_else(|| AddressError::Port(port.to_owned()))?,
        };
        let (nqn, nsid) = match path.split_once('?') {
            None => (path, "1"),
            Some((nqn, query)) => (nqn, query.strip_prefix("nsid=").ok_or(AddressError::Form)?),
        };
        if !nqn.starts_with("nqn.") || nqn.len() > NQN_MAX_LEN {
            return Err(AddressError::Nqn(nqn.to_owned()));
        }
        let nsid = nsid
            .parse()
            .ok()
            .filter(|n| (1..NSID_BROADCAST).contains(n))
            .ok_or_else(|| AddressError::Nsid(nsid.to_owned()))?;
        Ok(Address { host: host.to_owned(), port, nqn: nqn.to_owned(), nsid })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Address { host, port, nqn, nsid } = self;
        if host.contains(':') {
            write!(f, "nvme-tcp://[{host}]:{port}/{nqn}?nsid={nsid}")
        } else {
            write!(f, "nvme-tcp://{host}:{port}/{nqn}?nsid={nsid}")
        }
    }
}

impl Address {
    /// The first address of the host; asks the system's resolver and so belongs on a control thread.
    ///
    /// # Errors
    /// What the resolver says.
    pub fn resolve(&self) -> io::Result<SocketAddr> {
        (self.host.as_str(), self.port)
            .to_socket_addrs()?
            .next()
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NQN: &str = "nqn.2026-11.io.reactor:vol0";

    #[test]
    fn addresses_read_and_print() {
        for (text, host, port, nsid) in [
            (format!("nvme-tcp://10.0.0.1:4421/{NQN}?nsid=7"), "10.0.0.1", 4421, 7),
            (format!("nvme-tcp://storage.example/{NQN}"), "storage.example", 4420, 1),
            (format!("nvme-tcp://[::1]:8009/{NQN}"), "::1", 8009, 1),
            (format!("nvme-tcp://[fe80::1]/{NQN}?nsid=4294967294"), "fe80::1", 4420, 0xffff_fffe),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address, Address { host: host.to_owned(), port, nqn: NQN.to_owned(), nsid }, "{text}");
            assert_eq!(address.to_string().parse(), Ok(address));
        }
        let here: Address = format!("nvme-tcp://[::1]:5000/{NQN}").parse().unwrap();
        assert_eq!(here.resolve().unwrap(), "[::1]:5000".parse().unwrap());
    }

    #[test]
    fn what_is_wrong_is_named() {
        let wrong = |text: String| text.parse::<Address>().unwrap_err();
        assert_eq!(wrong(format!("nvme://h/{NQN}")), AddressError::Form);
        assert_eq!(wrong("nvme-tcp://h:1".to_owned()), AddressError::Form);
        assert_eq!(wrong(format!("nvme-tcp://:4420/{NQN}")), AddressError::Form);
        assert_eq!(wrong(format!("nvme-tcp://[::1]4420/{NQN}")), AddressError::Form);
        assert_eq!(wrong(format!("nvme-tcp://h/{NQN}?ns=1")), AddressError::Form);
        assert_eq!(wrong(format!("nvme-tcp://::1:4420/{NQN}")), AddressError::Brackets);
        assert_eq!(wrong(format!("nvme-tcp://[::1:4420/{NQN}")), AddressError::Brackets);
        assert_eq!(wrong(format!("nvme-tcp://h:0/{NQN}")), AddressError::Port("0".to_owned()));
        assert_eq!(wrong(format!("nvme-tcp://h:65536/{NQN}")), AddressError::Port("65536".to_owned()));
        assert_eq!(wrong("nvme-tcp://h/iqn.x".to_owned()), AddressError::Nqn("iqn.x".to_owned()));
        let long = format!("nqn.{}", "x".repeat(NQN_MAX_LEN));
        assert_eq!(wrong(format!("nvme-tcp://h/{long}")), AddressError::Nqn(long));
        assert_eq!(wrong(format!("nvme-tcp://h/{NQN}?nsid=0")), AddressError::Nsid("0".to_owned()));
        assert_eq!(wrong(format!("nvme-tcp://h/{NQN}?nsid=4294967295")), AddressError::Nsid("4294967295".to_owned()));
    }
}
