//! Every operation and its effect on the data, on one reactor.

use super::rig::{Ask, Outcome, Rig, Shape, ensure, first_difference, pattern};
use crate::limits::TRANSFER_MAX;
use crate::reactor::io::{IoOp, IoStatus};

/// Nothing has been written yet: it reads as zeros.
pub(super) async fn fresh(rig: Rig) -> Outcome {
    let (block, size) = (rig.block(), rig.size());
    let large = (TRANSFER_MAX as u64).min(size);
    for (offset, len) in
        [(0, block), (size - block, block), (size / 2 / block * block, block), (0, large), (size - large, large)]
    {
        rig.holds(offset, &vec![0; len as usize], "never written").await?;
    }
    Ok(())
}

/// What is written is there, and only there.
pub(super) async fn writes(rig: Rig) -> Outcome {
    let (block, window) = (rig.block(), rig.window());
    let mut model = pattern(rig.seed, window);
    rig.write(0, &model).await?;
    rig.holds(0, &model, "after a write of everything").await?;
    let large = (TRANSFER_MAX as u64).min(window - 2 * block);
    for (index, (offset, len)) in
        [(3 * block, block), (0, block), (window - block, block), (5 * block, 9 * block), (block, large)]
            .into_iter()
            .enumerate()
    {
        for fua in [false, true] {
            let data = pattern(rig.seed + 2 * index as u64 + u64::from(fua), len);
            rig.expect(Ask { fua, ..Ask::new(IoOp::Write, offset, len) }, &data, IoStatus::Success).await?;
            model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
            rig.holds(0, &model, &format!("after a write of {offset}+{len}, fua {fua}")).await?;
        }
    }
    if rig.has(IoOp::Flush) {
        rig.expect(Ask::new(IoOp::Flush, 0, 0), &[], IoStatus::Success).await?;
        rig.holds(0, &model, "after a flush").await?;
    }
    Ok(())
}

/// Zeroed ranges read as zeros at every alignment of blocks, and nothing beside them changes.
pub(super) async fn zeroes(rig: Rig) -> Outcome {
    let block = rig.block();
    // More blocks than a page or a sector of the medium has, so that every alignment to those occurs.
    let blocks = 11;
    let data = pattern(rig.seed, blocks * block);
    let after = |ask: Ask| format!("after {:?} of {}+{}, fua {}", ask.op, ask.offset, ask.len, ask.fua);
    for op in [IoOp::Unmap, IoOp::WriteZeroes].into_iter().filter(|&op| rig.has(op)) {
        for first in 0..blocks {
            for end in first + 1..=blocks {
                rig.write(0, &data).await?;
                let fua = op == IoOp::WriteZeroes && (first + end) % 3 == 0;
                let ask = Ask { fua, ..Ask::new(op, first * block, (end - first) * block) };
                rig.expect(ask, &[], IoStatus::Success).await?;
                let mut expected = data.clone();
                expected[(first * block) as usize..(end * block) as usize].fill(0);
                rig.holds(0, &expected, &after(ask)).await?;
            }
        }
        let (size, window) = (rig.size(), rig.window());
        let data = pattern(rig.seed + 1, window);
        rig.write(0, &data).await?;
        let ask = Ask::new(op, block, window - 2 * block);
        rig.expect(ask, &[], IoStatus::Success).await?;
        let mut expected = data;
        expected[block as usize..(window - block) as usize].fill(0);
        rig.holds(0, &expected, &after(ask)).await?;
        let last = pattern(rig.seed + 2, block);
        rig.write(size - block, &last).await?;
        let ask = Ask::new(op, 0, size);
        rig.expect(ask, &[], IoStatus::Success).await?;
        rig.holds(0, &vec![0; window as usize], &after(ask)).await?;
        rig.holds(size - block, &vec![0; block as usize], &after(ask)).await?;
    }
    Ok(())
}

