//! The decoder: every split, digests, limits, and what is not a PDU.

use super::*;

/// What came, with the data of each PDU in one piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    Pdu(Request, Vec<u8>, Vec<u8>),
    BadDigest,
    Broken(Fatal),
}

pub(super) fn feed(decoder: &mut Decoder, mut input: &[u8], seen: &mut Vec<Seen>) {
    loop {
        let before = input.len();
        match decoder.next(&mut input) {
            Ok(Some(Event::Request(request))) => {
                assert!(input.len() < before, "no progress");
                seen.push(Seen::Pdu(request, decoder.ahs().to_vec(), Vec::new()));
            }
            Ok(Some(Event::Data(bytes))) => {
                assert!(input.len() < before, "no progress");
                let Some(Seen::Pdu(_, _, data)) = seen.last_mut() else { panic!("data of nothing") };
                data.extend_from_slice(bytes);
            }
            Ok(Some(Event::DataEnd { digest_ok })) => {
                if !digest_ok {
                    seen.push(Seen::BadDigest);
                }
            }
            Ok(None) => {
                assert!(input.is_empty());
                return;
            }
            Err(error) => {
                if seen.last() != Some(&Seen::Broken(error)) {
                    seen.push(Seen::Broken(error));
                }
                return;
            }
        }
    }
}

pub(super) fn full(header_digest: bool, data_digest: bool) -> Decoder {
    let mut decoder = Decoder::new();
    decoder.set_full_feature(header_digest, data_digest, Limits { data: 4096, ahs: AHS_MAX as u16 });
    decoder
}

