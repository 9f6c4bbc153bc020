//! Wire types: the Basic Header Segments of all PDUs, big-endian (RFC 7143 §11).
//!
//! Every header is 48 bytes, has no padding and needs no alignment; the segments behind it (additional headers, data) are bytes.
//!
//! ```text
//!   code      opcodes, reasons, functions, outcomes, flags
//!   request   what initiators send
//!   response  what targets send
//!   ahs       additional header segments
//! ```

mod ahs;
mod code;
mod request;
mod response;

use core::mem::size_of;

use zerocopy::big_endian::U32;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use ahs::{AHS_MAX, Ahs, BadAhs, CDB_MAX};
pub use code::*;
pub use request::*;
pub use response::*;

/// The bytes of a Basic Header Segment.
pub type Header = [u8; BHS_LEN];

/// The 24 bits of DataSegmentLength.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct U24([u8; 3]);

impl U24 {
    /// The number, of which 24 bits are kept.
    pub const fn new(value: u32) -> U24 {
        let [_, a, b, c] = value.to_be_bytes();
        U24([a, b, c])
    }

    /// The number.
    pub const fn get(self) -> u32 {
        let [a, b, c] = self.0;
        u32::from_be_bytes([0, a, b, c])
    }
}

impl core::fmt::Debug for U24 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}", self.get())
    }
}

/// Defines a header of 48 bytes and how it is read and written.
macro_rules! header {
    ( $(#[$outer:meta])* pub struct $name:ident { $( $(#[$inner:meta])* pub $field:ident: $kind:ty, )* } ) => {
        $(#[$outer])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
        #[repr(C)]
        pub struct $name {
            $( $(#[$inner])* pub $field: $kind, )*
        }

        const _: () = assert!(size_of::<$name>() == BHS_LEN);

        impl $name {
            /// Reads the header.
            pub fn read(header: &Header) -> $name {
                zerocopy::transmute!(*header)
            }

            /// The bytes of the header.
            pub fn to_bytes(&self) -> Header {
                zerocopy::transmute!(*self)
            }
        }
    };
}

use header;

header! {
    /// What all headers have in common (RFC 7143 §11.2.1).
    pub struct Bhs {
        /// Opcode and immediate bit.
        pub opcode: u8,
        /// Flags of the opcode.
        pub flags: u8,
        /// Of the opcode.
        pub specific2: [u8; 2],
        /// Length of the additional header segments, in words of four bytes.
        pub ahs_words: u8,
        /// DataSegmentLength.
        pub data_len: U24,
        /// LUN or of the opcode.
        pub lun: [u8; 8],
        /// Initiator Task Tag.
        pub itt: U32,
        /// Of the opcode.
        pub specific20: [u8; 28],
    }
}

impl Bhs {
    /// The opcode without the immediate bit.
    pub const fn kind(&self) -> Opcode {
        Opcode(self.opcode & OPCODE_MASK)
    }

    /// Whether the command is for immediate delivery.
    pub const fn immediate(&self) -> bool {
        self.opcode & OPCODE_IMMEDIATE != 0
    }
}

/// Bytes of padding behind `len` bytes of data.
pub const fn padding(len: u32) -> u32 {
    len.wrapping_neg() & 3
}
