//! I/O commands, data pointers and their statuses.

use super::*;

#[test]
fn a_block_is_written_and_read_by_prp_and_by_sgl() {
    let mut host = Host::default();
    assert_eq!(host.write(7, 0x11), OK);
    assert_eq!(host.read(7), (OK, vec![0x11; PAGE]));
    assert_eq!(host.read(8), (OK, vec![0; PAGE]));
    let buf = host.buffer(PAGE, 0x22);
    let write = with_sgl(ranged(1, 9, 1), 0, buf.address() as u64, PAGE as u32);
    assert_eq!(host.hold_and_run(write, vec![buf]).0.code, OK);
    let buf = host.buffer(PAGE, 0);
    let read = with_sgl(ranged(2, 9, 1), 0, buf.address() as u64, PAGE as u32);
    let (done, back) = host.hold_and_run(read, vec![buf]);
    assert_eq!((done.code, &back[0][..]), (OK, &[0x22; PAGE][..]));
    let counters = host.port.counters();
    assert_eq!((counters.fetched, counters.posted, counters.dma_faults), (2 + 5, 2 + 5, 0));
    assert_eq!((counters.sq_doorbells, counters.cq_doorbells, counters.interrupts), (7, 7, 7));
    host.finish();
}

/// Bytes that differ from place to place.
fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 8 * 7 + at % 8 * 31) as u8).collect()
}

#[test]
fn prp_lists_begin_within_a_page_and_lead_on() {
    let mut host = Host::new(DiskOptions { mdts: 0, ..DiskOptions::default() }, FakeOptions::default());
    let lists = host.block(4 * PAGE);
    let at = |offset: usize| lists.address() as u64 + offset as u64;
    for (offset, pages, list) in [
        (0, 1, 0),
        (0x200, 1, 0),
        (0, 2, 0),
        (0xffc, 2, 0),
        (0, 3, 0),
        (0x10, 8, 0x800),
        // 4 entries to the end of the page: three of data, and one to the next list.
        (0x40, 8, PAGE - 32),
        (0, 5, PAGE - 32),
        (0x7f0, 16, PAGE - 8),
    ] {
        let len = pages * PAGE;
        let bytes = pattern(len);
        let mut buf = host.reactor.pool().alloc(len + offset).expect("memory");
        let start = buf.address() as u64 + offset as u64;
        let boundary = (start & !0xfff) + PAGE as u64;
        let entries: Vec<u64> =
            (0..).map(|index| boundary + index * PAGE as u64).take_while(|page| *page < start + len as u64).collect();
        let second = match entries.len() {
            0 | 1 => entries.first().copied().unwrap_or(0),
            count => {
                let room = (PAGE - list) / 8;
                for (index, entry) in entries.iter().enumerate() {
                    match index {
                        index if count <= room || index + 1 < room => lists.store64(list + index * 8, *entry),
                        index => lists.store64(2 * PAGE + (index + 1 - room) * 8, *entry),
                    }
                }
                if count > room {
                    lists.store64(PAGE - 8, at(2 * PAGE));
                }
                at(list)
            }
        };
        buf[offset..].copy_from_slice(&bytes);
        let write = with_prps(ranged(1, 64, pages as u32), start, second);
        let (done, mut back) = host.hold_and_run(write, vec![buf]);
        assert_eq!(done.code, OK, "{offset:#x}, {pages} pages");
        assert_eq!(host.disk.contents(1, 64 * PAGE as u64, len), bytes, "{offset:#x}, {pages} pages");
        let mut buf = back.remove(0);
        buf.fill(0);
        let read = with_prps(ranged(2, 64, pages as u32), start, second);
        let (done, back) = host.hold_and_run(read, vec![buf]);
        assert_eq!((done.code, &back[0][offset..]), (OK, &bytes[..]), "{offset:#x}, {pages} pages");
        assert!(back[0][..offset].iter().all(|byte| *byte == 0));
    }
    host.finish();
}

