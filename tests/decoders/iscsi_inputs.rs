//! Inputs of initiators that are right, and what is made of them.

use reactor::iscsi::{BHS_LEN, Framing, LoginRequest, NO_TAG, Opcode, ScsiCommand};
use zerocopy::FromZeros;

use super::mutate::run;
use super::{iscsi, scsi};

/// A header: opcode and flags, and fields of four bytes.
fn header(opcode: u8, flags: u8, fields: &[(usize, u32)]) -> [u8; BHS_LEN] {
    let mut header = [0; BHS_LEN];
    (header[0], header[1]) = (opcode, flags);
    for (at, value) in fields {
        header[*at..at + 4].copy_from_slice(&value.to_be_bytes());
    }
    header
}

/// Streams that are right: with each digest, during the login and behind it.
fn streams() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for mode in 0..8_u8 {
        let full_feature = mode & 4 != 0;
        let digest = |bit: u8| full_feature && mode & bit != 0;
        let framing = Framing { header_digest: digest(1), data_digest: digest(2) };
        let mut stream = vec![mode, 7, 3];
        if full_feature {
            let mut command = ScsiCommand::new_zeroed();
            (command.opcode, command.flags) = (Opcode::SCSI_COMMAND.0, 0xa0);
            command.itt.set(1);
            command.expected_len.set(4096);
            command.cdb[0] = 0x2a;
            iscsi::put(&mut stream, framing, &command.to_bytes(), &[9; 513]);
            let data = header(Opcode::DATA_OUT.0, 0x80, &[(16, 1), (20, 7), (40, 513)]);
            iscsi::put(&mut stream, framing, &data, &[8; 64]);
            iscsi::put(&mut stream, framing, &header(0x40, 0x80, &[(16, 2), (20, NO_TAG)]), b"ping");
            iscsi::put(&mut stream, framing, &header(0x42, 0x81, &[(16, 3), (20, 1)]), &[]);
            iscsi::put(&mut stream, framing, &header(0x44, 0x80, &[(16, 4), (20, NO_TAG)]), b"SendTargets=All\0");
            iscsi::put(&mut stream, framing, &header(0x46, 0x80, &[(16, 5)]), &[]);
        } else {
            let mut login = LoginRequest::new_zeroed();
            (login.opcode, login.flags) = (0x43, 0x87);
            iscsi::put(&mut stream, framing, &login.to_bytes(), b"InitiatorName=iqn.2026-11.io.host:a\0");
            iscsi::put(&mut stream, framing, &login.to_bytes(), &[]);
        }
        all.push(stream);
    }
    all
}

#[test]
fn iscsi_streams() {
    run("iscsi_streams", &streams(), iscsi::STREAM_HEAD, iscsi::decoder);
}

const NAMES: [&str; 3] =
    ["InitiatorName=iqn.2026-11.io.host:a", "TargetName=iqn.2026-11.io.reactor:vol0", "SessionType=Normal"];
const KEYS: [&str; 14] = [
    "HeaderDigest=CRC32C,None",
    "DataDigest=None",
    "MaxConnections=8",
    "InitialR2T=No",
    "ImmediateData=Yes",
    "MaxRecvDataSegmentLength=262144",
    "MaxBurstLength=0x40000",
    "FirstBurstLength=65536",
    "DefaultTime2Wait=2",
    "DefaultTime2Retain=0",
    "MaxOutstandingR2T=1",
    "DataPDUInOrder=Yes",
    "DataSequenceInOrder=Yes",
    "ErrorRecoveryLevel=0",
];

#[test]
fn iscsi_logins() {
    let at_once = iscsi::login_step(0x87, 0, 1, &[&NAMES[..], &KEYS].concat());
    let by_stages = [
        iscsi::login_step(0x81, 0, 1, &[&NAMES[..], &["AuthMethod=CHAP,None"]].concat()),
        iscsi::login_step(0x04, 0, 1, &KEYS[..5]),
        iscsi::login_step(0x87, 0, 1, &KEYS[5..]),
    ];
    let none = [iscsi::login_step(0x44, 0, 1, &NAMES), iscsi::login_step(0x87, 0, 1, &[])];
    let discovery = iscsi::login_step(0x87, 0, 1, &["InitiatorName=iqn.2026-11.io.host:a", "SessionType=Discovery"]);
    let all = [at_once, by_stages.concat(), none.concat(), discovery];
    let book = iscsi::book();
    run("iscsi_logins", &all, 0, |input| iscsi::login(&book, input));
}

