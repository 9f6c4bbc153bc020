//! Tests of the SCSI engines: one file per area. The rig below is an initiator that speaks CDBs.

use super::*;

pub(in crate::scsi) fn unit() -> Unit {
    Unit {
        blocks: 1 << 19,
        block_size: 512,
        physical_block_exponent: 0,
        read_only: false,
        can_unmap: true,
        can_anchor: false,
        unmap_max: 1 << 16,
        unmap_granularity: 8,
        unmap_alignment: Some(0),
        write_same_max: 1 << 15,
        compare_and_write_max: 128,
        transfer_max: 8192,
        optimal_transfer: 128,
        optimal_granularity: 8,
        atomic: Some(Atomic { max: 512, alignment: 1, granularity: 1 }),
        volatile_cache: true,
        copies: true,
        uuid: [0x11; 16],
        vendor: "REACTOR".to_owned(),
        product: "disk".to_owned(),
        revision: "0001".to_owned(),
        transport_version: 0x0960,
        task_functions: TaskFunctions { abort_task: true, unit_reset: true, ..TaskFunctions::default() },
    }
}

mod copy;
mod decode;
mod engine;
mod inquiry;
mod lists;
mod mode;
mod persist;
mod report;

use super::reservation::Reservations;
use super::spec::{Asc, Pointer, SenseKey, TransportId};
pub(in crate::scsi) use crate::util::Random;

/// What the tests here draw beside numbers.
impl Random {
    pub(in crate::scsi) fn up_to(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    pub(in crate::scsi) fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }
}

pub(super) fn port(relative_id: u16) -> TargetPort {
    TargetPort {
        relative_id,
        group: 1,
        port_name: format!("iqn.2026-11.io.reactor:vol0,t,0x{relative_id:04x}"),
        device_name: "iqn.2026-11.io.reactor:vol0".to_owned(),
        protocol: 5,
    }
}

pub(super) fn initiator(name: &str, isid: u8) -> TransportId {
    TransportId { name: format!("iqn.2026-11.io.host:{name}"), isid: Some([0x80, 0, 0, 0, 0, isid]) }
}

const A: NexusId = NexusId(1);
const B: NexusId = NexusId(2);

/// A logical unit with initiators A at port 1 and B at port 2, whose unit attention conditions are taken.
struct Rig {
    lu: LogicalUnit,
}

impl Rig {
    fn new() -> Self {
        Self::with(unit())
    }

    fn with(unit: Unit) -> Self {
        let mut lu = LogicalUnit::new(unit, vec![port(1), port(2)], Reservations::default()).unwrap();
        lu.attach(A, initiator("a", 1), 1);
        lu.attach(B, initiator("b", 2), 2);
        let mut rig = Self { lu };
        for id in [A, B] {
            assert_eq!(rig.check(id, &[0; 6]).code, Asc::POWER_ON);
            rig.good(id, &[0; 6]);
        }
        rig
    }

    fn begin(&mut self, id: NexusId, cdb: &[u8]) -> Action {
        self.lu.begin(id, &Cdb::new(cdb), &Context { luns: &[0, 1, 256], resources: Resources::default() })
    }

    fn reply(&mut self, id: NexusId, cdb: &[u8]) -> Reply {
        match self.begin(id, cdb) {
            Action::Reply(reply) => reply,
            other => panic!("{cdb:x?} is not answered: {other:?}"),
        }
    }

    fn good(&mut self, id: NexusId, cdb: &[u8]) -> Vec<u8> {
        match self.reply(id, cdb) {
            Reply::Good(data) => data,
            other => panic!("{cdb:x?} is not good: {other:?}"),
        }
    }

    fn check(&mut self, id: NexusId, cdb: &[u8]) -> Sense {
        match self.reply(id, cdb) {
            Reply::Check(sense) => sense,
            other => panic!("{cdb:x?} is no check condition: {other:?}"),
        }
    }

    fn conflicts(&mut self, id: NexusId, cdb: &[u8]) -> bool {
        self.begin(id, cdb) == Action::Reply(Reply::Conflict)
    }

    /// A command with a parameter list.
    fn send(&mut self, id: NexusId, cdb: &[u8], list: &[u8]) -> Reaction {
        match self.begin(id, cdb) {
            Action::List(command, len) => {
                assert_eq!(len as usize, list.len());
                self.lu.finish(id, command, list)
            }
            Action::Reply(reply) => Reaction { reply, store: None, abort: Vec::new(), told: Vec::new() },
            other => panic!("{cdb:x?} takes no list: {other:?}"),
        }
    }
}
