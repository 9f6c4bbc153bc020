//! The ublk interface of the kernel: structures, numbers and places of `linux/ublk_cmd.h`, Linux 7.3.
//!
//! Byte order and alignment are the machine's own. Older kernels know fewer features, commands and parameters: a device is
//! asked what it has, never its version ([`Features`]). Names are the header's, without `UBLK_` and `ublksrv_`.

use core::fmt;
use core::mem::{offset_of, size_of};
use core::ops::{BitAnd, BitOr, BitOrAssign};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::util::open_enum;

/// Most commands in flight on one queue.
pub const MAX_QUEUE_DEPTH: u16 = 4096;
/// Most queues of one device.
pub const MAX_QUEUES: u16 = 4096;
/// Largest data of one request, in bytes: what a position has room for.
pub const IO_BUF_MAX: u32 = 1 << IO_BUF_BITS;
/// Smallest that a segment can be limited to, in bytes ([`ParamSegment`]).
pub const MIN_SEGMENT_SIZE: u32 = 4096;
/// A device number that means any free one, in [`U_CMD_ADD_DEV`].
pub const ANY_DEVICE: u32 = u32::MAX;
/// A queue number that means none: of a command that is for the whole device.
pub const NO_QUEUE: u16 = u16::MAX;

// --- Numbers of commands ---------------------------------------------------------------------------------------------

const IOC_WRITE: u32 = 1;
const IOC_READ: u32 = 2;

/// The number of an ioctl: direction, size of the argument, type and number, as most architectures lay them out.
const fn ioc(direction: u32, number: u32, size: usize) -> u32 {
    direction << 30 | (size as u32) << 16 | (b'u' as u32) << 8 | number
}

const fn ctrl_r(number: u32) -> u32 {
    ioc(IOC_READ, number, size_of::<CtrlCmd>())
}

const fn ctrl_wr(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, size_of::<CtrlCmd>())
}

const fn io_wr(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, size_of::<IoCmd>())
}

const fn batch_wr(number: u32) -> u32 {
    ioc(IOC_READ | IOC_WRITE, number, size_of::<BatchIo>())
}

/// Which cores the requests of a queue come from: `data` is the queue, the buffer gets a bit for each core.
pub const U_CMD_GET_QUEUE_AFFINITY: u32 = ctrl_r(0x01);
/// What a device is: the buffer gets [`DevInfo`].
pub const U_CMD_GET_DEV_INFO: u32 = ctrl_r(0x02);
/// Makes a device: the buffer is [`DevInfo`], which comes back as granted.
pub const U_CMD_ADD_DEV: u32 = ctrl_wr(0x04);
/// Stops and removes a device, and waits until its number is free.
pub const U_CMD_DEL_DEV: u32 = ctrl_wr(0x05);
/// Shows the block device: `data` is the server's process id. Waits until every command of every queue was fetched.
pub const U_CMD_START_DEV: u32 = ctrl_wr(0x06);
/// Takes the block device away; what is in flight fails.
pub const U_CMD_STOP_DEV: u32 = ctrl_wr(0x07);
/// Sets parameters of a device that was never started: the buffer is [`Params`].
pub const U_CMD_SET_PARAMS: u32 = ctrl_wr(0x08);
/// Parameters as the kernel has them: the buffer is [`Params`] whose `len` says how much of it is wanted.
pub const U_CMD_GET_PARAMS: u32 = ctrl_r(0x09);
/// Makes a device whose server has gone ready for a new one.
pub const U_CMD_START_USER_RECOVERY: u32 = ctrl_wr(0x10);
/// Goes on with the new server: `data` is its process id. Waits as [`U_CMD_START_DEV`].
pub const U_CMD_END_USER_RECOVERY: u32 = ctrl_wr(0x11);
/// As [`U_CMD_GET_DEV_INFO`], for whoever has no rights but the path of the character device, with which the buffer begins.
pub const U_CMD_GET_DEV_INFO2: u32 = ctrl_r(0x12);
/// What the driver can do: the buffer of exactly 8 bytes gets [`Features`]. Since Linux 6.5.
pub const U_CMD_GET_FEATURES: u32 = ctrl_r(0x13);
/// As [`U_CMD_DEL_DEV`], without the wait.
pub const U_CMD_DEL_DEV_ASYNC: u32 = ctrl_r(0x14);
/// Changes the size of a started device: `data` is the number of sectors. With [`Features::UPDATE_SIZE`].
pub const U_CMD_UPDATE_SIZE: u32 = ctrl_wr(0x15);
/// Has a server give back its commands while the block device stays: `data` is how long to wait, in ms, 0 for ever.
/// With [`Features::QUIESCE`].
pub const U_CMD_QUIESCE_DEV: u32 = ctrl_wr(0x16);
/// As [`U_CMD_STOP_DEV`], unless somebody has the block device open. With [`Features::SAFE_STOP_DEV`].
pub const U_CMD_TRY_STOP_DEV: u32 = ctrl_wr(0x17);
/// Registers shared memory: the buffer is [`ShmemBufReg`]; the answer is its index. With [`Features::SHMEM_ZC`].
pub const U_CMD_REG_BUF: u32 = ctrl_wr(0x18);
/// Gives shared memory back: `data` is its index.
pub const U_CMD_UNREG_BUF: u32 = ctrl_wr(0x19);

