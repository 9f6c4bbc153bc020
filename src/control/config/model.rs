//! The validated configuration as plain data.
//!
//! Everything is resolved here: sizes are bytes, paths are absolute, names exist, defaults are filled in. The one trace
//! of the text that remains is the [`Place`] of each volume and export, for messages at run time.

use std::collections::BTreeSet;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use uuid::Uuid;

use super::source::Place;
use crate::bdev::device::nvme::Wanted;
use crate::iscsi::{AllowedInitiators, ChapAlgorithm, ChapConfig, DigestPolicy, Redirect};

/// A whole configuration that passed every check which needs no look at the file system.
#[derive(Clone, Debug)]
pub struct Config {
    /// The configuration file as the user named it, for messages.
    pub file: String,
    /// `[reactor]`.
    pub reactor: ReactorConfig,
    /// `[memory]`.
    pub memory: MemoryConfig,
    /// Every `[[bdev]]`, a base before the layer that stands on it and otherwise in the order of the file: opening them
    /// in this order works, closing in reverse too.
    pub bdevs: Vec<BdevConfig>,
    /// `[nvmf]`; `None` exports nothing over NVMe/TCP.
    pub nvmf: Option<NvmfConfig>,
    /// `[iscsi]`; `None` exports nothing over iSCSI.
    pub iscsi: Option<IscsiConfig>,
    /// Every `[[ublk]]` in the order of the file, at most one for each of `bdevs`.
    pub ublk: Vec<UblkConfig>,
    /// `[control]`: absolute path of the control socket; `None` has none.
    pub socket: Option<PathBuf>,
}

impl Config {
    /// The volume called `name`.
    pub fn bdev(&self, name: &str) -> Option<&BdevConfig> {
        self.bdevs.iter().find(|bdev| bdev.name == name)
    }

    /// `FILE:LINE` of a place of this configuration, for a message at run time.
    pub fn at(&self, place: Place) -> String {
        format!("{}:{}", self.file, place.line)
    }

    /// Addresses NVMe/TCP listens on, none without `[nvmf]`.
    pub fn listeners(&self) -> &[Listener] {
        self.nvmf.as_ref().map_or(&[], |nvmf| nvmf.listen.as_slice())
    }

    /// NVMe subsystems, none without `[nvmf]`.
    pub fn subsystems(&self) -> &[Subsystem] {
        self.nvmf.as_ref().map_or(&[], |nvmf| nvmf.subsystems.as_slice())
    }

    /// iSCSI portals, none without `[iscsi]`.
    pub fn iscsi_portals(&self) -> &[IscsiPortal] {
        self.iscsi.as_ref().map_or(&[], |iscsi| iscsi.portals.as_slice())
    }

    /// iSCSI targets, none without `[iscsi]`.
    pub fn targets(&self) -> &[IscsiTarget] {
        self.iscsi.as_ref().map_or(&[], |iscsi| iscsi.targets.as_slice())
    }

    /// The target of this name, in lower case.
    pub fn target(&self, iqn: &str) -> Option<&IscsiTarget> {
        self.targets().iter().find(|target| target.iqn == iqn)
    }

    /// The local block device of the volume called `bdev`.
    pub fn ublk_of(&self, bdev: &str) -> Option<&UblkConfig> {
        self.ublk.iter().find(|ublk| ublk.bdev == bdev)
    }
}

/// `[reactor]`: the threads of the data path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReactorConfig {
    /// Core ids as the kernel numbers them, one reactor each, ascending, 1 to 64 of them.
    pub cores: Vec<usize>,
    /// What a reactor does when it has nothing to do.
    pub idle: Idle,
}

/// What a reactor does when it has nothing to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Idle {
    /// Spin always: lowest latency, one whole core.
    Poll,
    /// Spin for a while, then sleep in the ring.
    Adaptive,
}

/// `[memory]`: the DMA arena. RAM volumes are beside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryConfig {
    /// Bytes of the arena, a multiple of 2 MiB, at least 32 MiB.
    pub size: u64,
    /// Whether the arena stands on huge pages.
    pub hugepages: Hugepages,
}

/// Whether the arena stands on huge pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hugepages {
    /// Huge pages or no start.
    Require,
    /// Huge pages where the machine has them, else plain pages with one warning.
    Prefer,
    /// Plain pages.
    Off,
}

