//! Where every field of every header is, and the additional header segments.

use super::*;

/// A header whose bytes are their offsets.
fn counted() -> Header {
    std::array::from_fn(|i| i as u8)
}

fn be32(at: u8) -> u32 {
    u32::from_be_bytes([at, at + 1, at + 2, at + 3])
}

fn be16(at: u8) -> u16 {
    u16::from_be_bytes([at, at + 1])
}

#[test]
fn requests_lie_where_the_specification_puts_them() {
    let header = counted();
    let bhs = Bhs::read(&header);
    assert_eq!((bhs.opcode, bhs.flags, bhs.specific2, bhs.ahs_words), (0, 1, [2, 3], 4));
    assert_eq!(bhs.data_len.get(), 0x0005_0607);
    assert_eq!((bhs.lun, bhs.itt.get()), ([8, 9, 10, 11, 12, 13, 14, 15], be32(16)));

    let pdu = ScsiCommand::read(&header);
    assert_eq!((pdu.itt.get(), pdu.expected_len.get(), pdu.cmd_sn.get()), (be32(16), be32(20), be32(24)));
    assert_eq!((pdu.exp_stat_sn.get(), pdu.cdb[0], pdu.cdb[15]), (be32(28), 32, 47));
    let pdu = TaskRequest::read(&header);
    assert_eq!((pdu.ref_itt.get(), pdu.cmd_sn.get(), pdu.exp_stat_sn.get()), (be32(20), be32(24), be32(28)));
    assert_eq!((pdu.ref_cmd_sn.get(), pdu.exp_data_sn.get()), (be32(32), be32(36)));
    let pdu = DataOut::read(&header);
    assert_eq!((pdu.ttt.get(), pdu.exp_stat_sn.get()), (be32(20), be32(28)));
    assert_eq!((pdu.data_sn.get(), pdu.buffer_offset.get()), (be32(36), be32(40)));
    let pdu = TextRequest::read(&header);
    assert_eq!((pdu.lun[0], pdu.ttt.get(), pdu.cmd_sn.get(), pdu.exp_stat_sn.get()), (8, be32(20), be32(24), be32(28)));
    let pdu = LoginRequest::read(&header);
    assert_eq!((pdu.version_max, pdu.version_min, pdu.isid, pdu.tsih.get()), (2, 3, [8, 9, 10, 11, 12, 13], be16(14)));
    assert_eq!((pdu.cid.get(), pdu.cmd_sn.get(), pdu.exp_stat_sn.get()), (be16(20), be32(24), be32(28)));
    let pdu = LogoutRequest::read(&header);
    assert_eq!((pdu.cid.get(), pdu.cmd_sn.get(), pdu.exp_stat_sn.get()), (be16(20), be32(24), be32(28)));
    let pdu = Snack::read(&header);
    assert_eq!((pdu.ttt.get(), pdu.exp_stat_sn.get()), (be32(20), be32(28)));
    assert_eq!((pdu.begin_run.get(), pdu.run_len.get()), (be32(40), be32(44)));
    let pdu = NopOut::read(&header);
    assert_eq!(
        (pdu.lun[7], pdu.ttt.get(), pdu.cmd_sn.get(), pdu.exp_stat_sn.get()),
        (15, be32(20), be32(24), be32(28))
    );
}

