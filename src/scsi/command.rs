//! What a CDB asks for, decoded and checked.

use super::reservation::{Access, Kind};
use super::spec::{Asc, PersistIn, PersistOut, Sense};

/// A decoded command: what to do, and what moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// What the command takes from the initiator.
    pub data_out: DataOut,
    /// Bytes that the command gives to the initiator, at most. What there is less is the transport's residual.
    pub data_in: u64,
    /// What reservations must allow.
    pub access: Access,
}

/// What a command takes from the initiator. [`DataOut::settle`] says what another length than the transport announced means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataOut {
    /// Nothing. What the initiator sends all the same is a residual.
    None,
    /// This many bytes: of READ and WRITE, which another number turns into a residual.
    Residual(u64),
    /// This many bytes: another number is an error, since there is nothing to do with a part.
    Exact(u64),
    /// A parameter list of this many bytes. Less is an error.
    Parameters(u32),
}

/// How the length that a transport announced differs from what the command moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Residual {
    /// It does not.
    None,
    /// The initiator announced this many bytes more.
    Under(u64),
    /// The command moves this many bytes more than the initiator announced.
    Over(u64),
}

impl Residual {
    /// Compares what the initiator announced with what the command moves.
    pub const fn of(announced: u64, moves: u64) -> Self {
        if announced > moves {
            Self::Under(announced - moves)
        } else if announced < moves {
            Self::Over(moves - announced)
        } else {
            Self::None
        }
    }
}

impl DataOut {
    /// How many bytes to take of `announced`, and the residual, which goes with an error too. Of WRITE only whole blocks of `block_size`
    /// are taken.
    ///
    /// # Errors
    /// INVALID FIELD IN COMMAND INFORMATION UNIT, INVALID FIELD IN CDB where the CDB has a length of 0, and PARAMETER LIST LENGTH ERROR for a
    /// parameter list. Nothing is done.
    pub const fn settle(self, announced: u64, block_size: u32) -> (Residual, Result<u64, Sense>) {
        let wrong = Sense::illegal(Asc::INVALID_INFORMATION_UNIT);
        let (moves, taken) = match self {
            Self::None => (0, Ok(0)),
            Self::Residual(moves) => {
                let take = if announced < moves { announced } else { moves };
                (moves, if take.is_multiple_of(block_size as u64) { Ok(take) } else { Err(wrong) })
            }
            Self::Exact(0) if announced != 0 => (0, Err(Sense::illegal(Asc::INVALID_FIELD_IN_CDB))),
            Self::Exact(moves) => (moves, if announced == moves { Ok(moves) } else { Err(wrong) }),
            Self::Parameters(moves) => {
                let moves = moves as u64;
                (moves, if announced >= moves { Ok(moves) } else { Err(Sense::list_length()) })
            }
        };
        (Residual::of(announced, moves), taken)
    }
}

/// Who carries a command out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The owner of the blocks.
    Media(Media),
    /// The logical unit's engine, [`super::LogicalUnit`].
    Unit(UnitCommand),
}

/// What VERIFY compares (BYTCHK).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Check {
    /// Nothing: the blocks are read (00b).
    Medium,
    /// The blocks with as many of data (01b).
    Blocks,
    /// Each block with the one block of data (11b).
    OneBlock,
}

/// A command for the owner of the blocks. The range of every one lies in the logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// Read.
    Read {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// From the medium, not from a volatile cache.
        fua: bool,
    },
    /// Write.
    Write {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// Durable before the answer. It is so as well while the mode state has no write cache.
        fua: bool,
    },
    /// Write, whole or not at all as others and a loss of power see it.
    WriteAtomic {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// Durable before the answer.
        fua: bool,
    },
    /// Write the bitwise OR of the data and the blocks, as one operation with respect to others.
    OrWrite {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// Durable before the answer.
        fua: bool,
    },
    /// Write, durably, then read it back.
    WriteAndVerify {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// Compare what is read back with the data.
        compare: bool,
    },
    /// Read, and compare.
    Verify {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// With what. A difference is [`super::Sense::miscompare`].
        check: Check,
    },
    /// Compare with the first half of the data; write the second half if they are the same. One operation with respect to others.
    CompareAndWrite {
        /// First block.
        lba: u64,
        /// Blocks, not 0; the data are twice as many.
        blocks: u32,
        /// The blocks need not stay in a cache.
        dpo: bool,
        /// Durable before the answer.
        fua: bool,
    },
    /// Write one block to many.
    WriteSame {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u64,
        /// What to write.
        fill: Fill,
        /// The blocks may be unmapped, if zeros are written; other data must be written.
        unmap: Option<Unmapping>,
    },
    /// Unmap the ranges of the parameter list: [`super::unmap_ranges`].
    Unmap {
        /// What becomes of them.
        how: Unmapping,
    },
    /// Make all that was acknowledged in the range durable.
    SynchronizeCache {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u64,
    },
    /// Read into the cache. The answer is GOOD, or CONDITION MET if the cache holds all of it.
    PreFetch {
        /// First block.
        lba: u64,
        /// Blocks, not 0.
        blocks: u64,
    },
    /// Tell the provisioning of the blocks from `lba` on: [`super::lba_status`].
    GetLbaStatus {
        /// First block.
        lba: u64,
        /// Bytes of the answer, at most.
        allocation: u32,
    },
    /// Format: every block is unmapped, or zeros. Any parameter list goes to [`super::format_parameters`] first.
    FormatUnit,
    /// Copy as the parameter list says: [`super::CopyList::decode`].
    ExtendedCopy,
    /// Start or stop: a stop makes all that was acknowledged durable first if `flush`; then [`super::LogicalUnit::set_started`].
    StartStop {
        /// Start, not stop.
        start: bool,
        /// Flush before a stop.
        flush: bool,
    },
    /// The default self-test: show that the medium can be read. A failure is LOGICAL UNIT FAILED SELF-TEST.
    SelfTest,
}

