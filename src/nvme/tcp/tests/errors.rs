//! Every error with its status, its information and the header it keeps.

use super::*;

#[test]
fn a_bad_data_digest_is_reported_and_the_stream_goes_on() {
    let net = agreed(true, true, 0, 0);
    let framing = Framing::new(Role::Host, &net);
    let mut stream = ic_req_bytes(3);
    let first = stream.len();
    append(&mut stream, &framing, &bytes(512, 1), |out| framing.capsule_cmd(&write_sqe(1, 512), 512, out));
    append(&mut stream, &framing, &bytes(512, 2), |out| framing.capsule_cmd(&write_sqe(2, 512), 512, out));
    stream[first + 76 + 100] ^= 1;
    let mut feed = Feed::new(Role::Controller, LIMITS, (true, true));
    feed.push(&stream);
    assert!(matches!(&feed.seen[2], Seen::Data(_, false)));
    assert_eq!(feed.seen[4], Seen::Data(bytes(512, 2), true));
}

#[test]
fn a_bad_header_digest_is_fatal_and_names_the_digest_received() {
    let net = agreed(true, false, 0, 0);
    let framing = Framing::new(Role::Host, &net);
    let mut stream = ic_req_bytes(1);
    let start = stream.len();
    append(&mut stream, &framing, &[], |out| framing.capsule_cmd(&write_sqe(1, 0), 0, out));
    let digest = u32::from_le_bytes(stream[start + 72..].try_into().unwrap());
    stream[start + 20] ^= 0x80;
    for split in 0..stream.len() {
        let mut feed = Feed::new(Role::Controller, LIMITS, (true, false));
        feed.push(&stream[..split]);
        feed.push(&stream[split..]);
        let error = FatalError::Terminate { status: FatalErrorStatus::HEADER_DIGEST_ERROR, info: digest };
        assert_eq!(feed.seen[1], Seen::Error(error, stream[start..start + 72].to_vec()));
        assert_eq!(feed.decoder.next(&mut &[0u8; 8][..]), Err(error), "a failed decoder stays failed");
    }
}

/// The error a controller finds after ICReq with the given digests in use, with the length of the header it keeps.
fn controller_error(grant: (bool, bool), pdu: &[u8]) -> (FatalError, usize) {
    let mut feed = Feed::new(Role::Controller, LIMITS, grant);
    feed.push(&ic_req_bytes(0));
    feed.push(pdu);
    match feed.seen.last() {
        Some(Seen::Error(error, header)) => {
            assert_eq!(header[..], pdu[..header.len()]);
            (*error, header.len())
        }
        other => panic!("expected an error, saw {other:?}"),
    }
}

fn patched(pdu: &[u8], at: usize, with: &[u8]) -> Vec<u8> {
    let mut pdu = pdu.to_vec();
    pdu[at..at + with.len()].copy_from_slice(with);
    pdu
}

