//! Fields of admin commands: queues and doorbells of memory-based transports, Abort, Format NVM.

use super::{AdminOpcode, Sqe};
use crate::util::open_enum;

/// Fields of Create I/O Completion Queue (Base §5.4). The data pointer is the queue's address, by PRP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateCqFields {
    /// Queue identifier, from 1.
    pub qid: u16,
    /// Entries, zero's-based.
    pub size_z: u16,
    /// Physically contiguous: PRP1 is the address of the queue, not of a list.
    pub contiguous: bool,
    /// Interrupts enabled.
    pub interrupts: bool,
    /// Interrupt vector.
    pub vector: u16,
}

impl CreateCqFields {
    /// Reads dwords 10 and 11.
    pub const fn of(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Self {
            qid: cdw10 as u16,
            size_z: (cdw10 >> 16) as u16,
            contiguous: cdw11 & 1 != 0,
            interrupts: cdw11 & 2 != 0,
            vector: (cdw11 >> 16) as u16,
        }
    }

    /// Writes dwords 10 and 11.
    pub fn put(self, sqe: &mut Sqe) {
        sqe.cdw10.set(self.qid as u32 | (self.size_z as u32) << 16);
        sqe.cdw11.set(self.contiguous as u32 | (self.interrupts as u32) << 1 | (self.vector as u32) << 16);
    }

    /// The command for a contiguous queue at `address`. The transport sets the command identifier.
    pub fn to_sqe(self, address: u64) -> Sqe {
        let mut sqe = Sqe::bare(AdminOpcode::CREATE_IO_CQ.0, 0);
        sqe.set_prps(address, 0);
        self.put(&mut sqe);
        sqe
    }
}

open_enum! {
    /// Priority of a submission queue, used by weighted round robin arbitration only (Base §5.5).
    pub enum QueuePriority: u8 {
        /// Urgent.
        URGENT = 0,
        /// High.
        HIGH = 1,
        /// Medium.
        MEDIUM = 2,
        /// Low.
        LOW = 3,
    }
}

/// Fields of Create I/O Submission Queue (Base §5.5). The data pointer is the queue's address, by PRP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CreateSqFields {
    /// Queue identifier, from 1.
    pub qid: u16,
    /// Entries, zero's-based.
    pub size_z: u16,
    /// Physically contiguous: PRP1 is the address of the queue, not of a list.
    pub contiguous: bool,
    /// Priority.
    pub priority: QueuePriority,
    /// Completion queue.
    pub cqid: u16,
}

impl CreateSqFields {
    /// Reads dwords 10 and 11.
    pub const fn of(sqe: &Sqe) -> Self {
        let (cdw10, cdw11) = (sqe.cdw10.get(), sqe.cdw11.get());
        Self {
            qid: cdw10 as u16,
            size_z: (cdw10 >> 16) as u16,
            contiguous: cdw11 & 1 != 0,
            priority: QueuePriority((cdw11 >> 1) as u8 & 3),
            cqid: (cdw11 >> 16) as u16,
        }
    }

    /// Writes dwords 10 and 11.
    pub fn put(self, sqe: &mut Sqe) {
        sqe.cdw10.set(self.qid as u32 | (self.size_z as u32) << 16);
        sqe.cdw11.set(self.contiguous as u32 | (self.priority.0 as u32 & 3) << 1 | (self.cqid as u32) << 16);
    }

    /// The command for a contiguous queue at `address`. The transport sets the command identifier.
    pub fn to_sqe(self, address: u64) -> Sqe {
        let mut sqe = Sqe::bare(AdminOpcode::CREATE_IO_SQ.0, 0);
        sqe.set_prps(address, 0);
        self.put(&mut sqe);
        sqe
    }
}

/// Delete I/O Submission Queue or Delete I/O Completion Queue, by `opcode`, of queue `qid` (Base §5.6, §5.7). A completion queue
/// goes after all its submission queues.
pub fn delete_queue(opcode: AdminOpcode, qid: u16) -> Sqe {
    let mut sqe = Sqe::bare(opcode.0, 0);
    sqe.cdw10.set(qid as u32);
    sqe
}

/// Queue of a Delete I/O Submission Queue or Delete I/O Completion Queue (Base §5.6, §5.7).
pub const fn deleted_queue(sqe: &Sqe) -> u16 {
    sqe.cdw10.get() as u16
}

/// Fields of Abort (Base §5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortFields {
    /// Submission queue of the command to abort.
    pub sqid: u16,
    /// Its identifier.
    pub cid: u16,
}

impl AbortFields {
    /// Bit of dword 0 of the completion: the command was not aborted.
    pub const NOT_ABORTED: u32 = 1 << 0;

    /// Reads dword 10.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self { sqid: cdw10 as u16, cid: (cdw10 >> 16) as u16 }
    }

    /// Writes dword 10.
    pub fn put(self, sqe: &mut Sqe) {
        sqe.cdw10.set(self.sqid as u32 | (self.cid as u32) << 16);
    }

    /// The command. The transport sets the command identifier.
    pub fn to_sqe(self) -> Sqe {
        let mut sqe = Sqe::bare(AdminOpcode::ABORT.0, 0);
        self.put(&mut sqe);
        sqe
    }
}

/// Doorbell Buffer Config (Base §5.8): the addresses of a page for shadow doorbells and of one for event indices, each of one
/// memory page (CC.MPS), aligned to it.
pub fn doorbell_buffer_config(shadow: u64, event_index: u64) -> Sqe {
    let mut sqe = Sqe::bare(AdminOpcode::DOORBELL_BUFFER_CONFIG.0, 0);
    sqe.set_prps(shadow, event_index);
    sqe
}

