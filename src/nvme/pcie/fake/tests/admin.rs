//! Registers, admin commands, queues and their statuses.

use super::*;

#[test]
fn registers_say_what_the_controller_is_and_ready_follows_enable() {
    let options = FakeOptions { dstrd: 1, mqes_z: 255, crwmt_500ms: Some(9), stepped: true, ..FakeOptions::default() };
    let mut host = Host::cold(FakeDisk::new(DiskOptions::default()), options);
    let registers = host.port.registers().clone();
    let cap = registers.read64(0);
    assert_eq!((cap & 0xffff, cap >> 16 & 1, cap >> 24 & 0xff, cap >> 32 & 0xf), (255, 1, 4, 1));
    assert_eq!((registers.read32(0), registers.read32(4)), (cap as u32, (cap >> 32) as u32));
    assert_eq!((registers.read32(8), registers.read32(0x68), registers.read32(0x14)), (0x0002_0000, 9, 0));
    assert_eq!(host.csts(), 0);
    host.enable();
    assert_eq!((host.csts(), registers.read32(0x24)), (1, 0x0007_0007));
    assert_eq!(registers.read64(0x28), host.rings[0].sq.address() as u64);
    host.write32(0x14, 0x0046_4061);
    assert_eq!(host.csts(), 9, "shut down");
    host.write32(0x14, 0x0046_0060);
    assert_eq!(host.csts(), 0);
    assert_eq!(host.port.counters().enabled, 1);
    host.port.remove();
    assert_eq!((registers.read64(0), registers.read32(0x1c)), (u64::MAX, u32::MAX));
    host.write32(0x14, 1);
    assert_eq!(host.csts(), u32::MAX);
    host.finish();
}

#[test]
fn what_may_not_be_written_to_registers_is_noted() {
    let host = Host::default();
    host.write32(0x24, 0x0001_0001);
    host.write32(0x0c, 1);
    host.write32(0x14, 0x0046_00e1);
    host.port.registers().bell(0x1000 + 8 * 8 + 8 + 4).ring(1);
    host.write32(0x1008, 16);
    host.write32(0x1008, 0);
    host.write32(0x100c, 1);
    host.write32(0x1010, 1);
    host.finish_broken(&[
        "AQA was written",
        "INTMS",
        "while enabled",
        "completion queue 9",
        "16 was written to the doorbell of submission queue 1: it has fewer entries",
        "0 was written to the doorbell of submission queue 1: it has that value already",
        "1 was written to the doorbell of completion queue 1: so many completions were not posted",
        "1 was written to the doorbell of submission queue 2: there is no such queue",
    ]);
    // Too early, and with queues that there cannot be.
    let options = FakeOptions { enable_ns: 1000, disable_ns: 1000, stepped: true, ..FakeOptions::default() };
    let mut host = Host::cold(FakeDisk::new(DiskOptions::default()), options);
    host.enable();
    host.write32(0x14, 0x0046_0060);
    host.finish_broken(&["before CSTS.RDY was 1"]);
    let options = FakeOptions { disable_ns: 1000, stepped: true, ..FakeOptions::default() };
    let mut host = Host::cold(FakeDisk::new(DiskOptions::default()), options);
    host.enable();
    host.write32(0x14, 0x0046_0060);
    host.write32(0x14, 0x0046_0061);
    host.finish_broken(&["before CSTS.RDY was 0"]);
    let options = FakeOptions { stepped: true, ..FakeOptions::default() };
    let host = Host::cold(FakeDisk::new(DiskOptions::default()), options);
    host.write32(0x14, 0x0046_0061);
    assert_eq!(host.csts(), 2, "a fatal error");
    host.finish_broken(&["a queue of one entry"]);
}

#[test]
fn a_tail_that_overtakes_the_head_is_noted() {
    let mut host = Host::default();
    let flush = command(0, 1, &[]);
    for _ in 0..10 {
        host.push(1, flush);
    }
    host.ring(1);
    for _ in 0..10 {
        host.push(1, flush);
    }
    host.ring(1);
    host.finish_broken(&["overwritten before they were fetched"]);
}

#[test]
fn a_completion_queue_that_is_not_zeroed_is_noted() {
    let mut host = Host::default();
    let dirty = host.block(PAGE);
    dirty.store32(3 * 16 + 12, 1 << 16);
    let create = command(5, 0, &[(10, 7 << 16 | 2), (11, 1)]);
    assert_eq!(host.admin(with_prps(create, dirty.address() as u64, 0)).code, OK);
    host.finish_broken(&["completion queue 2 was created in memory with phase tags"]);
}

