//! A lean iSCSI load: the least work per I/O that an initiator can do, so that the target is what gives out.
//!
//! One thread spins over non-blocking sockets, one session each. Requests go out as many as there are answers in what was
//! received; what a read brings is looked at no further than its header. `scripts/bench iscsi` runs it; by hand:
//!
//! ```text
//! cargo bench --bench iscsi -- --address 127.0.0.1:3260 --iqn iqn.2026-11.io.reactor:vol0 --rw randread --bs 4096 --qd 32
//! ```

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use reactor::sys::tsc::monotonic_ns;

#[path = "../tests/native/iscsi/initiator/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the tests use all of it, a load little")]
mod initiator;

use initiator::cdb::{read16, write16};
use initiator::pdu::{BHS_LEN, NO_TAG, Pdu, flag, op};
use initiator::{Login, Offer, Options, Params, Session};

/// Bytes received at once.
const RECEIVE: usize = 1 << 20;
/// What we take in a PDU, and in a burst.
const SEGMENT: u32 = 256 << 10;
const BURST: u32 = 1 << 20;
/// Logical blocks; others are refused.
const BLOCK: u64 = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    Read,
    Write,
    Randread,
    Randwrite,
}

impl Work {
    fn writes(self) -> bool {
        matches!(self, Work::Write | Work::Randwrite)
    }

    fn is_random(self) -> bool {
        matches!(self, Work::Randread | Work::Randwrite)
    }
}

/// Drives a LUN with reads or writes and prints what came of it as JSON.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long)]
    address: SocketAddr,
    #[arg(long)]
    iqn: String,
    #[arg(long, default_value_t = 0)]
    lun: u16,
    #[arg(long)]
    rw: Work,
    /// Bytes of an I/O.
    #[arg(long, default_value_t = 4096)]
    bs: usize,
    /// I/Os in flight on each connection.
    #[arg(long, default_value_t = 32)]
    qd: usize,
    /// Connections, a session each.
    #[arg(long, default_value_t = 1)]
    connections: u8,
    /// Seconds.
    #[arg(long, default_value_t = 1.0)]
    time: f64,
    /// What cargo says to every bench.
    #[arg(long, hide = true)]
    bench: bool,
}

/// An I/O in flight: when it began, and whether the slot is in use.
#[derive(Clone, Copy, Default)]
struct Slot {
    start_ns: u64,
    busy: bool,
}

/// A session that is driven.
struct Lane {
    socket: TcpStream,
    params: Params,
    lun: u16,
    work: Work,
    bytes: usize,
    /// I/Os that fit the volume.
    places: u64,
    place: u64,
    random: u64,
    cmd_sn: u32,
    max_cmd_sn: u32,
    stat_sn: u32,
    slots: Vec<Slot>,
    free: Vec<u32>,
    payload: Vec<u8>,
    out: Vec<u8>,
    sent: usize,
    input: Vec<u8>,
    /// Bytes of `input` that are there, and those behind a header that are passed over.
    have: usize,
    skip: usize,
    done: u64,
    errors: u64,
    latency: Histogram<u64>,
}

