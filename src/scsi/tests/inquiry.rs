//! INQUIRY: golden pages.

use super::*;

/// INQUIRY of a page.
fn page(rig: &mut Rig, id: NexusId, page: u8) -> Vec<u8> {
    rig.good(id, &[0x12, 1, page, 0x10, 0, 0])
}

#[test]
fn standard_data() {
    let mut rig = Rig::new();
    let data = rig.good(A, &[0x12, 0, 0, 1, 0, 0]);
    let mut golden = vec![0x00, 0x00, 0x06, 0x12, 91, 0x18, 0x10, 0x02];
    golden.extend_from_slice(b"REACTOR disk            0001");
    golden.resize(58, 0);
    golden.extend_from_slice(&[0x00, 0xa0, 0x04, 0x60, 0x04, 0xc0, 0x09, 0x60]);
    golden.resize(96, 0);
    assert_eq!(data, golden);
    for len in 0..96u8 {
        assert_eq!(rig.good(A, &[0x12, 0, 0, 0, len, 0]), golden[..usize::from(len)]);
    }
    let alone = Unit { copies: false, transport_version: 0, ..unit() };
    let mut lu = LogicalUnit::new(alone, vec![port(1)], Reservations::default()).unwrap();
    lu.attach(A, initiator("a", 1), 1);
    let Action::Reply(Reply::Good(data)) = lu.begin(A, &Cdb::new(&[0x12, 0, 0, 0, 96]), &Context::default()) else {
        panic!("INQUIRY ignores unit attention conditions");
    };
    assert_eq!((data[5], data[6], &data[64..66]), (0x10, 0, &[0u8, 0][..]));
}

#[test]
fn fields_are_checked() {
    let mut rig = Rig::new();
    assert_eq!(rig.check(A, &[0x12, 0, 1, 1, 0, 0]), Sense::field(2), "a page without EVPD");
    assert_eq!(rig.check(A, &[0x12, 1, 0x84, 1, 0, 0]), Sense::field(2), "an unknown page");
    assert_eq!(rig.check(A, &[0x12, 2, 0, 1, 0, 0]), Sense::bit(1, 1));
}

#[test]
fn supported_pages_are_sorted_and_exist() {
    let mut rig = Rig::new();
    let pages = page(&mut rig, A, 0x00);
    assert_eq!(pages, [0, 0, 0, 9, 0x00, 0x80, 0x83, 0x86, 0x87, 0x8f, 0xb0, 0xb1, 0xb2]);
    for &code in &pages[4..] {
        let data = page(&mut rig, A, code);
        assert_eq!(data[..2], [0, code]);
        assert_eq!(usize::from(u16::from_be_bytes([data[2], data[3]])), data.len() - 4, "{code:x}");
    }
    let mut rig = Rig::with(Unit { copies: false, ..unit() });
    assert!(!page(&mut rig, A, 0x00).contains(&0x8f));
    assert_eq!(rig.check(A, &[0x12, 1, 0x8f, 1, 0, 0]), Sense::field(2));
}

#[test]
fn serial_and_identification() {
    let mut rig = Rig::new();
    assert_eq!(page(&mut rig, A, 0x80)[4..], *b"11111111111111111111111111111111");
    for (id, port) in [(A, 1u8), (B, 2)] {
        let data = page(&mut rig, id, 0x83);
        let mut golden = vec![0x01, 0x03, 0, 16, 0x61];
        golden.extend_from_slice(&[0x11; 15]);
        golden.extend_from_slice(&[0x02, 0x01, 0, 40]);
        golden.extend_from_slice(b"REACTOR 11111111111111111111111111111111");
        golden.extend_from_slice(&[0x51, 0x94, 0, 4, 0, 0, 0, port]);
        golden.extend_from_slice(&[0x51, 0x95, 0, 4, 0, 0, 0, 1]);
        golden.extend_from_slice(&[0x53, 0x98, 0, 40]);
        golden.extend_from_slice(format!("iqn.2026-11.io.reactor:vol0,t,0x000{port}\0\0\0\0").as_bytes());
        golden.extend_from_slice(&[0x53, 0xa8, 0, 28]);
        golden.extend_from_slice(b"iqn.2026-11.io.reactor:vol0\0");
        assert_eq!(data[4..], golden);
    }
}