#[test]
fn responses_lie_where_the_specification_puts_them() {
    let header = counted();
    let pdu = ScsiResponse::read(&header);
    assert_eq!((pdu.response, pdu.status, pdu.snack_tag.get()), (2, 3, be32(20)));
    assert_eq!((pdu.stat_sn.get(), pdu.exp_cmd_sn.get(), pdu.max_cmd_sn.get()), (be32(24), be32(28), be32(32)));
    assert_eq!((pdu.exp_data_sn.get(), pdu.bidi_residual.get(), pdu.residual.get()), (be32(36), be32(40), be32(44)));
    let pdu = TaskResponse::read(&header);
    assert_eq!((pdu.outcome.0, pdu.reserved8[0], pdu.stat_sn.get(), pdu.max_cmd_sn.get()), (2, 8, be32(24), be32(32)));
    let pdu = DataIn::read(&header);
    assert_eq!((pdu.status, pdu.ttt.get(), pdu.stat_sn.get(), pdu.exp_cmd_sn.get()), (3, be32(20), be32(24), be32(28)));
    assert_eq!((pdu.data_sn.get(), pdu.buffer_offset.get(), pdu.residual.get()), (be32(36), be32(40), be32(44)));
    let pdu = R2t::read(&header);
    assert_eq!((pdu.ttt.get(), pdu.stat_sn.get(), pdu.max_cmd_sn.get()), (be32(20), be32(24), be32(32)));
    assert_eq!((pdu.r2t_sn.get(), pdu.buffer_offset.get(), pdu.desired_len.get()), (be32(36), be32(40), be32(44)));
    let pdu = AsyncMessage::read(&header);
    assert_eq!((pdu.stat_sn.get(), pdu.event.0, pdu.vendor_code), (be32(24), 36, 37));
    assert_eq!((pdu.parameter1.get(), pdu.parameter2.get(), pdu.parameter3.get()), (be16(38), be16(40), be16(42)));
    let pdu = TextResponse::read(&header);
    assert_eq!((pdu.ttt.get(), pdu.stat_sn.get(), pdu.exp_cmd_sn.get()), (be32(20), be32(24), be32(28)));
    let pdu = LoginResponse::read(&header);
    assert_eq!((pdu.version_max, pdu.version_active, pdu.tsih.get()), (2, 3, be16(14)));
    assert_eq!((pdu.stat_sn.get(), pdu.status_class, pdu.status_detail), (be32(24), 36, 37));
    let pdu = LogoutResponse::read(&header);
    assert_eq!((pdu.outcome.0, pdu.stat_sn.get()), (2, be32(24)));
    assert_eq!((pdu.time2wait.get(), pdu.time2retain.get()), (be16(40), be16(42)));
    let pdu = Reject::read(&header);
    assert_eq!((pdu.reason.0, pdu.stat_sn.get(), pdu.data_sn.get()), (2, be32(24), be32(36)));
    let pdu = NopIn::read(&header);
    assert_eq!((pdu.ttt.get(), pdu.stat_sn.get(), pdu.exp_cmd_sn.get()), (be32(20), be32(24), be32(28)));
    assert_eq!(pdu.to_bytes(), header);
}

#[test]
fn a_write_command_byte_by_byte() {
    let mut header = [0; BHS_LEN];
    header[..8].copy_from_slice(&[0x41, 0xa1, 0, 0, 0, 0, 2, 0]);
    header[8..16].copy_from_slice(&[0, 3, 0, 0, 0, 0, 0, 0]);
    header[16..32].copy_from_slice(&[0, 0, 0, 9, 0, 0, 16, 0, 0, 0, 0, 5, 0, 0, 0, 7]);
    header[32..42].copy_from_slice(&[0x2a, 0, 0, 0, 0, 100, 0, 0, 8, 0]);
    let pdu = ScsiCommand::read(&header);
    assert!(pdu.immediate() && pdu.is_final() && pdu.writes() && !pdu.reads());
    assert_eq!(pdu.attribute(), TaskAttribute::SIMPLE);
    assert_eq!((pdu.data_len.get(), pdu.expected_len.get()), (512, 4096));
    assert_eq!((pdu.itt.get(), pdu.cmd_sn.get(), pdu.exp_stat_sn.get(), pdu.cdb[0]), (9, 5, 7, 0x2a));
    assert_eq!(pdu.to_bytes(), header);
}

#[test]
fn login_flags_hold_two_stages() {
    let mut pdu = LoginRequest::new_zeroed();
    pdu.flags = 0x87;
    assert_eq!((pdu.current(), pdu.next()), (Stage::OPERATIONAL, Stage::FULL_FEATURE));
    pdu.flags = 0x81;
    assert_eq!((pdu.current(), pdu.next()), (Stage::SECURITY, Stage::OPERATIONAL));
}

#[test]
fn a_reject_byte_by_byte() {
    let (mut session, conn) = session(Params::default());
    let header = session.reject(conn, RejectReason::COMMAND_NOT_SUPPORTED).unwrap();
    let mut expected = [0; BHS_LEN];
    expected[..8].copy_from_slice(&[0x3f, 0x80, 5, 0, 0, 0, 0, 48]);
    expected[16..20].fill(0xff);
    // StatSN 500, ExpCmdSN 100, MaxCmdSN 107.
    expected[24..36].copy_from_slice(&[0, 0, 1, 0xf4, 0, 0, 0, 100, 0, 0, 0, 107]);
    assert_eq!(header, expected);
    let next = session.reject(conn, RejectReason::COMMAND_NOT_SUPPORTED).unwrap();
    assert_eq!(Reject::read(&next).stat_sn.get(), 501);
}