/// One `[[bdev]]`: a volume, or a layer that stands on one.
#[derive(Clone, Debug)]
pub struct BdevConfig {
    /// Unique name: letters, digits, `.`, `_` and `-`, at most 63 bytes.
    pub name: String,
    /// Identity towards hosts (NVMe namespace UUID and NGUID); see [`super::derived_uuid`] for the default.
    pub uuid: Uuid,
    /// Bytes, a positive multiple of `block_size`. A layer has the size of its base. 0: only the disk knows (`nvme`).
    pub size: u64,
    /// Bytes of a logical block: 512 or 4096. A layer has that of its base. 0: only the disk knows.
    pub block_size: u32,
    /// Bytes of a physical block: a power of two from `block_size` to 64 KiB. A layer has that of its base. 0: only the disk knows.
    pub physical_block_size: u32,
    /// What serves it.
    pub driver: Driver,
    /// The `[[bdev]]` line.
    pub place: Place,
}

/// What serves a volume, with the keys of that driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Driver {
    /// `null`: keeps nothing, leaves read buffers as they are.
    Null {
        /// When an I/O is answered.
        complete: NullComplete,
    },
    /// `malloc`: RAM, zeros at start, gone at exit.
    Malloc,
    /// `file`: a regular file or a block device.
    File {
        /// Absolute path.
        path: PathBuf,
        /// O_DIRECT where the file system can; `false`: always through the page cache.
        direct: bool,
    },
    /// `nvme`: a namespace of an NVMe disk, by VFIO or by way of the kernel's driver.
    Nvme(Wanted),
    /// `inject`: a layer that fails, delays or holds chosen I/Os of its base.
    Inject {
        /// Name of the volume below.
        base: String,
        /// Rules in the order of the file; the first one that fires decides.
        rules: Vec<InjectRule>,
    },
}

impl Driver {
    /// The word of the `driver` key.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Null { .. } => "null",
            Self::Malloc => "malloc",
            Self::File { .. } => "file",
            Self::Nvme(_) => "nvme",
            Self::Inject { .. } => "inject",
        }
    }

    /// The volume below, for a layer.
    pub fn base(&self) -> Option<&str> {
        match self {
            Self::Inject { base, .. } => Some(base),
            Self::Null { .. } | Self::Malloc | Self::File { .. } | Self::Nvme(_) => None,
        }
    }
}

/// When the null device answers an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NullComplete {
    /// On the next poll of its reactor, as a real device would.
    Poll,
    /// Inside submit.
    Submit,
}

/// One rule of the `inject` layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InjectRule {
    /// Which I/Os the rule counts; `None` counts all.
    pub op: Option<InjectOp>,
    /// Which of the counted I/Os it fires on.
    pub trigger: Trigger,
    /// What it does to them.
    pub action: InjectAction,
}

/// The operation a rule counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectOp {
    /// `read`: verifies too.
    Read,
    /// `write`, with or without FUA.
    Write,
    /// `flush`.
    Flush,
    /// `unmap`.
    Unmap,
    /// `write-zeroes`.
    WriteZeroes,
    /// `compare`.
    Compare,
    /// `compare-and-write`.
    CompareAndWrite,
    /// `reset`.
    Reset,
    /// `verify`.
    Verify,
    /// `zone-append`.
    ZoneAppend,
    /// `zone-open`.
    ZoneOpen,
    /// `zone-close`.
    ZoneClose,
    /// `zone-finish`.
    ZoneFinish,
    /// `zone-reset`.
    ZoneReset,
    /// `zone-report`.
    ZoneReport,
}

/// Which of the I/Os a rule counts it fires on. Counting starts at 1 when the device is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// I/O number `first` and those after it, `count` in all.
    Nth {
        /// At least 1.
        first: u64,
        /// At least 1, default 1.
        count: u64,
    },
    /// Each I/O whose number is a multiple of `every`.
    Every {
        /// At least 1.
        every: u64,
        /// Fires at most this often; `None`: for ever.
        count: Option<u64>,
    },
}

/// What a rule does to an I/O.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectAction {
    /// Ends it with this status; the base does not see it.
    Fail(InjectStatus),
    /// Passes it on, and its answer back this much later, in milliseconds.
    Delay {
        /// 1 to 3,600,000.
        delay_ms: u32,
    },
    /// Keeps it until it is aborted or the device is reset or closed.
    Hold,
}