#[test]
fn sgls_may_be_in_pieces_and_in_segments() {
    let mut host = Host::default();
    let lists = host.block(PAGE);
    let lens = [3, 4093, 1, 8096, 95, 4096];
    let bytes = pattern(lens.iter().sum());
    let mut rest = &bytes[..];
    let buffers: Vec<Buf> = lens
        .iter()
        .map(|len| {
            let mut buf = host.reactor.pool().alloc(*len).expect("memory");
            let (here, behind) = rest.split_at(*len);
            buf.copy_from_slice(here);
            rest = behind;
            buf
        })
        .collect();
    let put = |index: usize, kind: u64, address: u64, len: usize| {
        lists.store64(index * 16, address);
        lists.store64(index * 16 + 8, kind << 56 | len as u64);
    };
    // Two, and on to a second segment; three of it, one of them empty, and on to the last.
    let block = |index: usize| (buffers[index].address() as u64, lens[index]);
    let list = lists.address() as u64;
    for (place, index) in [(0, 0), (1, 1), (8, 2), (10, 3), (16, 4), (17, 5)] {
        put(place, 0, block(index).0, block(index).1);
    }
    put(2, 0x20, list + 8 * 16, 4 * 16);
    put(9, 0, 0, 0);
    put(11, 0x30, list + 16 * 16, 2 * 16);
    let write = with_sgl(ranged(1, 20, 4), 0x20, list, 3 * 16);
    let (done, back) = host.hold_and_run(write, buffers);
    assert_eq!((done.code, back.len()), (OK, lens.len()));
    assert_eq!(host.disk.contents(1, 20 * PAGE as u64, 4 * PAGE), bytes);
    host.finish();
}

#[test]
fn pointers_that_may_not_be_are_refused_and_noted() {
    let mut host = Host::new(DiskOptions { sgls: 2, ..DiskOptions::default() }, FakeOptions::default());
    let list = host.block(PAGE);
    let at = list.address() as u64;
    let buf = host.block(4 * PAGE);
    let data = buf.address() as u64;
    let read = |blocks: u32| ranged(2, 0, blocks);
    let put = |index: usize, kind: u64, address: u64, len: u64| {
        list.store64(index * 16, address);
        list.store64(index * 16 + 8, kind << 56 | len);
    };
    list.store64(0x800, data + PAGE as u64);
    list.store64(0x808, data + 2 * PAGE as u64 + 8);
    put(0, 0, data, 2048);
    put(1, 0, data, 2048);
    put(2, 0x20, at, 32);
    put(3, 0x10, 0, 4096);
    for (refused, code, words) in [
        (with_prps(read(1), data + 1, 0), PRP_OFFSET, "multiple of 4"),
        (with_prps(read(2), data, data + PAGE as u64 + 8), PRP_OFFSET, "does not begin a page"),
        (with_prps(read(3), data, at + 4), PRP_OFFSET, "aligned to 8"),
        (with_prps(read(3), data, at + 0x800), PRP_OFFSET, "does not begin a page"),
        (with_sgl(read(1), 0, data + 2, 4096), SGL_GRANULARITY, "as SGLS asks"),
        (with_sgl(read(1), 0, data, 4092), SGL_LENGTH, "shorter"),
        (with_sgl(read(1), 0, data, 4100), SGL_LENGTH, "longer"),
        (with_sgl(read(1), 0x40, data, 4096), SGL_TYPE, "another type"),
        (with_sgl(read(1), 1, data, 4096), SGL_TYPE, "another type"),
        (with_sgl(read(1), 0x30, at + 48, 16), SGL_TYPE, "another type"),
        (with_sgl(read(1), 0x30, at, 24), INVALID_SGL_SEGMENT, "cut short"),
        (with_sgl(read(1), 0x30, at, 0), INVALID_SGL_SEGMENT, "cut short"),
        (with_sgl(read(1), 0x30, at + 4, 16), INVALID_SGL_SEGMENT, "not aligned"),
        (with_sgl(read(1), 0x20, at, 32), INVALID_SGL_SEGMENT, "does not lead on"),
        (with_sgl(read(1), 0x30, at, 48), INVALID_SGL_SEGMENT, "does not lead on"),
        (ranged(2 | 3 << 14, 0, 1), INVALID_FIELD, "PSDT"),
        (with_prps(read(256), data, at), INVALID_FIELD, "MDTS"),
    ] {
        let done = host.run(1, refused);
        let broken = host.port.take_broken();
        assert_eq!((done.code, done.dnr, broken.len()), (code, true, 1), "{refused:x?}, {broken:?}");
        assert!(broken[0].contains(words), "{broken:?}: {words}");
    }
    host.finish();
    let mut host = Host::new(DiskOptions { sgls: 0, ..DiskOptions::default() }, FakeOptions::default());
    assert_eq!(host.run(1, with_sgl(read(1), 0, data, 4096)).code, INVALID_FIELD);
    host.finish_broken(&["PSDT"]);
}

