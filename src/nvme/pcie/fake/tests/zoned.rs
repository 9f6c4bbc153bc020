//! Zones: what each command says, in the bytes of the specification. How zones behave is for the conformance suite.

use super::*;
use crate::nvme::spec::ZoneState;

const BOUNDARY: u16 = 0x1b8;
const FULL: u16 = 0x1b9;
const READ_ONLY: u16 = 0x1ba;
const OFFLINE: u16 = 0x1bb;
const INVALID_WRITE: u16 = 0x1bc;
const TOO_MANY_ACTIVE: u16 = 0x1bd;
const TOO_MANY_OPEN: u16 = 0x1be;
const TRANSITION: u16 = 0x1bf;

/// Blocks of a zone, of which 12 can be written.
const ZONE: u64 = 16;

/// Sixteen zones on namespace 1, and a namespace 2 without.
fn host() -> Host {
    let zoned = NamespaceOptions::zoned(1, 16 * ZONE * PAGE as u64, 12, ZONE * PAGE as u64);
    let namespaces = vec![zoned, NamespaceOptions::new(2, 1 << 20, 12)];
    Host::new(DiskOptions { namespaces, zasl: 2, ..DiskOptions::default() }, FakeOptions::default())
}

impl Host {
    fn append(&mut self, slba: u64, blocks: u32) -> (u16, u64) {
        let buf = self.buffer(blocks as usize * PAGE, 7);
        // Blocks of a buffer follow each other: one or two pages need no list.
        let (one, two) = (buf.address() as u64, if blocks == 2 { buf.address() as u64 + PAGE as u64 } else { 0 });
        let done = self.hold_and_run(with_prps(ranged(0x7d, slba, blocks), one, two), vec![buf]).0;
        (done.code, done.result)
    }

    fn manage(&mut self, slba: u64, action: u32) -> u16 {
        self.run(1, command(0x79, 1, &[(10, slba as u32), (13, action)])).code
    }

    /// The number in the header of a report of 256 bytes, and the state, start and write pointer of the zones in it.
    fn report(&mut self, slba: u32, how: u32) -> (u16, u64, Vec<(u8, u64, u64)>) {
        let page = self.block(PAGE);
        let done =
            self.run(1, with_prps(command(0x7a, 1, &[(10, slba), (12, 63), (13, how)]), page.address() as u64, 0));
        let word = |at: usize| page.load64(at);
        let zones = (1..4).map(|index| index * 64).filter(|at| page.load32(*at) as u8 == 2);
        let zones = zones.map(|at| ((word(at) >> 12) as u8 & 0xf, word(at + 16), word(at + 24))).collect();
        assert_eq!(word(256), 0, "no more than it was asked for");
        (done.code, word(0), zones)
    }
}

#[test]
fn identify_and_the_log_of_effects_tell_of_zones() {
    let mut host = host();
    let page = host.block(PAGE);
    let mut identify = |cns: u32, nsid: u32, csi: u32| {
        page.zero();
        let done = host.admin(with_prps(command(6, nsid, &[(10, cns), (11, csi << 24)]), page.address() as u64, 0));
        let mut bytes = vec![0; PAGE];
        page.read(0, &mut bytes);
        (done.code, bytes)
    };
    let (code, zoned) = identify(5, 1, 2);
    assert_eq!((code, &zoned[..12]), (OK, &[0, 0, 1, 0, 5, 0, 0, 0, 3, 0, 0, 0][..]));
    assert_eq!((zoned[2816], zoned[2816 + 16], zoned[2816 + 24]), (16, 128, 0), "in blocks of each format");
    assert_eq!((identify(5, 2, 2).0, identify(6, 0, 2).1[0], identify(0x1c, 0, 0).1[0]), (INVALID_FIELD, 2, 5));
    assert_eq!((identify(7, 0, 2).1[..8].to_vec(), identify(7, 0, 0).1[0]), (vec![1, 0, 0, 0, 0, 0, 0, 0], 2));
    assert_eq!((identify(2, 0, 0).1[4], identify(3, 1, 0).1[20..25].to_vec()), (2, vec![4, 1, 0, 0, 2]));
    for (csi, append) in [(0, 0), (2, 3)] {
        page.zero();
        let get = command(2, u32::MAX, &[(10, 1023 << 16 | 5), (14, csi << 24)]);
        assert_eq!(host.admin(with_prps(get, page.address() as u64, 0)).code, OK);
        assert_eq!((page.load32(1024 + 4 * 0x7d), page.load32(1024 + 4 * 2)), (append, 1));
    }
    host.finish();
}

