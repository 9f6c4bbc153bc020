//! Golden bytes and every split; errors and random input have files of their own.

mod errors;
mod random;

use zerocopy::IntoBytes;

use super::*;
use crate::nvme::spec::{ConnectCmd, Cqe, NvmOpcode, SglDescriptor, Sqe, StatusCode};

/// An event with its data joined, so that runs with different splits can be compared.
#[derive(Clone, Debug, PartialEq)]
enum Seen {
    IcReq(IcRequest),
    IcResp(IcResponse),
    Command(Sqe, u32),
    H2c(DataPdu),
    C2h(DataPdu),
    R2t(R2tPdu),
    Response(Cqe),
    Data(Vec<u8>, bool),
    Term(FatalErrorStatus, u32),
    Error(FatalError, Vec<u8>),
}

/// Feeds pieces to a decoder and records what it says. Digests of the answer to ICReq and ICResp are set as negotiated.
struct Feed {
    decoder: Decoder,
    grant: (bool, bool),
    data: Vec<u8>,
    seen: Vec<Seen>,
}

impl Feed {
    fn new(role: Role, limits: Limits, grant: (bool, bool)) -> Self {
        Self { decoder: Decoder::new(role, limits), grant, data: Vec::new(), seen: Vec::new() }
    }

    fn push(&mut self, mut piece: &[u8]) {
        loop {
            let before = piece.len();
            let event = match self.decoder.next(&mut piece) {
                Ok(Some(event)) => event,
                Ok(None) => {
                    assert!(piece.is_empty(), "bytes left without an event");
                    return;
                }
                Err(error) => {
                    if !matches!(self.seen.last(), Some(Seen::Error(..))) {
                        self.seen.push(Seen::Error(error, self.decoder.offending_header().to_vec()));
                    }
                    return;
                }
            };
            assert!(piece.len() < before || matches!(event, Event::DataEnd { .. }), "no progress");
            let seen = match event {
                Event::Data(bytes) => {
                    self.data.extend_from_slice(bytes);
                    continue;
                }
                Event::IcReq(request) => {
                    self.decoder.set_digests(self.grant.0, self.grant.1);
                    Seen::IcReq(request)
                }
                Event::IcResp(response) => {
                    self.decoder.set_digests(self.grant.0, self.grant.1);
                    Seen::IcResp(response)
                }
                Event::Command { sqe, data_len } => Seen::Command(sqe, data_len),
                Event::H2cData(pdu) => Seen::H2c(pdu),
                Event::C2hData(pdu) => Seen::C2h(pdu),
                Event::R2t(pdu) => Seen::R2t(pdu),
                Event::Response(cqe) => Seen::Response(cqe),
                Event::DataEnd { digest_ok } => Seen::Data(std::mem::take(&mut self.data), digest_ok),
                Event::Term { status, info } => Seen::Term(status, info),
            };
            self.seen.push(seen);
        }
    }
}

const LIMITS: Limits = Limits { in_capsule: 8192, data: 131_072, alignment_z: 0 };

fn agreed(header_digest: bool, data_digest: bool, hpda_z: u8, cpda_z: u8) -> Negotiated {
    Negotiated { header_digest, data_digest, hpda_z, cpda_z, max_h2c_data: 131_072, max_r2t: 1 }
}

fn write_sqe(cid: u16, len: u32) -> Sqe {
    let mut sqe = Sqe::nvm(NvmOpcode::WRITE, 1);
    sqe.cid.set(cid);
    sqe.dptr = SglDescriptor::in_capsule(len);
    sqe
}

fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

/// Appends a PDU: its prefix from `head`, then data and data digest.
fn append(stream: &mut Vec<u8>, framing: &Framing, data: &[u8], head: impl FnOnce(&mut [u8]) -> usize) {
    let mut prefix = [0xee; MAX_PREFIX_LEN];
    let len = head(&mut prefix);
    stream.extend_from_slice(&prefix[..len]);
    stream.extend_from_slice(data);
    if framing.data_digest() && !data.is_empty() {
        let mut digest = DataDigest::new();
        digest.update(data);
        stream.extend_from_slice(&digest.to_bytes());
    }
}

fn ic_req_bytes(dgst: u8) -> Vec<u8> {
    let mut out = [0xee; MAX_PREFIX_LEN];
    let len = ic_req(&IcRequest { hpda_z: 0, dgst, maxr2t_z: 0 }, &mut out);
    out[..len].to_vec()
}