/// Asks for the first request of a tag.
pub const U_IO_FETCH_REQ: u32 = io_wr(0x20);
/// Says what became of a request, and asks for the next one of the tag.
pub const U_IO_COMMIT_AND_FETCH_REQ: u32 = io_wr(0x21);
/// Names the buffer that gets the data of a write. With [`Features::NEED_GET_DATA`].
pub const U_IO_NEED_GET_DATA: u32 = io_wr(0x22);
/// Puts the data of a request into the ring's table of buffers. With [`Features::SUPPORT_ZERO_COPY`].
pub const U_IO_REGISTER_IO_BUF: u32 = io_wr(0x23);
/// Takes it out again.
pub const U_IO_UNREGISTER_IO_BUF: u32 = io_wr(0x24);
/// As [`U_IO_FETCH_REQ`], for many tags. With [`Features::BATCH_IO`], like the two that follow.
pub const U_IO_PREP_IO_CMDS: u32 = batch_wr(0x25);
/// Says what became of many requests. The answer is how many bytes of the elements were handled.
pub const U_IO_COMMIT_IO_CMDS: u32 = batch_wr(0x26);
/// Has tags of requests arrive in buffers of the ring, for ever.
pub const U_IO_FETCH_IO_CMDS: u32 = batch_wr(0x27);

/// Result of a fetch: here is a request.
pub const IO_RES_OK: i32 = 0;
/// Result of a fetch: here is a write, which waits for the place of its data.
pub const IO_RES_NEED_GET_DATA: i32 = 1;
/// Result of a fetch: the device goes; do not fetch again (-ENODEV).
pub const IO_RES_ABORT: i32 = -19;

// --- Features --------------------------------------------------------------------------------------------------------

/// A set of features: what a driver can do, or a device was made with.
///
/// The kernel drops those that it does not know from a new device without a word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(transparent)]
pub struct Features(
    /// The bits.
    pub u64,
);

