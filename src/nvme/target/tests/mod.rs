//! Tests of the target engines: one file per area. The rig below is a host that speaks structures instead of bytes.

mod admin;
mod connect;
mod features;
mod identify;
mod io;
mod logs;
mod reload;
mod zoned;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use zerocopy::{FromZeros, IntoBytes};

use super::*;
use crate::nvme::spec::*;

const NQN: &str = "nqn.2026-11.io.reactor:vol0";
const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555";
const LOCAL: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const SECOND: u64 = 1_000_000_000;

fn params() -> TargetParams {
    TargetParams {
        listeners: vec![Listener { portid: 1, addr: SocketAddr::new(LOCAL, 4420) }],
        max_io_queues: 8,
        max_io_entries: 128,
        max_admin_entries: 32,
        in_capsule_len: 8192,
        max_controllers: 16,
        max_nsid: 256,
        max_namespaces: 256,
        firmware: "0.1.0".to_owned(),
    }
}

fn subsystem(nqn: &str, hosts: AllowedHosts) -> SubsystemConfig {
    SubsystemConfig { nqn: nqn.to_owned(), serial: "S1".to_owned(), model: "reactor".to_owned(), hosts }
}

fn namespace(nsid: u32) -> NamespaceInfo {
    NamespaceInfo {
        nsid,
        uuid: [0x10u8.wrapping_add(nsid as u8); 16],
        block_size: 512,
        blocks: 2048,
        physical_block_size: 4096,
        optimal_write_size: 65536,
        unmap_granularity: 4096,
        atomic_write_blocks: 1,
        atomic_write_power_fail_blocks: 1,
        compare_and_write_blocks: 8,
        read_only: false,
        zones: None,
    }
}

fn connect_data(cntlid: u16, subnqn: &str, hostnqn: &str) -> ConnectData {
    let mut data = ConnectData::new_zeroed();
    data.hostid = [7; 16];
    data.cntlid.set(cntlid);
    put_text(&mut data.subnqn, subnqn, 0);
    put_text(&mut data.hostnqn, hostnqn, 0);
    data
}

/// A target with one subsystem of two namespaces, and a host.
struct Rig {
    target: Target,
    now_ns: u64,
    counters: SmartCounters,
}

impl Rig {
    fn new() -> Self {
        let mut target = Target::new(params()).unwrap();
        target.add_subsystem(subsystem(NQN, AllowedHosts::Any)).unwrap();
        target.set_namespaces(NQN, vec![namespace(1), namespace(3)]).unwrap();
        Self { target, now_ns: SECOND, counters: SmartCounters::default() }
    }

    fn try_connect(&mut self, cmd: ConnectCmd, data: &ConnectData) -> Result<Connected, Cqe> {
        let sqe = cmd.to_sqe();
        let request = ConnectRequest { sqe: &sqe, data: data.as_bytes(), local: LOCAL, now_ns: self.now_ns };
        self.target.connect(&request)
    }

    /// Connects an Admin Queue.
    fn connect(&mut self, subnqn: &str, hostnqn: &str, kato_ms: u32) -> Connected {
        let data = connect_data(CNTLID_DYNAMIC, subnqn, hostnqn);
        self.try_connect(ConnectCmd::new(0, 31, 0, kato_ms), &data).unwrap()
    }

    /// Connects and enables a controller as Linux does.
    fn enabled(&mut self) -> ControllerHandle {
        let connected = self.connect(NQN, HOST, 5000);
        self.enable(connected.controller);
        connected.controller
    }

    fn enabled_discovery(&mut self, kato_ms: u32) -> ControllerHandle {
        let connected = self.connect(DISCOVERY_NQN, HOST, kato_ms);
        self.enable(connected.controller);
        connected.controller
    }

    fn enable(&mut self, controller: ControllerHandle) {
        self.ok(controller, &PropertySetCmd::new(Property::CC.0, 0x0046_0001).to_sqe());
    }

