//! Controller properties (Base §3.1.3) that every transport has: registers on PCIe, reached over fabrics by Property Get and
//! Property Set. What only memory-based transports have is typed in `register`.

use crate::util::open_enum;

open_enum! {
    /// Property offsets (Base §3.1.3).
    pub enum Property: u32 {
        /// Controller Capabilities, 8 bytes.
        CAP = 0x00,
        /// Version, 4 bytes.
        VS = 0x08,
        /// Interrupt Mask Set, 4 bytes; not with MSI-X (memory-based transports only).
        INTMS = 0x0c,
        /// Interrupt Mask Clear, 4 bytes; not with MSI-X (memory-based transports only).
        INTMC = 0x10,
        /// Controller Configuration, 4 bytes.
        CC = 0x14,
        /// Controller Status, 4 bytes.
        CSTS = 0x1c,
        /// NVM Subsystem Reset, 4 bytes.
        NSSR = 0x20,
        /// Admin Queue Attributes, 4 bytes (memory-based transports only).
        AQA = 0x24,
        /// Admin Submission Queue Base Address, 8 bytes (memory-based transports only).
        ASQ = 0x28,
        /// Admin Completion Queue Base Address, 8 bytes (memory-based transports only).
        ACQ = 0x30,
        /// Controller Memory Buffer Location, 4 bytes (memory-based transports only).
        CMBLOC = 0x38,
        /// Controller Memory Buffer Size, 4 bytes (memory-based transports only).
        CMBSZ = 0x3c,
        /// Controller Memory Buffer Memory Space Control, 8 bytes (memory-based transports only).
        CMBMSC = 0x50,
        /// Controller Memory Buffer Status, 4 bytes (memory-based transports only).
        CMBSTS = 0x58,
        /// NVM Subsystem Shutdown, 4 bytes.
        NSSD = 0x64,
        /// Controller Ready Timeouts, 4 bytes.
        CRTO = 0x68,
    }
}

/// Version 2.0.0 as in the VS property and the VER field of Identify Controller (Base §3.1.3.2).
pub const VERSION_2_0: u32 = 0x0002_0000;

/// Value that, written to NSSR, resets the NVM subsystem: "NVMe" (Base §3.1.3.7).
pub const NSSR_RESET: u32 = 0x4e56_4d65;

