//! Every limit of the data plane, with its reason. Relations between them are checked when this compiles.
//!
//! Limits of the kernel boundary stand in [`crate::sys::limits`].

/// Reactors of one process: message rings are one per pair.
pub const REACTORS_MAX: usize = 64;

/// I/Os one reactor can have: command slots of all its connections, and child I/Os of layers.
pub const IOS_PER_REACTOR: usize = 1 << 18;

/// Layers above a leaf: each pushes at most one frame on an I/O.
pub const STACK_DEPTH_MAX: usize = 8;

/// Layers of one stack above its leaf: the frame that is left is for who stands on the stack as a layer does, the server of forwarded
/// I/Os or a load generator.
pub const STACK_LAYERS_MAX: usize = STACK_DEPTH_MAX - 1;

/// I/Os of one device that one reactor has on their way to the device's home; more wait in a list. Enough to hide a
/// message's way there and back, and a home that serves seven reactors so still fits one mailbox.
pub const FORWARD_DEPTH: usize = 128;

/// I/Os of one device and reactor that are cut to pieces at the same time; more wait in a list.
pub const SPLIT_PARENTS: usize = 4;

/// Pieces of one I/O that are on their way at the same time.
pub const SPLIT_CHILDREN: usize = 4;

/// Verifies of one device and reactor, of those that are cut to pieces or made of reads, at the same time. Apart from other I/Os: each
/// may be of the whole device and take hours.
pub const SPLIT_VERIFIES: usize = 2;

/// Most bytes of one read of a verify that a device does not carry out itself. As long as what a bounce buffer holds: with
/// [`SPLIT_CHILDREN`] on their way a disk is kept busy, and each verify takes 256 KiB of the pool at most.
pub const VERIFY_READ_MAX: usize = 64 << 10;

/// Rules that one fault injecting layer has at the same time: a bit each in one word.
pub const INJECT_RULES_MAX: usize = 64;

/// Pieces of scattered data one I/O carries.
pub const SEGMENTS_MAX: usize = 8;

/// Largest data transfer of one I/O, in bytes: what doors announce (NVMe MDTS) and what a pool can hand out in one piece.
pub const TRANSFER_MAX: usize = 1 << 20;

/// Messages between one pair of reactors before the sender keeps them in its own list.
pub const MAILBOX_LEN: usize = 1024;

/// Messages from control threads to one reactor.
pub const CONTROL_INBOX_LEN: usize = 1024;

/// I/Os that may finish within their submission before a task, or an I/O of a load generator, must let others run.
pub const READY_BUDGET: u32 = 64;

/// Tasks polled in one turn before sockets and pollers are looked at again.
pub const TASKS_PER_TURN: usize = 1024;

/// Fewest and most latency stamps taken from one reading of the clock, which costs 10 to 20 ns in a virtual machine, as much as all of
/// a null I/O, and 4 % of one at a door.
pub const STAMPS_PER_READING: [u32; 2] = [8, 64];

/// Tasks and completions that share a reading of the clock which tells stalls: one that stalls is named with so many others.
pub const RUNS_PER_READING: usize = 16;

/// How long one reading should serve, in nanoseconds: after less, or more, the next one serves twice as many stamps, or half, within
/// [`STAMPS_PER_READING`].
pub const READING_NS: [u64; 2] = [300, 1000];

/// What runs longer than this on a reactor without returning is reported as a stall, in nanoseconds.
pub const STALL_NS: u64 = 10_000_000;

/// How long an adaptive reactor spins without work before it sleeps in its ring, in nanoseconds. A wake costs 13 to 60
/// us, so spinning a few times that loses little against sleeping at once, and keeps a busy connection's next command
/// from ever paying for a wake.
pub const SPIN_NS: u64 = 200_000;

/// Longest sleep of an adaptive reactor, in nanoseconds: an upper bound for noticing anything nobody rang for.
pub const SLEEP_NS_MAX: u64 = 1_000_000_000;

/// DMA memory mapped and registered before `ready`; the rest follows while serving.
pub const ARENA_AT_START: usize = 32 << 20;

/// Connections of one reactor, beyond which new ones are closed at once.
pub const CONNECTIONS_PER_REACTOR: usize = 4096;