/// Compare finds the first difference and changes nothing.
pub(super) async fn compare(rig: Rig) -> Outcome {
    if !rig.has(IoOp::Compare) {
        return Ok(());
    }
    let block = rig.block();
    let len = (40 * block).min(TRANSFER_MAX as u64);
    let data = pattern(rig.seed, len);
    rig.write(block, &data).await?;
    let ask = Ask::new(IoOp::Compare, block, len);
    rig.expect(ask, &data, IoStatus::Success).await?;
    if rig.keeps {
        for at in [0, 1, block - 1, block, 7 * block + 3, len - block, len - 1] {
            let mut other = data.clone();
            other[at as usize] ^= 0x10;
            // A later difference as well: the first one counts.
            other[len as usize - 1] ^= 0x01;
            let done = rig.expect(ask, &other, IoStatus::Miscompare).await?;
            ensure!(done.info == at, "a compare that differs first at {at} says {}", done.info);
            ensure!(done.data == other, "a compare changed the data it was given");
        }
    }
    rig.holds(block, &data, "after compares").await
}

/// Compare and write stores the second half if the first is there, else nothing.
pub(super) async fn compare_and_write(rig: Rig) -> Outcome {
    if !rig.has(IoOp::CompareAndWrite) {
        return Ok(());
    }
    let block = rig.block();
    let most = rig.handle.common().traits().limits.transfer_max / block;
    for blocks in [1, 2, 5].into_iter().filter(|&blocks| blocks <= most) {
        let (offset, len) = (3 * block, blocks * block);
        let around = pattern(rig.seed + blocks, len + 2 * block);
        let (old, new) = (&around[block as usize..(block + len) as usize], pattern(rig.seed + 100, len));
        let ask = Ask::new(IoOp::CompareAndWrite, offset, len);
        rig.write(offset - block, &around).await?;
        if rig.keeps {
            for at in [0, 1, block - 1, len - 1] {
                let mut other = old.to_vec();
                other[at as usize] ^= 0x80;
                let done = rig.expect(ask, &[&other[..], &new].concat(), IoStatus::Miscompare).await?;
                ensure!(done.info == at, "a compare and write that differs first at {at} says {}", done.info);
                rig.holds(offset - block, &around, "after a compare and write that found a difference").await?;
            }
        }
        rig.expect(ask, &[old, &new].concat(), IoStatus::Success).await?;
        let mut expected = around.clone();
        expected[block as usize..(block + len) as usize].copy_from_slice(&new);
        rig.holds(offset - block, &expected, "after a compare and write").await?;
    }
    Ok(())
}

/// An atomic write stores what a plain one does, up to its limit; beyond that it is refused, and so is anything else that is to be atomic.
pub(super) async fn atomic_writes(rig: Rig) -> Outcome {
    let (block, window) = (rig.block(), rig.window());
    let max = rig.handle.common().traits().limits.atomic_max / block * block;
    let mut model = pattern(rig.seed + 6, window);
    rig.write(0, &model).await?;
    let most = max.min(window - 2 * block);
    for (number, len) in
        [block, 3 * block, 70 * block, most].into_iter().filter(|len| *len > 0 && *len <= most).enumerate()
    {
        for (fua, cuts, shape) in [(false, &[][..], Shape::Own), (true, &[700, 1, 4096], Shape::Mixed)] {
            let offset = if len == most { block } else { 5 * block };
            let data = pattern(rig.seed + 2 * number as u64 + u64::from(fua), len);
            let ask = Ask { fua, atomic: true, ..Ask::new(IoOp::Write, offset, len) };
            let done = rig.end(rig.io(ask, &data, cuts, shape).await?).await?;
            ensure!(done.status == IoStatus::Success, "{ask:?} ended with {:?}", done.status);
            model[offset as usize..(offset + len) as usize].copy_from_slice(&data);
            rig.holds(0, &model, &format!("after {ask:?}")).await?;
        }
    }
    for op in [IoOp::Read, IoOp::WriteZeroes, IoOp::Compare, IoOp::Unmap].into_iter().filter(|&op| rig.has(op)) {
        let data = vec![0x77; op.data_len(block) as usize];
        rig.expect(Ask { atomic: true, ..Ask::new(op, 0, block) }, &data, IoStatus::Unsupported).await?;
    }
    if max + block <= TRANSFER_MAX as u64 {
        let data = vec![0x77; (max + block) as usize];
        let ask = Ask { atomic: true, ..Ask::new(IoOp::Write, 0, max + block) };
        rig.expect(ask, &data, IoStatus::Unsupported).await?;
    }
    rig.holds(0, &model, "after refused atomic operations").await
}

