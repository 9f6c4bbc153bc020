//! Random and mutated input, round trips.

use proptest::prelude::*;

use super::*;
use crate::util::Random;

#[test]
fn mutated_streams_never_panic_and_always_progress() {
    let cases = 1_000_000;
    let mut random = Random(42);
    let mut streams = Vec::new();
    for (hd, dd) in [(false, false), (true, false), (false, true), (true, true)] {
        let net = agreed(hd, dd, 0, 0);
        streams.push((Role::Controller, (hd, dd), host_stream(&net).0));
        streams.push((Role::Host, (hd, dd), controller_stream(&net).0));
    }
    let (mut clean, mut errors) = (0u64, 0u64);
    for _ in 0..cases {
        let (role, grant, stream) = &streams[random.below(streams.len())];
        let mut stream = stream.clone();
        for _ in 0..random.below(4) {
            // Half of the hits go to the first bytes of the stream, where the headers are dense.
            let at = if random.below(2) == 0 { random.below(240) } else { random.below(stream.len()) };
            match random.below(4) {
                0 => stream[at] = random.next() as u8,
                1 => stream[at] ^= 1 << random.below(8),
                2 => {
                    stream.remove(at);
                }
                _ => stream.insert(at, random.next() as u8),
            }
        }
        let mut decoder = Decoder::new(*role, LIMITS);
        let mut rest = &stream[..];
        'stream: while !rest.is_empty() {
            let cut = 1 + random.below(rest.len());
            let (mut piece, tail) = rest.split_at(cut);
            rest = tail;
            loop {
                let before = piece.len();
                match decoder.next(&mut piece) {
                    Ok(Some(Event::IcReq(_) | Event::IcResp(_))) => decoder.set_digests(grant.0, grant.1),
                    Ok(Some(Event::DataEnd { .. })) => {}
                    Ok(Some(_)) => assert!(piece.len() < before, "an event without progress"),
                    Ok(None) => {
                        assert!(piece.is_empty());
                        break;
                    }
                    Err(_) => {
                        errors += 1;
                        assert!(decoder.offending_header().len() >= 8);
                        break 'stream;
                    }
                }
            }
        }
        clean += u64::from(decoder.next(&mut &[][..]).is_ok());
    }
    assert!(errors > cases / 4, "the mutations hardly hit anything: {errors} of {cases}");
    assert!(clean > cases / 8, "hardly a stream survived: {clean} of {cases}");
}

proptest! {
    #[test]
    fn commands_and_data_round_trip(
        hd: bool,
        dd: bool,
        alignment_z in 0u8..=31,
        lens in proptest::collection::vec(0u32..2048, 1..6),
        cuts in proptest::collection::vec(1usize..600, 1..40),
        cid: u16,
        slba: u64,
    ) {
        let net = agreed(hd, dd, alignment_z, alignment_z);
        let framing = Framing::new(Role::Host, &net);
        let mut stream = ic_req_bytes(0);
        let mut want = vec![Seen::IcReq(IcRequest { hpda_z: 0, dgst: 0, maxr2t_z: 0 })];
        for (i, len) in lens.iter().enumerate() {
            let mut sqe = write_sqe(cid.wrapping_add(i as u16), *len);
            sqe.set_slba(slba);
            let data = bytes(*len as usize, i as u8);
            append(&mut stream, &framing, &data, |out| framing.capsule_cmd(&sqe, *len, out));
            want.push(Seen::Command(sqe, *len));
            if *len != 0 {
                want.push(Seen::Data(data, true));
            }
        }
        let mut feed = Feed::new(Role::Controller, Limits { alignment_z, ..LIMITS }, (hd, dd));
        let mut rest = &stream[..];
        for cut in cuts.iter().cycle() {
            if rest.is_empty() {
                break;
            }
            let (piece, tail) = rest.split_at((*cut).min(rest.len()));
            feed.push(piece);
            rest = tail;
        }
        prop_assert_eq!(feed.seen, want);
        prop_assert!(feed.decoder.at_boundary());
    }

    #[test]
    fn arbitrary_bytes_never_panic(input in proptest::collection::vec(any::<u8>(), 0..600), host: bool) {
        let role = if host { Role::Host } else { Role::Controller };
        let mut feed = Feed::new(role, LIMITS, (true, true));
        feed.push(&input);
    }
}
