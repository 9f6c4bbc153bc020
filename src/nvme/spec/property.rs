//! Controller properties (Base §3.1.3): registers on PCIe, reached over fabrics by Property Get and Property Set.

use crate::util::open_enum;

open_enum! {
    /// Property offsets (Base §3.1.3).
    pub enum Property: u32 {
        /// Controller Capabilities, 8 bytes.
        CAP = 0x00,
        /// Version, 4 bytes.
        VS = 0x08,
        /// Controller Configuration, 4 bytes.
        CC = 0x14,
        /// Controller Status, 4 bytes.
        CSTS = 0x1c,
        /// NVM Subsystem Reset, 4 bytes.
        NSSR = 0x20,
        /// Controller Ready Timeouts, 4 bytes.
        CRTO = 0x68,
    }
}

/// Version 2.0.0 as in the VS property and the VER field of Identify Controller (Base §3.1.3.2).
pub const VERSION_2_0: u32 = 0x0002_0000;

/// Controller Capabilities (Base §3.1.3.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cap(pub u64);

impl Cap {
    /// Contiguous Queues Required; set over fabrics.
    pub const CQR: u64 = 1 << 16;
    /// NVM Subsystem Reset Supported.
    pub const NSSRS: u64 = 1 << 36;
    /// Command Sets Supported: the NVM Command Set.
    pub const CSS_NVM: u64 = 1 << 37;
    /// Command Sets Supported: one or more I/O command sets, chosen by CC.CSS = 110b.
    pub const CSS_IOCS: u64 = 1 << 43;
    /// Controller Ready With Media Support; set by controllers compliant with revision 2.0.
    pub const CRWMS: u64 = 1 << 59;
    /// Controller Ready Independent of Media Support.
    pub const CRIMS: u64 = 1 << 60;

    /// Maximum Queue Entries Supported, zero's-based.
    pub const fn mqes_z(self) -> u16 {
        self.0 as u16
    }

    /// Timeout for CSTS.RDY to change, in units of 500 ms.
    pub const fn to(self) -> u8 {
        (self.0 >> 24) as u8
    }

    /// Memory Page Size Minimum: 2 to the power of (12 + this) bytes.
    pub const fn mpsmin(self) -> u8 {
        (self.0 >> 48) as u8 & 0xf
    }

    /// Doorbell stride: 2 to the power of (2 + this) bytes.
    pub const fn dstrd(self) -> u8 {
        (self.0 >> 32) as u8 & 0xf
    }

    /// Capabilities of a fabrics controller: MQES, TO in 500 ms units, and the flag bits given.
    pub const fn fabrics(mqes_z: u16, to: u8, flags: u64) -> Self {
        Self(mqes_z as u64 | (to as u64) << 24 | flags)
    }
}

/// Controller Configuration (Base §3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// Enable.
    pub const EN: u32 = 1;
    /// Bits that are not reserved in revision 2.0: EN, CSS, MPS, AMS, SHN, IOSQES, IOCQES, CRIME.
    pub const DEFINED: u32 = 0x01ff_fff1;

    /// Whether the controller is enabled.
    pub const fn enabled(self) -> bool {
        self.0 & Self::EN != 0
    }

    /// I/O Command Set Selected: 000b NVM, 110b all supported, 111b admin only.
    pub const fn css(self) -> u8 {
        (self.0 >> 4) as u8 & 7
    }

    /// Memory Page Size: 2 to the power of (12 + this) bytes.
    pub const fn mps(self) -> u8 {
        (self.0 >> 7) as u8 & 0xf
    }

    /// Arbitration mechanism selected.
    pub const fn ams(self) -> u8 {
        (self.0 >> 11) as u8 & 7
    }

    /// Shutdown notification: 00b none, 01b normal, 10b abrupt.
    pub const fn shn(self) -> u8 {
        (self.0 >> 14) as u8 & 3
    }

    /// I/O submission queue entry size as a power of two.
    pub const fn iosqes(self) -> u8 {
        (self.0 >> 16) as u8 & 0xf
    }

    /// I/O completion queue entry size as a power of two.
    pub const fn iocqes(self) -> u8 {
        (self.0 >> 20) as u8 & 0xf
    }

    /// Controller Ready Independent of Media Enable.
    pub const fn crime(self) -> bool {
        self.0 & 1 << 24 != 0
    }
}

/// Controller Status (Base §3.1.3.6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Csts(pub u32);

impl Csts {
    /// Ready.
    pub const RDY: u32 = 1;
    /// Controller Fatal Status.
    pub const CFS: u32 = 1 << 1;
    /// Shutdown status: processing.
    pub const SHST_OCCURRING: u32 = 1 << 2;
    /// Shutdown status: complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;

    /// Whether the controller is ready.
    pub const fn ready(self) -> bool {
        self.0 & Self::RDY != 0
    }

    /// Shutdown status field: 0 normal operation, 1 processing, 2 complete.
    pub const fn shst(self) -> u8 {
        (self.0 >> 2) as u8 & 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cc_fields_as_linux_writes_them() {
        // EN, CSS NVM, MPS 4 KiB, round robin, no shutdown, IOSQES 6, IOCQES 4.
        let cc = Cc(0x0046_0001);
        assert!(cc.enabled() && !cc.crime());
        assert_eq!((cc.css(), cc.mps(), cc.ams(), cc.shn()), (0, 0, 0, 0));
        assert_eq!((cc.iosqes(), cc.iocqes()), (6, 4));
        assert_eq!(Cc(cc.0 | 0x4000).shn(), 1);
        assert_eq!(cc.0 & !Cc::DEFINED, 0);
    }

    #[test]
    fn cap_fields() {
        let cap = Cap::fabrics(127, 15, Cap::CQR | Cap::CSS_NVM | Cap::CRWMS);
        assert_eq!(cap.0, 0x0800_0020_0f01_007f);
        assert_eq!((cap.mqes_z(), cap.to(), cap.mpsmin(), cap.dstrd()), (127, 15, 0, 0));
    }
}
