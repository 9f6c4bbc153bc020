//! Data against a model of bytes: every size at every place, under every setting of the session.

use std::net::SocketAddr;

use super::super::host::pattern;
use super::super::server::{Place, bytes_of};
use super::initiator::cdb::{self, status};
use super::initiator::{Offer, Options, Session};
use super::{IQN, MIB, portal};

/// Sense of a comparison that failed: MISCOMPARE, MISCOMPARE DURING VERIFY OPERATION.
const MISCOMPARE: (u8, u16) = (0xe, 0x1d00);
/// Bytes of the volume.
const SIZE: usize = 8 * MIB;
/// Commands in flight at once.
const DEPTH: usize = 8;

/// A stream of numbers from a seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }

    fn one_of<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.below(list.len())]
    }

    fn flip(&mut self) -> bool {
        self.below(2) == 0
    }
}

/// What has to come of a command in flight.
struct Expected {
    tag: u32,
    range: std::ops::Range<usize>,
    status: u8,
    read: Option<Vec<u8>>,
    /// What the range holds after it.
    after: Option<Vec<u8>>,
    what: String,
}

/// The volume as it has to be.
struct Model {
    bytes: Vec<u8>,
    block: usize,
    random: Random,
    flying: Vec<Expected>,
}

impl Model {
    fn new(block: usize, seed: u64) -> Model {
        Model { bytes: vec![0; SIZE], block, random: Random(seed | 1), flying: Vec::new() }
    }

    /// A range of at most `most` blocks that nothing in flight touches.
    fn free_range(&mut self, most: usize) -> (u64, usize) {
        let blocks = SIZE / self.block;
        loop {
            // As many of each magnitude.
            let magnitude = self.random.below(most.ilog2() as usize + 1);
            let len = (1 << magnitude) + self.random.below(1 << magnitude);
            let len = len.min(most);
            let at = self.random.below(blocks - len + 1);
            let range = at * self.block..(at + len) * self.block;
            if self.flying.iter().all(|one| one.range.end <= range.start || one.range.start >= range.end) {
                return (at as u64, len);
            }
        }
    }

    /// Begins a command of any kind on a connection.
    fn start(&mut self, session: &mut Session, conn: usize) {
        let block = self.block;
        let kind = self.random.below(100);
        let most = match kind {
            // CDBs with a byte for the length.
            0..5 => 255,
            90..94 => 16,
            _ => MIB / block,
        };
        let (lba, len) = self.free_range(most);
        let (at, bytes) = (lba as usize * block, len * block);
        let range = at..at + bytes;
        let old = self.bytes[range.clone()].to_vec();
        let data = pattern(bytes, self.random.next());
        let blocks = len as u32;
        let (cdb, out, expected, status, after) = match kind {
            0..5 => (cdb::read6(lba as u32, len as u8), vec![], bytes, status::GOOD, None),
            5..15 => (cdb::read10(lba as u32, len as u16), vec![], bytes, status::GOOD, None),
            15..45 => (cdb::read16(lba, blocks), vec![], bytes, status::GOOD, None),
            45..55 => (cdb::write10(lba as u32, len as u16), data.clone(), 0, status::GOOD, Some(data)),
            55..80 => {
                let flags = if self.random.below(8) == 0 { cdb::FUA } else { 0 };
                (cdb::write16(lba, blocks, flags), data.clone(), 0, status::GOOD, Some(data))
            }
            80..90 => {
                let mut sent = old.clone();
                let differs = self.random.flip();
                if differs {
                    sent[self.random.below(bytes)] ^= 1;
                }
                let status = if differs { status::CHECK_CONDITION } else { status::GOOD };
                (cdb::compare16(lba, blocks), sent, 0, status, None)
            }
            90..94 => {
                let differs = self.random.flip();
                let mut sent = old.clone();
                if differs {
                    sent[self.random.below(bytes)] ^= 1;
                }
                sent.extend_from_slice(&data);
                let status = if differs { status::CHECK_CONDITION } else { status::GOOD };
                (cdb::compare_and_write(lba, len as u8), sent, 0, status, (!differs).then_some(data))
            }
            94..96 => {
                let one = data[..block].to_vec();
                (cdb::write_same16(lba, blocks, false), one.clone(), 0, status::GOOD, Some(one.repeat(len)))
            }
            96..98 => {
                let list = cdb::unmap_parameters(lba, blocks);
                (cdb::unmap(list.len() as u16), list, 0, status::GOOD, Some(vec![0; bytes]))
            }
            _ => {
                let zeros = vec![0; block];
                (cdb::write_same16(lba, blocks, true), zeros, 0, status::GOOD, Some(vec![0; bytes]))
            }
        };
        let what = format!("opcode {:#x}, {blocks} blocks at {lba}", cdb[0]);
        let attribute = self.random.one_of(&[0, 1, 1, 1, 2, 3]);
        let read = (expected > 0).then_some(old);
        let tag = session.start_with(conn, 0, &cdb, &out, expected, attribute);
        self.flying.push(Expected { tag, range, status, read, after, what });
    }

