//! What a seed decides before anything runs.

use reactor::bdev::layer::inject::{Action, Rule, When};
use reactor::iscsi::Offer;
use reactor::reactor::clock::Entropy;
use reactor::reactor::io::{IoOp, IoStatus};
use reactor::reactor::sim::Rates;

use super::drive::DrivePlan;
use super::iscsi::ScsiPlan;
use super::iscsi::login::{Ask, PATIENCE_NS};
use super::model::Crash;

/// One millisecond of simulated time.
pub const MS: u64 = 1_000_000;

/// The bit of the seeds whose worlds have an NVMe drive; the others have none.
pub const DRIVE_SEEDS: u64 = 1 << 48;

/// The bit of the seeds whose hosts come by iSCSI; those of the others by NVMe/TCP.
pub const ISCSI_SEEDS: u64 = 1 << 49;

/// What a volume is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// RAM.
    Malloc,
    /// A simulated disk with this unit of direct I/O; whether it can punch holes.
    File { unit: u32, punch: bool },
    /// A namespace of the plan's drive, which may have a volatile write cache.
    Nvme { nsid: u32, cache: bool },
}

impl Kind {
    /// Acknowledged writes may be lost until a flush.
    pub fn is_volatile(self) -> bool {
        match self {
            Kind::Malloc => false,
            Kind::File { .. } => true,
            Kind::Nvme { cache, .. } => cache,
        }
    }
}

/// A volume.
#[derive(Clone, Debug)]
pub struct Volume {
    pub kind: Kind,
    pub block: u32,
    pub size: u64,
    /// Reactor that orders its compare and writes.
    pub home: u16,
    /// An inject layer on top, with these rules.
    pub rules: Option<Vec<Rule>>,
    /// What is submitted to it cannot be taken back, whatever a layer below would do.
    pub stubborn: bool,
}

impl Volume {
    /// Statuses that hosts may see for `op` while the connection holds.
    pub fn may_fail(&self, op: IoOp, status: IoStatus, plan: &Plan) -> bool {
        let injected = self.rules.iter().flatten().any(|rule| {
            let about = rule.op.is_none_or(|of| of == op || of == IoOp::Read && op == IoOp::Verify);
            matches!(rule.action, Action::Fail(with) if about && told(with) == status)
        });
        injected
            || match self.kind {
                Kind::Malloc => false,
                Kind::File { .. } => plan.disk_errors() && status == IoStatus::MediaError,
                Kind::Nvme { .. } => plan.drive.as_ref().is_some_and(|drive| drive.may_fail(op, status)),
            }
    }

    /// Whether an error says that nothing was written: the inject layer does so, where nothing else fails. What is cut for a disk's limits has
    /// parts, and one of them may fail when others are done.
    pub fn refuses_whole(&self, plan: &Plan) -> bool {
        self.is_flawless(plan) && !matches!(self.kind, Kind::Nvme { .. })
    }

    /// Whether nothing but the inject layer fails here.
    pub fn is_flawless(&self, plan: &Plan) -> bool {
        match self.kind {
            Kind::Malloc => true,
            Kind::File { .. } => !plan.disk_errors(),
            Kind::Nvme { .. } => !plan.is_drive_troubled(),
        }
    }
}

/// What a host is told of a status of the block layer, by way of NVMe.
fn told(status: IoStatus) -> IoStatus {
    match status {
        // Namespace Not Ready is for the host a matter of the controller.
        IoStatus::Gone => IoStatus::DeviceError,
        other => other,
    }
}

/// A host.
#[derive(Clone, Debug)]
pub struct Host {
    pub queues: u16,
    pub queue_size: u16,
    /// Tasks per queue that each have one I/O in flight.
    pub workers: u32,
    pub header_digest: bool,
    pub data_digest: bool,
    pub disable_sqflow: bool,
    pub max_r2t: u8,
    pub hpda_z: u8,
    pub kato_ms: u32,
    pub events: bool,
    /// Asks the controller for this and that meanwhile.
    pub chatter: bool,
    /// Waits so long for an answer.
    pub patience_ns: u64,
}

