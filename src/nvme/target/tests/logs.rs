//! Log pages.

use zerocopy::FromBytes;

use super::*;

fn read<T: FromBytes>(bytes: &[u8]) -> T {
    T::read_from_bytes(bytes).unwrap()
}

#[test]
fn fields_of_get_log_page_are_checked() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let discovery = rig.enabled_discovery(0);
    let smart = get_log(LogId::SMART, 0, 512);
    let with = |change: &dyn Fn(&mut Sqe)| {
        let mut sqe = smart;
        change(&mut sqe);
        sqe
    };
    let field = StatusCode::INVALID_FIELD;
    for (name, sqe, status) in [
        ("offset not aligned", get_log(LogId::SMART, 2, 512), field),
        ("offset beyond the page", get_log(LogId::SMART, 516, 4), field),
        ("offset beyond 4 GiB", get_log(LogId::SMART, 1 << 32, 4), field),
        ("offset type index", with(&|s| s.cdw14.set(1 << 23)), field),
        ("one namespace", with(&|s| s.nsid.set(1)), field),
        ("length", with(&|s| s.dptr.length.set(508)), StatusCode::SGL_DATA_LENGTH_INVALID),
        ("unknown page", get_log(LogId(0xc0), 0, 512), StatusCode::INVALID_LOG_PAGE),
        ("ana", get_log(LogId::ANA, 0, 512), StatusCode::INVALID_LOG_PAGE),
        ("discovery", get_log(LogId::DISCOVERY, 0, 1024), StatusCode::INVALID_LOG_PAGE),
    ] {
        assert_eq!(rig.fails(controller, &sqe), status.dnr(), "{name}");
    }
    for lid in [LogId::SMART, LogId::CHANGED_NAMESPACES, LogId::COMMANDS_EFFECTS] {
        assert_eq!(rig.fails(discovery, &get_log(lid, 0, 4)), StatusCode::INVALID_LOG_PAGE.dnr());
    }
    rig.ok(controller, &with(&|s| s.nsid.set(0)));
}

#[test]
fn smart_shows_the_counters() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    rig.counters = SmartCounters {
        bytes_read: 512_000 * 3 + 1,
        bytes_written: 512_000 * 5,
        read_commands: 11,
        write_commands: 12,
        busy_ns: 3 * 60_000_000_000,
        power_on_ns: 2 * 3_600_000_000_000,
        power_cycles: 7,
        unsafe_shutdowns: 2,
        media_errors: 1,
    };
    rig.fails(controller, &Sqe::admin(AdminOpcode(0xff), 0));
    let log: SmartLog = read(&rig.ok(controller, &get_log(LogId::SMART, 0, 512)).1);
    assert_eq!((log.data_units_read.get(), log.data_units_written.get()), (4, 5), "rounded up");
    assert_eq!((log.host_read_commands.get(), log.host_write_commands.get()), (11, 12));
    assert_eq!((log.controller_busy_time_min.get(), log.power_on_hours.get()), (3, 2));
    assert_eq!((log.power_cycles.get(), log.unsafe_shutdowns.get()), (7, 2));
    assert_eq!((log.media_errors.get(), log.error_log_entries.get()), (1, 1));
    assert_eq!((log.critical_warning, log.available_spare, log.percentage_used), (0, 100, 0));
}

#[test]
fn every_failure_leaves_an_entry_newest_first() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let mut bad = get_log(LogId::SMART, 0, 512);
    bad.cid.set(77);
    bad.nsid.set(1);
    rig.fails(controller, &bad);
    let mut fabrics = PropertyGetCmd::new(0x1000, false).to_sqe();
    fabrics.cid.set(78);
    rig.fails(controller, &fabrics);
    rig.target.log_error(
        controller,
        &ErrorReport { sqid: 3, cid: 9, fault: Fault::at(StatusCode::LBA_OUT_OF_RANGE, 40), lba: 0x1234, nsid: 1 },
    );
    let (_, page) = rig.ok(controller, &get_log(LogId::ERROR, 0, 4096));
    let entries: Vec<ErrorLogEntry> = page.chunks_exact(64).map(read).collect();
    let of = |i: usize| {
        let e = &entries[i];
        (e.error_count.get(), e.sqid.get(), e.cid.get(), e.parameter_location.get(), e.lba.get(), e.nsid.get())
    };
    assert_eq!(of(0), (3, 3, 9, 40, 0x1234, 1));
    assert_eq!(of(1), (2, 0, 78, 44, 0, 0));
    assert_eq!(of(2), (1, 0, 77, 4, 0, 1));
    assert_eq!(of(3), (0, 0, 0, 0, 0, 0));
    assert_eq!(Status::from_wire(entries[0].status.get()), StatusCode::LBA_OUT_OF_RANGE.dnr().with_more());
    assert_eq!(entries[0].trtype, 3);

    // The log keeps the newest 64; entries of another controller stay there.
    for _ in 0..70 {
        rig.fails(controller, &bad);
    }
    let (_, page) = rig.ok(controller, &get_log(LogId::ERROR, 63 * 64, 64));
    let oldest: ErrorLogEntry = read(&page);
    assert_eq!(oldest.error_count.get(), 10);
    let other = rig.enabled();
    let (_, page) = rig.ok(other, &get_log(LogId::ERROR, 0, 64));
    assert!(page.iter().all(|&b| b == 0));
}