    /// Waits for one of those in flight and checks it.
    fn finish(&mut self, session: &mut Session) {
        let at = self.random.below(self.flying.len());
        let one = self.flying.swap_remove(at);
        let answer = session.wait(one.tag);
        assert_eq!(answer.status, one.status, "{}: {answer:02x?}", one.what);
        assert_eq!(answer.residual, 0, "{}", one.what);
        if one.status == status::CHECK_CONDITION {
            assert_eq!(answer.sense(), MISCOMPARE, "{}", one.what);
        }
        if let Some(read) = &one.read
            && *read != answer.data
        {
            let at = (0..read.len()).find(|at| answer.data.get(*at) != Some(&read[*at]));
            panic!("{}: byte {at:?} of {} is not what was written", one.what, read.len());
        }
        if let Some(after) = one.after {
            self.bytes[one.range].copy_from_slice(&after);
        }
    }

    /// `count` commands, up to a depth at once, over all connections of the session.
    fn work(&mut self, session: &mut Session, count: usize) {
        for _ in 0..count {
            while self.flying.len() >= DEPTH {
                self.finish(session);
            }
            let conn = self.random.below(session.conns.len());
            self.start(session, conn);
        }
        while !self.flying.is_empty() {
            self.finish(session);
        }
        session.command(0, &cdb::synchronize_cache16(), &[], 0).good();
    }

    /// The whole volume, by this session.
    fn check(&self, session: &mut Session) {
        let blocks = MIB / self.block;
        for (number, part) in self.bytes.chunks(MIB).enumerate() {
            let found = session.command(0, &cdb::read16((number * blocks) as u64, blocks as u32), &[], MIB).good();
            assert!(found == part, "MiB {number} of the volume");
        }
    }
}

fn config(driver: &str, block: usize) -> String {
    let path = if driver == "file" { "path = \"disk0.img\"" } else { "" };
    format!(
        r#"
        [memory]
        size = "128MiB"
        [[bdev]]
        name = "disk0"
        driver = "{driver}"
        size = {SIZE}
        block_size = {block}
        {path}
        [iscsi]
        listen = ["127.0.0.1:0"]
        [[iscsi.target]]
        iqn = "{IQN}"
        luns = [{{ bdev = "disk0" }}]
        "#
    )
}

/// The settings of world `number`: all sixteen of the four that are yes or no, and lengths of every kind.
fn offer(number: usize) -> Offer {
    let mut random = Random(0x9e37_79b9 * (number as u64 + 1));
    let max_burst = random.one_of(&[512, 1536, 4096, 10_000, 65_536, 262_144, 1 << 20, 16_777_215]);
    let digest = |bit: usize| Some(if number & bit != 0 { "CRC32C" } else { "None" });
    Offer {
        initial_r2t: Some(number & 1 != 0),
        immediate_data: Some(number & 2 != 0),
        header_digest: digest(4),
        data_digest: digest(8),
        max_burst: Some(max_burst),
        first_burst: Some(random.one_of(&[512, 700, 4096, 65_536, 1 << 20]).min(max_burst)),
        max_recv: Some(random.one_of(&[512, 1001, 4096, 65_535, 262_144, 1 << 20])),
        max_r2t: Some(random.one_of(&[1, 1, 2, 5, 64])),
        max_connections: Some(4),
        protocol_level: None,
    }
}