/// The status a failed I/O ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InjectStatus {
    /// `io-error`: the device failed, no more is known (`IoStatus::DeviceError`).
    IoError,
    /// `media-error`: the medium cannot give or keep the block.
    MediaError,
    /// `no-space`: a thin or sparse volume is full.
    NoSpace,
    /// `write-protected` (`IoStatus::ReadOnly`).
    WriteProtected,
    /// `aborted`.
    Aborted,
    /// `gone`: the device was removed.
    Gone,
}

/// `[nvmf]`: the NVMe/TCP door.
#[derive(Clone, Debug)]
pub struct NvmfConfig {
    /// As read, never empty.
    pub listen: Vec<Listener>,
    /// In the order of the file.
    pub subsystems: Vec<Subsystem>,
}

/// One address to listen on.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Port 0 takes a free one.
    pub address: SocketAddr,
    /// Its entry in `listen`.
    pub place: Place,
}

/// One `[[nvmf.subsystem]]`.
#[derive(Clone, Debug)]
pub struct Subsystem {
    /// NVMe qualified name (NVMe Base 2.0, section 4.5), at most 223 bytes, unique.
    pub nqn: String,
    /// Who may connect.
    pub hosts: HostAccess,
    /// Ascending by nsid, at most 256.
    pub namespaces: Vec<Namespace>,
    /// Its `nqn`.
    pub place: Place,
}

/// Who may connect to a subsystem and see it in discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAccess {
    /// `hosts = ["*"]`, the default.
    Any,
    /// These host NQNs, sorted, never empty.
    Only(Vec<String>),
}

impl HostAccess {
    /// Whether the host of this NQN may connect. NQNs compare byte by byte.
    pub fn admits(&self, host_nqn: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Only(hosts) => hosts.iter().any(|host| host == host_nqn),
        }
    }
}

impl fmt::Display for HostAccess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any host"),
            Self::Only(hosts) => f.write_str(&hosts.join(", ")),
        }
    }
}

/// One namespace of a subsystem.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// 1 to 256, unique in its subsystem.
    pub nsid: u32,
    /// Name of a volume of [`Config::bdevs`], at most once in a subsystem.
    pub bdev: String,
    /// Write protected towards hosts.
    pub read_only: bool,
    /// Its entry in `namespaces`.
    pub place: Place,
}

/// `[iscsi]`: the iSCSI door.
#[derive(Clone, Debug)]
pub struct IscsiConfig {
    /// In the order of the file, 1 to 64. Of one address there may be several where its port is 0.
    pub portals: Vec<IscsiPortal>,
    /// Absolute path of the directory where persistent reservations are kept that outlive the process (APTPL). It may not exist.
    pub state: PathBuf,
    /// What initiators must prove before they are told of targets; `None`: nothing.
    pub discovery_chap: Option<Chap>,
    /// In the order of the file.
    pub targets: Vec<IscsiTarget>,
}

impl IscsiConfig {
    /// The portals where a target is reached, each with its index in `portals`.
    pub fn portals_of<'a>(&'a self, target: &'a IscsiTarget) -> impl Iterator<Item = (usize, &'a IscsiPortal)> {
        self.portals.iter().enumerate().filter(|(_, portal)| target.is_in_group(portal.tpgt))
    }
}

/// One address of the iSCSI door. Two are equal if their keys are, wherever they stand.
#[derive(Clone, Debug)]
pub struct IscsiPortal {
    /// Port 0 takes a free one.
    pub listen: SocketAddr,
    /// Target portal group tag, 1 to 65,535; portals with one tag are one group. Default: 1.
    pub tpgt: u16,
    /// What initiators are told instead of the address they came by.
    pub advertise: Option<SocketAddr>,
    /// Its entry in `listen` or `portals`.
    pub place: Place,
}

impl IscsiPortal {
    /// The commands that find a target and log in to it from a Linux host, where `listen` has become `bound`.
    pub fn connect_lines(&self, iqn: &str, bound: SocketAddr) -> [String; 2] {
        // A record of a host has the address that discovery told.
        let told = self.advertise.unwrap_or(bound);
        [
            format!("iscsiadm -m discovery -t sendtargets -p {bound}"),
            format!("iscsiadm -m node -T {iqn} -p {told} --login"),
        ]
    }
}

impl PartialEq for IscsiPortal {
    fn eq(&self, other: &Self) -> bool {
        let keys = |Self { listen, tpgt, advertise, place: _ }: &Self| (*listen, *tpgt, *advertise);
        keys(self) == keys(other)
    }
}

impl Eq for IscsiPortal {}