#[test]
fn every_bad_field_has_its_status_and_offset() {
    let none = (false, false);
    let framing = Framing::new(Role::Host, &agreed(false, false, 0, 0));
    let mut capsule = Vec::new();
    append(&mut capsule, &framing, &bytes(512, 0), |out| framing.capsule_cmd(&write_sqe(1, 512), 512, out));
    let mut data = Vec::new();
    append(&mut data, &framing, &bytes(512, 0), |out| framing.h2c_data(1, 1, 0, 512, true, out));
    let field = FatalError::invalid_field;

    for (name, pdu, error, header_len) in [
        ("unknown type", patched(&capsule, 0, &[0x0a]), field(0), 8),
        ("reserved type", patched(&capsule, 0, &[0x08]), field(0), 8),
        ("wrong direction", patched(&capsule, 0, &[0x05]), field(0), 8),
        ("r2t to a controller", patched(&capsule, 0, &[0x09]), field(0), 8),
        ("reserved flag", patched(&capsule, 1, &[0x80]), field(1), 8),
        ("last flag on a capsule", patched(&capsule, 1, &[FLAG_LAST]), field(1), 8),
        ("success flag on h2c data", patched(&data, 1, &[FLAG_LAST | FLAG_SUCCESS]), field(1), 8),
        ("header digest not in use", patched(&capsule, 1, &[FLAG_HEADER_DIGEST]), field(1), 8),
        ("data digest not in use", patched(&capsule, 1, &[FLAG_DATA_DIGEST]), field(1), 8),
        ("hlen", patched(&capsule, 2, &[24]), field(2), 8),
        ("hlen of data", patched(&data, 2, &[25]), field(2), 8),
        ("pdo inside the header", patched(&capsule, 3, &[68]), field(3), 8),
        ("pdo unaligned", patched(&capsule, 3, &[74]), field(3), 8),
        ("pdo behind the end", patched(&data, 3, &[252, 200, 0, 0, 0]), field(3), 8),
        ("plen below the header", patched(&capsule, 4, &[71, 0, 0, 0]), field(4), 8),
        ("plen 0", patched(&capsule, 4, &[0, 0, 0, 0]), field(4), 8),
        ("plen beyond the capsule limit", patched(&capsule, 4, &(72u32 + 8193).to_le_bytes()), field(4), 8),
        ("plen huge", patched(&capsule, 4, &[0xff; 4]), field(4), 8),
        ("data pdu without data", patched(&data, 4, &[24, 0, 0, 0]), field(4), 8),
        ("plen and datal differ", patched(&data, 16, &[0, 1, 0, 0]), field(4), 24),
        ("datao unaligned", patched(&data, 12, &[2]), field(12), 24),
        ("datal unaligned", patched(&patched(&data, 16, &[2, 2]), 4, &[24 + 2, 2]), field(16), 24),
        (
            "datal beyond maxh2cdata",
            patched(&patched(&data, 16, &(131_076u32).to_le_bytes()), 4, &(24u32 + 131_076).to_le_bytes()),
            FatalError::status(FatalErrorStatus::LIMIT_EXCEEDED),
            24,
        ),
        ("second icreq", ic_req_bytes(0), FatalError::status(FatalErrorStatus::SEQUENCE_ERROR), 8),
    ] {
        assert_eq!(controller_error(none, &pdu), (error, header_len), "{name}");
    }

    assert_eq!(controller_error((true, false), &capsule), (field(1), 8), "header digest missing");
    assert_eq!(controller_error((false, true), &capsule), (field(1), 8), "data digest missing");
    assert_eq!(controller_error((false, true), &data), (field(1), 8), "data digest missing");
    // Data that is nothing but a digest.
    let empty = patched(&patched(&data, 1, &[FLAG_DATA_DIGEST]), 4, &[28, 0, 0, 0]);
    assert_eq!(controller_error((false, true), &empty), (field(4), 8));
}

#[test]
fn a_capsule_without_data_needs_no_data_digest() {
    // Linux clears DDGSTF on such capsules; TCP §3.6.2.6 also allows it to be set.
    let framing = Framing::new(Role::Host, &agreed(false, true, 0, 0));
    let mut out = [0; MAX_PREFIX_LEN];
    let len = framing.capsule_cmd(&write_sqe(1, 0), 0, &mut out);
    for flags in [0, FLAG_DATA_DIGEST] {
        out[1] = flags;
        let mut feed = Feed::new(Role::Controller, LIMITS, (false, true));
        feed.push(&ic_req_bytes(2));
        feed.push(&out[..len]);
        assert_eq!(feed.seen[1], Seen::Command(write_sqe(1, 0), 0), "flags {flags}");
    }
}

