//! Sockets as plain descriptors, before they belong to a ring.
#![expect(unsafe_code, reason = "socket options that the standard library does not set")]

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::predecessor::outlast;
use super::tx::TxBatch;

/// A listening socket with SO_REUSEADDR, so that a restart binds at once, and a deep accept queue, so that a burst of
/// connections is not dropped. For control threads: it waits for a killed predecessor to let go of the port.
///
/// # Errors
/// What bind(2) or listen(2) says.
pub fn listen(address: SocketAddr) -> io::Result<(OwnedFd, SocketAddr)> {
    let listener = outlast(libc::EADDRINUSE, || TcpListener::bind(address))?;
    let bound = listener.local_addr()?;
    // SAFETY: a listening socket we own; a second listen(2) only changes the length of its queue.
    if unsafe { libc::listen(listener.as_raw_fd(), 4096) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok((listener.into(), bound))
}

/// An unconnected stream socket of the address's family.
///
/// # Errors
/// What socket(2) says.
pub fn stream(address: SocketAddr) -> io::Result<OwnedFd> {
    let family = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    // SAFETY: no pointers; the result is checked.
    let fd = unsafe { libc::socket(family, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a fresh descriptor that nobody else knows.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends small answers at once instead of waiting for more.
///
/// # Errors
/// What setsockopt(2) says.
pub fn no_delay(fd: &OwnedFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: `on` is valid for reads of the size given.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_NODELAY,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Ends both directions of a connected socket, or only sending. What was sent before still goes out, then a FIN.
///
/// # Errors
/// What shutdown(2) says: ENOTCONN if the peer has reset the connection.
pub fn shut_down(fd: &OwnedFd, sending_only: bool) -> io::Result<()> {
    let how = if sending_only { libc::SHUT_WR } else { libc::SHUT_RDWR };
    // SAFETY: no pointers; the result is checked.
    if unsafe { libc::shutdown(fd.as_raw_fd(), how) } != 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Takes bytes that are there, at most as many as fit: as recv(2), negative numbers are errors.
pub fn receive(fd: &OwnedFd, into: &mut [u8]) -> i32 {
    // SAFETY: `into` may be written for its whole length.
    let got = unsafe { libc::recv(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), libc::MSG_DONTWAIT) };
    result(got)
}

/// Hands over as much of a batch as the socket takes at once: as sendmsg(2), negative numbers are errors. The batch must have
/// been described.
pub fn send(fd: &OwnedFd, batch: &TxBatch) -> i32 {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the message's entries point into the batch, which is borrowed, and nothing was pushed since (see its contract).
    let sent = unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const batch.message, flags) };
    result(sent)
}

fn result(returned: isize) -> i32 {
    if returned >= 0 { returned as i32 } else { -io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO) }
}

/// The address of the other end.
///
/// # Errors
/// What getpeername(2) says: ENOTCONN if the peer has gone already.
pub fn peer(fd: &OwnedFd) -> io::Result<SocketAddr> {
    std::net::TcpStream::from(fd.try_clone()?).peer_addr()
}

/// The address of this end.
///
/// # Errors
/// What getsockname(2) says.
pub fn local(fd: &OwnedFd) -> io::Result<SocketAddr> {
    std::net::TcpStream::from(fd.try_clone()?).local_addr()
}

/// What another thread rings to wake a sleeping reactor.
#[derive(Debug)]
pub enum Doorbell {
    /// For a ring of the kernel.
    Eventfd(Eventfd),
    /// For a simulated backend, which looks at the flag and lowers it.
    Simulated(Arc<AtomicBool>),
}

impl Doorbell {
    /// Rings it: once is as good as several times.
    pub fn ring(&self) {
        match self {
            Doorbell::Eventfd(eventfd) => eventfd.ring(),
            Doorbell::Simulated(rung) => rung.store(true, Ordering::Release),
        }
    }

    /// Another hold on the same doorbell.
    ///
    /// # Errors
    /// What dup(2) says.
    pub fn second(&self) -> io::Result<Doorbell> {
        Ok(match self {
            Doorbell::Eventfd(eventfd) => Doorbell::Eventfd(Eventfd(eventfd.0.try_clone()?)),
            Doorbell::Simulated(rung) => Doorbell::Simulated(rung.clone()),
        })
    }

    /// A second descriptor of the same doorbell: for the ring that reads it, and for the kernel to ring.
    ///
    /// # Errors
    /// What dup(2) says; a simulated doorbell has no descriptor.
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        match self {
            Doorbell::Eventfd(eventfd) => eventfd.0.try_clone(),
            Doorbell::Simulated(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

/// A counter of the kernel that a read waits for.
#[derive(Debug)]
pub struct Eventfd(OwnedFd);

impl Eventfd {
    /// A new one, not rung.
    ///
    /// # Errors
    /// What eventfd(2) says.
    pub fn new() -> io::Result<Eventfd> {
        // SAFETY: no pointers; the result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a fresh descriptor that nobody else knows.
        Ok(Eventfd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// Waits until it is rung.
    ///
    /// # Errors
    /// What read(2) says.
    pub fn wait(&self) -> io::Result<()> {
        loop {
            let mut count = 0_u64;
            // SAFETY: eight writable bytes, as eventfd(2) asks.
            match unsafe { libc::read(self.0.as_raw_fd(), (&raw mut count).cast(), 8) } {
                8 => return Ok(()),
                _ => match io::Error::last_os_error() {
                    error if error.kind() == io::ErrorKind::Interrupted => {}
                    error => return Err(error),
                },
            }
        }
    }

    /// For the kernel to ring.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Adds one. A counter at its maximum is rung already, so the result does not matter.
    pub fn ring(&self) {
        let one: u64 = 1;
        // SAFETY: eight readable bytes, as eventfd(2) asks.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}