/// How long a host that went without a word is taken for the same if it comes back, in nanoseconds: then it is told of what its volumes
/// lost meanwhile. Hosts try for ten minutes by default.
pub const HOST_REMEMBERED_NS: u64 = 3_600_000_000_000;

/// Hosts of a target that are known, beyond which those that went first are forgotten: as many as a reactor has connections.
pub const HOSTS_REMEMBERED: usize = CONNECTIONS_PER_REACTOR;

/// How long a connection may take from its start to a complete ICReq, in nanoseconds. A host sends it at once: what is longer
/// is a stranger, or a host that has gone, and would keep one of [`CONNECTIONS_PER_REACTOR`] for ever. Ten seconds bear a lost
/// packet that is sent again three times.
pub const ICREQ_TIMEOUT_NS: u64 = 10_000_000_000;

/// How long a connection may take from its ICReq to a successful Connect, in nanoseconds: as long again, for a host that
/// authenticates or asks elsewhere in between. From then on keep alive watches over the controller.
pub const CONNECT_TIMEOUT_NS: u64 = 10_000_000_000;

/// Commands a host may have in flight on one I/O queue, plus one: a queue's entries.
pub const IO_QUEUE_ENTRIES: u16 = 1025;

/// Entries of an admin queue.
pub const ADMIN_QUEUE_ENTRIES: u16 = 32;

/// I/O queues of one controller: more than any host has cores.
pub const IO_QUEUES_MAX: u16 = 128;

/// Controllers of all subsystems, discovery controllers included.
pub const CONTROLLERS_MAX: usize = 4096;

/// Namespaces of one NVM subsystem.
pub const NAMESPACES_MAX: u32 = 256;

/// Queues of one ublk device: as many as there can be reactors, since more would share them. The kernel would take 4096.
pub const UBLK_QUEUES_MAX: u16 = 64;

/// Commands in flight on one queue of a ublk device by default: four jobs of depth 64. With half of that, as other ublk servers have it,
/// four such jobs got half the I/Os.
pub const UBLK_DEPTH: u16 = 256;

/// The most of them: what the kernel takes (`UBLK_MAX_QUEUE_DEPTH`).
pub const UBLK_DEPTH_MAX: u16 = 4096;

/// Numbers of ublk devices, from 0: as many as one major number has minors (`UBLK_MINORS`, 20 bits).
pub const UBLK_IDS: u32 = 1 << 20;

const _: () = assert!(TRANSFER_MAX <= hugepages::MAX_BUF, "a transfer fits one buffer");
const _: () = assert!(TRANSFER_MAX <= crate::sys::limits::ZERO_AREA_LEN, "zeros for a whole transfer");
const _: () = assert!(FORWARD_DEPTH * 2 <= MAILBOX_LEN, "questions of one device and answers to another fit");
const _: () = assert!(INJECT_RULES_MAX <= u64::BITS as usize);
const _: () = assert!(REACTORS_MAX <= UBLK_QUEUES_MAX as usize, "a ublk device can have a queue on each reactor");
const _: () = assert!(STACK_DEPTH_MAX < u8::MAX as usize);
const _: () = assert!(SEGMENTS_MAX < u8::MAX as usize);

/// iSCSI commands that an initiator may have outstanding in a session: what Linux asks for by default (`cmds_max`).
pub const ISCSI_WINDOW: u16 = 128;

/// iSCSI requests for immediate delivery of a session at a time, beside the window: task management, pings.
pub const ISCSI_IMMEDIATE: u16 = 16;

/// Connections of an iSCSI session.
pub const ISCSI_CONNECTIONS_PER_SESSION: u16 = 4;

/// iSCSI sessions of all targets, discovery included.
pub const ISCSI_SESSIONS_MAX: u16 = 16384;

/// Logical units of a target: what peripheral device addressing holds, which every initiator understands.
pub const ISCSI_LUNS_MAX: u16 = 256;

/// How long an iSCSI connection may take to log in, in nanoseconds: a stranger would keep one of [`CONNECTIONS_PER_REACTOR`] for ever. A wrong
/// secret is answered after a second, and a lost packet is sent again three times.
pub const ISCSI_LOGIN_TIMEOUT_NS: u64 = 15_000_000_000;

/// An iSCSI initiator that says nothing for so long is asked whether it is there, in nanoseconds.
pub const ISCSI_NOP_INTERVAL_NS: u64 = 15_000_000_000;