impl Media {
    /// Whether its end tells of what a cache has lost: a nexus is told once.
    pub const fn tells_of_losses(&self) -> bool {
        matches!(self, Self::SynchronizeCache { .. } | Self::FormatUnit | Self::StartStop { start: false, flush: true })
    }
}

/// What WRITE SAME writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fill {
    /// The one block of data.
    Data,
    /// Zeros: there are no data (NDOB).
    Zeros,
}

/// What becomes of unmapped blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unmapping {
    /// Their resources are given back.
    Deallocate,
    /// Their resources stay reserved (ANCHOR).
    Anchor,
}

/// Which values of a mode page are asked for (PC).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageControl {
    /// Those in force.
    Current,
    /// A mask of those that can be changed.
    Changeable,
    /// Those at power on.
    Default,
}

/// What REPORT SUPPORTED OPERATION CODES asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpcodeQuery {
    /// Every command (000b).
    All,
    /// A command without service actions (001b).
    Opcode(u8),
    /// A command with service actions (010b).
    Action(u8, u16),
    /// A command, whether it has service actions or not (011b).
    Either(u8, u16),
}

/// Which logical units REPORT LUNS lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LunSelect {
    /// All, without well known ones (00h).
    Units,
    /// Well known ones: there are none (01h).
    WellKnown,
    /// All (02h).
    All,
}

/// A command for the logical unit's engine. `allocation` is the allocation length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnitCommand {
    /// Nothing: the status is GOOD.
    Good,
    /// INQUIRY; `None`: standard data, else the vital product data page.
    Inquiry {
        /// The page.
        page: Option<u8>,
        /// Allocation length.
        allocation: u32,
    },
    /// REQUEST SENSE.
    RequestSense {
        /// In descriptor format.
        descriptor: bool,
        /// Allocation length.
        allocation: u32,
    },
    /// REPORT LUNS.
    ReportLuns {
        /// Which.
        select: LunSelect,
        /// Allocation length.
        allocation: u32,
    },
    /// READ CAPACITY(10).
    ReadCapacity10,
    /// READ CAPACITY(16).
    ReadCapacity16 {
        /// Allocation length.
        allocation: u32,
    },
    /// MODE SENSE.
    ModeSense {
        /// The 10-byte command: the long header.
        ten: bool,
        /// With a block descriptor.
        block_descriptor: bool,
        /// The long block descriptor (LLBAA).
        long_descriptor: bool,
        /// Which values.
        control: PageControl,
        /// Page code.
        page: u8,
        /// Subpage code.
        subpage: u8,
        /// Allocation length.
        allocation: u32,
    },
    /// MODE SELECT: the parameter list follows.
    ModeSelect {
        /// The 10-byte command: the long header.
        ten: bool,
    },
    /// LOG SENSE, of cumulative values.
    LogSense {
        /// Page code.
        page: u8,
        /// Subpage code.
        subpage: u8,
        /// First parameter code.
        from: u16,
        /// Allocation length.
        allocation: u32,
    },
    /// READ DEFECT DATA.
    DefectData {
        /// The 12-byte command: the long header.
        twelve: bool,
        /// The primary and grown lists asked for and the format, as the header returns them.
        lists: u8,
        /// Allocation length.
        allocation: u32,
    },
    /// REPORT TARGET PORT GROUPS.
    TargetPortGroups {
        /// With the extended header.
        extended: bool,
        /// Allocation length.
        allocation: u32,
    },
    /// REPORT SUPPORTED OPERATION CODES.
    SupportedOpcodes {
        /// Which.
        query: OpcodeQuery,
        /// With timeouts (RCTD).
        timeouts: bool,
        /// Allocation length.
        allocation: u32,
    },
    /// REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS.
    SupportedTaskFunctions {
        /// The extended parameter data (REPD).
        extended: bool,
        /// Allocation length.
        allocation: u32,
    },
    /// RESERVE(6).
    Reserve,
    /// RELEASE(6).
    Release,
    /// PERSISTENT RESERVE IN.
    PersistIn {
        /// Service action.
        action: PersistIn,
        /// Allocation length.
        allocation: u32,
    },
    /// PERSISTENT RESERVE OUT: the parameter list follows.
    PersistOut {
        /// Service action.
        action: PersistOut,
        /// The type, for the actions that have one and if the code is valid.
        kind: Option<Kind>,
    },
    /// RECEIVE COPY STATUS(LID1).
    CopyStatus {
        /// List identifier.
        list_id: u8,
        /// Allocation length.
        allocation: u32,
    },
    /// RECEIVE COPY OPERATING PARAMETERS.
    CopyParameters {
        /// Allocation length.
        allocation: u32,
    },
}