#[test]
fn writes_and_appends_go_to_the_pointer_or_say_why_not() {
    let mut host = host();
    assert_eq!(host.write(0, 1), OK);
    assert_eq!((host.write(0, 1), host.write(2, 1)), (INVALID_WRITE, INVALID_WRITE));
    assert_eq!((host.append(0, 2), host.append(0, 1)), ((OK, 1), (OK, 3)));
    assert_eq!(
        (host.append(1, 1).0, host.append(16, 5).0),
        (INVALID_FIELD, INVALID_FIELD),
        "no start, and more than ZASL"
    );
    for slba in 4..11 {
        assert_eq!(host.write(slba, 1), OK);
    }
    assert_eq!((host.append(0, 2).0, host.append(0, 1), host.append(0, 1).0), (BOUNDARY, (OK, 11), FULL));
    assert_eq!(host.write(12, 1), FULL);
    assert_eq!(host.read(12), (OK, vec![0; PAGE]));
    assert_eq!(
        host.disk.contents(1, 0, 12 * PAGE),
        [vec![1; PAGE], vec![7; 3 * PAGE], vec![1; 7 * PAGE], vec![7; PAGE]].concat()
    );
    // Not of a namespace without zones.
    assert_eq!(host.run(1, command(0x79, 2, &[(13, 4)])).code, INVALID_OPCODE);
    host.finish();
}

#[test]
fn zones_are_managed_one_by_one_or_all() {
    let mut host = host();
    assert_eq!(
        (host.manage(1, 3), host.manage(256, 3), host.manage(0, 9)),
        (INVALID_FIELD, OUT_OF_RANGE, INVALID_FIELD)
    );
    for zone in 0..4 {
        assert_eq!(host.manage(zone * ZONE, 3), OK);
    }
    assert_eq!((host.manage(4 * ZONE, 3), host.write(4 * ZONE, 1)), (TOO_MANY_OPEN, TOO_MANY_OPEN));
    assert_eq!(host.manage(ZONE, 1), OK);
    assert_eq!(host.write(4 * ZONE, 1), OK);
    assert_eq!(host.report(0, 0), (OK, 16, vec![(3, 0, 0), (4, 16, 16), (3, 32, 32)]));
    assert_eq!(host.report(17, 0x1_0000), (OK, 3, vec![(4, 16, 16), (3, 32, 32), (3, 48, 48)]), "a partial report");
    assert_eq!(host.report(0, 0x0200), (OK, 1, vec![(2, 64, 65)]), "implicitly opened");
    assert_eq!(host.report(0, 0x1_0400), (OK, 1, vec![(4, 16, 16)]), "closed");
    // The one that was opened by a write gives way.
    assert_eq!((host.append(5 * ZONE, 1), host.append(6 * ZONE, 1).0), ((OK, 80), TOO_MANY_ACTIVE));
    assert_eq!(host.report(0, 0x0400).2, [(4, 16, 16), (4, 64, 65)]);
    assert_eq!(host.manage(0, 0x103), TOO_MANY_OPEN, "two closed ones beside three open");
    assert_eq!((host.manage(0, 0x101), host.report(0, 0x0400).1), (OK, 6));
    assert_eq!((host.manage(2 * ZONE, 2), host.manage(2 * ZONE, 3)), (OK, TRANSITION));
    assert_eq!((host.manage(0, 0x102), host.report(0, 0x0500).1), (OK, 6));
    assert_eq!((host.manage(7 * ZONE, 1), host.manage(7 * ZONE, 5)), (TRANSITION, TRANSITION));
    assert_eq!((host.manage(0, 0x104), host.report(0, 0x0100).1), (OK, 16));
    assert_eq!(host.read(4 * ZONE), (OK, vec![0; PAGE]));
    assert_eq!(host.run(1, command(0x7a, 1, &[(12, 63), (13, 1)])).code, INVALID_FIELD, "no extensions");
    host.finish();
}

#[test]
fn zones_that_are_worn_out_say_so() {
    let mut host = host();
    assert_eq!((host.write(0, 1), host.write(ZONE, 1)), (OK, OK));
    host.disk.set_zone(1, 0, ZoneState::READ_ONLY);
    assert_eq!((host.write(1, 1), host.append(0, 1).0, host.manage(0, 4)), (READ_ONLY, READ_ONLY, TRANSITION));
    assert_eq!((host.read(0).0, host.report(0, 0x0600)), (OK, (OK, 1, vec![(0xd, 0, u64::MAX)])));
    assert_eq!(host.manage(0, 5), OK);
    assert_eq!((host.read(0).0, host.write(0, 1), host.report(0, 0x0700).1), (OFFLINE, OFFLINE, 1));
    // Open zones are closed when the power fails.
    let entropy = crate::reactor::clock::Entropy::new(1);
    host.disk.power_cut(&entropy);
    assert_eq!(host.report(0, 0x0400).2, [(4, 16, 17)]);
    // A format forgets it all, and zones are as large in bytes.
    assert_eq!(host.admin(command(0x80, 1, &[(10, 1)])).code, OK);
    assert_eq!((host.report(0, 0).1, host.report(0, 0).2[1]), (16, (1, 128, 128)));
    host.finish();
}