/// It has so long to answer, in nanoseconds.
pub const ISCSI_NOP_TIMEOUT_NS: u64 = 15_000_000_000;

/// Commands in flight on one queue of an NVMe disk by default: more than any disk needs to be fast.
pub const NVME_DEPTH: u16 = 256;

/// The most of them: a command is told by ten bits of its identifier, the others tell a late answer from its successor's.
pub const NVME_DEPTH_MAX: u16 = 1023;

/// How long an I/O of an NVMe disk may take by default before it is aborted, in seconds: what Linux allows.
pub const NVME_TIMEOUT_S: u64 = 30;

/// The most that may be chosen, in seconds.
pub const NVME_TIMEOUT_S_MAX: u64 = 600;

/// How old an I/O of an NVMe disk may be, in nanoseconds, when it is given to the controller again, or twice its time limit if that is
/// more: hosts wait for 30 s at least before they ask another way, and what they have written then must not be overwritten.
pub const NVME_PATIENCE_NS: u64 = 30_000_000_000;

/// Entries of the admin queues of an NVMe controller: far more than the driver has in flight at a time.
pub const NVME_ADMIN_ENTRIES: u16 = 64;

/// How long an NVMe controller may take for an admin command, in nanoseconds: what Linux allows.
pub const NVME_ADMIN_NS: u64 = 60_000_000_000;

/// How long an NVMe controller may take to become ready, in milliseconds, whatever it says: CRTO could say nine hours.
pub const NVME_READY_MS_MAX: u64 = 300_000;

/// How long a reset of an NVMe controller's function may take, in nanoseconds, or taking its memory away: the kernel waits up to 60 s for
/// a function that does not answer, and most take a tenth of a second.
pub const NVME_FORCE_NS: u64 = 65_000_000_000;
/// How long an NVMe controller may take to format a namespace, in nanoseconds: what nvme-cli allows, and more than disks that are known need to
/// erase all they have.
pub const NVME_FORMAT_NS: u64 = 600_000_000_000;

/// How long an NVMe controller may take to shut down if it does not say so, and at most, in milliseconds.
pub const NVME_SHUTDOWN_MS: u64 = 10_000;
/// See [`NVME_SHUTDOWN_MS`].
pub const NVME_SHUTDOWN_MS_MAX: u64 = 60_000;

/// How often an I/O is given to an NVMe controller again after resets of it. What has killed the controller thrice does so the fourth time.
pub const NVME_REPEATS_MAX: u8 = 3;

/// How often an I/O is given to an NVMe controller again that says that it cannot be carried out for the moment. What Linux does.
pub const NVME_RETRIES_MAX: u8 = 5;

/// How long an I/O waits for its first attempt more, in nanoseconds, and twice as long for each after that, where the controller does not
/// say: 310 ms in all, which a namespace needs that a firmware activation or another host keeps busy for a moment.
pub const NVME_RETRY_NS: u64 = 10_000_000;
/// What an NVMe controller may say at most, in nanoseconds: as long as an I/O may take before it is aborted.
pub const NVME_RETRY_NS_MAX: u64 = 30_000_000_000;

/// As [`NVME_RETRY_NS`], where the kernel's driver has ended a command because it resets the controller: with
/// [`NVME_RETRIES_MAX`] attempts six seconds, which is longer than most take to come up.
pub const NVME_PATH_RETRY_NS: u64 = 200_000_000;

/// How often an NVMe controller may be reset within [`NVME_RESETS_NS`] before it is given up.
pub const NVME_RESETS_MAX: usize = 5;
/// See [`NVME_RESETS_MAX`]; in nanoseconds.
pub const NVME_RESETS_NS: u64 = 60_000_000_000;

/// How often the status of an NVMe controller is looked at, in nanoseconds: one read over the bus, which takes a microsecond.
pub const NVME_WATCH_NS: u64 = 1_000_000_000;

/// Bytes of a request on the control socket, its line feed included: many times what any has.
pub const CONTROL_LINE_MAX: usize = 64 << 10;

/// Connections to the control socket at a time: people and their scripts. Each costs a thread.
pub const CONTROL_CONNECTIONS_MAX: usize = 16;

/// How long a connection to the control socket may say nothing, in seconds, before its place is for others.
pub const CONTROL_SILENCE_S: u64 = 60;