#[test]
fn a_read_past_the_end_is_zeros() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let (_, whole) = rig.ok(controller, &get_log(LogId::FIRMWARE_SLOT, 0, 1024));
    assert_eq!(whole[0], 1);
    assert_eq!(&whole[8..16], b"0.1.0   ");
    assert!(whole[16..].iter().all(|&b| b == 0));
    let (_, part) = rig.ok(controller, &get_log(LogId::FIRMWARE_SLOT, 8, 8));
    assert_eq!(part, whole[8..16]);
    let (_, end) = rig.ok(controller, &get_log(LogId::FIRMWARE_SLOT, 512, 4));
    assert_eq!(end, [0; 4]);
}

#[test]
fn effects_match_the_commands_that_work() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let (_, page) = rig.ok(controller, &get_log(LogId::COMMANDS_EFFECTS, 0, 4096));
    let log: CommandsEffectsLog = read(&page);
    let namespaces = rig.target.namespaces(NQN).unwrap().clone();
    for opcode in 0..=u8::MAX {
        let mut sqe = Sqe::new(opcode, 1);
        sqe.dptr = SglDescriptor::transport(4096);
        let unsupported = StatusCode::INVALID_OPCODE.dnr();
        let works = match decode_io(&sqe, &namespaces, 0) {
            Ok(_) => true,
            Err(fault) => fault.status != unsupported,
        };
        assert_eq!(log.io[usize::from(opcode)].get() & CommandEffects::CSUPP != 0, works, "I/O {opcode:#x}");

        let mut sqe = Sqe::new(opcode, 0);
        if sqe.is_fabrics() {
            sqe = PropertyGetCmd::new(0, true).to_sqe();
        }
        let works = match rig.admin(controller, &sqe) {
            (Outcome::Done { cqe, .. }, _) => cqe.status().code() != StatusCode::INVALID_OPCODE,
            _ => true,
        };
        // A bidirectional opcode fails with the transfer; it is not supported either way.
        assert_eq!(log.admin[usize::from(opcode)].get() & CommandEffects::CSUPP != 0, works, "admin {opcode:#x}");
    }
    let writes = CommandEffects::CSUPP | CommandEffects::LBCC;
    assert_eq!(log.io[usize::from(NvmOpcode::WRITE.0)].get(), writes);
    assert_eq!(log.io[usize::from(NvmOpcode::READ.0)].get(), CommandEffects::CSUPP);
    assert_eq!(log.io[usize::from(NvmOpcode::VERIFY.0)].get(), CommandEffects::CSUPP);
}

#[test]
fn no_io_command_of_another_command_set_is_supported() {
    let mut rig = Rig::new();
    let controller = rig.enabled();
    let mut sqe = get_log(LogId::COMMANDS_EFFECTS, 0, 4096);
    let nvm: CommandsEffectsLog = read(&rig.ok(controller, &sqe).1);
    sqe.cdw14.set(u32::from(Csi::ZONED.0) << 24);
    let zoned: CommandsEffectsLog = read(&rig.ok(controller, &sqe).1);
    assert_eq!(zoned.admin, nvm.admin);
    assert!(zoned.io.iter().all(|effects| effects.get() == 0));
}

#[test]
fn supported_pages_are_the_ones_that_can_be_read() {
    let mut rig = Rig::new();
    for controller in [rig.enabled(), rig.enabled_discovery(0)] {
        let (_, page) = rig.ok(controller, &get_log(LogId::SUPPORTED_PAGES, 0, 1024));
        for lid in 0..=u8::MAX {
            let listed = page[usize::from(lid) * 4] & 1 != 0;
            let (cqe, _) = rig.done(controller, &get_log(LogId(lid), 0, 4));
            assert_eq!(cqe.status().is_success(), listed, "page {lid:#x}");
        }
    }
}