impl Lane {
    fn open(arguments: &Arguments, number: u8) -> Lane {
        let offer = Offer {
            header_digest: Some("None"),
            data_digest: Some("None"),
            initial_r2t: Some(false),
            immediate_data: Some(true),
            max_recv: Some(SEGMENT),
            max_burst: Some(BURST),
            first_burst: Some(SEGMENT),
            ..Offer::PLAIN
        };
        let options = Options::new(&arguments.iqn, number).with(offer);
        let mut login = Login::new(arguments.address, &options);
        let params = login.run(&options).unwrap_or_else(|status| panic!("the login was refused: {status:#06x}"));
        let mut session = Session::begin(login, params.clone(), &options);
        session.settle(arguments.lun);
        let capacity = session.command(arguments.lun, &initiator::cdb::read_capacity16(), &[], 32).good();
        let last = u64::from_be_bytes(capacity[..8].try_into().unwrap());
        let block = u32::from_be_bytes(capacity[8..12].try_into().unwrap());
        assert_eq!(u64::from(block), BLOCK, "bytes of a block");
        let socket = session.conns[0].wire.socket().try_clone().unwrap();
        socket.set_nonblocking(true).unwrap();
        let depth = arguments.qd as u32;
        Lane {
            socket,
            lun: arguments.lun,
            work: arguments.rw,
            bytes: arguments.bs,
            places: (last + 1) * BLOCK / arguments.bs as u64,
            place: 0,
            random: 0x9e37_79b9_7f4a_7c15 ^ u64::from(number),
            cmd_sn: session.cmd_sn,
            max_cmd_sn: session.window.1,
            stat_sn: session.conns[0].stat_sn,
            params,
            slots: vec![Slot::default(); arguments.qd],
            free: (0..depth).rev().collect(),
            payload: (0..arguments.bs).map(|at| (at / 3) as u8).collect(),
            out: Vec::new(),
            sent: 0,
            input: vec![0; RECEIVE],
            have: 0,
            skip: 0,
            done: 0,
            errors: 0,
            latency: Histogram::new_with_bounds(1, 60_000_000_000, 3).unwrap(),
        }
    }

    /// Puts requests for all free slots behind each other.
    fn fill(&mut self, now: u64) {
        while (self.max_cmd_sn.wrapping_sub(self.cmd_sn) as i32) >= 0
            && let Some(slot) = self.free.pop()
        {
            self.slots[slot as usize] = Slot { start_ns: now, busy: true };
            let place = if self.work.is_random() {
                self.random ^= self.random << 13;
                self.random ^= self.random >> 7;
                self.random ^= self.random << 17;
                self.random % self.places
            } else {
                self.place = (self.place + 1) % self.places;
                self.place
            };
            let (lba, blocks) = (place * self.bytes as u64 / BLOCK, (self.bytes as u64 / BLOCK) as u32);
            let (direction, cdb, immediate, unasked) = if self.work.writes() {
                let first = self.bytes.min(self.params.first_burst);
                let immediate = if self.params.immediate_data { first.min(self.params.max_send) } else { 0 };
                let unasked = if self.params.initial_r2t { immediate } else { first };
                (flag::WRITE, write16(lba, blocks, 0), immediate, unasked)
            } else {
                (flag::READ, read16(lba, blocks), 0, 0)
            };
            let last = if immediate == unasked { flag::FINAL } else { 0 };
            let mut pdu = Pdu::new(op::COMMAND, last | direction | 1).with_lun(self.lun).with(16, slot);
            pdu = pdu.with(20, self.bytes as u32).with(24, self.cmd_sn).with(28, self.stat_sn);
            pdu.bhs[32..].copy_from_slice(&cdb);
            self.cmd_sn = self.cmd_sn.wrapping_add(1);
            self.put(pdu, 0, immediate);
            self.data_out(slot, NO_TAG, immediate, unasked);
        }
    }

    /// A header with a part of the payload.
    fn put(&mut self, mut pdu: Pdu, offset: usize, len: usize) {
        pdu.bhs[5..8].copy_from_slice(&(len as u32).to_be_bytes()[1..]);
        self.out.extend_from_slice(&pdu.bhs);
        self.out.extend_from_slice(&self.payload[offset..offset + len]);
        self.out.resize(self.out.len().next_multiple_of(4), 0);
    }

    fn data_out(&mut self, slot: u32, target_tag: u32, start: usize, end: usize) {
        for (number, at) in (start..end).step_by(self.params.max_send).enumerate() {
            let next = (at + self.params.max_send).min(end);
            let last = if next == end { flag::FINAL } else { 0 };
            let pdu = Pdu::new(op::DATA_OUT, last).with_lun(self.lun).with(16, slot).with(20, target_tag);
            self.put(pdu.with(28, self.stat_sn).with(36, number as u32).with(40, at as u32), at, next - at);
        }
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        while self.sent < self.out.len() {
            match (&self.socket).write(&self.out[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) => panic!("{e}"),
            }
        }
        self.out.clear();
        self.sent = 0;
    }