/// Appends a PDU as it is on the wire; AHS are behind the header already counted in it.
pub(super) fn put_pdu(out: &mut Vec<u8>, framing: Framing, header: &Header, ahs: &[u8], data: &[u8]) {
    let mut header = *header;
    header[4] = (ahs.len() / 4) as u8;
    header[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
    let head = [&header[..], ahs].concat();
    out.extend_from_slice(&head);
    if framing.header_digest {
        out.extend_from_slice(&crc32c(&head).to_le_bytes());
    }
    out.extend_from_slice(data);
    let mut digest = DataDigest::new();
    digest.update(data);
    let mut end = [0; SUFFIX_MAX];
    let n = framing.suffix(data.len() as u32, digest, &mut end);
    out.extend_from_slice(&end[..n]);
}

fn stream(framing: Framing) -> Vec<u8> {
    let mut out = Vec::new();
    put_pdu(&mut out, framing, &command(1, 100).to_bytes(), &[], &[]);
    let ahs = [0, 5, 2, 0, 0, 0, 16, 1, 0, 2, 1, 0, 0x55, 0, 0, 0];
    put_pdu(&mut out, framing, &command(2, 101).to_bytes(), &ahs, b"seven b");
    put_pdu(
        &mut out,
        framing,
        &NopOut { opcode: 0x40, ..NopOut::new_zeroed() }.to_bytes(),
        &[],
        b"ping data of 20 byte",
    );
    put_pdu(&mut out, framing, &DataOut { opcode: 5, ..DataOut::new_zeroed() }.to_bytes(), &[], &[7; 4096]);
    put_pdu(&mut out, framing, &TaskRequest { opcode: 0x42, ..TaskRequest::new_zeroed() }.to_bytes(), &[], &[]);
    put_pdu(
        &mut out,
        framing,
        &TextRequest { opcode: 4, ..TextRequest::new_zeroed() }.to_bytes(),
        &[],
        b"SendTargets=All\0",
    );
    put_pdu(&mut out, framing, &LogoutRequest { opcode: 6, ..LogoutRequest::new_zeroed() }.to_bytes(), &[], &[]);
    put_pdu(&mut out, framing, &Snack { opcode: 0x10, ..Snack::new_zeroed() }.to_bytes(), &[], &[]);
    put_pdu(&mut out, framing, &Bhs { opcode: 0x1d, ..Bhs::new_zeroed() }.to_bytes(), &[], b"what?");
    out
}

const FRAMINGS: [Framing; 4] = [
    Framing { header_digest: false, data_digest: false },
    Framing { header_digest: true, data_digest: false },
    Framing { header_digest: false, data_digest: true },
    Framing { header_digest: true, data_digest: true },
];

#[test]
fn every_split_gives_the_same() {
    for framing in FRAMINGS {
        let bytes = stream(framing);
        let mut whole = Vec::new();
        let mut decoder = full(framing.header_digest, framing.data_digest);
        feed(&mut decoder, &bytes, &mut whole);
        assert_eq!(whole.len(), 9, "{whole:?}");
        assert!(decoder.at_boundary());
        let Seen::Pdu(Request::ScsiCommand(pdu), ahs, data) = &whole[1] else { panic!() };
        assert_eq!((pdu.itt.get(), &data[..]), (2, &b"seven b"[..]));
        assert_eq!(Ahs::read(ahs).unwrap(), Ahs { extended_cdb: &[0x55], bidi_read_len: Some(4097) });
        assert!(matches!(&whole[8], Seen::Pdu(Request::Unknown(_), _, data) if data == b"what?"));
        for cut in 0..=bytes.len() {
            let mut seen = Vec::new();
            let mut decoder = full(framing.header_digest, framing.data_digest);
            feed(&mut decoder, &bytes[..cut], &mut seen);
            feed(&mut decoder, &bytes[cut..], &mut seen);
            assert_eq!(seen, whole, "cut at {cut}");
        }
        let mut seen = Vec::new();
        let mut decoder = full(framing.header_digest, framing.data_digest);
        bytes.chunks(1).for_each(|byte| feed(&mut decoder, byte, &mut seen));
        assert_eq!(seen, whole);
    }
}

#[test]
fn a_wrong_bit_under_a_digest_is_found() {
    let framing = FRAMINGS[3];
    let bytes = stream(framing);
    let mut good = Vec::new();
    feed(&mut full(true, true), &bytes, &mut good);
    // The payload of the Data-Out is long and all the same.
    for at in (0..300).chain(bytes.len() - 400..bytes.len()) {
        let mut bytes = bytes.clone();
        bytes[at] ^= 0x10;
        let mut seen = Vec::new();
        feed(&mut full(true, true), &bytes, &mut seen);
        let found = seen.iter().any(|seen| matches!(seen, Seen::BadDigest | Seen::Broken(_)));
        // A longer AHS length waits for bytes that do not come.
        assert!(found || seen.len() < good.len(), "byte {at}");
    }
}

#[test]
fn before_the_login_is_complete_there_is_nothing_else() {
    let mut bytes = Vec::new();
    put_pdu(
        &mut bytes,
        Framing::default(),
        &LoginRequest { opcode: 0x43, ..LoginRequest::new_zeroed() }.to_bytes(),
        &[],
        b"A=B\0",
    );
    put_pdu(&mut bytes, Framing::default(), &command(1, 1).to_bytes(), &[], &[]);
    let mut seen = Vec::new();
    feed(&mut Decoder::new(), &bytes, &mut seen);
    assert!(matches!(&seen[0], Seen::Pdu(Request::Login(_), _, text) if text == b"A=B\0"));
    assert_eq!(seen[1], Seen::Broken(Fatal::BeforeLogin(Opcode::SCSI_COMMAND)));
    assert!(!Fatal::BeforeLogin(Opcode::SCSI_COMMAND).ends_session());
}

#[test]
fn what_is_too_long_or_in_a_wrong_place_is_a_format_error() {
    let broken = |header: Header, ahs: &[u8], data: &[u8]| {
        let mut bytes = Vec::new();
        put_pdu(&mut bytes, Framing::default(), &header, ahs, data);
        let mut seen = Vec::new();
        feed(&mut full(false, false), &bytes, &mut seen);
        matches!(seen[..], [Seen::Broken(error)] if error.ends_session())
    };
    let nop = NopOut { opcode: 0x40, ..NopOut::new_zeroed() }.to_bytes();
    let task = TaskRequest { opcode: 2, ..TaskRequest::new_zeroed() }.to_bytes();
    assert!(!broken(nop, &[], &[0; 4096]));
    assert!(broken(nop, &[], &[0; 4097]));
    assert!(broken(nop, &[0; 4], &[]));
    assert!(broken(task, &[], &[0]));
    assert!(broken(LogoutRequest { opcode: 6, ..LogoutRequest::new_zeroed() }.to_bytes(), &[], &[0]));
    assert!(broken(Snack { opcode: 0x10, ..Snack::new_zeroed() }.to_bytes(), &[], &[0]));
    assert!(!broken(command(1, 1).to_bytes(), &[0; AHS_MAX], &[]));
    assert!(broken(command(1, 1).to_bytes(), &[0; AHS_MAX + 4], &[]));
    let mut decoder = full(false, false);
    let long = LoginRequest { opcode: 0x43, data_len: U24::new(8193), ..LoginRequest::new_zeroed() }.to_bytes();
    assert!(decoder.next(&mut &long[..]).is_err());
    assert!(decoder.next(&mut &[][..]).is_err(), "an error remains");
}

#[test]
fn data_may_be_received_in_its_place() {
    let data: Vec<u8> = (0..4093u32).map(|i| (i * 7) as u8).collect();
    for corrupt in [false, true] {
        let mut bytes = Vec::new();
        put_pdu(&mut bytes, FRAMINGS[3], &DataOut { opcode: 5, ..DataOut::new_zeroed() }.to_bytes(), &[], &data);
        let mut decoder = full(true, true);
        assert_eq!((decoder.wanted(false), decoder.wanted(true)), (usize::MAX, 512));
        let mut input = &bytes[..52 + 100];
        assert!(matches!(decoder.next(&mut input), Ok(Some(Event::Request(Request::DataOut(_))))));
        assert_eq!(decoder.data_remaining(), 4093);
        assert_eq!(decoder.next(&mut input), Ok(Some(Event::Data(&data[..100]))));
        assert_eq!(decoder.next(&mut input), Ok(None));
        let mut rest = data[100..].to_vec();
        rest[9] ^= corrupt as u8;
        decoder.data_received(&rest[..1000]);
        decoder.data_received(&rest[1000..]);
        assert_eq!(decoder.data_remaining(), 0);
        assert!(!decoder.at_boundary());
        assert_eq!(decoder.next(&mut &bytes[52 + 4093..]), Ok(Some(Event::DataEnd { digest_ok: !corrupt })));
        assert!(decoder.at_boundary());
    }
}

#[test]
#[should_panic(expected = "more data than the PDU has")]
fn more_data_than_announced_is_a_bug() {
    Decoder::new().data_received(&[0]);
}

#[test]
fn mutated_streams_never_panic_and_always_progress() {
    let mut random = Random(7);
    let streams: Vec<Vec<u8>> = FRAMINGS.iter().map(|framing| stream(*framing)).collect();
    let (mut broken, mut clean) = (0, 0);
    for _ in 0..40_000 {
        let which = random.below(4);
        let mut bytes = streams[which].clone();
        for _ in 0..random.below(4) {
            let at = if random.flip() { random.below(240) } else { random.below(bytes.len()) };
            match random.below(4) {
                0 => bytes[at] = random.next() as u8,
                1 => bytes[at] ^= 1 << random.below(8),
                2 => {
                    bytes.remove(at);
                }
                _ => bytes.insert(at, random.next() as u8),
            }
        }
        let mut decoder = full(FRAMINGS[which].header_digest, FRAMINGS[which].data_digest);
        let mut seen = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at(1 + random.below(rest.len()));
            feed(&mut decoder, piece, &mut seen);
            rest = tail;
        }
        if seen.iter().any(|seen| matches!(seen, Seen::Broken(_) | Seen::BadDigest)) {
            broken += 1;
        } else {
            clean += 1;
        }
    }
    assert!(broken > 4000 && clean > 4000, "{broken} {clean}");
}

#[test]
fn noise_never_panics() {
    let mut random = Random(11);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random.below(400)).map(|_| random.next() as u8).collect();
        let mut decoder = if random.flip() { full(random.flip(), random.flip()) } else { Decoder::new() };
        feed(&mut decoder, &bytes, &mut Vec::new());
    }
}