impl Features {
    /// Data of requests can go into the ring's table of buffers.
    pub const SUPPORT_ZERO_COPY: Self = Self(1 << 0);
    /// Commands complete by task work. The driver sets it for every device.
    pub const URING_CMD_COMP_IN_TASK: Self = Self(1 << 1);
    /// A write's buffer is named after the write has arrived.
    pub const NEED_GET_DATA: Self = Self(1 << 2);
    /// The block device outlives its server. What the server had in hand fails, what comes later waits.
    pub const USER_RECOVERY: Self = Self(1 << 3);
    /// With `USER_RECOVERY`: what the server had in hand goes to the next one.
    pub const USER_RECOVERY_REISSUE: Self = Self(1 << 4);
    /// Made without CAP_SYS_ADMIN. The driver takes it away from devices that were made with it.
    pub const UNPRIVILEGED_DEV: Self = Self(1 << 5);
    /// Commands have the numbers of ioctls. The driver sets it for every device.
    pub const CMD_IOCTL_ENCODE: Self = Self(1 << 6);
    /// Data is copied by reads and writes of the character device ([`io_buf_position`]).
    pub const USER_COPY: Self = Self(1 << 7);
    /// A zoned device.
    pub const ZONED: Self = Self(1 << 8);
    /// With `USER_RECOVERY`: what comes while there is no server fails at once.
    pub const USER_RECOVERY_FAIL_IO: Self = Self(1 << 9);
    /// [`U_CMD_UPDATE_SIZE`].
    pub const UPDATE_SIZE: Self = Self(1 << 10);
    /// Data is put into the ring's table of buffers with the request, and taken out with its commit ([`AutoBufReg`]).
    pub const AUTO_BUF_REG: Self = Self(1 << 11);
    /// [`U_CMD_QUIESCE_DEV`]. A device can have it only with `USER_RECOVERY`.
    pub const QUIESCE: Self = Self(1 << 12);
    /// Each tag may have a thread of its own, and not only each queue.
    pub const PER_IO_DAEMON: Self = Self(1 << 13);
    /// [`U_IO_REGISTER_IO_BUF`] and its counterpart may come from any thread.
    pub const BUF_REG_OFF_DAEMON: Self = Self(1 << 14);
    /// Commands for many tags at once ([`BatchIo`]).
    pub const BATCH_IO: Self = Self(1 << 15);
    /// Requests have integrity data. A device can have it only with `USER_COPY`.
    pub const INTEGRITY: Self = Self(1 << 16);
    /// [`U_CMD_TRY_STOP_DEV`].
    pub const SAFE_STOP_DEV: Self = Self(1 << 17);
    /// The partition table is not read at the start.
    pub const NO_AUTO_PART_SCAN: Self = Self(1 << 18);
    /// Requests whose pages are in registered shared memory come with their place there ([`shmem_index`]).
    pub const SHMEM_ZC: Self = Self(1 << 19);
    /// Descriptors can lie further apart than their 24 bytes ([`DevInfo::io_desc_size`]).
    pub const IO_DESC_SIZE: Self = Self(1 << 20);