/// How a round ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// All hosts have done their share.
    Done,
    /// The target fails while they are at work.
    Crash(Crash),
    /// The target is shut down in order while they are at work.
    Drain,
}

/// All of it.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub reactors: u16,
    /// DMA memory of each reactor of the target.
    pub memory: usize,
    pub volumes: Vec<Volume>,
    pub hosts: Vec<Host>,
    pub rates: Rates,
    /// I/Os of each host in each round.
    pub ios: u32,
    /// Largest I/O in bytes.
    pub len_max: u64,
    /// I/Os crowd in this many bytes at the start of a volume, half of the time.
    pub crowd: u64,
    pub rounds: Vec<Finish>,
    /// Hosts stop for a while (no turns, full socket buffers).
    pub pauses: bool,
    /// Hosts fall silent for a while, or for good.
    pub vanishes: bool,
    /// The last volume's namespace comes and goes.
    pub changes: bool,
    /// The NVMe drive whose namespaces some of the volumes are.
    pub drive: Option<DrivePlan>,
    /// How hosts come by iSCSI, if they do.
    pub scsi: Option<ScsiPlan>,
}

impl Plan {
    /// Whether connections may be lost for other reasons than a crash of the target.
    pub fn loses_connections(&self) -> bool {
        self.rates.reset > 0 || self.flips() || self.vanishes
    }

    /// Whether bits are inverted on their way; all hosts have digests then.
    pub fn flips(&self) -> bool {
        self.rates.flip > 0
    }

    /// Whether the namespace of a volume comes and goes.
    pub fn may_be_removed(&self, volume: usize) -> bool {
        self.changes && volume + 1 == self.volumes.len()
    }

    /// Whether a flush of all volumes that a shutdown makes does so.
    pub fn always_flushes(&self) -> bool {
        let about = |rule: &Rule| rule.op.is_none_or(|op| op == IoOp::Flush);
        let fails = |rule: &Rule| about(rule) && matches!(rule.action, Action::Fail(_));
        !self.changes
            && !self.disk_errors()
            && !self.is_drive_troubled()
            && !self.volumes.iter().flat_map(|v| v.rules.iter().flatten()).any(fails)
    }

    /// Whether disks fail.
    pub fn disk_errors(&self) -> bool {
        self.rates.disk_error > 0
    }

    /// Whether anything goes wrong with the NVMe drive.
    pub fn is_drive_troubled(&self) -> bool {
        self.drive.as_ref().is_some_and(DrivePlan::is_troubled)
    }

    /// Draws a plan.
    pub fn of(seed: u64) -> Plan {
        let mut plan = Plan::without_drive(seed);
        if seed & DRIVE_SEEDS != 0 {
            plan.add_drive();
        }
        if seed & ISCSI_SEEDS != 0 {
            plan.go_by_iscsi();
        }
        plan
    }

    /// Has the hosts come by iSCSI.
    fn go_by_iscsi(&mut self) {
        let chance = Entropy::new(self.seed ^ 0x6973_6373_6920_646f);
        for _ in 0..16 {
            chance.next();
        }
        let offer = Offer {
            max_recv_data_segment: [512, 8192, 65_536, 262_144][chance.below(4) as usize],
            first_burst: [512, 4096, 65_536][chance.below(3) as usize],
            max_burst: [65_536, 262_144, 1 << 20][chance.below(3) as usize],
            initial_r2t: chance.below(4) == 0,
            immediate_data: chance.below(4) > 0,
            max_outstanding_r2t: 1 + chance.below(8) as u16,
            max_connections: 1 + chance.below(4) as u16,
            ..Offer::default()
        };
        let asks = self.hosts.iter().map(|host| {
            // Each burst takes a round trip: with those of 512 bytes a long write would outlast every patience on a slow link.
            let max_burst = [4096, 16_384, 262_144, 1 << 20][chance.below(4) as usize];
            Ask {
                header_digest: host.header_digest,
                data_digest: host.data_digest,
                immediate: chance.below(3) > 0,
                initial_r2t: chance.below(2) == 0,
                max_recv: [512, 4096, 65_536, 262_144][chance.below(4) as usize],
                max_burst,
                first_burst: [512, 8192, 65_536, 262_144][chance.below(4) as usize].min(max_burst),
                r2ts: host.max_r2t.into(),
                connections: host.queues,
                security: chance.below(3) == 0,
                offer,
                patience_ns: PATIENCE_NS,
            }
        });
        self.scsi = Some(ScsiPlan { offer, asks: asks.collect() });
    }