#[test]
fn memory_that_is_nobodys_is_a_fault() {
    let mut host = Host::default();
    let buf = host.buffer(2 * PAGE, 0xaa);
    let address = buf.address() as u64;
    // Held for no command, for another command, for a part only, and no more.
    let read = with_prps(ranged(2, 0, 1), address, 0);
    assert_eq!(host.run(1, read).code, DATA_TRANSFER_ERROR);
    host.hands.0.borrow_mut().push((0x7000, buf));
    assert_eq!(host.run(1, read).code, DATA_TRANSFER_ERROR);
    let buf = host.hands.0.borrow_mut().remove(0).1;
    let beyond = with_prps(ranged(2, 0, 2), address + PAGE as u64, address + 2 * PAGE as u64);
    let (done, back) = host.hold_and_run(beyond, vec![buf]);
    assert_eq!((done.code, &back[0][..PAGE]), (DATA_TRANSFER_ERROR, &[0xaa; PAGE][..]));
    let list = with_prps(ranged(1, 0, 3), address, 0x7000);
    let (done, back) = host.hold_and_run(list, back);
    assert_eq!(done.code, DATA_TRANSFER_ERROR);
    drop(back);
    let faults = host.port.dma_faults();
    assert_eq!((host.port.counters().dma_faults, faults.len()), (4, 4));
    assert!(faults[3].contains("at 0x7000 are not the controller's"), "{faults:?}");
    assert!(host.port.broken().is_empty());
}

#[test]
fn a_queue_that_was_dropped_under_the_controller_is_touched_without_harm() {
    let mut host = Host::default();
    let buf = host.buffer(PAGE, 0);
    let read = with_prps(ranged(2, 0, 1), buf.address() as u64, 0);
    host.push(1, read);
    host.ring(1);
    let old = std::mem::take(&mut host.hands);
    drop(old);
    host.step(1);
    assert_eq!(host.take(1).map(|done| done.code), Some(OK));
    host.port.assert_clean();
    host.port.detach(&host.reactor, 1);
    assert_eq!(host.step(1), Next::Rung);
}