    /// Those that this crate knows, with their names.
    const NAMED: [(Self, &'static str); 21] = [
        (Self::SUPPORT_ZERO_COPY, "SUPPORT_ZERO_COPY"),
        (Self::URING_CMD_COMP_IN_TASK, "URING_CMD_COMP_IN_TASK"),
        (Self::NEED_GET_DATA, "NEED_GET_DATA"),
        (Self::USER_RECOVERY, "USER_RECOVERY"),
        (Self::USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE"),
        (Self::UNPRIVILEGED_DEV, "UNPRIVILEGED_DEV"),
        (Self::CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE"),
        (Self::USER_COPY, "USER_COPY"),
        (Self::ZONED, "ZONED"),
        (Self::USER_RECOVERY_FAIL_IO, "USER_RECOVERY_FAIL_IO"),
        (Self::UPDATE_SIZE, "UPDATE_SIZE"),
        (Self::AUTO_BUF_REG, "AUTO_BUF_REG"),
        (Self::QUIESCE, "QUIESCE"),
        (Self::PER_IO_DAEMON, "PER_IO_DAEMON"),
        (Self::BUF_REG_OFF_DAEMON, "BUF_REG_OFF_DAEMON"),
        (Self::BATCH_IO, "BATCH_IO"),
        (Self::INTEGRITY, "INTEGRITY"),
        (Self::SAFE_STOP_DEV, "SAFE_STOP_DEV"),
        (Self::NO_AUTO_PART_SCAN, "NO_AUTO_PART_SCAN"),
        (Self::SHMEM_ZC, "SHMEM_ZC"),
        (Self::IO_DESC_SIZE, "IO_DESC_SIZE"),
    ];

    /// Whether all of `wanted` are among them.
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Those of them that are not in `other`.
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl BitOr for Features {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for Features {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl fmt::Display for Features {
    /// The names, lowest bit first; what has none as one number; `none` for the empty set.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("none");
        }
        let mut separator = "";
        let mut rest = *self;
        for (feature, name) in Self::NAMED {
            if self.has(feature) {
                write!(f, "{separator}{name}")?;
                separator = " ";
                rest = rest.without(feature);
            }
        }
        if rest.is_empty() { Ok(()) } else { write!(f, "{separator}{:#x}", rest.0) }
    }
}

// --- Control commands ------------------------------------------------------------------------------------------------

/// A control command, 32 bytes: the beginning of the command area of a 128-byte submission entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CtrlCmd {
    /// The device; [`ANY_DEVICE`] where there is none yet.
    pub dev_id: u32,
    /// The queue, or [`NO_QUEUE`].
    pub queue_id: u16,
    /// Bytes of the buffer.
    pub len: u16,
    /// Address of the buffer, which the kernel reads, writes, or both.
    pub addr: u64,
    /// What the command takes beside the buffer.
    pub data: u64,
    /// For unprivileged devices: with how many bytes of path the buffer begins, the zero at its end counted.
    pub dev_path_len: u16,
    /// Zero.
    pub pad: u16,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<CtrlCmd>() == 32);

impl CtrlCmd {
    /// A command to a whole device, without a buffer.
    pub fn new(dev_id: u32) -> Self {
        Self { dev_id, queue_id: NO_QUEUE, ..Self::default() }
    }

    /// A command to a whole device with `data`, without a buffer.
    pub fn with_data(dev_id: u32, data: u64) -> Self {
        Self { data, ..Self::new(dev_id) }
    }
}

open_enum! {
    /// State of a device.
    pub enum DevState: u16 {
        /// There is no block device: not started yet, or stopped.
        DEAD = 0,
        /// The block device is there and served.
        LIVE = 1,
        /// The server has gone; requests wait for the next one.
        QUIESCED = 2,
        /// The server has gone; requests fail until there is a next one.
        FAIL_IO = 3,
    }
}

/// What a device is, 64 bytes: asked for by [`U_CMD_ADD_DEV`], which changes it to what is granted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DevInfo {
    /// Queues. The kernel grants no more than there are cores.
    pub nr_hw_queues: u16,
    /// Commands of each queue.
    pub queue_depth: u16,
    /// State, by the kernel.
    pub state: DevState,
    /// With [`Features::IO_DESC_SIZE`], from one descriptor to the next, in bytes; else zero, which newer kernels answer with 24.
    pub io_desc_size: u16,
    /// Largest data of a request, in bytes; rounded down to pages by the kernel.
    pub max_io_buf_bytes: u32,
    /// Number of the device, or [`ANY_DEVICE`] where the kernel shall choose one.
    pub dev_id: u32,
    /// Process id of the server, by the kernel when it starts; -1 before.
    pub ublksrv_pid: i32,
    /// Zero.
    pub pad1: u32,
    /// Features asked for, then granted.
    pub flags: Features,
    /// The server's own: the kernel keeps it and gives it back.
    pub ublksrv_flags: u64,
    /// Who made the device, by the kernel.
    pub owner_uid: u32,
    /// Who made the device, by the kernel.
    pub owner_gid: u32,
    /// Zero.
    pub reserved1: u64,
    /// Zero.
    pub reserved2: u64,
}

const _: () = assert!(size_of::<DevInfo>() == 64);
const _: () = assert!(offset_of!(DevInfo, flags) == 24);

/// Shared memory to register, 16 bytes ([`U_CMD_REG_BUF`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ShmemBufReg {
    /// Address of the first page.
    pub addr: u64,
    /// Bytes, whole pages.
    pub len: u32,
    /// [`SHMEM_BUF_READ_ONLY`].
    pub flags: u32,
}

const _: () = assert!(size_of::<ShmemBufReg>() == 16);

/// The server only reads this shared memory: it may be sealed against writes.
pub const SHMEM_BUF_READ_ONLY: u32 = 1 << 0;

// --- Requests --------------------------------------------------------------------------------------------------------

open_enum! {
    /// What a request asks for, bits 7:0 of [`IoDesc::op_flags`].
    pub enum IoOp: u8 {
        /// Read.
        READ = 0,
        /// Write.
        WRITE = 1,
        /// What was written before is to be durable.
        FLUSH = 2,
        /// The contents are not needed any more.
        DISCARD = 3,
        /// Write one block many times. No kernel sends it any more.
        WRITE_SAME = 4,
        /// Write zeros.
        WRITE_ZEROES = 5,
        /// Open a zone.
        ZONE_OPEN = 10,
        /// Close a zone.
        ZONE_CLOSE = 11,
        /// Finish a zone.
        ZONE_FINISH = 12,
        /// Write at the write pointer of a zone.
        ZONE_APPEND = 13,
        /// Reset all zones.
        ZONE_RESET_ALL = 14,
        /// Reset a zone.
        ZONE_RESET = 15,
        /// Describe zones: the data is an array of `struct blk_zone`.
        REPORT_ZONES = 18,
    }
}

/// Fail early on errors of the device.
pub const IO_F_FAILFAST_DEV: u32 = 1 << 8;
/// Fail early on errors of the way to it.
pub const IO_F_FAILFAST_TRANSPORT: u32 = 1 << 9;
/// Fail early on errors of the driver.
pub const IO_F_FAILFAST_DRIVER: u32 = 1 << 10;
/// Metadata of a file system.
pub const IO_F_META: u32 = 1 << 11;
/// The write is to be durable before its answer.
pub const IO_F_FUA: u32 = 1 << 13;
/// Zeros are to be written such that the space stays allocated.
pub const IO_F_NOUNMAP: u32 = 1 << 15;
/// Swap.
pub const IO_F_SWAP: u32 = 1 << 16;
/// Putting the data into the ring's table of buffers has failed; the server is to do it ([`AUTO_BUF_REG_FALLBACK`]).
pub const IO_F_NEED_REG_BUF: u32 = 1 << 17;
/// The request has integrity data.
pub const IO_F_INTEGRITY: u32 = 1 << 18;
/// `addr` is a place in registered shared memory ([`shmem_index`]).
pub const IO_F_SHMEM_ZC: u32 = 1 << 19;

/// A request, 24 bytes: one for each tag in the memory that the kernel shares with the server ([`descriptors_offset`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoDesc {
    /// [`IoOp`] in bits 7:0, `IO_F_` flags above.
    pub op_flags: u32,
    /// Length in sectors of 512 bytes; for [`IoOp::REPORT_ZONES`] the number of zones.
    pub nr_sectors: u32,
    /// First sector of 512 bytes.
    pub start_sector: u64,
    /// The server's buffer, as given with the fetch; with [`IO_F_SHMEM_ZC`] a place in shared memory.
    pub addr: u64,
}