fn entries(log: &[u8]) -> Vec<DiscoveryLogEntry> {
    log[1024..].chunks_exact(1024).map(read).collect()
}

#[test]
fn discovery_shows_each_host_what_it_may_use() {
    let mut rig = Rig::new();
    rig.target.add_subsystem(subsystem("nqn.2026-11.io.reactor:secret", only("nqn.other:host"))).unwrap();
    let controller = rig.enabled_discovery(0);
    let (_, log) = rig.ok(controller, &get_log(LogId::DISCOVERY, 0, 4096));
    let header: DiscoveryLogHeader = read(&log[..1024]);
    assert_eq!((header.numrec.get(), header.recfmt.get()), (2, 0));
    let list = entries(&log);
    assert_eq!(list[0].subtype, SubsystemType::CURRENT_DISCOVERY);
    assert_eq!(nul_text(&list[0].subnqn), Some(DISCOVERY_NQN));
    assert_eq!(list[0].eflags.get(), EFLAGS_DUPLICATE | EFLAGS_EPCSD);
    let vol = &list[1];
    assert_eq!(nul_text(&vol.subnqn), Some(NQN));
    assert_eq!((vol.trtype, vol.adrfam, vol.subtype), (TransportType::TCP, AddressFamily::IPV4, SubsystemType::NVM));
    assert_eq!((vol.portid.get(), vol.cntlid.get(), vol.asqsz.get()), (1, 0xffff, 32));
    assert_eq!(vol.treq, TREQ_SECURE_NOT_REQUIRED | TREQ_DISABLE_SQ_FLOW_CONTROL);
    assert!(vol.trsvcid.starts_with(b"4420 ") && vol.trsvcid.ends_with(b" "));
    assert!(vol.traddr.starts_with(b"127.0.0.1 "));
    assert!(log[3072..].iter().all(|&b| b == 0), "nothing behind the last entry");

    // Any window shows the same bytes.
    for (offset, len) in [(0, 16), (1020, 8), (1024, 1024), (2044, 1028), (3072, 4), (512, 2560)] {
        let (_, part) = rig.ok(controller, &get_log(LogId::DISCOVERY, offset, len));
        assert_eq!(part, log[offset as usize..][..len as usize], "{offset} {len}");
    }
    let beyond = rig.fails(controller, &get_log(LogId::DISCOVERY, 3076, 4));
    assert_eq!(beyond, StatusCode::INVALID_FIELD.dnr());

    let other = rig.connect(DISCOVERY_NQN, "nqn.other:host", 0).controller;
    rig.enable(other);
    let (_, log) = rig.ok(other, &get_log(LogId::DISCOVERY, 0, 4096));
    assert_eq!(nul_text(&entries(&log)[1].subnqn), Some("nqn.2026-11.io.reactor:secret"));
}

#[test]
fn wildcard_listeners_show_the_address_the_host_reached() {
    let mut rig = Rig::new();
    let listen = |portid, addr: &str| Listener { portid, addr: addr.parse().unwrap() };
    rig.target.set_listeners(vec![listen(1, "0.0.0.0:4420"), listen(2, "[::]:4421"), listen(3, "[2001:db8::1]:4422")]);
    for (local, want) in [
        ("192.0.2.7", vec![(1, "192.0.2.7"), (3, "2001:db8::1")]),
        ("2001:db8::7", vec![(2, "2001:db8::7"), (3, "2001:db8::1")]),
        ("::ffff:192.0.2.7", vec![(1, "192.0.2.7"), (2, "192.0.2.7"), (3, "2001:db8::1")]),
    ] {
        let sqe = ConnectCmd::new(0, 31, 0, 0).to_sqe();
        let data = connect_data(CNTLID_DYNAMIC, DISCOVERY_NQN, HOST);
        let request = ConnectRequest { sqe: &sqe, data: data.as_bytes(), local: local.parse().unwrap(), now_ns: 0 };
        let controller = rig.target.connect(&request).unwrap().controller;
        rig.enable(controller);
        let (_, log) = rig.ok(controller, &get_log(LogId::DISCOVERY, 0, 8192));
        let seen: Vec<(u16, String)> = entries(&log)
            .iter()
            .filter(|entry| entry.subtype == SubsystemType::NVM)
            .map(|entry| {
                let text = str::from_utf8(&entry.traddr).unwrap().trim_end().to_owned();
                assert_eq!(entry.adrfam == AddressFamily::IPV6, text.contains(':'));
                (entry.portid.get(), text)
            })
            .collect();
        let want: Vec<_> = want.into_iter().map(|(port, ip)| (port, ip.to_owned())).collect();
        assert_eq!(seen, want, "{local}");
    }
}