#[test]
fn commands_that_may_not_be_are_refused() {
    let mut disk = DiskOptions { write_zeroes_limit: 2, verify_limit: 1, ..DiskOptions::default() };
    disk.namespaces.push(NamespaceOptions { attached: false, ..NamespaceOptions::new(2, 1 << 20, 12) });
    let mut host = Host::new(disk, FakeOptions::default());
    let last = (64 << 20 >> 12) - 1;
    let mut of = |nsid: u32| {
        let mut read = ranged(2, 0, 1);
        read[1] = nsid;
        host.run(1, read).code
    };
    assert_eq!((of(0), of(17), of(u32::MAX)), (INVALID_NAMESPACE, INVALID_NAMESPACE, INVALID_NAMESPACE));
    assert_eq!((of(2), of(16)), (INVALID_FIELD, INVALID_FIELD), "inactive");
    for (refused, code) in [
        (ranged(2, last + 1, 1), OUT_OF_RANGE),
        (ranged(2, last, 2), OUT_OF_RANGE),
        (ranged(1, u64::MAX, 1), OUT_OF_RANGE),
        (ranged(8, last, 2), OUT_OF_RANGE),
        (ranged(8, 0, 5), INVALID_FIELD),
        (ranged(0xc, 0, 3), INVALID_FIELD),
        (ranged(4, 0, 1), INVALID_OPCODE),
        (ranged(0x7d, 0, 1), INVALID_OPCODE),
    ] {
        let done = host.run(1, refused);
        assert_eq!((done.code, done.dnr), (code, true), "{refused:x?}");
    }
    host.disk.protect(1, true);
    assert_eq!((host.write(0, 1), host.run(1, ranged(8, 0, 1)).code), (PROTECTED, PROTECTED));
    host.disk.protect(1, false);
    host.disk.poison(1, 3);
    let done = host.run(1, ranged(0xc, 2, 2));
    assert_eq!((done.code, done.dnr, done.more), (READ_ERROR, false, true));
    assert_eq!((host.read(3).0, host.write(3, 1), host.read(3).0), (READ_ERROR, OK, OK));
    host.finish();
    // Optional commands of a controller that has none.
    let mut host = Host::new(DiskOptions { oncs: 0, fused: false, ..DiskOptions::default() }, FakeOptions::default());
    for opcode in [5, 8, 9, 0xc] {
        assert_eq!(host.run(1, ranged(opcode, 0, 1)).code, INVALID_OPCODE);
    }
    host.finish();
}

#[test]
fn zeroes_and_deallocation_read_as_the_namespace_says() {
    for (deallocated, byte) in [(0, 0x5a), (1, 0), (2, 0xff)] {
        let mut disk =
            DiskOptions { ranges_max: 2, range_blocks_max: 4, ranges_blocks_max: 6, ..DiskOptions::default() };
        disk.namespaces[0].deallocated.0 = deallocated;
        let mut host = Host::new(disk, FakeOptions::default());
        for block in 0..8 {
            assert_eq!(host.write(block, 1), OK);
        }
        assert_eq!(host.run(1, ranged(8, 0, 2)).code, OK);
        let mut deac = ranged(8, 2, 1);
        deac[12] |= 1 << 25;
        assert_eq!(host.run(1, deac).code, OK);
        let ranges = host.block(PAGE);
        let put = |index: usize, slba: u64, blocks: u64| {
            ranges.store64(index * 16, blocks << 32);
            ranges.store64(index * 16 + 8, slba);
        };
        let dsm = |count: u32, attributes: u32| {
            let dsm = command(9, 1, &[(10, count - 1), (11, attributes)]);
            with_prps(dsm, ranges.address() as u64, 0)
        };
        put(0, 4, 1);
        put(1, 6, 2);
        assert_eq!(host.run(1, dsm(2, 0)).code, OK, "advice");
        assert_eq!(host.disk.contents(1, 4 * PAGE as u64, 1), [1]);
        assert_eq!(host.run(1, dsm(2, 4)).code, OK);
        let first: Vec<u8> = (0..8).map(|block| host.disk.contents(1, block * PAGE as u64, PAGE)[PAGE - 1]).collect();
        assert_eq!(first, [0, 0, 0, 1, byte, 1, byte, byte]);
        assert_eq!(host.run(1, dsm(3, 4)).code, SIZE_LIMIT);
        put(1, 6, 5);
        assert_eq!(host.run(1, dsm(2, 4)).code, SIZE_LIMIT);
        put(0, 0, 4);
        put(1, 6, 3);
        assert_eq!(host.run(1, dsm(2, 4)).code, SIZE_LIMIT);
        put(0, 1 << 40, 1);
        assert_eq!(host.run(1, dsm(1, 4)).code, OUT_OF_RANGE);
        host.finish();
    }
}

