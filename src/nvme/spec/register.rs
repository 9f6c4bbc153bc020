//! Registers that only memory-based transports have: the admin queue's place, the controller memory buffer, doorbells
//! (Base §3.1.3, PCIe §3.1.2). Offsets are in [`super::Property`].

use super::Cap;

/// First doorbell (PCIe §3.1.2).
pub const DOORBELLS: u32 = 0x1000;

/// Most entries of an admin queue (Base §3.1.3.8).
pub const ADMIN_ENTRIES_MAX: u16 = 4096;

/// Admin Queue Attributes (Base §3.1.3.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Aqa(pub u32);

impl Aqa {
    /// Queues of these many entries less one, each at most 4,095.
    pub const fn new(submission_z: u16, completion_z: u16) -> Self {
        Self(submission_z as u32 & 0xfff | (completion_z as u32 & 0xfff) << 16)
    }

    /// Admin Submission Queue Size, zero's-based.
    pub const fn asqs_z(self) -> u16 {
        self.0 as u16 & 0xfff
    }

    /// Admin Completion Queue Size, zero's-based.
    pub const fn acqs_z(self) -> u16 {
        (self.0 >> 16) as u16 & 0xfff
    }
}

/// Controller Memory Buffer Location (Base §3.1.3.11).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cmbloc(pub u32);

impl Cmbloc {
    /// Base Indicator: the BAR.
    pub const fn bir(self) -> u8 {
        self.0 as u8 & 7
    }

    /// Offset within the BAR, in units of [`Cmbsz::unit`].
    pub const fn ofst(self) -> u32 {
        self.0 >> 12
    }
}

/// Controller Memory Buffer Size (Base §3.1.3.12).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cmbsz(pub u32);

impl Cmbsz {
    /// Submission queues may be in the buffer.
    pub const SQS: u32 = 1 << 0;
    /// Completion queues may be in the buffer.
    pub const CQS: u32 = 1 << 1;
    /// PRP and SGL lists may be in the buffer.
    pub const LISTS: u32 = 1 << 2;
    /// Data and metadata of reads may be in the buffer.
    pub const RDS: u32 = 1 << 3;
    /// Data and metadata of writes may be in the buffer.
    pub const WDS: u32 = 1 << 4;

    /// Size unit in bytes: 4 KiB to 64 GiB, or `None` for a reserved value.
    pub const fn unit(self) -> Option<u64> {
        match self.0 >> 8 & 0xf {
            szu @ 0..=6 => Some(1 << (12 + 4 * szu)),
            _ => None,
        }
    }

    /// Size in bytes; 0 without a buffer, `None` for a reserved unit. Below 2 to the power of 56.
    pub const fn bytes(self) -> Option<u64> {
        match self.unit() {
            Some(unit) => Some((self.0 >> 12) as u64 * unit),
            None => None,
        }
    }

    /// Where the buffer begins in its BAR, in bytes; `None` for a reserved unit.
    pub const fn offset(self, location: Cmbloc) -> Option<u64> {
        match self.unit() {
            Some(unit) => Some(location.ofst() as u64 * unit),
            None => None,
        }
    }
}

/// Controller Memory Buffer Memory Space Control (Base §3.1.3.16).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cmbmsc(pub u64);

impl Cmbmsc {
    /// Capability Registers Enabled: CMBLOC and CMBSZ say what they say.
    pub const CRE: u64 = 1 << 0;
    /// Controller Memory Space Enable: the controller takes addresses from the base address on for its buffer.
    pub const CMSE: u64 = 1 << 1;

    /// A buffer that the controller finds at `base`, a multiple of 4 KiB, with both enable bits set.
    pub const fn at(base: u64) -> Self {
        Self(base & !0xfff | Self::CRE | Self::CMSE)
    }

    /// Controller Base Address in bytes.
    pub const fn base(self) -> u64 {
        self.0 & !0xfff
    }
}

/// Controller Memory Buffer Status (Base §3.1.3.17).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cmbsts(pub u32);

impl Cmbsts {
    /// Controller Base Address Invalid: the buffer is not at the address that was set.
    pub const CBAI: u32 = 1 << 0;
}

/// Places of the doorbells: for queue pair 0 the admin queues', then those of each pair (PCIe §3.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbells {
    /// log2 of the bytes between two of them.
    shift: u8,
}