    /// Has most of the volumes be namespaces of a drive.
    fn add_drive(&mut self) {
        let chance = Entropy::new(self.seed ^ 0x6e76_6d65_6472_6976);
        for _ in 0..16 {
            chance.next();
        }
        let mut volumes: Vec<(u32, &Volume)> = (1..).zip(&self.volumes).collect();
        let sure = chance.below(volumes.len() as u64) as u32 + 1;
        volumes.retain(|(nsid, _)| *nsid == sure || chance.below(4) > 0);
        let drive = DrivePlan::of(&chance, self.reactors, &volumes, self.pauses);
        let chosen: Vec<u32> = volumes.iter().map(|(nsid, _)| *nsid).collect();
        for nsid in chosen {
            let volume = &mut self.volumes[nsid as usize - 1];
            volume.kind = Kind::Nvme { nsid, cache: drive.disk.write_cache };
            volume.home = drive.home();
        }
        // A controller that is silent for a minute is waited for.
        self.hosts.iter_mut().for_each(|host| host.patience_ns = 300_000 * MS);
        self.memory = self.memory.max(8 << 20);
        self.drive = Some(drive);
    }

    fn without_drive(seed: u64) -> Plan {
        let chance = Entropy::new(seed ^ 0x7361_6d65_2070_6c61);
        for _ in 0..16 {
            chance.next();
        }
        let one_in = |n: u64| chance.below(n) == 0;
        let reactors = 1 + chance.below(3) as u16;
        let rates = rates(&chance);
        let volumes: Vec<Volume> = (0..1 + chance.below(3)).map(|_| volume(&chance, reactors)).collect();
        let (pauses, vanishes) = (one_in(3), one_in(5));
        let mut hosts: Vec<Host> = (0..1 + chance.below(3)).map(|_| host(&chance, pauses, vanishes)).collect();
        for host in hosts.iter_mut().filter(|_| rates.flip > 0) {
            (host.header_digest, host.data_digest) = (true, true);
        }
        let busy: u64 = hosts.iter().map(|h| u64::from(h.queues) * u64::from(h.workers)).max().unwrap_or(1);
        // What a host's workers hold at a time fits its memory twice, and once more for what it receives.
        let most = ((4 << 20) / busy).clamp(16 << 10, 1 << 20);
        let rounds = (0..1 + chance.below(3)).map(|_| finish(&chance)).collect();
        let several = volumes.len() > 1;
        Plan {
            seed,
            reactors,
            memory: [4 << 20, 8 << 20, 16 << 20][chance.below(3) as usize],
            volumes,
            hosts,
            rates,
            ios: 30 + chance.below(120) as u32,
            len_max: [8 << 10, 64 << 10, 128 << 10, most][chance.below(4) as usize].min(most),
            crowd: [16 << 10, 64 << 10, 256 << 10][chance.below(3) as usize],
            rounds,
            pauses,
            vanishes,
            changes: several && one_in(4),
            drive: None,
            scsi: None,
        }
    }
}