const _: () = assert!(size_of::<IoDesc>() == 24);

impl IoDesc {
    /// What it asks for.
    pub const fn op(&self) -> IoOp {
        IoOp(self.op_flags as u8)
    }

    /// The `IO_F_` flags, in their places.
    pub const fn flags(&self) -> u32 {
        self.op_flags & !0xff
    }
}

/// A command about one tag, 16 bytes: the command area of a submission entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct IoCmd {
    /// The queue.
    pub q_id: u16,
    /// The tag.
    pub tag: u16,
    /// Of a commit: bytes done, or a negative errno.
    pub result: i32,
    /// Address of the server's buffer, index in the ring's table of buffers, or where a zone append went: as the command
    /// has it. Zero with [`Features::USER_COPY`], else the command is refused.
    pub addr: u64,
}

const _: () = assert!(size_of::<IoCmd>() == 16);

/// Where the data of the next request of a tag goes in the ring's table of buffers, 8 bytes: travels as the `addr` of a
/// submission entry ([`Features::AUTO_BUF_REG`]).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct AutoBufReg {
    /// Index in the table.
    pub index: u16,
    /// [`AUTO_BUF_REG_FALLBACK`].
    pub flags: u8,
    /// Zero.
    pub reserved0: u8,
    /// Zero.
    pub reserved1: u32,
}

