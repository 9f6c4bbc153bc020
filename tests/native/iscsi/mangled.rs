//! Streams that were right until a few of their bytes changed: whatever follows, nobody else notices.

use std::time::Duration;

use super::super::host::pattern;
use super::super::server::{Place, now};
use super::bystander::Bystander;
use super::initiator::cdb;
use super::initiator::login::{FULL, OPERATIONAL, text};
use super::initiator::pdu::{NO_TAG, Pdu, flag, op};
use super::initiator::{Got, Login, Offer, Options, Session};
use super::{IQN, config, portal, settled};

/// Streams that are tried.
const STREAMS: u64 = 400;
/// What the program may grow by meanwhile.
const GROWTH_MAX: u64 = 16 << 20;

/// A number below `limit` from some bytes.
fn below(bytes: &[u8], limit: usize) -> usize {
    u32::from_le_bytes(bytes[..4].try_into().unwrap()) as usize % limit
}

/// Requests of every kind after each other.
fn stream(session: &Session) -> Vec<u8> {
    let wire = &session.conns[0].wire;
    let mut number = session.cmd_sn;
    let mut out = Vec::new();
    let mut add = |pdu: Pdu| {
        out.extend_from_slice(&wire.bytes(&pdu.with(24, number)));
        number = number.wrapping_add(1);
    };
    let write = |tag: u32, immediate: usize| {
        let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::WRITE | 1).with(16, tag).with(20, 8192);
        pdu.bhs[32..].copy_from_slice(&cdb::write16(100, 16, 0));
        pdu.with_data(&pattern(immediate, 1))
    };
    let read = |tag: u32| {
        let mut pdu = Pdu::new(op::COMMAND, flag::FINAL | flag::READ | 1).with(16, tag).with(20, 65_536);
        pdu.bhs[32..].copy_from_slice(&cdb::read16(0, 128));
        pdu
    };
    add(write(1, 8192));
    add(read(2));
    add(Pdu::new(op::NOP_OUT, flag::FINAL).with(16, 3).with(20, NO_TAG).with_data(&[7; 100]));
    add(write(4, 512));
    add(Pdu::new(op::TEXT, flag::FINAL).with(16, 5).with(20, NO_TAG).with_data(b"SendTargets=All\0"));
    add(Pdu::new(op::TASK_MANAGEMENT, flag::FINAL | 2).with(16, 6).with(20, NO_TAG));
    add(read(7));
    out
}

/// Sends what is mangled and takes what comes, until there is nothing more.
fn play(mut session: Session, bytes: &[u8], seed: u64) {
    let wire = &mut session.conns[0].wire;
    let piece = if seed.is_multiple_of(3) { 61 } else { usize::MAX };
    if !bytes.chunks(piece.min(bytes.len().max(1))).all(|part| wire.send_bytes(part)) {
        return;
    }
    if seed.is_multiple_of(2) {
        wire.finish();
    }
    while let Got::Pdu(_) = wire.next(Duration::from_millis(5)) {}
}

#[test]
fn mangled_streams_hurt_nobody_else() {
    let server = Place::new().serve(&config());
    let bystander = Bystander::start(portal(&server));
    let before = settled(&server);
    for seed in 0..STREAMS {
        let random = pattern(64, seed + 1);
        let digest = if seed % 4 == 1 { "CRC32C" } else { "None" };
        let offer = Offer { data_digest: Some(digest), initial_r2t: Some(seed % 2 == 0), ..Offer::PLAIN };
        let session = Session::open(portal(&server), &Options::new(IQN, 1).with(offer));
        let mut bytes = stream(&session);
        for change in random[8..].chunks(8).take(1 + below(&random, 5)) {
            // Headers more often than data.
            let at = if change[4] & 1 == 0 { below(change, bytes.len()) } else { below(change, 48) };
            match change[5] % 4 {
                0 => bytes[at] ^= 1 << (change[6] & 7),
                1 => bytes[at] = change[7],
                2 => drop(bytes.drain(at..(at + usize::from(change[6])).min(bytes.len()))),
                _ => drop(bytes.splice(at..at, pattern(usize::from(change[6]), seed))),
            }
            if bytes.len() < 64 {
                break;
            }
        }
        play(session, &bytes, seed);
        assert!(!bystander.is_dead(), "stream {seed}");
    }
    let grown = server.program.resident().saturating_sub(before);
    println!("{STREAMS} streams: {} KiB more resident", grown >> 10);
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
    bystander.end();
    server.stop();
}

#[test]
fn mangled_logins_hurt_nobody_else() {
    let server = Place::new().serve(&config());
    let bystander = Bystander::start(portal(&server));
    let before = settled(&server);
    let start = now();
    for seed in 0..STREAMS {
        let random = pattern(64, seed + 1);
        let options = Options::new(IQN, 1);
        let mut login = Login::new(portal(&server), &options);
        let pairs =
            [options.names(), Offer { max_r2t: Some(4), max_burst: Some(4096), ..Offer::PLAIN }.pairs()].concat();
        let mut bytes = login.request((OPERATIONAL, FULL, true), false, &text(&pairs)).encode(false, false);
        for change in random[8..].chunks(8).take(1 + below(&random, 4)) {
            let at = below(change, bytes.len());
            bytes[at] = if change[5] & 1 == 0 { change[7] } else { bytes[at] ^ 1 << (change[6] & 7) };
        }
        bytes.truncate(if seed % 5 == 0 { below(&random[20..], bytes.len()) } else { bytes.len() });
        login.wire.send_bytes(&bytes);
        login.wire.finish();
        while let Got::Pdu(_) = login.wire.next(Duration::from_millis(5)) {}
        assert!(!bystander.is_dead(), "login {seed}: {bytes:02x?}");
    }
    let grown = server.program.resident().saturating_sub(before);
    println!("{STREAMS} logins in {:?}: {} KiB more resident", now() - start, grown >> 10);
    assert!(grown <= GROWTH_MAX, "{grown} bytes");
    bystander.end();
    server.stop();
}