fn ic_resp_bytes(dgst: u8) -> Vec<u8> {
    let mut out = [0xee; MAX_PREFIX_LEN];
    let len = ic_resp(&IcResponse { cpda_z: 0, dgst, maxh2cdata: 131_072 }, &mut out);
    out[..len].to_vec()
}

/// What a host sends on a connection, with the events a controller must see.
fn host_stream(net: &Negotiated) -> (Vec<u8>, Vec<Seen>) {
    let framing = Framing::new(Role::Host, net);
    let dgst = net.header_digest as u8 | (net.data_digest as u8) << 1;
    let mut stream = ic_req_bytes(dgst);
    let mut want = vec![Seen::IcReq(IcRequest { hpda_z: 0, dgst, maxr2t_z: 0 })];

    let connect = ConnectCmd::new(0, 31, 0, 5000).to_sqe();
    let connect_data = bytes(1024, 1);
    append(&mut stream, &framing, &connect_data, |out| framing.capsule_cmd(&connect, 1024, out));
    want.extend([Seen::Command(connect, 1024), Seen::Data(connect_data, true)]);

    let mut read = Sqe::nvm(NvmOpcode::READ, 1);
    read.dptr = SglDescriptor::transport(4096);
    append(&mut stream, &framing, &[], |out| framing.capsule_cmd(&read, 0, out));
    want.push(Seen::Command(read, 0));

    for (offset, last) in [(0, false), (512, true)] {
        let data = bytes(512, offset as u8);
        let start = stream.len();
        append(&mut stream, &framing, &data, |out| framing.h2c_data(9, 3, offset, 512, last, out));
        let (pdu, _) = <DataPdu as zerocopy::FromBytes>::read_from_prefix(&stream[start..]).unwrap();
        assert_eq!((pdu.cccid.get(), pdu.ttag.get(), pdu.datao.get()), (9, 3, offset));
        assert_eq!((pdu.datal.get(), pdu.last(), pdu.success()), (512, last, false));
        want.extend([Seen::H2c(pdu), Seen::Data(data, true)]);
    }

    let mut out = [0; MAX_PREFIX_LEN];
    let len = term_req(Role::Host, FatalErrorStatus::HEADER_DIGEST_ERROR, 0xabcd, &[7; 24], &mut out);
    stream.extend_from_slice(&out[..len]);
    want.push(Seen::Term(FatalErrorStatus::HEADER_DIGEST_ERROR, 0xabcd));
    (stream, want)
}

/// What a controller sends on a connection, with the events a host must see.
fn controller_stream(net: &Negotiated) -> (Vec<u8>, Vec<Seen>) {
    let framing = Framing::new(Role::Controller, net);
    let dgst = net.header_digest as u8 | (net.data_digest as u8) << 1;
    let mut stream = ic_resp_bytes(dgst);
    let mut want = vec![Seen::IcResp(IcResponse { cpda_z: 0, dgst, maxh2cdata: 131_072 })];

    let cqe = Cqe::with_result(5, 1);
    append(&mut stream, &framing, &[], |out| framing.capsule_resp(&cqe, out));
    want.push(Seen::Response(cqe));

    let start = stream.len();
    append(&mut stream, &framing, &[], |out| framing.r2t(6, 2, 4096, 8192, out));
    let (r2t, _) = <R2tPdu as zerocopy::FromBytes>::read_from_prefix(&stream[start..]).unwrap();
    assert_eq!((r2t.cccid.get(), r2t.ttag.get(), r2t.r2to.get(), r2t.r2tl.get()), (6, 2, 4096, 8192));
    want.push(Seen::R2t(r2t));

    for (offset, last) in [(0, false), (512, true)] {
        let data = bytes(512, offset as u8);
        let start = stream.len();
        append(&mut stream, &framing, &data, |out| framing.c2h_data(9, offset, 512, last, last, out));
        let (pdu, _) = <DataPdu as zerocopy::FromBytes>::read_from_prefix(&stream[start..]).unwrap();
        assert_eq!((pdu.last(), pdu.success()), (last, last));
        want.extend([Seen::C2h(pdu), Seen::Data(data, true)]);
    }

    let mut out = [0; MAX_PREFIX_LEN];
    let len = term_req(Role::Controller, FatalErrorStatus::INVALID_HEADER_FIELD, 4, &[9; 72], &mut out);
    stream.extend_from_slice(&out[..len]);
    want.push(Seen::Term(FatalErrorStatus::INVALID_HEADER_FIELD, 4));
    (stream, want)
}