const _: () = assert!(size_of::<AutoBufReg>() == 8);

/// Where the index cannot be used, the request comes with [`IO_F_NEED_REG_BUF`] instead of failing unseen.
pub const AUTO_BUF_REG_FALLBACK: u8 = 1 << 0;

impl AutoBufReg {
    /// As the `addr` of a submission entry.
    pub const fn to_sqe_addr(self) -> u64 {
        self.index as u64 | (self.flags as u64) << 16 | (self.reserved0 as u64) << 24 | (self.reserved1 as u64) << 32
    }
}

/// A command about many tags of a queue, 16 bytes ([`Features::BATCH_IO`]). Its buffer holds elements: an [`ElemHeader`],
/// then a u64 each for the address of the data and for where a zone append went, as the flags say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct BatchIo {
    /// The queue.
    pub q_id: u16,
    /// `BATCH_F_` flags.
    pub flags: u16,
    /// Elements.
    pub nr_elem: u16,
    /// Bytes of one element: 8, 16 or 24.
    pub elem_bytes: u8,
    /// Zero.
    pub reserved: u8,
    /// Zero.
    pub reserved2: u64,
}

const _: () = assert!(size_of::<BatchIo>() == 16);

/// Elements say where zone appends went.
pub const BATCH_F_HAS_ZONE_LBA: u16 = 1 << 0;
/// Elements have the addresses of their data.
pub const BATCH_F_HAS_BUF_ADDR: u16 = 1 << 1;
/// As [`AUTO_BUF_REG_FALLBACK`], for all elements.
pub const BATCH_F_AUTO_BUF_REG_FALLBACK: u16 = 1 << 2;

/// Beginning of an element of a [`BatchIo`], 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ElemHeader {
    /// The tag.
    pub tag: u16,
    /// Index in the ring's table of buffers; with [`Features::AUTO_BUF_REG`] only.
    pub buf_index: u16,
    /// Of a commit: bytes done, or a negative errno.
    pub result: i32,
}

const _: () = assert!(size_of::<ElemHeader>() == 8);

// --- Parameters ------------------------------------------------------------------------------------------------------

/// [`Params::basic`] is there. No device starts without it.
pub const PARAM_TYPE_BASIC: u32 = 1 << 0;
/// [`Params::discard`] is there.
pub const PARAM_TYPE_DISCARD: u32 = 1 << 1;
/// [`Params::devt`] is there. By the kernel: setting it is refused.
pub const PARAM_TYPE_DEVT: u32 = 1 << 2;
/// [`Params::zoned`] is there.
pub const PARAM_TYPE_ZONED: u32 = 1 << 3;
/// [`Params::dma`] is there.
pub const PARAM_TYPE_DMA_ALIGN: u32 = 1 << 4;
/// [`Params::seg`] is there.
pub const PARAM_TYPE_SEGMENT: u32 = 1 << 5;
/// [`Params::integrity`] is there.
pub const PARAM_TYPE_INTEGRITY: u32 = 1 << 6;