impl Doorbells {
    /// Of a controller with these capabilities.
    pub const fn of(cap: Cap) -> Self {
        Self { shift: 2 + cap.dstrd() }
    }

    /// Submission Queue Tail Doorbell of queue `qid`: the offset in bytes in BAR 0. Strides go up to 128 KiB, and queue
    /// identifiers times two of them beyond 32 bits.
    pub const fn sq_tail(self, qid: u16) -> u64 {
        DOORBELLS as u64 + ((2 * qid as u64) << self.shift)
    }

    /// Completion Queue Head Doorbell of queue `qid`: the offset in bytes in BAR 0.
    pub const fn cq_head(self, qid: u16) -> u64 {
        DOORBELLS as u64 + ((2 * qid as u64 + 1) << self.shift)
    }

    /// First byte behind the doorbells of queue pairs 0 to `qid`: what a BAR has to hold at least.
    pub const fn end(self, qid: u16) -> u64 {
        self.cq_head(qid) + 4
    }

    /// Place of the shadow of a submission queue's tail, and of its event index, in the two pages of Doorbell Buffer Config, in
    /// bytes; the strides are those of the doorbells (Base §5.8, Appendix B.5).
    pub const fn shadow_sq_tail(self, qid: u16) -> u64 {
        (2 * qid as u64) << self.shift
    }

    /// As [`Doorbells::shadow_sq_tail`] for the head of a completion queue.
    pub const fn shadow_cq_head(self, qid: u16) -> u64 {
        (2 * qid as u64 + 1) << self.shift
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aqa_golden() {
        let aqa = Aqa::new(31, 63);
        assert_eq!(aqa.0, 0x003f_001f);
        assert_eq!((aqa.asqs_z(), aqa.acqs_z()), (31, 63));
        assert_eq!(Aqa::new(u16::MAX, ADMIN_ENTRIES_MAX - 1).0, 0x0fff_0fff);
        assert_eq!((Aqa(u32::MAX).asqs_z(), Aqa(u32::MAX).acqs_z()), (4095, 4095));
    }

    #[test]
    fn cmb_golden() {
        // 16 MiB for submission queues and lists in units of 1 MiB, at 4 MiB of BAR 2.
        let (location, size) = (Cmbloc(0x0000_4002), Cmbsz(0x0001_0205));
        assert_eq!((location.bir(), location.ofst()), (2, 4));
        assert_eq!(size.0 & 0x1f, Cmbsz::SQS | Cmbsz::LISTS);
        assert_eq!((size.unit(), size.bytes(), size.offset(location)), (Some(1 << 20), Some(16 << 20), Some(4 << 20)));
        assert_eq!(Cmbsz(0).bytes(), Some(0));
        // Reserved units are refused; the largest that is not does not overflow.
        assert_eq!((Cmbsz(0x0001_0700).unit(), Cmbsz(0x0001_0700).bytes()), (None, None));
        assert_eq!((Cmbsz(u32::MAX).bytes(), Cmbsz(u32::MAX).offset(Cmbloc(u32::MAX))), (None, None));
        assert_eq!(Cmbsz(0xffff_f600).bytes(), Some(0xf_ffff << 36));
        assert_eq!(Cmbsz(0x600).offset(Cmbloc(u32::MAX)), Some(0xf_ffff << 36));
        assert_eq!(Cmbmsc::at(0x1_2345_6000).0, 0x1_2345_6003);
        assert_eq!(Cmbmsc(0x1_2345_6003).base(), 0x1_2345_6000);
    }

    #[test]
    fn doorbells_stand_at_their_stride() {
        let packed = Doorbells::of(Cap(0));
        assert_eq!((packed.sq_tail(0), packed.cq_head(0)), (0x1000, 0x1004));
        assert_eq!((packed.sq_tail(3), packed.cq_head(3), packed.end(3)), (0x1018, 0x101c, 0x1020));
        assert_eq!((packed.shadow_sq_tail(3), packed.shadow_cq_head(3)), (0x18, 0x1c));
        let spread = Doorbells::of(Cap(4 << 32));
        assert_eq!((spread.sq_tail(1), spread.cq_head(1), spread.shadow_sq_tail(1)), (0x1080, 0x10c0, 0x80));
        let widest = Doorbells::of(Cap(15 << 32));
        assert_eq!(widest.cq_head(u16::MAX), 0x1000 + 131_071 * 131_072);
    }
}