#[test]
fn golden_bytes_of_every_pdu() {
    let plain = agreed(false, false, 0, 0);
    let mut out = [0xee; MAX_PREFIX_LEN];

    let len = ic_req(&IcRequest { hpda_z: 3, dgst: 3, maxr2t_z: 0x0102_0304 }, &mut out);
    assert_eq!(len, 128);
    assert_eq!(out[..16], [0, 0, 128, 0, 128, 0, 0, 0, 0, 0, 3, 3, 4, 3, 2, 1]);
    assert!(out[16..128].iter().all(|&b| b == 0));

    let len = ic_resp(&IcResponse { cpda_z: 0, dgst: 1, maxh2cdata: 0x2_0000 }, &mut out);
    assert_eq!(len, 128);
    assert_eq!(out[..16], [1, 0, 128, 0, 128, 0, 0, 0, 0, 0, 0, 1, 0, 0, 2, 0]);

    let host = Framing::new(Role::Host, &plain);
    let sqe = write_sqe(0x1234, 4096);
    assert_eq!(host.capsule_cmd(&sqe, 4096, &mut out), 72);
    assert_eq!(out[..8], [4, 0, 72, 72, 0x48, 0x10, 0, 0]);
    assert_eq!(&out[8..72], sqe.as_bytes());
    assert_eq!(host.capsule_cmd(&sqe, 0, &mut out), 72);
    assert_eq!(out[..8], [4, 0, 72, 0, 72, 0, 0, 0]);

    assert_eq!(host.h2c_data(0x0102, 0x0304, 0x1000, 0x2000, true, &mut out), 24);
    assert_eq!(out[..24], [6, 4, 24, 24, 0x18, 0x20, 0, 0, 2, 1, 4, 3, 0, 0x10, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0]);

    let controller = Framing::new(Role::Controller, &plain);
    let mut cqe = Cqe::new(7, StatusCode::INVALID_OPCODE.dnr());
    cqe.sqhd.set(3);
    assert_eq!(controller.capsule_resp(&cqe, &mut out), 24);
    assert_eq!(out[..24], [5, 0, 24, 0, 24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 7, 0, 2, 0x80]);

    assert_eq!(controller.c2h_data(0x0102, 0, 512, true, true, &mut out), 24);
    assert_eq!(out[..24], [7, 12, 24, 24, 0x18, 2, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);

    assert_eq!(controller.r2t(1, 2, 3 * 4096, 4096, &mut out), 24);
    assert_eq!(out[..24], [9, 0, 24, 0, 24, 0, 0, 0, 1, 0, 2, 0, 0, 0x30, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0]);

    for (role, kind) in [(Role::Controller, 3), (Role::Host, 2)] {
        let len = term_req(role, FatalErrorStatus::INVALID_HEADER_FIELD, 0x0a0b_0c0d, &[5; 24], &mut out);
        assert_eq!(len, 48);
        assert_eq!(out[..14], [kind, 0, 24, 0, 48, 0, 0, 0, 1, 0, 0x0d, 0x0c, 0x0b, 0x0a]);
        assert_eq!(out[14..24], [0; 10]);
        assert_eq!(out[24..48], [5; 24]);
    }
    assert_eq!(term_req(Role::Host, FatalErrorStatus::SEQUENCE_ERROR, 0, &[5; 200], &mut out), 152);
}

#[test]
fn digests_and_padding_stand_where_the_specification_puts_them() {
    // TCP Figures 8 and 9: 24 bytes of header, data aligned to 64 and to 16 bytes.
    let net = agreed(false, false, 3, 15);
    let mut out = [0xee; MAX_PREFIX_LEN];
    assert_eq!(Framing::new(Role::Host, &net).h2c_data(1, 1, 0, 512, true, &mut out), 64);
    assert_eq!(out[3], 64);
    assert_eq!(out[24..64], [0; 40]);
    assert_eq!(Framing::new(Role::Controller, &net).c2h_data(1, 0, 512, true, false, &mut out), 32);
    assert_eq!(out[3], 32);

    let net = agreed(true, true, 31, 0);
    assert_eq!(Framing::new(Role::Controller, &net).c2h_data(1, 0, 512, true, false, &mut out), 128);
    assert_eq!(out[1], FLAG_HEADER_DIGEST | FLAG_DATA_DIGEST | FLAG_LAST);
    assert_eq!(u32::from_le_bytes(out[4..8].try_into().unwrap()), 128 + 512 + 4);
    assert_eq!(out[24..28], crc32c(&out[..24]).to_le_bytes());
    assert_eq!(out[28..128], [0; 100]);
    // A response has a header digest but no data digest.
    assert_eq!(Framing::new(Role::Controller, &net).capsule_resp(&Cqe::default(), &mut out), 28);
    assert_eq!((out[1], out[4]), (FLAG_HEADER_DIGEST, 28));
    // The widest prefix of a capsule: 72 bytes of header, digest, data at the next multiple of 72.
    let net = agreed(true, false, 0, 17);
    assert_eq!(Framing::new(Role::Host, &net).capsule_cmd(&Sqe::default(), 4, &mut out), 144);
}

#[test]
fn every_split_gives_the_same_events() {
    for (hd, dd) in [(false, false), (true, false), (false, true), (true, true)] {
        for alignment_z in [0, 15] {
            let net = agreed(hd, dd, alignment_z, alignment_z);
            let limits = Limits { alignment_z, ..LIMITS };
            for (role, (stream, want)) in [(Role::Controller, host_stream(&net)), (Role::Host, controller_stream(&net))]
            {
                for split in 0..=stream.len() {
                    let mut feed = Feed::new(role, limits, (hd, dd));
                    feed.push(&stream[..split]);
                    feed.push(&stream[split..]);
                    assert_eq!(feed.seen, want, "{role:?} split {split} digests {hd} {dd}");
                }
                for piece in [1, 2, 3, 7, 8, 23, 71] {
                    let mut feed = Feed::new(role, limits, (hd, dd));
                    stream.chunks(piece).for_each(|chunk| feed.push(chunk));
                    assert_eq!(feed.seen, want, "{role:?} pieces of {piece}");
                }
            }
        }
    }
}

#[test]
fn truncation_yields_a_prefix_of_the_events_and_no_error() {
    let net = agreed(true, true, 0, 0);
    let (stream, want) = host_stream(&net);
    for len in 0..stream.len() {
        let mut feed = Feed::new(Role::Controller, LIMITS, (true, true));
        feed.push(&stream[..len]);
        assert_eq!(feed.seen[..], want[..feed.seen.len()], "cut at {len}");
    }
}

#[test]
fn data_received_in_place_counts_and_is_digested() {
    let net = agreed(false, true, 0, 3);
    let framing = Framing::new(Role::Host, &net);
    let data = bytes(4096, 5);
    let mut stream = Vec::new();
    append(&mut stream, &framing, &data, |out| framing.h2c_data(1, 1, 0, 4096, true, out));
    for corrupt in [false, true] {
        let mut decoder = Decoder::new(Role::Controller, Limits { alignment_z: 3, ..LIMITS });
        assert!(matches!(decoder.next(&mut &ic_req_bytes(2)[..]), Ok(Some(Event::IcReq(_)))));
        decoder.set_digests(false, true);
        // Header, padding and the first 100 bytes come with the stream, the rest goes straight to its place.
        let mut input = &stream[..24];
        assert!(matches!(decoder.next(&mut input), Ok(Some(Event::H2cData(_)))));
        assert_eq!(decoder.data_remaining(), 0, "padding is outstanding");
        let mut input = &stream[24..32 + 100];
        assert_eq!(decoder.next(&mut input), Ok(Some(Event::Data(&data[..100]))));
        assert_eq!(decoder.next(&mut input), Ok(None));
        assert_eq!(decoder.data_remaining(), 3996);
        let mut placed = data[100..].to_vec();
        placed[7] ^= corrupt as u8;
        decoder.data_received(&placed[..1000]);
        decoder.data_received(&placed[1000..]);
        assert_eq!(decoder.data_remaining(), 0);
        assert!(!decoder.at_boundary());
        let mut input = &stream[32 + 4096..];
        assert_eq!(decoder.next(&mut input), Ok(Some(Event::DataEnd { digest_ok: !corrupt })));
        assert!(decoder.at_boundary());
    }
}

#[test]
#[should_panic(expected = "more data than the PDU has")]
fn more_data_than_announced_is_a_bug() {
    Decoder::new(Role::Controller, LIMITS).data_received(&[0]);
}
