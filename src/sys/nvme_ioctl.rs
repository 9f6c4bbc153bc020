//! Admin commands by way of the kernel's NVMe driver: ioctls of `/dev/nvmeN` (linux/nvme_ioctl.h).
//!
//! For control threads: they block until the controller has answered.
#![expect(unsafe_code, reason = "ioctls that name memory of this process")]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

/// `_IOWR('N', 0x47, struct nvme_passthru_cmd64)`.
const ADMIN64: libc::c_ulong = 0xc050_4e47;
/// `_IO('N', 0x44)`.
const RESET: libc::c_ulong = 0x4e44;
/// `_IO('N', 0x46)`.
const RESCAN: libc::c_ulong = 0x4e46;

/// `struct nvme_passthru_cmd64`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved2: u16,
    nsid: u32,
    cdw2: u32,
    cdw3: u32,
    metadata: u64,
    address: u64,
    metadata_len: u32,
    data_len: u32,
    cdw10_to_15: [u32; 6],
    timeout_ms: u32,
    reserved68: u32,
    result: u64,
}

const _: () = assert!(size_of::<Passthrough>() == 80);
const _: () = assert!(std::mem::offset_of!(Passthrough, cdw10_to_15) == 40);
const _: () = assert!(std::mem::offset_of!(Passthrough, result) == 72);

/// An admin command whose data, if there is any, goes to the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AdminCommand {
    /// Opcode.
    pub opcode: u8,
    /// Namespace identifier.
    pub nsid: u32,
    /// Dwords 10 to 15.
    pub cdw10_to_15: [u32; 6],
}

/// The character device of a controller that the kernel's driver has.
#[derive(Debug)]
pub struct Controller(File);

impl Controller {
    /// Opens it, as `/dev/nvme0`.
    ///
    /// # Errors
    /// What open(2) says: EACCES for who is not root, EWOULDBLOCK for a controller that is not live.
    pub fn open(path: &Path) -> io::Result<Controller> {
        Ok(Controller(OpenOptions::new().read(true).open(path)?))
    }

    /// Has the controller carry out a command, whose data fills `data`: the status field without the phase tag, and the data.
    ///
    /// # Errors
    /// What ioctl(2) says: EACCES or EPERM without CAP_SYS_ADMIN, EINTR if the controller was reset meanwhile, ETIME for no answer in time.
    pub fn admin(&self, command: AdminCommand, mut data: Vec<u8>, limit: Duration) -> io::Result<(u16, Vec<u8>)> {
        let mut passed = Passthrough {
            opcode: command.opcode,
            nsid: command.nsid,
            address: data.as_mut_ptr().expose_provenance() as u64,
            data_len: u32::try_from(data.len()).map_err(io::Error::other)?,
            cdw10_to_15: command.cdw10_to_15,
            timeout_ms: u32::try_from(limit.as_millis()).unwrap_or(u32::MAX),
            ..Passthrough::default()
        };
        if data.is_empty() {
            passed.address = 0;
        }
        // SAFETY: the structure is the one of this ioctl, and the memory it names is `data`, all of which may be written; both live until the
        // call returns, after which the kernel writes to neither: it copies out of memory of its own, or has mapped these pages until then.
        let status = unsafe { libc::ioctl(self.0.as_raw_fd(), ADMIN64, &raw mut passed) };
        match u16::try_from(status) {
            Ok(status) => Ok((status, data)),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Resets the controller, and waits until it is back.
    ///
    /// # Errors
    /// What ioctl(2) says: EACCES without CAP_SYS_ADMIN, and whatever keeps the controller from coming back.
    pub fn reset(&self) -> io::Result<()> {
        self.plain(RESET)
    }

    /// Has the driver look at the namespaces again.
    ///
    /// # Errors
    /// What ioctl(2) says: EACCES without CAP_SYS_ADMIN.
    pub fn rescan(&self) -> io::Result<()> {
        self.plain(RESCAN)
    }

    fn plain(&self, number: libc::c_ulong) -> io::Result<()> {
        // SAFETY: an ioctl without an argument.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_controller_says_so() {
        let device = Controller::open(Path::new("/dev/null")).unwrap();
        let refused = |error: io::Error| error.raw_os_error();
        let answer = device.admin(AdminCommand::default(), vec![7; 512], Duration::from_secs(1));
        assert_eq!(answer.map_err(refused), Err(Some(libc::ENOTTY)));
        assert_eq!(device.reset().map_err(refused), Err(Some(libc::ENOTTY)));
        assert_eq!(device.rescan().map_err(refused), Err(Some(libc::ENOTTY)));
        let missing = Controller::open(Path::new("/dev/nvme-none")).unwrap_err();
        assert_eq!(missing.kind(), io::ErrorKind::NotFound);
    }
}
