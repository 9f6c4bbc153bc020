//! Wire types of the NVM Express specifications, shared by the target, the host and the PCIe driver.
//!
//! Citations: *Base* is the NVM Express Base Specification 2.0, *NVM* the NVM Command Set Specification 1.0, *ZNS* the Zoned
//! Namespace Command Set Specification 1.1, *PCIe* the NVMe over PCIe Transport Specification 1.0. Every structure is little-endian, has no padding, needs no alignment and can be read from or written to bytes with the
//! `zerocopy` traits it derives; its size (and the offsets a mistake would hide in) are checked at compile time.
//! Fields named `..._z` are zero's-based: the value 0 means one. Values a peer may send are open enumerations.
//!
//! ```text
//!   command     submission and completion queue entries, PRPs, SGLs        opcode    admin, NVM, zoned, fabrics opcodes
//!   status      status codes and the status field                          property  CAP, VS, CC, CSTS, CRTO
//!   identify    controller and namespace data structures                   register  AQA, memory buffer, doorbells
//!   namespace   formats, identifiers and lists as Identify tells them      log       log pages
//!   feature     feature identifiers and values, asynchronous events        admin     queues, Abort, Format NVM
//!   nvm         I/O command fields, ranges                                 zoned     zones and their commands
//!   fabrics     Connect, Property Get/Set, discovery log                   name      NQNs and UUIDs as text
//! ```

mod admin;
mod command;
mod fabrics;
mod feature;
mod identify;
mod log;
mod name;
mod namespace;
mod nvm;
mod opcode;
mod property;
mod register;
mod status;
mod zoned;

pub use admin::*;
pub use command::*;
pub use fabrics::*;
pub use feature::*;
pub use identify::*;
pub use log::*;
pub use name::*;
pub use namespace::*;
pub use nvm::*;
pub use opcode::*;
pub use property::*;
pub use register::*;
pub use status::*;
pub use zoned::*;

/// Namespace identifier that addresses every active namespace (Base §3.2.1.2).
pub const NSID_BROADCAST: u32 = 0xffff_ffff;

/// Length of the NQN fields of Connect, Identify and the discovery log, in bytes; the longest NQN is 223 bytes and the
/// rest is NUL (Base §4.5).
pub const NQN_FIELD_LEN: usize = 256;

/// Longest NVMe Qualified Name, in bytes without the terminating NUL (Base §4.5).
pub const NQN_MAX_LEN: usize = 223;

/// Well-known NQN of the discovery subsystem (Base §4.5).
pub const DISCOVERY_NQN: &str = "nqn.2014-08.org.nvmexpress.discovery";

/// Writes ASCII text left-justified into a fixed field and pads it with `pad` (spaces in Identify, NUL in NQN fields).
/// What does not fit is cut.
pub fn put_text(field: &mut [u8], text: &str, pad: u8) {
    let len = text.len().min(field.len());
    field[..len].copy_from_slice(&text.as_bytes()[..len]);
    field[len..].fill(pad);
}

/// The text of a field that spaces pad, as those of Identify data.
pub fn padded_text(field: &[u8]) -> String {
    String::from_utf8_lossy(field).trim().to_owned()
}

/// The text of a NUL-terminated field, or `None` when there is no NUL, nothing before it, or it is not UTF-8.
pub fn nul_text(field: &[u8]) -> Option<&str> {
    let len = field.iter().position(|&b| b == 0)?;
    if len == 0 {
        return None;
    }
    core::str::from_utf8(&field[..len]).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fields_pad_cut_and_read_back() {
        let mut field = [0xffu8; 8];
        put_text(&mut field, "abc", b' ');
        assert_eq!(&field, b"abc     ");
        put_text(&mut field, "abcdefghij", 0);
        assert_eq!(&field, b"abcdefgh");
        assert_eq!(nul_text(&field), None);
        put_text(&mut field, "nqn", 0);
        assert_eq!(nul_text(&field), Some("nqn"));
        assert_eq!(nul_text(&[0u8; 4]), None);
        assert_eq!(nul_text(&[0xff, 0]), None);
    }
}