    /// Takes what has come.
    fn receive(&mut self, now: u64) {
        let count = match (&self.socket).read(&mut self.input[self.have..]) {
            Ok(0) => panic!("the target closed the connection"),
            Ok(count) => count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return,
            Err(e) => panic!("{e}"),
        };
        self.have += count;
        let mut at = 0;
        loop {
            let passed = self.skip.min(self.have - at);
            (at, self.skip) = (at + passed, self.skip - passed);
            let Some(header) = self.input[at..self.have].first_chunk::<BHS_LEN>() else { break };
            let pdu = Pdu { bhs: *header, ahs: Vec::new(), data: Vec::new() };
            let len = u32::from_be_bytes([0, header[5], header[6], header[7]]) as usize;
            (at, self.skip) = (at + BHS_LEN, len.next_multiple_of(4) + usize::from(header[4]) * 4);
            self.take(&pdu, now);
        }
        self.input.copy_within(at..self.have, 0);
        self.have -= at;
    }

    fn take(&mut self, pdu: &Pdu, now: u64) {
        let ended = match pdu.opcode() {
            op::DATA_IN => pdu.is(flag::STATUS),
            op::R2T => {
                let start = pdu.get(40) as usize;
                self.data_out(pdu.itt(), pdu.get(20), start, start + pdu.get(44) as usize);
                return;
            }
            op::RESPONSE => true,
            op::NOP_IN => {
                let echo = Pdu::new(op::NOP_OUT | op::IMMEDIATE, flag::FINAL).with(16, NO_TAG).with(20, pdu.get(20));
                self.put(echo.with(24, self.cmd_sn).with(28, self.stat_sn), 0, 0);
                return;
            }
            _ => panic!("{:02x?}", pdu.bhs),
        };
        if !ended {
            return;
        }
        self.stat_sn = pdu.get(24).wrapping_add(1);
        let most = pdu.get(32);
        if (most.wrapping_sub(self.max_cmd_sn) as i32) > 0 {
            self.max_cmd_sn = most;
        }
        let slot = &mut self.slots[pdu.itt() as usize];
        assert!(slot.busy, "an answer to no I/O");
        slot.busy = false;
        self.free.push(pdu.itt());
        // A residual is a failure as well: the length of every I/O is right.
        if pdu.bhs[3] == 0 && pdu.get(44) == 0 {
            self.done += 1;
        } else {
            self.errors += 1;
        }
        self.latency.saturating_record(now - slot.start_ns);
    }
}

fn main() {
    let arguments = Arguments::parse();
    let mut lanes: Vec<_> = (1..=arguments.connections).map(|number| Lane::open(&arguments, number)).collect();
    let start = monotonic_ns();
    let end = start + Duration::from_secs_f64(arguments.time).as_nanos() as u64;
    let mut now = start;
    while now < end {
        for lane in &mut lanes {
            lane.fill(now);
            lane.flush();
            now = monotonic_ns();
            lane.receive(now);
        }
    }
    let seconds = (now - start) as f64 / 1e9;
    let (ios, errors) = lanes.iter().fold((0, 0), |sum, lane| (sum.0 + lane.done, sum.1 + lane.errors));
    let mut latency = lanes.swap_remove(0).latency;
    for lane in &lanes {
        latency.add(&lane.latency).unwrap();
    }
    let at = |share: f64| latency.value_at_quantile(share) as f64 / 1e3;
    let found = serde_json::json!({
        "iops": ios as f64 / seconds,
        "mib_per_s": ios as f64 * arguments.bs as f64 / seconds / f64::from(1 << 20),
        "latency_us": { "mean": latency.mean() / 1e3, "p50": at(0.5), "p99": at(0.99), "p99_9": at(0.999) },
        "ios": ios,
        "errors": errors,
        "seconds": seconds,
    });
    println!("{found}");
    assert_eq!(errors, 0, "I/Os failed");
}