#[test]
fn identify_fills_the_pages_that_there_are() {
    let mut disk = DiskOptions::default();
    disk.namespaces.push(NamespaceOptions { noiob: 8, shared: true, ..NamespaceOptions::new(3, 1 << 20, 9) });
    disk.namespaces.push(NamespaceOptions { attached: false, ..NamespaceOptions::new(4, 1 << 20, 12) });
    let mut host = Host::new(disk, FakeOptions::default());
    let page = host.block(PAGE);
    let mut identify = |cns: u32, nsid: u32, csi: u32| {
        page.zero();
        let done = host.admin(with_prps(command(6, nsid, &[(10, cns), (11, csi << 24)]), page.address() as u64, 0));
        let mut bytes = vec![0; PAGE];
        page.read(0, &mut bytes);
        (done.code, bytes)
    };
    let (code, controller) = identify(1, 0, 0);
    assert_eq!((code, &controller[4..12], controller[77], controller[78]), (OK, &b"FAKE0001"[..], 5, 1));
    assert_eq!((controller[258], controller[259], controller[512], controller[513]), (3, 3, 0x66, 0x44));
    assert_eq!((controller[516], controller[522], controller[525], controller[536]), (16, 1, 6, 1));
    let (code, namespace) = identify(0, 3, 0);
    assert_eq!((code, u64::from_le_bytes(namespace[..8].try_into().unwrap())), (OK, 2048));
    assert_eq!((namespace[25], namespace[26], namespace[30], namespace[33], namespace[46]), (2, 0, 1, 9, 8));
    assert_eq!(namespace[128..140], [0, 0, 9, 0, 0, 0, 12, 0, 8, 0, 9, 0]);
    assert_eq!(identify(0, 4, 0), (OK, vec![0; PAGE]), "not attached");
    assert_eq!(identify(2, 0, 0).1[..12], [1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(identify(7, 1, 0).1[..8], [3, 0, 0, 0, 0, 0, 0, 0]);
    let (code, descriptors) = identify(3, 3, 0);
    assert_eq!((code, &descriptors[..2], &descriptors[4..12]), (OK, &[2, 16][..], &b"FAKE0001"[..]));
    assert_eq!((&descriptors[16..20], &descriptors[20..26]), (&[0, 0, 0, 3][..], &[4, 1, 0, 0, 0, 0][..]));
    assert_eq!((identify(5, 3, 0).0, identify(6, 0, 0).0, identify(0x1c, 0, 0).1[0]), (OK, OK, 1));
    for (cns, nsid, csi, code) in [
        (0, 0, 0, INVALID_NAMESPACE),
        (0, 17, 0, INVALID_NAMESPACE),
        (0, u32::MAX, 0, INVALID_NAMESPACE),
        (2, u32::MAX, 0, INVALID_NAMESPACE),
        (3, 4, 0, INVALID_NAMESPACE),
        (5, 3, 2, INVALID_FIELD),
        (6, 0, 2, INVALID_FIELD),
        (7, 0, 2, INVALID_FIELD),
        (0x55, 0, 0, INVALID_FIELD),
    ] {
        assert_eq!(identify(cns, nsid, csi).0, code, "CNS {cns:#x} of {nsid}");
    }
    host.finish();
}

#[test]
fn queues_are_created_and_deleted_as_they_may_be() {
    let mut host = Host::new(DiskOptions::default(), FakeOptions { queues: 4, vectors: 5, ..FakeOptions::default() });
    let block = host.block(PAGE);
    let at = block.address() as u64;
    let cq =
        |qid: u32, size: u32, dword11: u32| with_prps(command(5, 0, &[(10, size << 16 | qid), (11, dword11)]), at, 0);
    let sq = |qid: u32, size: u32, cqid: u32| {
        with_prps(command(1, 0, &[(10, size << 16 | qid), (11, cqid << 16 | 1)]), at, 0)
    };
    let delete = |opcode: u32, qid: u32| command(opcode, 0, &[(10, qid)]);
    for (refused, code) in [
        (cq(0, 7, 1), QUEUE_ID),
        (cq(1, 7, 1), QUEUE_ID),
        (cq(5, 7, 1), QUEUE_ID),
        (cq(2, 0, 1), QUEUE_SIZE),
        (cq(2, 1024, 1), QUEUE_SIZE),
        (cq(2, 7, 5 << 16 | 3), VECTOR),
        (cq(2, 7, 0), INVALID_FIELD),
        (with_prps(cq(2, 7, 1), at + 8, 0), PRP_OFFSET),
        (sq(0, 7, 1), QUEUE_ID),
        (sq(1, 7, 1), QUEUE_ID),
        (sq(2, 7, 0), QUEUE_ID),
        (sq(2, 7, 5), QUEUE_ID),
        (sq(2, 7, 3), CQ_INVALID),
        (sq(2, 0, 1), QUEUE_SIZE),
        (delete(0, 0), QUEUE_ID),
        (delete(0, 2), QUEUE_ID),
        (delete(4, 2), QUEUE_ID),
        (delete(4, 1), DELETION),
    ] {
        let done = host.admin(refused);
        assert_eq!((done.code, done.dnr), (code, true), "{refused:x?}");
    }
    // Two submission queues may share a completion queue, which goes after both.
    assert_eq!(host.admin(sq(2, 7, 1)).code, OK);
    assert_eq!(host.admin(delete(0, 1)).code, OK);
    assert_eq!(host.admin(delete(4, 1)).code, DELETION);
    assert_eq!(host.admin(delete(0, 2)).code, OK);
    assert_eq!(host.admin(delete(4, 1)).code, OK);
    host.finish();
}

#[test]
fn features_are_kept_and_the_others_are_refused() {
    let mut host = Host::new(DiskOptions { write_cache: true, ..DiskOptions::default() }, FakeOptions::default());
    let set = |fid: u32, value: u32| command(9, 0, &[(10, fid), (11, value)]);
    let get = |fid: u32, select: u32| command(10, 0, &[(10, select << 8 | fid)]);
    assert_eq!(host.admin(get(6, 0)).result, 1);
    assert_eq!((host.admin(set(6, 0)).code, host.admin(get(6, 0)).result), (OK, 0));
    assert_eq!((host.admin(get(6, 1)).result, host.admin(get(6, 3)).result), (1, 4));
    assert_eq!(host.admin(get(7, 0)).result, 0x0007_0007);
    assert_eq!(host.admin(set(7, 0x0003_0003)).code, SEQUENCE_ERROR, "there are queues");
    for fid in [1, 2, 4, 5, 8, 0xa, 0xb] {
        assert_eq!((host.admin(set(fid, 0x105)).code, host.admin(get(fid, 0)).result), (OK, 0x105), "{fid:#x}");
    }
    assert_eq!(host.admin(set(9, 1 << 16 | 3)).code, OK);
    assert_eq!(host.admin(command(10, 0, &[(10, 9), (11, 3)])).result, 1 << 16 | 3);
    assert_eq!((host.admin(set(0x19, 0)).code, host.admin(set(0x19, 1)).code), (OK, 0x12b));
    for (refused, code) in [
        (set(9, 99), INVALID_FIELD),
        (set(0x81, 0), INVALID_FIELD),
        (get(0x81, 0), INVALID_FIELD),
        (get(6, 2), INVALID_FIELD),
        (set(1 << 31 | 6, 0), NOT_SAVEABLE),
        (command(0x7f, 0, &[]), INVALID_OPCODE),
        (command(0x7c, 0, &[]), INVALID_OPCODE),
        (command(6 | 1 << 14, 0, &[(10, 1)]), INVALID_FIELD),
    ] {
        assert_eq!(host.admin(refused).code, code, "{refused:x?}");
    }
    host.finish();
}

#[test]
fn as_many_queues_are_granted_as_there_are() {
    for (asked, granted) in [(0x00ff_00ff, 0x0007_0007), (0x0002_0001, 0x0001_0001)] {
        let mut host =
            Host::cold(FakeDisk::new(DiskOptions::default()), FakeOptions { stepped: true, ..FakeOptions::default() });
        host.enable();
        assert_eq!(host.admin(command(9, 0, &[(10, 7), (11, u32::MAX)])).code, INVALID_FIELD);
        assert_eq!(host.admin(command(9, 0, &[(10, 7), (11, asked)])).result, granted);
        let block = host.block(PAGE);
        let qid = (granted as u32 & 0xff) + 2;
        let create = command(5, 0, &[(10, 7 << 16 | qid), (11, 1)]);
        assert_eq!(host.admin(with_prps(create, block.address() as u64, 0)).code, QUEUE_ID);
        host.finish();
    }
}

#[test]
fn logs_tell_what_happened() {
    let mut host = Host::default();
    host.disk.poison(1, 5);
    assert_eq!(host.write(0, 1), OK);
    assert_eq!(host.read(0).0, OK);
    assert_eq!(host.read(5).0, READ_ERROR);
    host.disk.set_health(333, 2);
    let page = host.block(PAGE);
    let mut log = |lid: u32, offset: u32, len: u32| {
        page.zero();
        let get = command(2, u32::MAX, &[(10, (len / 4 - 1) << 16 | lid), (12, offset)]);
        let done = host.admin(with_prps(get, page.address() as u64, 0));
        let mut bytes = vec![0; PAGE];
        page.read(0, &mut bytes);
        (done.code, bytes)
    };
    let (code, smart) = log(2, 0, 512);
    assert_eq!((code, smart[0], u16::from_le_bytes([smart[1], smart[2]])), (OK, 2, 333));
    assert_eq!((smart[32], smart[48], smart[64], smart[80], smart[160], smart[176]), (1, 1, 1, 1, 1, 1));
    let (code, errors) = log(1, 0, 128);
    assert_eq!((code, errors[0], errors[8], errors[16], errors[24], errors[64]), (OK, 1, 1, 5, 1, 0));
    assert_eq!((log(1, 16, 4).1[0], log(1, 1024, 4).1[0]), (5, 0));
    assert_eq!((log(3, 0, 512).1[0], &log(3, 8, 8).1[..3]), (1, &b"1.0"[..]));
    let (code, effects) = log(5, 0, 4096);
    assert_eq!(
        (code, effects[4 * 6], effects[1024 + 4], effects[1024 + 4 * 0xc], effects[1024 + 4 * 4]),
        (OK, 1, 3, 1, 0)
    );
    assert_eq!((log(0x70, 0, 4).0, log(2, 2, 4).0, log(2, 516, 4).0), (LOG_PAGE, INVALID_FIELD, INVALID_FIELD));
    assert_eq!(host.admin(command(2, 1, &[(10, 2)])).code, INVALID_FIELD, "of a namespace");
    host.finish();
}

#[test]
fn events_wait_for_requests_and_their_log() {
    let mut disk = DiskOptions::default();
    disk.namespaces.push(NamespaceOptions { attached: false, ..NamespaceOptions::new(2, 1 << 20, 12) });
    let mut host = Host::new(disk, FakeOptions { aerl_z: 1, ..FakeOptions::default() });
    let request = command(0xc, 0, &[]);
    let mut waiting: Vec<u16> = (0..2).map(|_| host.push(0, request)).collect();
    host.ring(0);
    host.step(0);
    assert_eq!(host.take(0), None);
    assert_eq!(host.admin(request).code, EVENT_LIMIT);
    // Nobody wants to hear.
    host.port.attach_namespace(2);
    host.step(0);
    assert_eq!(host.take(0), None);
    assert_eq!(host.admin(command(9, 0, &[(10, 0xb), (11, 0x1ff)])).code, OK);
    host.port.detach_namespace(2);
    host.step(0);
    let told = host.take(0).expect("an event");
    assert_eq!((told.cid, told.code, told.result), (waiting.remove(0), OK, 0x0004_0002));
    // Until the log is read, there is no other of that type; one of another type is told.
    host.port.changed(1);
    host.step(0);
    assert_eq!(host.take(0), None);
    host.disk.set_health(400, 2);
    host.port.warn();
    host.step(0);
    assert_eq!(host.take(0).map(|told| (told.cid, told.result)), Some((waiting.remove(0), 0x0002_0101)));
    let page = host.block(PAGE);
    let get = with_prps(command(2, u32::MAX, &[(10, 3 << 16 | 4)]), page.address() as u64, 0);
    assert_eq!(host.admin(get).code, OK);
    assert_eq!((page.load32(0), page.load32(4), page.load32(8)), (1, 2, 0));
    waiting.push(host.push(0, request));
    host.ring(0);
    host.step(0);
    assert_eq!(host.take(0), None, "the log has told all");
    host.port.changed(1);
    host.step(0);
    assert_eq!(host.take(0).map(|told| told.cid), waiting.pop());
    host.finish_broken(&["AERL"]);
}

#[test]
fn a_format_changes_the_blocks_and_forgets_them() {
    let mut host = Host::default();
    assert_eq!(host.write(3, 7), OK);
    let format = |lbaf: u32, rest: u32| command(0x80, 1, &[(10, lbaf | rest)]);
    for (refused, code) in [
        (format(3, 0), FORMAT),
        (format(0, 1 << 4), FORMAT),
        (format(0, 1 << 5), FORMAT),
        (format(0, 2 << 9), INVALID_FIELD),
        (command(0x80, 0, &[]), INVALID_NAMESPACE),
    ] {
        assert_eq!(host.admin(refused).code, code, "{refused:x?}");
    }
    assert_eq!(host.read(3), (OK, vec![7; PAGE]));
    assert_eq!(host.admin(format(1, 1 << 9)).code, OK);
    let buf = host.buffer(512, 9);
    let last = (64 << 20 >> 9) - 1;
    let write = with_prps(ranged(1, last, 1), buf.address() as u64, 0);
    assert_eq!(host.hold_and_run(write, vec![buf]).0.code, OK);
    assert_eq!(host.disk.contents(1, 3 * PAGE as u64, PAGE), vec![0; PAGE]);
    assert_eq!(host.disk.contents(1, last << 9, 512), vec![9; 512]);
    // With metadata it can be, and is not served.
    assert_eq!(host.admin(format(2, 0)).code, OK);
    assert_eq!(host.read(3).0, 0x06);
    host.finish();
}