/// Bytes of a memory page whose size field (MPSMIN, MPSMAX, MPS) is 0, as a power of two (Base §3.1.3.1).
pub const PAGE_SHIFT_BASE: u32 = 12;

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
    /// Command Sets Supported: no I/O command set.
    pub const CSS_NO_IO: u64 = 1 << 44;
    /// Persistent Memory Region Supported.
    pub const PMRS: u64 = 1 << 56;
    /// Controller Memory Buffer Supported: CMBMSC and CMBSTS exist.
    pub const CMBS: u64 = 1 << 57;
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

    /// Whether all of these flag bits are set.
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }

    /// Arbitration Mechanism Supported: bit 0 weighted round robin, bit 1 vendor specific.
    pub const fn ams(self) -> u8 {
        (self.0 >> 17) as u8 & 3
    }

    /// Command Sets Supported: bit 0 NVM, bit 6 one or more I/O command sets, bit 7 none.
    pub const fn css(self) -> u8 {
        (self.0 >> 37) as u8
    }

    /// Memory Page Size Minimum: 2 to the power of (12 + this) bytes.
    pub const fn mpsmin(self) -> u8 {
        (self.0 >> 48) as u8 & 0xf
    }

    /// Memory Page Size Maximum: 2 to the power of (12 + this) bytes.
    pub const fn mpsmax(self) -> u8 {
        (self.0 >> 52) as u8 & 0xf
    }

    /// Controller Ready Modes Supported: bit 0 with media, bit 1 independent of media.
    pub const fn crms(self) -> u8 {
        (self.0 >> 59) as u8 & 3
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

/// Controller Memory Buffer Location (Base §3.1.3.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CmbLocation(pub u32);

impl CmbLocation {
    /// A buffer in BAR `bir`, from `offset` on, in units of [`CmbSize::unit`].
    pub const fn new(bir: u8, offset: u32) -> Self {
        Self(bir as u32 & 7 | offset << 12)
    }

    /// The BAR that has it.
    pub const fn bir(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Where it begins in the BAR, in units of [`CmbSize::unit`].
    pub const fn offset(self) -> u32 {
        self.0 >> 12
    }
}

/// Controller Memory Buffer Size (Base §3.1.3.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CmbSize(pub u32);

impl CmbSize {
    /// Submission queues may lie in it.
    pub const SQS: u32 = 1;

    /// `size` pages of 4 KiB, with the flag bits given.
    pub const fn pages(size: u32, flags: u32) -> Self {
        Self(size << 12 | flags)
    }

    /// Whether all of these flag bits are set.
    pub const fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }

    /// Bytes of the unit of size and offset. From 7h on it is reserved; that of Fh would be 2^72.
    pub const fn unit(self) -> u64 {
        let shift = 12 + 4 * (self.0 >> 8 & 0xf);
        if shift < u64::BITS { 1 << shift } else { 0 }
    }

    /// Bytes, as many as 64 bits hold.
    pub const fn bytes(self) -> u64 {
        self.unit().saturating_mul((self.0 >> 12) as u64)
    }
}

/// Controller Memory Buffer Memory Space Control (Base §3.1.3.14).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CmbSpace(pub u64);

impl CmbSpace {
    /// Capabilities Registers Enabled: CMBLOC and CMBSZ say what there is.
    pub const CRE: u64 = 1;
    /// Controller Memory Space Enable: the controller takes addresses from the base on for its buffer's.
    pub const CMSE: u64 = 1 << 1;

    /// The buffer has the controller's addresses from `base`, a multiple of 4 KiB, on.
    pub const fn at(base: u64) -> Self {
        Self(base & !0xfff | Self::CRE | Self::CMSE)
    }

    /// Controller Base Address.
    pub const fn base(self) -> u64 {
        self.0 & !0xfff
    }

    /// Whether all of these flag bits are set.
    pub const fn has(self, flags: u64) -> bool {
        self.0 & flags == flags
    }
}

/// CMBSTS bit: the base address is none that the controller takes (Base §3.1.3.15).
pub const CMBSTS_BASE_INVALID: u32 = 1;

/// Controller Configuration (Base §3.1.3.5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cc(pub u32);

impl Cc {
    /// Enable.
    pub const EN: u32 = 1;
    /// I/O Command Set Selected: all that the controller supports (110b).
    pub const CSS_ALL: u32 = 6 << 4;
    /// Shutdown notification: normal.
    pub const SHN_NORMAL: u32 = 1 << 14;
    /// Shutdown notification: abrupt.
    pub const SHN_ABRUPT: u32 = 2 << 14;
    /// IOSQES and IOCQES for entries of 64 and 16 bytes.
    pub const ENTRY_SIZES: u32 = 6 << 16 | 4 << 20;
    /// Controller Ready Independent of Media Enable.
    pub const CRIME: u32 = 1 << 24;
    /// Bits that are not reserved in revision 2.0: EN, CSS, MPS, AMS, SHN, IOSQES, IOCQES, CRIME.
    pub const DEFINED: u32 = 0x01ff_fff1;

    /// An enabled controller with round robin arbitration, entries of 64 and 16 bytes, pages of 2 to the power of (12 + `mps`)
    /// bytes (at most 15), and flag bits.
    pub const fn enable(mps: u8, flags: u32) -> Self {
        Self(Self::EN | (mps as u32 & 0xf) << 7 | Self::ENTRY_SIZES | flags)
    }

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
        self.0 & Self::CRIME != 0
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
    /// NVM Subsystem Reset Occurred.
    pub const NSSRO: u32 = 1 << 4;
    /// Processing Paused.
    pub const PP: u32 = 1 << 5;

    /// Whether a read found nobody: all bits set is what a bus answers for a device that is gone, and no status a controller
    /// can have, since most of them are reserved.
    pub const fn gone(self) -> bool {
        self.0 == u32::MAX
    }

    /// Whether the controller has failed and needs a reset.
    pub const fn fatal(self) -> bool {
        self.0 & Self::CFS != 0
    }

    /// Whether the controller is ready.
    pub const fn ready(self) -> bool {
        self.0 & Self::RDY != 0
    }

    /// Shutdown status field: 0 normal operation, 1 processing, 2 complete.
    pub const fn shst(self) -> u8 {
        (self.0 >> 2) as u8 & 3
    }
}

/// Controller Ready Timeouts (Base §3.1.3.21).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Crto(pub u32);

impl Crto {
    /// Controller Ready With Media Timeout in units of 500 ms.
    pub const fn crwmt(self) -> u16 {
        self.0 as u16
    }

    /// Controller Ready Independent of Media Timeout in units of 500 ms.
    pub const fn crimt(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// How long CSTS.RDY may take to become 1, in milliseconds: CAP.TO, which is 8 bits wide, or CRTO where the controller has it
/// and it says more (Base §3.1.3.21). CRTO counts with media; [`Cc::CRIME`] is the other mode.
pub const fn ready_timeout_ms(cap: Cap, crto: Crto) -> u64 {
    let (to, crwmt) = (cap.to() as u64, if cap.crms() != 0 { crto.crwmt() as u64 } else { 0 });
    (if to > crwmt { to } else { crwmt }) * 500
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

    #[test]
    fn cc_for_a_memory_based_controller() {
        assert_eq!(Cc::enable(0, 0), Cc(0x0046_0001));
        let cc = Cc::enable(3, Cc::CSS_ALL | Cc::SHN_NORMAL);
        assert_eq!(cc, Cc(0x0046_41e1));
        assert_eq!((cc.css(), cc.mps(), cc.shn()), (6, 3, 1));
        assert_eq!(cc.0 & !Cc::DEFINED, 0);
        assert_eq!(Cc(Cc::SHN_ABRUPT).shn(), 2);
    }

    #[test]
    fn cap_of_a_drive() {
        // As QEMU's: 2,048 entries, contiguous, 7.5 s, NVM and IOCS, 4 KiB to 64 KiB, a memory buffer.
        let cap = Cap(0x0240_0820_0f01_07ff);
        assert_eq!((cap.mqes_z(), cap.to(), cap.dstrd(), cap.ams()), (2047, 15, 0, 0));
        assert_eq!((cap.mpsmin(), cap.mpsmax(), cap.css(), cap.crms()), (0, 4, 0x41, 0));
        assert!(cap.has(Cap::CQR | Cap::CSS_NVM | Cap::CSS_IOCS | Cap::CMBS));
        assert!(!cap.has(Cap::CQR | Cap::NSSRS) && !cap.has(Cap::PMRS) && !cap.has(Cap::CSS_NO_IO));
        // All ones is all fields at their end, and no arithmetic overflows on it.
        let ones = Cap(u64::MAX);
        assert_eq!((ones.mqes_z(), ones.to(), ones.dstrd(), ones.ams()), (u16::MAX, u8::MAX, 15, 3));
        assert_eq!((ones.mpsmin(), ones.mpsmax(), ones.css(), ones.crms()), (15, 15, u8::MAX, 3));
    }

    #[test]
    fn csts_fields() {
        assert!(Csts(u32::MAX).gone());
        let csts = Csts(0b11_1010);
        assert!(!csts.ready() && csts.fatal() && !csts.gone());
        assert_eq!((csts.shst(), csts.0 & Csts::NSSRO, csts.0 & Csts::PP), (2, 16, 32));
    }

    #[test]
    fn the_longer_ready_timeout_counts() {
        let to = Cap(15 << 24);
        assert_eq!(ready_timeout_ms(to, Crto(0x0004_0100)), 7_500, "no CRTO without a mode of its own");
        let with = Cap(to.0 | Cap::CRWMS);
        assert_eq!(ready_timeout_ms(with, Crto(0x0004_0100)), 128_000);
        assert_eq!(ready_timeout_ms(with, Crto(0x0004_0001)), 7_500);
        assert_eq!((Crto(0x0004_0100).crwmt(), Crto(0x0004_0100).crimt()), (256, 4));
    }
}