/// Steps of a session: a request with its header.
fn request(conn: u8, opcode: u8, flags: u8, len: u32, fields: &[(usize, u32)]) -> Vec<u8> {
    let mut header = header(opcode, flags, fields);
    header[5..8].copy_from_slice(&len.to_be_bytes()[1..]);
    [&[conn, 0][..], &header].concat()
}

/// Something that the door does.
fn serve(what: u8, data: u8) -> Vec<u8> {
    [&[what, data][..], &[0; BHS_LEN]].concat()
}

#[test]
fn iscsi_sessions() {
    let write = |itt: u32| request(0, 1, 0xa0, 512, &[(16, itt), (20, 4096)]);
    let read = |itt: u32| request(1, 1, 0xc0, 0, &[(16, itt), (20, 3000)]);
    let nop = |itt: u32| request(2, 0x40, 0x80, 4, &[(16, itt), (20, NO_TAG)]);
    let abort = |itt: u32, of: u32| request(0, 0x42, 0x81, 0, &[(16, itt), (20, of)]);
    let reset = |itt: u32| request(0, 0x42, 0x85, 0, &[(16, itt), (20, NO_TAG), (24, 1)]);
    let text = request(1, 0x44, 0x80, 16, &[(16, 90), (20, NO_TAG)]);
    let logout = request(2, 0x46, 0x81, 0, &[(16, 91)]);
    let steps: [&[Vec<u8>]; 5] = [
        &[write(1), serve(192, 2), serve(192, 2), read(2), serve(193, 1), serve(192, 1)],
        &[write(1), read(2), abort(3, 1), abort(4, 1), serve(194, 0), reset(5), serve(195, 1), serve(192, 1)],
        &[nop(1), serve(192, 0), text, serve(192, 0), serve(254, 3), serve(253, 200)],
        &[read(1), read(2), reset(3), serve(252, 0), serve(194, 1), serve(193, 1), serve(192, 1)],
        &[write(1), read(2), logout, serve(194, 0), serve(193, 1), serve(192, 1)],
    ];
    let with = |mode: u8| steps.iter().map(move |steps| [&[mode][..], &steps.concat()].concat());
    let all: Vec<Vec<u8>> = [0, 1, 4, 0x3a].into_iter().flat_map(with).collect();
    run("iscsi_sessions", &all, iscsi::SESSION_HEAD, iscsi::session);
}

/// CDBs of all lengths.
fn cdbs() -> Vec<Vec<u8>> {
    let long = |opcode: u8, flags: u8, blocks: u32| {
        let mut cdb = vec![opcode, flags, 0, 0, 0, 0, 0, 3, 2, 1];
        cdb.extend_from_slice(&blocks.to_be_bytes());
        cdb.extend_from_slice(&[0, 0]);
        cdb
    };
    let ten = |opcode: u8, flags: u8, blocks: u8| vec![opcode, flags, 0, 3, 2, 1, 0, 0, blocks, 0, 0, 0, 0, 0, 0, 0];
    let short = |bytes: &[u8]| {
        let mut cdb = bytes.to_vec();
        cdb.resize(16, 0);
        cdb
    };
    vec![
        short(&[0x08, 3, 2, 1, 8, 0]),
        ten(0x28, 0x08, 8),
        ten(0x2a, 0x10, 8),
        ten(0x2e, 2, 8),
        ten(0x2f, 2, 8),
        ten(0x35, 0, 0),
        ten(0x41, 8, 8),
        long(0x88, 0, 8),
        long(0x8a, 8, 8),
        long(0x89, 0, 8),
        long(0x8b, 0, 8),
        long(0x91, 0, 0),
        long(0x93, 9, 8),
        long(0x9c, 0, 8),
        ten(0x42, 0, 24),
        [&[0x9e, 0x10][..], &[0; 8], &[0, 0, 0, 32, 0, 0]].concat(),
        [&[0x9e, 0x12][..], &[0; 8], &[0, 0, 0, 64, 0, 0]].concat(),
        short(&[0x12, 1, 0x83, 1, 0]),
        short(&[0x1a, 8, 0x3f, 0, 255]),
        ten(0x5a, 8, 255),
        short(&[0x5e, 3, 0, 0, 0, 0, 0, 1, 0]),
        short(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0]),
        short(&[0xa3, 0x0c, 0x80, 0, 0, 0, 0, 0, 16, 0]),
        short(&[0xa3, 0x0a, 0, 0, 0, 0, 0, 0, 1, 0]),
        short(&[0x4d, 0, 0x4c, 0, 0, 0, 0, 1, 0]),
    ]
}