fn session(address: SocketAddr, number: usize) -> Session {
    let options = Options::new(IQN, number as u8).with(offer(number));
    let mut session = Session::open(address, &options);
    session.settle(0);
    let more = (number % 3).min(session.params().max_connections as usize - 1);
    for cid in 1..=more {
        session.join(address, cid as u16).unwrap_or_else(|status| panic!("connection {cid}: {status:#06x}"));
    }
    if number % 5 == 1 {
        session.immediate_most = 100;
    }
    session
}

/// One world after the other on one server: the model goes on from each to the next.
fn worlds(driver: &str, block: usize, numbers: std::ops::Range<usize>, count: usize) {
    let place = Place::new();
    let server = place.serve(&config(driver, block));
    let mut model = Model::new(block, 0x1234_5678 + block as u64);
    for number in numbers {
        let mut session = session(portal(&server), number);
        println!("{driver}, {block}, world {number}: {:?}", session.params());
        model.work(&mut session, count);
        model.check(&mut session);
        session.end();
    }
    server.stop();
    if driver == "file" {
        assert!(bytes_of(&place.path("disk0.img")) == model.bytes, "the file is not what was written");
    }
}

#[test]
fn ram_is_what_was_written_under_every_setting() {
    worlds("malloc", 512, 0..32, 120);
}

#[test]
fn large_blocks_are_what_was_written_under_every_setting() {
    worlds("malloc", 4096, 0..16, 100);
}

#[test]
fn a_file_is_what_was_written_under_every_setting() {
    worlds("file", 512, 16..32, 80);
}

/// Every number of blocks at every place round the borders of bursts and segments, one at a time, and with Data-Outs that have no data.
#[test]
fn every_size_at_every_place() {
    let server = Place::new().serve(&config("malloc", 512));
    let mut model = Model::new(512, 1);
    let settings = [(true, true), (true, false), (false, true), (false, false)];
    for ((immediate, initial_r2t), empties) in settings.into_iter().flat_map(|one| [(one, false), (one, true)]) {
        let offer = Offer {
            immediate_data: Some(immediate),
            initial_r2t: Some(initial_r2t),
            first_burst: Some(1400),
            max_burst: Some(5000),
            max_recv: Some(1003),
            max_r2t: Some(3),
            ..Offer::PLAIN
        };
        let mut session = Session::open(portal(&server), &Options::new(IQN, 1).with(offer));
        session.settle(0);
        (session.empties, session.immediate_most) = (empties, if empties { 500 } else { usize::MAX });
        for blocks in 1..=40_usize {
            for at in 0..8 {
                let data = pattern(blocks * 512, (blocks * 8 + at) as u64);
                session.command(0, &cdb::write16(at as u64, blocks as u32, 0), &data, 0).good();
                model.bytes[at * 512..(at + blocks) * 512].copy_from_slice(&data);
                let found = session.command(0, &cdb::read16(0, 48), &[], 48 * 512).good();
                let how = session.params();
                assert!(found == model.bytes[..48 * 512], "{blocks} blocks at {at}, empty PDUs {empties}, {how:?}");
            }
        }
        session.end();
    }
    server.stop();
}

