//! Golden bytes of every structure, numbers of every command, and places.

use super::*;

/// The bytes of a structure, and the structure of the bytes.
#[track_caller]
fn golden<T: FromBytes + IntoBytes + Immutable + PartialEq + fmt::Debug>(value: T, bytes: &[u8]) {
    assert_eq!(value.as_bytes(), bytes);
    assert_eq!(T::read_from_bytes(bytes).unwrap(), value);
}

#[test]
fn control_command() {
    let cmd = CtrlCmd {
        dev_id: 0x0403_0201,
        queue_id: 0x0605,
        len: 0x0807,
        addr: 0x100f_0e0d_0c0b_0a09,
        data: 0x1817_1615_1413_1211,
        dev_path_len: 0x1a19,
        pad: 0x1c1b,
        reserved: 0x201f_1e1d,
    };
    let bytes: Vec<u8> = (1..=32).collect();
    golden(cmd, &bytes);
    let cmd = CtrlCmd::with_data(7, 0x0102);
    #[rustfmt::skip]
    golden(cmd, &[
        7, 0, 0, 0, 0xff, 0xff, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
        2, 1, 0, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0,
    ]);
    assert_eq!(CtrlCmd::new(7), CtrlCmd { data: 0, ..cmd });
}

#[test]
fn device_info() {
    let info = DevInfo {
        nr_hw_queues: 2,
        queue_depth: 0x0107,
        state: DevState::QUIESCED,
        io_desc_size: 0x0a0b,
        max_io_buf_bytes: 0x0010_0000,
        dev_id: 0x0403_0201,
        ublksrv_pid: -2,
        pad1: 0x1413_1211,
        flags: Features::USER_COPY | Features::USER_RECOVERY | Features(1 << 63),
        ublksrv_flags: 0x2827_2625_2423_2221,
        owner_uid: 0x3433_3231,
        owner_gid: 0x4443_4241,
        reserved1: 0x5857_5655_5453_5251,
        reserved2: 0x6867_6665_6463_6261,
    };
    #[rustfmt::skip]
    golden(info, &[
        2, 0, 0x07, 0x01, 2, 0, 0x0b, 0x0a,
        0x00, 0x00, 0x10, 0x00, 0x01, 0x02, 0x03, 0x04,
        0xfe, 0xff, 0xff, 0xff, 0x11, 0x12, 0x13, 0x14,
        0x88, 0, 0, 0, 0, 0, 0, 0x80,
        0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
        0x31, 0x32, 0x33, 0x34, 0x41, 0x42, 0x43, 0x44,
        0x51, 0x52, 0x53, 0x54, 0x55, 0x56, 0x57, 0x58,
        0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
    ]);
}

#[test]
fn shared_memory() {
    let buf = ShmemBufReg { addr: 0x0807_0605_0403_0201, len: 0x0c0b_0a09, flags: SHMEM_BUF_READ_ONLY };
    golden(buf, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 1, 0, 0, 0]);
    assert_eq!((shmem_index(0x0001_0203_0405_0607), shmem_offset(0x0001_0203_0405_0607)), (0x0203, 0x0405_0607));
}

#[test]
fn request() {
    let desc = IoDesc {
        op_flags: 1 | IO_F_FUA | IO_F_META,
        nr_sectors: 0x0807_0605,
        start_sector: 0x100f_0e0d_0c0b_0a09,
        addr: 0x1817_1615_1413_1211,
    };
    #[rustfmt::skip]
    golden(desc, &[
        0x01, 0x28, 0, 0, 5, 6, 7, 8,
        9, 10, 11, 12, 13, 14, 15, 16,
        17, 18, 19, 20, 21, 22, 23, 24,
    ]);
    assert_eq!((desc.op(), desc.flags()), (IoOp::WRITE, IO_F_FUA | IO_F_META));
    let unknown = IoDesc { op_flags: 0x0008_00ee, ..desc };
    assert_eq!((unknown.op(), unknown.op().name(), unknown.flags()), (IoOp(0xee), None, IO_F_SHMEM_ZC));
}