#[test]
fn scsi_cdbs() {
    let unit = scsi::unit();
    run("scsi_cdbs", &cdbs(), 0, |input| scsi::cdb(&unit, input));
}

/// PERSISTENT RESERVE OUT: the action and type, the keys.
fn reserve(who: u8, action: u8, kind: u8, key: u64, about: u64) -> Vec<u8> {
    let list = [&key.to_be_bytes()[..], &about.to_be_bytes(), &[0, 0, 0, 0, 1, 0, 0, 0]].concat();
    scsi::step(who, &[0x5f, action, kind, 0, 0, 0, 0, 0, 24, 0], &list)
}

#[test]
fn scsi_commands() {
    let ready = |who: u8| scsi::step(who, &[0], &[]);
    let all_ready = [ready(0), ready(1), ready(2), ready(0), ready(1), ready(2)].concat();
    let any: Vec<u8> = cdbs().iter().flat_map(|cdb| scsi::step(1, cdb, &[])).collect();
    let register = [reserve(0, 0, 0, 0, 0xa), reserve(1, 0, 0, 0, 0xb), reserve(2, 6, 0, 0, 0xc)].concat();
    let fence = [reserve(0, 1, 5, 0xa, 0), reserve(1, 5, 7, 0xb, 0xa), ready(0), reserve(2, 4, 6, 0xc, 0xb)].concat();
    let release = [reserve(2, 2, 6, 0xc, 0), reserve(2, 3, 0, 0xc, 0), ready(1), ready(1)].concat();
    let caching = [8, 0x12, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let list = [&[0, 0, 0, 0, 0, 0, 0, 0][..], &caching].concat();
    let select = scsi::step(0, &[0x55, 0x10, 0, 0, 0, 0, 0, 0, list.len() as u8, 0], &list);
    let legacy = [scsi::step(0, &[0x16], &[]), ready(1), scsi::step(0, &[0x17], &[]), scsi::step(0xf0, &[0], &[])];
    let inputs = [
        [&all_ready[..], &any].concat(),
        [&all_ready[..], &register, &fence, &any, &release].concat(),
        [&all_ready[..], &select, &any].concat(),
        [&all_ready[..], &legacy.concat(), &all_ready].concat(),
    ];
    let fresh = scsi::logical_unit();
    super::mutate::run_counted("scsi_commands", &inputs, 0, 16, |input| scsi::commands(&fresh, input));
}

#[test]
fn scsi_lists() {
    let unit = scsi::unit();
    let naa = [&[0xe4, 0, 0, 0, 1, 3, 0, 16][..], &unit.naa()].concat();
    let cscd = [&naa[..], &[0; 4], &[0, 0, 2, 0]].concat();
    let segment = [&[0x02, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 9][..], &[0; 7], &[1], &[0; 7], &[100]].concat();
    let copy = [&[2, 1, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0, 28, 0, 0, 0, 0][..], &cscd, &segment].concat();
    let unmap =
        [&[0, 0, 38, 0, 32, 0, 0, 0, 0][..], &[0; 7], &[8, 0, 0, 0, 8], &[0; 4], &[0; 7], &[64, 0, 0, 0, 9], &[0; 4]];
    let name = b"iqn.2026-11.io.host:a,i,0x800000000001\0";
    let padded = name.len().next_multiple_of(4).max(20);
    let mut transport = vec![3, 0x45, 0, 0, padded as u8];
    transport.extend_from_slice(name);
    transport.resize(5 + padded, 0);
    let all =
        [copy, unmap.concat(), transport, vec![1, 0, 0, 0, 0], vec![1, 0, 2, 0, 0], vec![4, 0, 9, 0, 0, 0, 0, 0, 0]];
    run("scsi_lists", &all, 1, |input| scsi::lists(&unit, input));
}