#[test]
fn long_names_stay_in_their_fields() {
    let mut long = port(1);
    long.port_name = "n".repeat(400);
    let mut lu = LogicalUnit::new(unit(), vec![long], Reservations::default()).unwrap();
    lu.attach(A, initiator("a", 1), 1);
    let Action::Reply(Reply::Good(data)) = lu.begin(A, &Cdb::new(&[0x12, 1, 0x83, 4]), &Context::default()) else {
        panic!("no page");
    };
    let mut at = 4;
    while at < data.len() {
        at += 4 + usize::from(data[at + 3]);
    }
    assert_eq!(at, data.len());
}

#[test]
fn limits_characteristics_and_provisioning() {
    let mut rig = Rig::new();
    let data = page(&mut rig, A, 0xb0);
    let mut golden = vec![0, 0xb0, 0, 0x3c, 0, 128, 0, 8];
    for value in [8192u32, 128, 0, 1 << 16, 256, 8, 0x8000_0000, 0, 1 << 15, 512, 1, 1, 0, 0] {
        golden.extend_from_slice(&value.to_be_bytes());
    }
    assert_eq!(data, golden);
    let data = page(&mut rig, A, 0xb1);
    assert_eq!((data.len(), &data[..8]), (64, &[0, 0xb1, 0, 0x3c, 0, 1, 0, 0][..]));
    assert_eq!(page(&mut rig, A, 0xb2), [0, 0xb2, 0, 4, 11, 0xe4, 2, 0]);
    let mut rig = Rig::with(Unit { can_anchor: true, blocks: 1 << 54, ..unit() });
    // 2^54 blocks: sets of 2^23, so that 32 bits count them.
    assert_eq!(page(&mut rig, A, 0xb2), [0, 0xb2, 0, 4, 23, 0xe6, 2, 0]);
    let mut rig = Rig::with(Unit { can_unmap: false, unmap_max: 0, atomic: None, unmap_alignment: None, ..unit() });
    assert_eq!(page(&mut rig, A, 0xb2), [0, 0xb2, 0, 4, 0, 0, 0, 0]);
    let data = page(&mut rig, A, 0xb0);
    assert_eq!(data[20..28], [0; 8]);
    assert_eq!(data[32..36], [0; 4]);
    assert_eq!(data[44..64], [0; 20]);
}

#[test]
fn extended_inquiry_mode_policy_and_third_party_copy() {
    let mut rig = Rig::new();
    let data = page(&mut rig, A, 0x86);
    assert_eq!((data.len(), &data[..8]), (64, &[0, 0x86, 0, 0x3c, 0, 1, 1, 0][..]));
    assert_eq!(page(&mut rig, A, 0x87), [0, 0x87, 0, 4, 0x3f, 0xff, 0, 0]);
    let data = page(&mut rig, A, 0x8f);
    let mut golden = vec![0, 1, 0, 8, 7, 0x83, 1, 0, 0x84, 2, 0, 3];
    golden.extend_from_slice(&[0, 4, 0, 0x1c, 0, 0, 0, 0, 0, 8, 0, 64, 0, 0, 8, 0]);
    golden.resize(golden.len() + 16, 0);
    golden.extend_from_slice(&[0, 8, 0, 4, 3, 0x02, 0x0a, 0xe4]);
    golden.extend_from_slice(&[0, 0xc, 0, 4, 0, 0, 0, 0]);
    golden.extend_from_slice(&[0x80, 1, 0, 0x20, 0, 0, 0, 16, 0, 0, 0, 16, 4, 0, 0, 0, 9]);
    golden.resize(golden.len() + 19, 0);
    assert_eq!(data[4..], golden);
}

#[test]
fn a_unit_that_does_not_exist() {
    let luns = [0, 5];
    let ask = |cdb: &[u8]| absent(&Cdb::new(cdb), &luns);
    let Reply::Good(data) = ask(&[0x12, 0, 0, 0, 96, 0]) else { panic!("INQUIRY") };
    assert_eq!((data[0], data.len(), usize::from(data[4])), (0x7f, 36, 31));
    let not_supported = Sense::illegal(Asc::LUN_NOT_SUPPORTED);
    assert_eq!(ask(&[0x12, 1, 0, 0, 96, 0]), Reply::Check(not_supported));
    let Reply::Good(data) = ask(&[0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]) else { panic!("REPORT LUNS") };
    assert_eq!(data[..8], [0, 0, 0, 16, 0, 0, 0, 0]);
    let Reply::Good(data) = ask(&[0x03, 0, 0, 0, 18, 0]) else { panic!("REQUEST SENSE") };
    assert_eq!((data[2], data[12]), (5, 0x25));
    for opcode in [0x00, 0x28, 0x2a, 0xff] {
        assert_eq!(ask(&[opcode; 16]), Reply::Check(not_supported));
    }
}