/// Several R2Ts of one command at once, never more than were agreed, and data that is held back.
#[test]
fn as_many_r2ts_as_were_agreed() {
    let server = Place::new().serve(&config("malloc", 512));
    for max_r2t in [1, 2, 4, 100] {
        let offer =
            Offer { max_r2t: Some(max_r2t), max_burst: Some(8192), immediate_data: Some(false), ..Offer::PLAIN };
        let mut session = Session::open(portal(&server), &Options::new(IQN, 1).with(offer));
        session.settle(0);
        session.hold = Some(std::time::Duration::from_millis(100));
        let data = pattern(64 << 10, u64::from(max_r2t));
        session.command(0, &cdb::write16(7, 128, 0), &data, 0).good();
        let agreed = session.params().max_r2t;
        println!("asked for {max_r2t}, agreed on {agreed}, at most {} at once", session.most_r2ts);
        assert!(session.most_r2ts >= 1 && session.most_r2ts <= agreed);
        assert!(agreed < 2 || session.most_r2ts >= 2, "several were agreed, one at a time came");
        session.hold = None;
        assert!(session.command(0, &cdb::read16(7, 128), &[], data.len()).good() == data);
        session.end();
    }
    server.stop();
}

/// Bytes expected, and blocks asked for: what is missing or too much is a residual (RFC 7143 §11.4.5).
#[test]
fn residuals_of_reads_and_writes() {
    let server = Place::new().serve(&config("malloc", 512));
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    session.settle(0);
    let data = pattern(8 * 512, 1);
    session.command(0, &cdb::write16(0, 8, 0), &data, 0).good();
    for expected in [512, 700, 4095, 4096, 4097, 8192, 1 << 20] {
        let answer = session.command(0, &cdb::read16(0, 8), &[], expected);
        assert_eq!(answer.status, status::GOOD);
        assert_eq!(answer.residual, 4096 - expected as i64, "expected {expected}");
        assert!(answer.data == data[..expected.min(4096)], "expected {expected}");
    }
    // A write of eight blocks with more and with less data: what there is of whole blocks may be written, no more.
    for len in [512, 700, 4095, 4097, 8192, 100_000] {
        session.command(0, &cdb::write16(0, 200, 0), &vec![0xaa; 200 * 512], 0).good();
        let sent = pattern(len, len as u64);
        let answer = session.command(0, &cdb::write16(0, 8, 0), &sent, 0);
        assert_eq!(answer.residual, 4096 - len as i64, "{len} bytes sent: {answer:02x?}");
        let found = session.command(0, &cdb::read16(0, 200), &[], 200 * 512).good();
        let whole = len.min(4096) / 512 * 512;
        for (number, block) in found.chunks(512).enumerate() {
            let at = number * 512;
            let is_sent = at < whole && *block == sent[at..at + 512];
            let is_old = block.iter().all(|byte| *byte == 0xaa);
            assert!(
                if answer.status == status::GOOD && at < whole { is_sent } else { is_sent || is_old },
                "{len}: block {number}"
            );
        }
    }
    // Data the other way, or none: no data moves.
    let answer = session.command(0, &cdb::read16(0, 8), &[], 0);
    assert_eq!((answer.status, answer.residual), (status::GOOD, 4096));
    let answer = session.command(0, &cdb::test_unit_ready(), &[], 4096);
    assert_eq!((answer.status, answer.residual, answer.data.len()), (status::GOOD, -4096, 0));
    session.end();
    server.stop();
}

/// A read that succeeds needs no response of its own where the target may leave it out.
#[test]
fn the_status_of_a_read_comes_with_its_data() {
    let server = Place::new().serve(&config("malloc", 512));
    let mut session = Session::open(portal(&server), &Options::new(IQN, 1));
    session.settle(0);
    for blocks in [1, 8, 2048] {
        let answer = session.command(0, &cdb::read16(0, blocks), &[], blocks as usize * 512);
        assert!(answer.collapsed, "{blocks} blocks");
    }
    let beyond = session.command(0, &cdb::read16((SIZE / 512) as u64, 1), &[], 512);
    assert_eq!((beyond.status, beyond.sense(), beyond.residual), (status::CHECK_CONDITION, (5, 0x2100), -512));
    session.end();
    server.stop();
}