/// Whatever is in a range, it can be read, and a verify leaves it as it is.
pub(super) async fn verify(rig: Rig) -> Outcome {
    if !rig.has(IoOp::Verify) {
        return Ok(());
    }
    let (block, size, window) = (rig.block(), rig.size(), rig.window());
    let mut model = pattern(rig.seed + 4, window);
    rig.write(0, &model).await?;
    for (index, op) in [IoOp::Unmap, IoOp::WriteZeroes].into_iter().enumerate().filter(|(_, op)| rig.has(*op)) {
        let (offset, len) = ((20 + 100 * index as u64) * block, 70 * block);
        rig.expect(Ask::new(op, offset, len), &[], IoStatus::Success).await?;
        model[offset as usize..(offset + len) as usize].fill(0);
    }
    for (offset, len) in [
        (0, block),
        (7 * block, 3 * block),
        (19 * block, 72 * block),
        (100 * block, 2 * block),
        (block, window - 2 * block),
        (size - block, block),
        (0, size),
    ] {
        let done = rig.expect(Ask::new(IoOp::Verify, offset, len), &[], IoStatus::Success).await?;
        ensure!(done.info == 0, "a verify of {offset}+{len} says {}", done.info);
    }
    rig.holds(0, &model, "after verifies").await
}

/// The block at `bad` cannot be read: a verify fails over it as a read does, and nowhere else.
pub(super) async fn unreadable(rig: Rig, bad: u64) -> Outcome {
    let (block, size) = (rig.block(), rig.size());
    let whole = 200 * block;
    for (offset, len, status) in [
        (bad, block, IoStatus::MediaError),
        (bad - block, block, IoStatus::Success),
        (bad + block, block, IoStatus::Success),
        (bad - block, 3 * block, IoStatus::MediaError),
        (bad - whole, whole, IoStatus::Success),
        (bad - whole, whole + block, IoStatus::MediaError),
        (bad, whole, IoStatus::MediaError),
        (bad + block, whole, IoStatus::Success),
        (bad - whole, 2 * whole, IoStatus::MediaError),
        (0, bad, IoStatus::Success),
        (bad + block, size - bad - block, IoStatus::Success),
        (0, size, IoStatus::MediaError),
    ] {
        rig.expect(Ask::new(IoOp::Verify, offset, len), &[], status).await?;
        if len <= whole {
            rig.expect(Ask::new(IoOp::Read, offset, len), &vec![0; len as usize], status).await?;
        }
    }
    Ok(())
}

/// Data in pieces of odd lengths, in every kind of memory.
pub(super) async fn segments(rig: Rig) -> Outcome {
    let block = rig.block();
    let cuts: [&[usize]; 6] = [
        &[1],
        &[511, 1, 512],
        &[3, 700, 4095, 1, 1, 2048],
        &[block as usize, 1, block as usize - 1],
        &[4096, 4096],
        &[13, 17, 19, 23, 29, 31, 37],
    ];
    for (number, cuts) in cuts.into_iter().enumerate() {
        for shape in Shape::ALL {
            let len = 9 * block;
            let what = format!("in pieces of {cuts:?} bytes, {shape:?}");
            let data = pattern(rig.seed + number as u64, len);
            for (op, data) in
                [(IoOp::Write, data.clone()), (IoOp::Read, vec![0x5A; len as usize]), (IoOp::Compare, data.clone())]
            {
                if !rig.has(op) {
                    continue;
                }
                let io = rig.io(Ask::new(op, 2 * block, len), &data, cuts, shape).await?;
                let done = rig.end(io).await?;
                ensure!(done.status == IoStatus::Success, "{op:?} {what} ended with {:?}", done.status);
                if op == IoOp::Write {
                    rig.holds(2 * block, &data, &format!("written {what}")).await?;
                }
                if op == IoOp::Read && rig.keeps {
                    let expected = pattern(rig.seed + number as u64, len);
                    let difference = first_difference(&done.data, &expected);
                    ensure!(difference.is_none(), "a read {what} differs at {difference:?}");
                }
            }
            if rig.has(IoOp::Compare) && rig.keeps {
                let mut other = data.clone();
                let at = other.len() * 2 / 3;
                other[at] ^= 4;
                let io = rig.io(Ask::new(IoOp::Compare, 2 * block, len), &other, cuts, shape).await?;
                let done = rig.end(io).await?;
                let found = (done.status, done.info);
                ensure!(found == (IoStatus::Miscompare, at as u64), "a compare {what} that differs at {at}: {found:?}");
            }
            if rig.has(IoOp::CompareAndWrite) {
                let (old, new) = (&data[..block as usize], pattern(rig.seed + 77, block));
                let ask = Ask::new(IoOp::CompareAndWrite, 2 * block, block);
                let io = rig.io(ask, &[old, &new].concat(), cuts, shape).await?;
                let done = rig.end(io).await?;
                ensure!(done.status == IoStatus::Success, "a compare and write {what} ended with {:?}", done.status);
                let mut expected = data.clone();
                expected[..block as usize].copy_from_slice(&new);
                rig.holds(2 * block, &expected, &format!("compared and written {what}")).await?;
            }
        }
    }
    Ok(())
}