open_enum! {
    /// Secure Erase Settings of Format NVM (Base §5.14).
    pub enum SecureErase: u8 {
        /// None: contents afterwards are as the format leaves them.
        NONE = 0,
        /// User data erase.
        USER_DATA = 1,
        /// Cryptographic erase: the key is deleted.
        CRYPTOGRAPHIC = 2,
    }
}

/// Fields of Format NVM (Base §5.14, NVM §4.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FormatFields {
    /// Index of the LBA format, 0 to 63.
    pub format: u8,
    /// Metadata settings: metadata is transferred as part of an extended block, not by a pointer of its own.
    pub extended: bool,
    /// Protection information type, 0 for none to 3.
    pub protection: u8,
    /// Protection information location: the first bytes of the metadata, not the last.
    pub protection_first: bool,
    /// Secure erase settings.
    pub erase: SecureErase,
}

impl FormatFields {
    /// Reads dword 10.
    pub const fn of(sqe: &Sqe) -> Self {
        let cdw10 = sqe.cdw10.get();
        Self {
            format: (cdw10 & 0xf | (cdw10 >> 12 & 3) << 4) as u8,
            extended: cdw10 & 1 << 4 != 0,
            protection: (cdw10 >> 5) as u8 & 7,
            protection_first: cdw10 & 1 << 8 != 0,
            erase: SecureErase((cdw10 >> 9) as u8 & 7),
        }
    }

    /// Writes dword 10.
    pub fn put(self, sqe: &mut Sqe) {
        let format = self.format as u32;
        sqe.cdw10.set(
            format & 0xf
                | (self.extended as u32) << 4
                | (self.protection as u32 & 7) << 5
                | (self.protection_first as u32) << 8
                | (self.erase.0 as u32 & 7) << 9
                | (format >> 4 & 3) << 12,
        );
    }

    /// The command for one namespace, or with [`super::NSID_BROADCAST`] for all. The transport sets the command identifier.
    pub fn to_sqe(self, nsid: u32) -> Sqe {
        let mut sqe = Sqe::bare(AdminOpcode::FORMAT_NVM.0, nsid);
        self.put(&mut sqe);
        sqe
    }
}

#[cfg(test)]
mod tests {
    use zerocopy::IntoBytes;

    use super::*;

    #[test]
    fn create_queues_golden_bytes() {
        let cq = CreateCqFields { qid: 3, size_z: 256, contiguous: true, interrupts: true, vector: 5 };
        let sqe = cq.to_sqe(0x1_0000_2000);
        let mut want = [0; 64];
        want[0] = 5;
        want[24..32].copy_from_slice(&[0, 0x20, 0, 0, 1, 0, 0, 0]);
        want[40..48].copy_from_slice(&[3, 0, 0, 1, 3, 0, 5, 0]);
        assert_eq!(sqe.as_bytes(), want);
        assert_eq!(CreateCqFields::of(&sqe), cq);
        let quiet = CreateCqFields { interrupts: false, vector: 0, ..cq }.to_sqe(0);
        assert_eq!(quiet.cdw11.get(), 1);

        let sq = CreateSqFields { qid: 3, size_z: 1023, contiguous: true, priority: QueuePriority::MEDIUM, cqid: 4 };
        let sqe = sq.to_sqe(0x3000);
        let mut want = [0; 64];
        want[0] = 1;
        want[24..32].copy_from_slice(&[0, 0x30, 0, 0, 0, 0, 0, 0]);
        want[40..48].copy_from_slice(&[3, 0, 0xff, 3, 5, 0, 4, 0]);
        assert_eq!(sqe.as_bytes(), want);
        assert_eq!(CreateSqFields::of(&sqe), sq);
    }

    #[test]
    fn delete_and_abort_golden_bytes() {
        let sqe = delete_queue(AdminOpcode::DELETE_IO_CQ, 0x102);
        assert_eq!((sqe.as_bytes()[0], &sqe.as_bytes()[40..48]), (4, &[2, 1, 0, 0, 0, 0, 0, 0][..]));
        assert_eq!(deleted_queue(&sqe), 0x102);
        assert_eq!(delete_queue(AdminOpcode::DELETE_IO_SQ, 1).opcode, 0);
        let abort = AbortFields { sqid: 2, cid: 0x0403 };
        let sqe = abort.to_sqe();
        assert_eq!((sqe.as_bytes()[0], &sqe.as_bytes()[40..44]), (8, &[2, 0, 3, 4][..]));
        assert_eq!(AbortFields::of(&sqe), abort);
    }

    #[test]
    fn doorbell_buffers_golden_bytes() {
        let sqe = doorbell_buffer_config(0x1000, 0x2000);
        assert_eq!(sqe.as_bytes()[..2], [0x7c, 0]);
        assert_eq!(sqe.as_bytes()[24..40], [0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn format_golden_bytes() {
        let plain = FormatFields {
            format: 4,
            extended: false,
            protection: 0,
            protection_first: false,
            erase: SecureErase::USER_DATA,
        };
        let sqe = plain.to_sqe(1);
        assert_eq!((sqe.as_bytes()[0], sqe.nsid.get(), sqe.cdw10.get()), (0x80, 1, 0x0204));
        assert_eq!(FormatFields::of(&sqe), plain);
        let all = FormatFields {
            format: 0x3f,
            extended: true,
            protection: 3,
            protection_first: true,
            erase: SecureErase::CRYPTOGRAPHIC,
        };
        let sqe = all.to_sqe(u32::MAX);
        assert_eq!(sqe.cdw10.get(), 0x357f);
        assert_eq!(FormatFields::of(&sqe), all);
    }
}