#[test]
fn the_first_pdu_is_the_initialization() {
    let first = |pdu: &[u8]| {
        let mut feed = Feed::new(Role::Controller, LIMITS, (false, false));
        feed.push(pdu);
        feed.seen[0].clone()
    };
    let framing = Framing::new(Role::Host, &agreed(false, false, 0, 0));
    let mut out = [0; MAX_PREFIX_LEN];
    let len = framing.capsule_cmd(&Sqe::default(), 0, &mut out);
    let sequence = FatalError::status(FatalErrorStatus::SEQUENCE_ERROR);
    assert_eq!(first(&out[..len]), Seen::Error(sequence, out[..8].to_vec()));

    let icreq = ic_req_bytes(3);
    for (name, at, with, error, header_len) in [
        ("flags", 1, vec![1], FatalError::invalid_field(1), 8),
        ("hlen", 2, vec![127], FatalError::invalid_field(2), 8),
        ("plen", 4, vec![129], FatalError::invalid_field(4), 8),
        ("pfv", 8, vec![1], FatalError::unsupported(8), 128),
        ("pfv high", 9, vec![1], FatalError::unsupported(8), 128),
        ("hpda", 10, vec![32], FatalError::invalid_field(10), 128),
    ] {
        let pdu = patched(&icreq, at, &with);
        assert_eq!(first(&pdu), Seen::Error(error, pdu[..header_len].to_vec()), "{name}");
    }
    // Reserved digest options of a later revision are not an error; they are just not granted.
    let seen = first(&patched(&icreq, 11, &[0xff]));
    assert_eq!(seen, Seen::IcReq(IcRequest { hpda_z: 0, dgst: 0xff, maxr2t_z: 0 }));
    let params = ControllerParams { header_digest: true, data_digest: true, cpda_z: 0, max_h2c_data: 4096 };
    assert_eq!(accept(&IcRequest { hpda_z: 0, dgst: 0xff, maxr2t_z: 0 }, &params).0.dgst, 3);
}

#[test]
fn a_host_finds_its_errors() {
    let framing = Framing::new(Role::Controller, &agreed(false, false, 0, 0));
    let mut stream = Vec::new();
    append(&mut stream, &framing, &bytes(512, 0), |out| framing.c2h_data(1, 0, 512, true, false, out));
    let mut r2t = Vec::new();
    append(&mut r2t, &framing, &[], |out| framing.r2t(1, 1, 0, 4096, out));
    let mut resp = Vec::new();
    append(&mut resp, &framing, &[], |out| framing.capsule_resp(&Cqe::default(), out));
    let big = 131_076u32;
    for (name, pdu, error) in [
        ("success without last", patched(&stream, 1, &[FLAG_SUCCESS]), FatalError::invalid_field(1)),
        ("a command", patched(&stream, 0, &[4]), FatalError::invalid_field(0)),
        ("data digest on a response", patched(&resp, 1, &[FLAG_DATA_DIGEST]), FatalError::invalid_field(1)),
        ("response with data", patched(&resp, 4, &[28]), FatalError::invalid_field(4)),
        ("r2to", patched(&r2t, 12, &[1]), FatalError::invalid_field(12)),
        ("r2tl", patched(&r2t, 16, &[1]), FatalError::invalid_field(16)),
        ("r2tl 0", patched(&r2t, 16, &[0, 0]), FatalError::invalid_field(16)),
        (
            "too much data",
            patched(&patched(&stream, 16, &big.to_le_bytes()), 4, &(24 + big).to_le_bytes()),
            FatalError::status(FatalErrorStatus::DATA_OUT_OF_RANGE),
        ),
        ("second icresp", ic_resp_bytes(0), FatalError::status(FatalErrorStatus::SEQUENCE_ERROR)),
    ] {
        let mut feed = Feed::new(Role::Host, LIMITS, (false, false));
        feed.push(&ic_resp_bytes(0));
        feed.push(&pdu);
        assert!(matches!(&feed.seen[1], Seen::Error(e, _) if *e == error), "{name}: {:?}", feed.seen[1]);
    }
}

#[test]
fn termination_requests_end_the_stream() {
    let mut out = [0; MAX_PREFIX_LEN];
    let len = term_req(Role::Host, FatalErrorStatus::SEQUENCE_ERROR, 0, &[1; 128], &mut out);
    let mut feed = Feed::new(Role::Controller, LIMITS, (false, false));
    feed.push(&out[..len]);
    feed.push(&[0xff; 300]);
    assert_eq!(feed.seen, [Seen::Term(FatalErrorStatus::SEQUENCE_ERROR, 0)]);
    for plen in [0u32, 23, 153, u32::MAX] {
        let pdu = patched(&out[..len], 4, &plen.to_le_bytes());
        let mut feed = Feed::new(Role::Controller, LIMITS, (false, false));
        feed.push(&pdu);
        assert!(matches!(&feed.seen[..], [Seen::Error(FatalError::Close, _)]), "plen {plen}");
    }
}