fn finish(chance: &Entropy) -> Finish {
    match chance.below(12) {
        0..6 => Finish::Done,
        6..9 => Finish::Crash(Crash::Power),
        9..11 => Finish::Crash(Crash::Process),
        _ => Finish::Drain,
    }
}

fn rates(chance: &Entropy) -> Rates {
    let base = match chance.below(4) {
        0 => Rates::calm(),
        1 => Rates { split: 900_000, short_send: 500_000, slow: 100_000, ..Rates::default() },
        _ => Rates::default(),
    };
    Rates {
        reset: if chance.below(4) == 0 { 200 << chance.below(5) } else { 0 },
        flip: if chance.below(10) == 0 { 100 << chance.below(6) } else { 0 },
        short_io: [0, 10_000, 200_000][chance.below(3) as usize],
        disk_error: if chance.below(6) == 0 { 2_000 + chance.below(20_000) as u32 } else { 0 },
        socket_buffer_max: [4 << 10, 32 << 10, 256 << 10][chance.below(3) as usize],
        ..base
    }
}

fn volume(chance: &Entropy, reactors: u16) -> Volume {
    let block = [512, 4096][chance.below(2) as usize];
    let kind = match chance.below(5) {
        0 | 1 => Kind::Malloc,
        _ => Kind::File { unit: [512, 4096][chance.below(2) as usize], punch: chance.below(3) > 0 },
    };
    Volume {
        kind,
        block,
        size: [128 << 10, 512 << 10, 2 << 20][chance.below(3) as usize],
        home: chance.below(u64::from(reactors)) as u16,
        rules: (chance.below(2) == 0).then(|| (0..chance.below(5)).map(|_| rule(chance)).collect()),
        stubborn: false,
    }
}

fn rule(chance: &Entropy) -> Rule {
    const OPS: [IoOp; 8] = [
        IoOp::Read,
        IoOp::Write,
        IoOp::Flush,
        IoOp::Unmap,
        IoOp::WriteZeroes,
        IoOp::Compare,
        IoOp::CompareAndWrite,
        IoOp::Verify,
    ];
    const STATUSES: [IoStatus; 6] = [
        IoStatus::MediaError,
        IoStatus::DeviceError,
        IoStatus::NoSpace,
        IoStatus::ReadOnly,
        IoStatus::Aborted,
        IoStatus::Gone,
    ];
    Rule {
        op: (chance.below(4) > 0).then(|| OPS[chance.below(8) as usize]),
        when: if chance.below(2) == 0 { When::From(1 + chance.below(60)) } else { When::Every(2 + chance.below(20)) },
        count: Some(1 + chance.below(30)),
        action: match chance.below(4) {
            0 => Action::Fail(STATUSES[chance.below(6) as usize]),
            1 => Action::Hold,
            2 => Action::Delay(chance.below(300 * MS)),
            _ => Action::Delay(chance.below(5 * MS)),
        },
    }
}

fn host(chance: &Entropy, pauses: bool, vanishes: bool) -> Host {
    let kato_ms = match chance.below(4) {
        // A host that falls silent without a keep alive time-out leaves its connections open for ever.
        0 if !vanishes => 0,
        // One that stops is not to be taken for one that has gone.
        1 | 2 if !pauses || vanishes => 1_000,
        _ => 5_000,
    };
    Host {
        queues: 1 + chance.below(3) as u16,
        queue_size: [2, 3, 8, 33, 128][chance.below(5) as usize],
        workers: [1, 2, 4, 8, 16][chance.below(5) as usize],
        header_digest: chance.below(2) == 0,
        data_digest: chance.below(2) == 0,
        disable_sqflow: chance.below(2) == 0,
        max_r2t: 1 + chance.below(4) as u8,
        hpda_z: [0, 0, 1, 31][chance.below(4) as usize],
        kato_ms,
        events: chance.below(3) == 0,
        chatter: chance.below(3) == 0,
        patience_ns: 30_000 * MS,
    }
}