#[test]
fn compare_and_the_fused_pair() {
    let mut host = Host::new(DiskOptions { acwu_z: 1, ..DiskOptions::default() }, FakeOptions::default());
    assert_eq!(host.write(2, 5), OK);
    let mut pair = |first: Dwords, second: Dwords, (old, new): (u8, u8)| {
        let (expected, data) = (host.buffer(2 * PAGE, old), host.buffer(2 * PAGE, new));
        let mut pointed = [(first, &expected), (second, &data)].map(|(dwords, buf)| {
            let address = buf.address() as u64;
            with_prps(dwords, address, address + PAGE as u64)
        });
        pointed[0][0] |= 1 << 8;
        pointed[1][0] |= 2 << 8;
        let (one, two) = (host.push(1, pointed[0]), host.push(1, pointed[1]));
        host.hands.0.borrow_mut().extend([(one, expected), (two, data)]);
        host.ring(1);
        host.step(1);
        let codes = [host.take(1), host.take(1)].map(|done| done.expect("both").code);
        host.hands.0.borrow_mut().clear();
        (codes, host.disk.contents(1, 2 * PAGE as u64, 1)[0], host.port.take_broken().len())
    };
    let (compare, write) = (ranged(5, 2, 1), ranged(1, 2, 1));
    assert_eq!(pair(compare, write, (4, 6)), ([MISCOMPARE, FAILED_FUSED], 5, 0));
    assert_eq!(pair(compare, write, (5, 6)), ([OK, OK], 6, 0));
    assert_eq!(pair(compare, ranged(1, 3, 1), (6, 7)), ([INVALID_FIELD, FAILED_FUSED], 6, 1));
    assert_eq!(pair(ranged(2, 2, 1), write, (6, 7)), ([INVALID_FIELD, FAILED_FUSED], 6, 1));
    assert_eq!(pair(ranged(5, 2, 3), ranged(1, 2, 3), (6, 7)), ([ATOMIC_EXCEEDED, FAILED_FUSED], 6, 0));
    let buf = host.buffer(PAGE, 6);
    let alone = with_prps(compare, buf.address() as u64, 0);
    let (done, mut back) = host.hold_and_run(alone, vec![buf]);
    assert_eq!(done.code, OK);
    back[0][PAGE - 1] ^= 1;
    assert_eq!(host.hold_and_run(alone, back).0.code, MISCOMPARE);
    // A first without a second, and a second without a first.
    let mut half = compare;
    half[0] |= 1 << 8;
    assert_eq!(host.run(1, half).code, MISSING_FUSED);
    half[0] ^= 3 << 8;
    assert_eq!(host.run(1, half).code, MISSING_FUSED);
    half[0] ^= 3 << 8;
    let flush = command(0, 1, &[]);
    let cids = [host.push(1, half), host.push(1, flush)];
    host.ring(1);
    host.step(1);
    let mut codes = [host.take(1), host.take(1)].map(|done| done.map(|done| (done.cid, done.code)));
    codes.sort();
    assert_eq!(codes, [Some((cids[0], MISSING_FUSED)), Some((cids[1], OK))]);
    host.finish_broken(&["half of a fused pair", "half of a fused pair", "followed by none"]);
}