#[test]
fn io_commands() {
    let cmd = IoCmd { q_id: 0x0201, tag: 0x0403, result: -5, addr: 0x100f_0e0d_0c0b_0a09 };
    golden(cmd, &[1, 2, 3, 4, 0xfb, 0xff, 0xff, 0xff, 9, 10, 11, 12, 13, 14, 15, 16]);
    let batch = BatchIo {
        q_id: 0x0201,
        flags: 0x0403,
        nr_elem: 0x0605,
        elem_bytes: 7,
        reserved: 8,
        reserved2: 0x100f_0e0d_0c0b_0a09,
    };
    golden(batch, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    let elem = ElemHeader { tag: 0x0201, buf_index: 0x0403, result: -22 };
    golden(elem, &[1, 2, 3, 4, 0xea, 0xff, 0xff, 0xff]);
    let auto = AutoBufReg { index: 0x0201, flags: 3, reserved0: 4, reserved1: 0x0807_0605 };
    golden(auto, &[1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(auto.to_sqe_addr(), 0x0807_0605_0403_0201);
    let auto = AutoBufReg { index: 0xffff, flags: AUTO_BUF_REG_FALLBACK, ..AutoBufReg::default() };
    assert_eq!(auto.to_sqe_addr(), 0x0001_ffff);
}

#[test]
fn parameters() {
    let params = Params {
        len: 152,
        types: PARAM_TYPE_BASIC | PARAM_TYPE_DISCARD | PARAM_TYPE_INTEGRITY,
        basic: ParamBasic {
            attrs: ATTR_VOLATILE_CACHE | ATTR_FUA,
            logical_bs_shift: 9,
            physical_bs_shift: 12,
            io_opt_shift: 13,
            io_min_shift: 10,
            max_sectors: 0x0403_0201,
            chunk_sectors: 0x0807_0605,
            dev_sectors: 0x1817_1615_1413_1211,
            virt_boundary_mask: 0x2827_2625_2423_2221,
        },
        discard: ParamDiscard {
            discard_alignment: 0x3433_3231,
            discard_granularity: 0x3837_3635,
            max_discard_sectors: 0x4443_4241,
            max_write_zeroes_sectors: 0x4847_4645,
            max_discard_segments: 0x5251,
            reserved0: 0x5453,
        },
        devt: ParamDevt {
            char_major: 0x6463_6261,
            char_minor: 0x6867_6665,
            disk_major: 0x7473_7271,
            disk_minor: 0x7877_7675,
        },
        zoned: ParamZoned {
            max_open_zones: 0x8483_8281,
            max_active_zones: 0x8887_8685,
            max_zone_append_sectors: 0x9493_9291,
            reserved: [0x9f; 20],
        },
        dma: ParamDmaAlign { alignment: 0xa4a3_a2a1, pad: [0xa5, 0xa6, 0xa7, 0xa8] },
        pad116: 0xafae_adac,
        seg: ParamSegment {
            seg_boundary_mask: 0xb8b7_b6b5_b4b3_b2b1,
            max_segment_size: 0xc4c3_c2c1,
            max_segments: 0xc6c5,
            pad: [0xc7, 0xc8],
        },
        integrity: ParamIntegrity {
            flags: 0xd4d3_d2d1,
            max_integrity_segments: 0xd6d5,
            interval_exp: 0xd7,
            metadata_size: 0xd8,
            pi_offset: 0xd9,
            csum_type: 0xda,
            tag_size: 0xdb,
            pad: [0xdc, 0xdd, 0xde, 0xdf, 0xe0],
        },
    };
    #[rustfmt::skip]
    let bytes = [
        152, 0, 0, 0, 0x43, 0, 0, 0,
        // basic
        0x0c, 0, 0, 0, 9, 12, 13, 10,
        0x01, 0x02, 0x03, 0x04, 0x05, 0x06, 0x07, 0x08,
        0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
        0x21, 0x22, 0x23, 0x24, 0x25, 0x26, 0x27, 0x28,
        // discard
        0x31, 0x32, 0x33, 0x34, 0x35, 0x36, 0x37, 0x38,
        0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47, 0x48,
        0x51, 0x52, 0x53, 0x54,
        // devt
        0x61, 0x62, 0x63, 0x64, 0x65, 0x66, 0x67, 0x68,
        0x71, 0x72, 0x73, 0x74, 0x75, 0x76, 0x77, 0x78,
        // zoned
        0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88,
        0x91, 0x92, 0x93, 0x94,
        0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f,
        0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f, 0x9f,
        // dma, and the gap after it
        0xa1, 0xa2, 0xa3, 0xa4, 0xa5, 0xa6, 0xa7, 0xa8,
        0xac, 0xad, 0xae, 0xaf,
        // segments
        0xb1, 0xb2, 0xb3, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8,
        0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7, 0xc8,
        // integrity
        0xd1, 0xd2, 0xd3, 0xd4, 0xd5, 0xd6, 0xd7, 0xd8,
        0xd9, 0xda, 0xdb, 0xdc, 0xdd, 0xde, 0xdf, 0xe0,
    ];
    golden(params, &bytes);
}

#[test]
fn numbers_of_control_commands() {
    // Direction 2 (read) or 3 (both) in the two highest bits, 32 bytes, 'u' = 75h, number.
    assert_eq!(U_CMD_GET_QUEUE_AFFINITY, 0x8020_7501);
    assert_eq!(U_CMD_GET_DEV_INFO, 0x8020_7502);
    assert_eq!(U_CMD_ADD_DEV, 0xc020_7504);
    assert_eq!(U_CMD_DEL_DEV, 0xc020_7505);
    assert_eq!(U_CMD_START_DEV, 0xc020_7506);
    assert_eq!(U_CMD_STOP_DEV, 0xc020_7507);
    assert_eq!(U_CMD_SET_PARAMS, 0xc020_7508);
    assert_eq!(U_CMD_GET_PARAMS, 0x8020_7509);
    assert_eq!(U_CMD_START_USER_RECOVERY, 0xc020_7510);
    assert_eq!(U_CMD_END_USER_RECOVERY, 0xc020_7511);
    assert_eq!(U_CMD_GET_DEV_INFO2, 0x8020_7512);
    assert_eq!(U_CMD_GET_FEATURES, 0x8020_7513);
    assert_eq!(U_CMD_DEL_DEV_ASYNC, 0x8020_7514);
    assert_eq!(U_CMD_UPDATE_SIZE, 0xc020_7515);
    assert_eq!(U_CMD_QUIESCE_DEV, 0xc020_7516);
    assert_eq!(U_CMD_TRY_STOP_DEV, 0xc020_7517);
    assert_eq!(U_CMD_REG_BUF, 0xc020_7518);
    assert_eq!(U_CMD_UNREG_BUF, 0xc020_7519);
}

#[test]
fn numbers_of_io_commands() {
    // As above, with 16 bytes.
    assert_eq!(U_IO_FETCH_REQ, 0xc010_7520);
    assert_eq!(U_IO_COMMIT_AND_FETCH_REQ, 0xc010_7521);
    assert_eq!(U_IO_NEED_GET_DATA, 0xc010_7522);
    assert_eq!(U_IO_REGISTER_IO_BUF, 0xc010_7523);
    assert_eq!(U_IO_UNREGISTER_IO_BUF, 0xc010_7524);
    assert_eq!(U_IO_PREP_IO_CMDS, 0xc010_7525);
    assert_eq!(U_IO_COMMIT_IO_CMDS, 0xc010_7526);
    assert_eq!(U_IO_FETCH_IO_CMDS, 0xc010_7527);
}

#[test]
fn places() {
    assert_eq!([0, 1, 2, 4095].map(descriptors_offset), [0, 98_304, 196_608, 402_554_880]);
    assert_eq!([1, 7, 170, 171, 341, 342, 4096].map(descriptors_len), [4096, 4096, 4096, 8192, 8192, 12_288, 98_304]);
    assert_eq!(io_buf_position(0, 0), 0x8000_0000);
    assert_eq!(io_buf_position(0, 1), 0x8200_0000);
    assert_eq!(io_buf_position(1, 0), 0x0200_8000_0000);
    assert_eq!(io_buf_position(3, 0x40), 0x0601_0000_0000);
    assert_eq!(io_buf_position(0xfff, 0xffff), 0x0020_0000_7e00_0000);
    assert_eq!(IO_BUF_MAX, 32 << 20);
}

#[test]
fn features_have_names() {
    assert_eq!(Features(0x1fe).without(Features(0x1fe)).to_string(), "none");
    assert_eq!(
        Features(0x1fe).to_string(),
        "URING_CMD_COMP_IN_TASK NEED_GET_DATA USER_RECOVERY USER_RECOVERY_REISSUE UNPRIVILEGED_DEV CMD_IOCTL_ENCODE USER_COPY ZONED"
    );
    assert_eq!((Features::ZONED | Features(0x300_0000)).to_string(), "ZONED 0x3000000");
    let mut all = Features::default();
    for (n, (feature, _)) in Features::NAMED.into_iter().enumerate() {
        assert_eq!(feature.0, 1 << n);
        all |= feature;
    }
    assert_eq!(all.0, 0x1f_ffff);
    assert!(all.has(Features::SHMEM_ZC | Features::USER_COPY) && !Features::ZONED.has(all));
    assert_eq!(all & Features::ZONED, Features::ZONED);
}

#[test]
fn states_and_operations_have_names() {
    assert_eq!(format!("{:?} {:?}", DevState(1), DevState(9)), "LIVE DevState(0x9)");
    assert_eq!(IoOp(18), IoOp::REPORT_ZONES);
    assert_eq!([IO_RES_OK, IO_RES_NEED_GET_DATA, IO_RES_ABORT], [0, 1, -19]);
}