    fn io_queue(&mut self, cntlid: u16, qid: u16) -> Result<Connected, Cqe> {
        let data = connect_data(cntlid, NQN, HOST);
        self.try_connect(ConnectCmd::new(qid, 127, 0, 0), &data)
    }

    fn admin(&mut self, controller: ControllerHandle, sqe: &Sqe) -> (Outcome, Vec<u8>) {
        let transfer = match admin_transfer(sqe, 0) {
            Ok(transfer) => transfer,
            Err(fault) => {
                let cqe = self.target.admin_fault(controller, sqe, fault);
                return (Outcome::Done { cqe, data_len: 0 }, Vec::new());
            }
        };
        let mut out = vec![0xee; transfer.len as usize];
        let context = AdminContext { now_ns: self.now_ns, counters: &self.counters };
        let outcome = self.target.admin(controller, sqe, &context, &mut out);
        if let Outcome::Done { data_len, .. } = outcome {
            out.truncate(data_len);
        }
        (outcome, out)
    }

    /// Executes a command that completes at once.
    fn done(&mut self, controller: ControllerHandle, sqe: &Sqe) -> (Cqe, Vec<u8>) {
        match self.admin(controller, sqe) {
            (Outcome::Done { cqe, .. }, out) => {
                assert_eq!(cqe.cid, sqe.cid);
                (cqe, out)
            }
            (other, _) => panic!("not done: {other:?}"),
        }
    }

    /// Executes a command that succeeds; dword 0 and data.
    fn ok(&mut self, controller: ControllerHandle, sqe: &Sqe) -> (u32, Vec<u8>) {
        let (cqe, out) = self.done(controller, sqe);
        assert_eq!(cqe.status(), Status::SUCCESS, "{sqe:?}");
        (cqe.dw0(), out)
    }

    /// Executes a command that fails; its status without More, which every logged failure has.
    fn fails(&mut self, controller: ControllerHandle, sqe: &Sqe) -> Status {
        let (cqe, out) = self.done(controller, sqe);
        assert!(!cqe.status().is_success(), "{sqe:?}");
        assert!(out.is_empty());
        assert_ne!(cqe.status().0 & Status::MORE, 0);
        Status(cqe.status().0 & !Status::MORE)
    }

    fn property(&mut self, controller: ControllerHandle, property: Property, wide: bool) -> u64 {
        let (cqe, _) = self.done(controller, &PropertyGetCmd::new(property.0, wide).to_sqe());
        assert!(cqe.status().is_success());
        cqe.result.get()
    }

    fn notices(&mut self) -> Vec<Notice> {
        core::iter::from_fn(|| self.target.poll()).collect()
    }
}

fn identify(cns: Cns, nsid: u32) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::IDENTIFY, nsid);
    IdentifyFields { cns, cntid: 0, cns_specific: 0, csi: Csi::NVM }.put(&mut sqe);
    sqe.dptr = SglDescriptor::transport(4096);
    sqe
}

fn get_log(lid: LogId, offset: u64, len: u32) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::GET_LOG_PAGE, NSID_BROADCAST);
    let fields =
        GetLogFields { lid, lsp: 0, rae: false, numd_z: len / 4 - 1, lsi: 0, offset, offset_is_index: false, csi: 0 };
    fields.put(&mut sqe);
    sqe.dptr = SglDescriptor::transport(len);
    sqe
}

fn get_feature(fid: FeatureId, select: FeatureSelect) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::GET_FEATURES, 0);
    FeatureFields { fid, select, save: false }.put(&mut sqe);
    sqe
}

fn set_feature(fid: FeatureId, value: u32) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::SET_FEATURES, 0);
    FeatureFields { fid, select: FeatureSelect::CURRENT, save: false }.put(&mut sqe);
    sqe.cdw11.set(value);
    sqe
}

fn async_event_request(cid: u16) -> Sqe {
    let mut sqe = Sqe::admin(AdminOpcode::ASYNC_EVENT_REQUEST, 0);
    sqe.cid.set(cid);
    sqe
}

fn only(host: &str) -> AllowedHosts {
    AllowedHosts::Listed(BTreeSet::from([host.to_owned()]))
}