#[test]
fn power_takes_back_what_was_not_flushed() {
    let entropy = crate::reactor::clock::Entropy::new(3);
    let disk = DiskOptions { write_cache: true, ..DiskOptions::default() };
    let mut host = Host::new(disk, FakeOptions::default());
    let flush = command(0, 1, &[]);
    for block in 0..64 {
        assert_eq!(host.write(block, 1), OK);
    }
    assert_eq!((host.disk.unflushed(1), host.run(1, flush).code, host.disk.unflushed(1)), (64, OK, 0));
    for block in 0..64 {
        assert_eq!(host.write(block, 2), OK);
    }
    let buf = host.buffer(PAGE, 3);
    let mut fua = with_prps(ranged(1, 5, 1), buf.address() as u64, 0);
    fua[12] |= 1 << 30;
    assert_eq!(host.hold_and_run(fua, vec![buf]).0.code, OK);
    assert_eq!((host.disk.unflushed(1), host.read(6).1[0]), (63, 2));
    host.port.remove();
    host.disk.power_cut(&entropy);
    let first = |block: u64| host.disk.contents(1, block * PAGE as u64, 1)[0];
    let kept: Vec<u64> = (0..64).filter(|block| first(*block) == 2).collect();
    assert!((10..54).contains(&kept.len()), "{kept:?}");
    assert!((0..64).all(|block| [1, 2].contains(&first(block)) || block == 5));
    assert_eq!((first(5), host.disk.unflushed(1)), (3, 0));
    // Off: all is durable at once.
    let mut host = Host::new(DiskOptions { write_cache: true, ..DiskOptions::default() }, FakeOptions::default());
    assert_eq!((host.write(0, 1), host.disk.unflushed(1)), (OK, 1));
    assert_eq!(host.admin(command(9, 0, &[(10, 6)])).code, OK);
    assert_eq!((host.disk.unflushed(1), host.write(1, 1), host.disk.unflushed(1)), (0, OK, 0));
    let mut all = flush;
    all[1] = u32::MAX;
    assert_eq!(host.run(1, all).code, OK);
    host.finish();
}

#[test]
fn two_controllers_have_one_disk() {
    let mut one = Host::default();
    let disk = one.disk.clone();
    let mut two = Host::cold(disk, FakeOptions { stepped: true, ..FakeOptions::default() });
    two.enable();
    two.add_queue(16);
    assert_eq!(one.write(9, 4), OK);
    assert_eq!(two.read(9), (OK, vec![4; PAGE]));
    one.port.remove();
    assert_eq!((two.write(9, 5), two.read(9).1[0]), (OK, 5));
    one.finish();
    two.finish();
}

#[test]
fn rings_go_round_and_a_full_completion_queue_waits() {
    let mut host = Host::default();
    for round in 0..100 {
        assert_eq!(host.run(1, command(0, 1, &[])).code, OK, "{round}");
    }
    // A submission queue of 16 entries over a completion queue of 4.
    let (sq, cq) = (host.block(PAGE), host.block(PAGE));
    let create = with_prps(command(5, 0, &[(10, 3 << 16 | 2), (11, 1)]), cq.address() as u64, 0);
    assert_eq!(host.admin(create).code, OK);
    let create = with_prps(command(1, 0, &[(10, 15 << 16 | 2), (11, 2 << 16 | 1)]), sq.address() as u64, 0);
    assert_eq!(host.admin(create).code, OK);
    host.port.attach(&host.reactor, 2, host.hands.clone());
    for index in 0..10 {
        sq.store32(index * 64, (100 + index as u32) << 16);
        sq.store32(index * 64 + 4, 1);
    }
    host.write32(0x1010, 10);
    let posted = host.port.counters().posted;
    let mut seen = Vec::new();
    for round in 1..=4 {
        host.step(2);
        let there = (host.port.counters().posted - posted) as usize;
        assert_eq!(there, (3 * round).min(10), "no more than fit");
        for index in seen.len()..there {
            seen.push(cq.load32(index % 4 * 16 + 12) as u16);
        }
        host.write32(0x1014, there as u32 % 4);
    }
    assert_eq!(seen, (100..110).collect::<Vec<u16>>());
    host.finish();
}