/// One `[[iscsi.target]]`.
#[derive(Clone, Debug)]
pub struct IscsiTarget {
    /// iSCSI name (RFC 7143 §4.2.7.1) in lower case, at most 223 bytes, unique.
    pub iqn: String,
    /// What initiators show beside the name, 1 to 255 bytes.
    pub alias: Option<String>,
    /// Ascending by LUN, at most 256.
    pub luns: Vec<Lun>,
    /// What initiators must prove; `None`: nothing.
    pub chap: Option<Chap>,
    /// Who may log in and is told of it.
    pub initiators: AllowedInitiators,
    /// Digest of headers.
    pub header_digest: DigestPolicy,
    /// Digest of data.
    pub data_digest: DigestPolicy,
    /// Tags of the portal groups where it is reached, never empty; `None`: all, those that a reload adds too.
    pub portals: Option<BTreeSet<u16>>,
    /// Where logins are sent instead.
    pub redirect: Option<Redirect>,
    /// Its `iqn`.
    pub place: Place,
}

impl IscsiTarget {
    /// Whether it is reached at the portals of this tag.
    pub fn is_in_group(&self, tpgt: u16) -> bool {
        self.portals.as_ref().is_none_or(|tags| tags.contains(&tpgt))
    }
}

/// One logical unit of a target. Two are equal if their keys are, wherever they stand.
#[derive(Clone, Debug)]
pub struct Lun {
    /// Logical unit number, 0 to 255, unique in its target.
    pub lun: u16,
    /// Name of a volume of [`Config::bdevs`]; in a target at most once writable and once write protected.
    pub bdev: String,
    /// Write protected towards initiators.
    pub read_only: bool,
    /// Its entry in `luns`.
    pub place: Place,
}

impl PartialEq for Lun {
    fn eq(&self, other: &Self) -> bool {
        fn keys(Lun { lun, bdev, read_only, place: _ }: &Lun) -> (u16, &str, bool) {
            (*lun, bdev, *read_only)
        }
        keys(self) == keys(other)
    }
}

impl Eq for Lun {}

/// What initiators must prove by CHAP (RFC 7143 §12.1.3), and what the target proves to those that ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chap {
    /// Name of the initiators' side (CHAP_N), 1 to 255 bytes.
    pub user: String,
    /// Absolute path of their secret.
    pub secret_file: PathBuf,
    /// The target's own side; `None`: it proves nothing.
    pub mutual: Option<MutualChap>,
    /// Hashes that may be used, never empty. Default: all.
    pub algorithms: BTreeSet<ChapAlgorithm>,
    /// Both sides with their secrets. [`super::load`] and [`super::Parsed::probe`] read them: `None` before, and nobody can prove
    /// anything then.
    pub proof: Option<ChapConfig>,
}

/// The target's side of mutual CHAP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MutualChap {
    /// Name of the target's side (CHAP_N), 1 to 255 bytes.
    pub user: String,
    /// Absolute path of its secret, which is not that of the initiators.
    pub secret_file: PathBuf,
}

/// One `[[ublk]]`: a volume as the local block device `/dev/ublkbN`.
#[derive(Clone, Debug)]
pub struct UblkConfig {
    /// Name of a volume of [`Config::bdevs`], unique: the device is `/dev/disk/by-id/reactor-NAME` too.
    pub bdev: String,
    /// N of `/dev/ublkbN`, 0 to 1,048,575, unique; `None`: the kernel picks a free one.
    pub id: Option<u32>,
    /// Queues, 1 to 64. Default: one for each of the cores of the same file.
    pub queues: u16,
    /// Commands in flight on each queue, 1 to 4096.
    pub depth: u16,
    /// How data travels.
    pub mode: UblkMode,
    /// The device survives its server and goes on with the next; `false`: it ends with its server.
    pub recover: bool,
    /// Without ublk in the kernel, or the right to it, nothing starts; `false`: that is said, and the rest goes on.
    pub required: bool,
    /// Write protected.
    pub read_only: bool,
    /// The `[[ublk]]` line.
    pub place: Place,
}

/// How the data of a local block device travels between the kernel and this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UblkMode {
    /// `auto`: the best that the kernel and the volume can do.
    Auto,
    /// `zero-copy`: the kernel's pages are used where they are.
    ZeroCopy,
    /// `user-copy`: this process reads and writes them through the device's file.
    UserCopy,
    /// `copy`: the kernel copies to and from buffers of this process.
    Copy,
}