/// Writes are refused.
pub const ATTR_READ_ONLY: u32 = 1 << 0;
/// Seeks cost.
pub const ATTR_ROTATIONAL: u32 = 1 << 1;
/// There is a volatile write cache: the kernel sends flushes.
pub const ATTR_VOLATILE_CACHE: u32 = 1 << 2;
/// Single writes can be made durable. Means nothing without [`ATTR_VOLATILE_CACHE`].
pub const ATTR_FUA: u32 = 1 << 3;

/// Size and block size, 32 bytes. A shift is the binary logarithm of a number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamBasic {
    /// `ATTR_` flags.
    pub attrs: u32,
    /// Block size: 9 to 12.
    pub logical_bs_shift: u8,
    /// Physical block size, at least the block size.
    pub physical_bs_shift: u8,
    /// Optimal transfer.
    pub io_opt_shift: u8,
    /// Smallest transfer without a penalty.
    pub io_min_shift: u8,
    /// Largest request in sectors of 512 bytes, at most what [`DevInfo::max_io_buf_bytes`] holds.
    pub max_sectors: u32,
    /// Requests do not cross multiples of so many sectors, or 0; the zone size of a zoned device.
    pub chunk_sectors: u32,
    /// Size in sectors of 512 bytes.
    pub dev_sectors: u64,
    /// Segments other than the first begin, and other than the last end, where these address bits are 0.
    pub virt_boundary_mask: u64,
}

const _: () = assert!(size_of::<ParamBasic>() == 32);

/// Discard and write zeroes, 20 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamDiscard {
    /// Offset of the first whole granule, in bytes.
    pub discard_alignment: u32,
    /// Granule in bytes, not 0.
    pub discard_granularity: u32,
    /// Largest discard in sectors of 512 bytes; 0: none.
    pub max_discard_sectors: u32,
    /// Largest write zeroes in sectors of 512 bytes; 0: none.
    pub max_write_zeroes_sectors: u32,
    /// Ranges of one discard: 1 where there are discards.
    pub max_discard_segments: u16,
    /// Zero.
    pub reserved0: u16,
}

const _: () = assert!(size_of::<ParamDiscard>() == 20);

/// Device numbers, 16 bytes, by the kernel; those of the block device are 0 while there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamDevt {
    /// Of the character device.
    pub char_major: u32,
    /// Of the character device.
    pub char_minor: u32,
    /// Of the block device.
    pub disk_major: u32,
    /// Of the block device.
    pub disk_minor: u32,
}

const _: () = assert!(size_of::<ParamDevt>() == 16);

/// Zones, 32 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamZoned {
    /// Zones that can be open at once; 0: any number.
    pub max_open_zones: u32,
    /// Zones that can be active at once; 0: any number.
    pub max_active_zones: u32,
    /// Largest zone append in sectors of 512 bytes, not 0.
    pub max_zone_append_sectors: u32,
    /// Zero.
    pub reserved: [u8; 20],
}

const _: () = assert!(size_of::<ParamZoned>() == 32);

/// Alignment of data in memory, 8 bytes. Linux 6.12 does not know it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamDmaAlign {
    /// A mask: a power of two less 1, smaller than a page.
    pub alignment: u32,
    /// Zero.
    pub pad: [u8; 4],
}

const _: () = assert!(size_of::<ParamDmaAlign>() == 8);

/// Segments of data in memory, 16 bytes. Linux 6.12 does not know them; none of the three may be 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamSegment {
    /// A segment does not cross multiples of this plus 1, a power of two of at least [`MIN_SEGMENT_SIZE`].
    pub seg_boundary_mask: u64,
    /// Bytes of a segment, at least [`MIN_SEGMENT_SIZE`].
    pub max_segment_size: u32,
    /// Segments of a request.
    pub max_segments: u16,
    /// Zero.
    pub pad: [u8; 2],
}

const _: () = assert!(size_of::<ParamSegment>() == 16);