#[test]
fn whatever_is_sent_gets_one_answer() {
    let entropy = crate::reactor::clock::Entropy::new(7);
    let mut host =
        Host::new(DiskOptions { mdts: 0, write_cache: true, ..DiskOptions::default() }, FakeOptions::default());
    let block = host.block(16 * PAGE);
    let any = |choices: &[u32]| choices[entropy.below(choices.len() as u64) as usize];
    for at in (0..block.len()).step_by(8) {
        // Lists of what may be an address, a descriptor, or nothing of sense.
        let value = match entropy.below(4) {
            0 => entropy.next(),
            1 => (u64::from(any(&[0, 0x10, 0x20, 0x30])) << 56) | (entropy.below(300) * 16),
            _ => block.address() as u64 + entropy.below(16) * PAGE as u64,
        };
        block.store64(at, value);
    }
    let mut codes = std::collections::BTreeSet::new();
    for round in 0..30_000 {
        let qid = u16::from(entropy.below(4) > 0);
        let opcodes: &[u32] = if qid == 0 {
            &[2, 6, 6, 8, 9, 10, 0x18, 0x7c, 0x80, 0xc0]
        } else {
            &[0, 1, 1, 2, 2, 2, 5, 8, 9, 0xc, 0x7d]
        };
        let mut dwords: Dwords = std::array::from_fn(|_| match entropy.below(3) {
            0 => 0,
            1 => entropy.below(16) as u32,
            _ => entropy.next() as u32,
        });
        dwords[0] = any(opcodes) | (any(&[0, 0, 0, 0, 1, 2]) << 8) | (any(&[0, 0, 1, 1, 2, 3]) << 14);
        dwords[1] = any(&[1, 1, 1, 1, 0, 2, u32::MAX]);
        if entropy.below(4) > 0 {
            let address = || block.address() as u64 + entropy.below(16 * PAGE as u64 / 4) * any(&[1, 4, 4]) as u64;
            let kind = any(&[0, 0x20, 0x30, 0x40]);
            dwords = if dwords[0] >> 14 & 3 == 1 {
                with_sgl(dwords, kind, address(), any(&[16, 32, 512, 4096, 4096, 8192]))
            } else {
                with_prps(dwords, address(), address() & !u64::from(any(&[0, 7, 4095])))
            };
        }
        if entropy.below(4) > 0 {
            (dwords[10], dwords[11], dwords[12]) =
                (dwords[10] & 0xff, dwords[11] & 0xff00_0001, dwords[12] & 0xc300_0003);
        }
        let done = host.run(qid, dwords);
        codes.insert(done.code);
        assert_eq!(host.take(qid), None, "round {round}");
        host.port.take_broken();
    }
    for code in [OK, INVALID_FIELD, DATA_TRANSFER_ERROR, PRP_OFFSET, SGL_LENGTH, INVALID_SGL_SEGMENT, OUT_OF_RANGE] {
        assert!(codes.contains(&code), "{codes:x?}");
    }
    assert_eq!(host.csts(), 1);
}

#[test]
fn completions_wait_for_others_before_they_interrupt() {
    let mut host = Host::default();
    let set = |fid: u32, value: u32| command(9, 0, &[(10, fid), (11, value)]);
    let flush = command(0, 1, &[]);
    // Three or 200 us: not of a vector for which it is not enabled.
    assert_eq!(host.admin(set(8, 2 << 8 | 2)).code, OK);
    let sent = |host: &Host| host.port.counters().interrupts;
    let before = sent(&host);
    assert_eq!((host.run(1, flush).code, sent(&host)), (OK, before + 1));
    assert_eq!(host.admin(set(9, 1)).code, OK);
    let before = sent(&host);
    let send = |host: &mut Host| {
        host.push(1, flush);
        host.ring(1);
        host.step(1)
    };
    let now = host.reactor.clock().now();
    assert_eq!([send(&mut host), send(&mut host)], [Next::At(now + 200_000); 2]);
    assert_eq!(sent(&host), before, "two wait");
    assert_eq!((send(&mut host), sent(&host)), (Next::Rung, before + 1), "a third does not");
    // One has waited long enough, counted from when it came.
    let due = host.reactor.clock().now() + 200_000;
    assert_eq!(send(&mut host), Next::At(due));
    host.advance(150_000);
    assert_eq!((send(&mut host), sent(&host)), (Next::At(due), before + 1));
    host.advance(60_000);
    assert_eq!((host.step(1), sent(&host)), (Next::Rung, before + 2));
    // The admin queue never waits, and after a reset nobody does.
    assert_eq!((host.admin(set(8, 2 << 8 | 2)).code, sent(&host)), (OK, before + 3));
    host.finish();
}