#[test]
fn notices_byte_by_byte() {
    let (mut session, conn) = session(Params::default());
    for (notice, event, parameters) in
        [(Notice::RequestLogout(10), 1, [0, 0, 10]), (Notice::DropSession { wait: 4, retain: 5 }, 3, [0, 4, 5])]
    {
        let header = session.notice(conn, &notice).unwrap();
        assert_eq!((header[0], header[1], header[36]), (0x32, 0x80, event));
        assert_eq!(header[16..20], [0xff; 4]);
        let pdu = AsyncMessage::read(&header);
        assert_eq!([pdu.parameter1.get(), pdu.parameter2.get(), pdu.parameter3.get()], parameters);
    }
    let last = session.notice(conn, &Notice::RequestLogout(0)).unwrap();
    assert_eq!(AsyncMessage::read(&last).stat_sn.get(), 502);
}

#[test]
fn additional_header_segments() {
    assert_eq!(Ahs::read(&[]), Ok(Ahs::default()));
    let bidi = [0, 5, 2, 0, 0, 0, 16, 1];
    assert_eq!(Ahs::read(&bidi), Ok(Ahs { extended_cdb: &[], bidi_read_len: Some(4097) }));
    let cdb = [0, 17, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
    assert_eq!(Ahs::read(&cdb).unwrap().extended_cdb, &cdb[4..]);
    let both = [&cdb[..], &bidi].concat();
    assert_eq!(Ahs::read(&both).unwrap(), Ahs { extended_cdb: &cdb[4..], bidi_read_len: Some(4097) });
    // One byte of CDB is padded to a word.
    assert_eq!(Ahs::read(&[0, 2, 1, 0, 0x55, 0, 0, 0]).unwrap().extended_cdb, &[0x55]);
    for bad in [
        &[0, 0, 1, 0][..],
        &[0, 1, 1, 0],
        &[0, 9, 1, 0, 0, 0, 0, 0],
        &[0xff, 0xff, 1, 0],
        &[0, 4, 2, 0, 0, 0, 0, 0],
        &[0, 5, 3, 0, 0, 0, 0, 0],
        &[0, 5],
        &[&bidi[..], &bidi].concat(),
        &[&cdb[..], &cdb].concat(),
    ] {
        assert_eq!(Ahs::read(bad), Err(BadAhs), "{bad:?}");
    }
    let mut longest = vec![0, 245, 1, 0];
    longest.extend([0x77; 244]);
    assert_eq!(Ahs::read(&longest).unwrap().extended_cdb.len(), CDB_MAX - 16);
    let mut longer = vec![0, 246, 1, 0];
    longer.extend([0x77; 248]);
    assert_eq!(Ahs::read(&longer), Err(BadAhs));
}

#[test]
fn digests_of_the_specification() {
    // RFC 7143 appendix A.4: a SCSI Read (10) Command.
    let header = [
        0x01, 0xc0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x14, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0x14, 0, 0, 0,
        0x18, 0x28, 0, 0, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0, 0, 0, 0,
    ];
    let mut out = [0; PREFIX_MAX];
    assert_eq!(Framing { header_digest: true, data_digest: true }.prefix(&header, &mut out), 52);
    assert_eq!(out[48..], [0x56, 0x3a, 0x96, 0xd9]);
    assert_eq!(Framing::default().prefix(&header, &mut out), 48);
}

#[test]
fn what_follows_data() {
    let framing = Framing { header_digest: false, data_digest: true };
    let mut out = [0xee; SUFFIX_MAX];
    for len in 0..9u32 {
        let data = vec![0x5a; len as usize];
        let mut digest = DataDigest::new();
        digest.update(&data);
        let n = framing.suffix(len, digest, &mut out);
        let mut padded = data.clone();
        padded.resize(data.len().next_multiple_of(4), 0);
        let pad = padded.len() - data.len();
        assert_eq!(out[..pad], [0; 3][..pad]);
        if len == 0 {
            assert_eq!(n, 0);
        } else {
            assert_eq!((n, &out[pad..n]), (pad + 4, &crc32c(&padded).to_le_bytes()[..]));
        }
        assert_eq!(framing.wire_len(len), 48 + u64::from(len) + n as u64);
        assert_eq!(Framing::default().suffix(len, digest, &mut out), pad);
    }
    assert_eq!([padding(0), padding(1), padding(2), padding(3), padding(4), padding(u32::MAX)], [0, 3, 2, 1, 0, 1]);
}