/// Integrity data, 16 bytes. Linux 6.18 does not know it; the device needs [`Features::INTEGRITY`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct ParamIntegrity {
    /// `LBMD_PI_CAP_` flags of `linux/fs.h`.
    pub flags: u32,
    /// Segments of integrity data; 0: any number.
    pub max_integrity_segments: u16,
    /// Binary logarithm of the bytes that one tuple protects.
    pub interval_exp: u8,
    /// Bytes of a tuple, not 0.
    pub metadata_size: u8,
    /// Where the protection information begins in it.
    pub pi_offset: u8,
    /// `LBMD_PI_CSUM_` of `linux/fs.h`.
    pub csum_type: u8,
    /// Bytes of the application's tag.
    pub tag_size: u8,
    /// Zero.
    pub pad: [u8; 5],
}

const _: () = assert!(size_of::<ParamIntegrity>() == 16);

/// All parameters of a device, 152 bytes. Older kernels know a beginning of it, and ignore the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Params {
    /// Bytes of this structure, 152.
    pub len: u32,
    /// `PARAM_TYPE_` flags: which of the following are there.
    pub types: u32,
    /// Size and block size.
    pub basic: ParamBasic,
    /// Discard and write zeroes.
    pub discard: ParamDiscard,
    /// Device numbers.
    pub devt: ParamDevt,
    /// Zones.
    pub zoned: ParamZoned,
    /// Alignment of data.
    pub dma: ParamDmaAlign,
    /// Zero: `seg` begins on a multiple of 8.
    pub pad116: u32,
    /// Segments of data.
    pub seg: ParamSegment,
    /// Integrity data.
    pub integrity: ParamIntegrity,
}

const _: () = assert!(size_of::<Params>() == 152);
const _: () = assert!(offset_of!(Params, discard) == 40);
const _: () = assert!(offset_of!(Params, devt) == 60);
const _: () = assert!(offset_of!(Params, zoned) == 76);
const _: () = assert!(offset_of!(Params, dma) == 108);
const _: () = assert!(offset_of!(Params, seg) == 120);
const _: () = assert!(offset_of!(Params, integrity) == 136);

// --- Places ----------------------------------------------------------------------------------------------------------

/// Pages of x86-64. The kernel counts descriptors in pages of its own size.
const PAGE: usize = 4096;

/// Where the requests are in the character device, as a position.
const IO_BUF_OFFSET: u64 = 0x8000_0000;
const IO_BUF_BITS: u32 = 25;
const TAG_BITS: u32 = 16;
const TAG_SHIFT: u32 = IO_BUF_BITS;
const QUEUE_SHIFT: u32 = TAG_SHIFT + TAG_BITS;

/// Added to a position: the integrity data of the request instead of its data.
pub const IO_INTEGRITY_FLAG: u64 = 1 << 62;

/// Where to map the descriptors of a queue from the character device. Queues lie as far apart as the deepest would need,
/// whatever the depth of these is.
pub const fn descriptors_offset(queue: u16) -> u64 {
    queue as u64 * descriptors_len(MAX_QUEUE_DEPTH) as u64
}

/// How many bytes to map for a queue of this depth: whole pages, and the kernel takes no other length. Both are for devices
/// made without [`Features::IO_DESC_SIZE`].
pub const fn descriptors_len(depth: u16) -> usize {
    (depth as usize * size_of::<IoDesc>()).next_multiple_of(PAGE)
}

/// The position in the character device where the data of a request begins, with [`Features::USER_COPY`].
pub const fn io_buf_position(queue: u16, tag: u16) -> u64 {
    IO_BUF_OFFSET + ((queue as u64) << QUEUE_SHIFT | (tag as u64) << TAG_SHIFT)
}

/// Which registered shared memory `addr` of a request with [`IO_F_SHMEM_ZC`] names.
pub const fn shmem_index(addr: u64) -> u16 {
    (addr >> 32) as u16
}

/// The byte in it where the data begins.
pub const fn shmem_offset(addr: u64) -> u32 {
    addr as u32
}

#[cfg(test)]
mod tests;