/// What cannot be is refused with its status, without effect, and no buffer shows anything it had not.
pub(super) async fn bounds(rig: Rig) -> Outcome {
    use IoStatus::{DataLength, Empty, Misaligned, OutOfRange, Success};
    let (block, size) = (rig.block(), rig.size());
    let ends = pattern(rig.seed, 2 * block);
    let (first, last) = ends.split_at(block as usize);
    rig.write(0, first).await?;
    rig.write(size - block, last).await?;
    rig.holds(0, first, "the first block").await?;
    rig.holds(size - block, last, "the last block").await?;

    let huge = u64::MAX / block * block;
    let asks = [
        (size, block, OutOfRange),
        (size - block, 2 * block, OutOfRange),
        (huge, block, OutOfRange),
        (huge - block, 2 * block, OutOfRange),
        (block, 0, Empty),
        (size, 0, Empty),
        (1, block, Misaligned),
        (block / 2, block, Misaligned),
        (0, block - 1, Misaligned),
        (block, block + 1, Misaligned),
        (u64::MAX, block, Misaligned),
    ];
    for op in IoOp::ALL.into_iter().filter(|&op| op.has_range() && rig.has(op)) {
        for (offset, len, status) in asks {
            let data = vec![0xC3; op.data_len(len) as usize];
            let done = rig.expect(Ask::new(op, offset, len), &data, status).await?;
            ensure!(done.data == data, "{op:?} of {offset}+{len} failed and changed its data");
        }
        let right = op.data_len(block) as usize;
        let lens = [right + 1, right + block as usize, right.saturating_sub(1), right / 2, 0];
        for wrong in lens.into_iter().filter(|&len| len != right && (len != 0 || rig.keeps)) {
            let data = vec![0xC3; wrong];
            let done = rig.expect(Ask::new(op, 0, block), &data, DataLength).await?;
            ensure!(done.data == data, "{op:?} with {wrong} bytes of data failed and changed them");
        }
        let most = TRANSFER_MAX as u64;
        if op.data_len(block) == block && size >= most + block {
            let ask = Ask::new(op, 0, most + block);
            let half = vec![0xC3; TRANSFER_MAX / 2];
            let mut io = rig.io(ask, &half, &[], Shape::Own).await?;
            for len in [TRANSFER_MAX / 2, block as usize] {
                let more = rig.handle.reactor().buffer(len).await;
                io.data.push_buf(more);
            }
            let done = rig.end(io).await?;
            ensure!(done.status == DataLength, "{op:?} of more than a transfer ended with {:?}", done.status);
        }
    }
    // Flush and reset have no range to be wrong.
    for op in [IoOp::Flush, IoOp::Reset].into_iter().filter(|&op| rig.has(op)) {
        rig.expect(Ask::new(op, 0, 0), &[], Success).await?;
        rig.expect(Ask::new(op, 0, 0), &[0; 512], DataLength).await?;
    }
    rig.holds(0, first, "after refused I/Os: the first block").await?;
    rig.holds(size - block, last, "after refused I/Os: the last block").await
}
