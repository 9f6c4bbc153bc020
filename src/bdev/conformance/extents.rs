//! What a device tells of its extents, held against what is there.

use zerocopy::FromBytes;

use super::rig::{Ask, Outcome, Rig, ensure, pattern};
use crate::bdev::{ExtentRecord, ExtentState};
use crate::reactor::io::{IoOp, IoStatus};

/// Extents and their ends: `(offset, end, state)`.
type Told = Vec<(u64, u64, ExtentState)>;

/// One report with `len` bytes of data, whose form is looked at.
async fn report(rig: &Rig, offset: u64, len: usize) -> Result<Told, String> {
    let (block, size) = (rig.block(), rig.size());
    let ask = Ask::new(IoOp::Extents, offset, len as u64);
    let data = rig.expect(ask, &vec![0xA5; len], IoStatus::Success).await?.data;
    let (mut told, mut end, mut over) = (Told::new(), offset, false);
    for bytes in data.chunks(ExtentRecord::LEN) {
        let zeros = bytes.iter().all(|byte| *byte == 0);
        over |= zeros;
        if over {
            ensure!(zeros, "a report from {offset} on, of {len} bytes, has something behind its end");
            continue;
        }
        let Ok(record) = ExtentRecord::read_from_bytes(bytes) else {
            return Err(format!(
                "a report from {offset} on, of {len} bytes, ends with a part of a record or with garbage"
            ));
        };
        let (start, state) = (record.offset.get(), record.state);
        ensure!(start == end, "a report from {offset} on goes on at {start} where {end} is told of next");
        end = start.saturating_add(record.len.get());
        let right = record.len.get() > 0 && record.len.get().is_multiple_of(block) && end <= size;
        let known = matches!(state, ExtentState::MAPPED | ExtentState::DEALLOCATED) && record.reserved == [0; 7];
        ensure!(right && known, "a report from {offset} on says {record:?} of {size} bytes in blocks of {block}");
        told.push((start, end, state));
    }
    ensure!(!told.is_empty(), "a report from {offset} on, of {len} bytes, tells of nothing");
    Ok(told)
}

/// All extents of a range, asked for as often as it takes.
async fn all(rig: &Rig, offset: u64, end: u64, len: usize) -> Result<Told, String> {
    let (mut told, mut at) = (Told::new(), offset);
    while at < end {
        told.extend(report(rig, at, len).await?);
        at = told.last().map_or(end, |(_, end, _)| *end);
    }
    Ok(told)
}

/// Whether each byte of a range is in extents of that state.
fn is(told: &Told, (offset, end): (u64, u64), wanted: ExtentState) -> bool {
    told.iter().all(|(start, stop, state)| *state == wanted || *stop <= offset || *start >= end)
}

/// What is written is mapped, what is deallocated reads as zeros, and a device that frees what is unmapped says so.
pub(super) async fn extents(rig: Rig) -> Outcome {
    let (block, size, window) = (rig.block(), rig.size(), rig.window());
    let traits = rig.handle.common().traits();
    let granule = u64::from(traits.limits.unmap_granularity).max(block);
    let mut model = pattern(rig.seed + 5, window);
    rig.write(0, &model).await?;
    let told = all(&rig, 0, window, 4096).await?;
    ensure!(!rig.keeps || is(&told, (0, window), ExtentState::MAPPED), "written, and told to be {told:?}");
    // One by one, as a device takes them that only takes a few blocks at a time; with what is no granule beside them.
    let freed: Vec<u64> =
        [4, 5, 9, 20].into_iter().map(|index| index * granule).filter(|at| at + granule <= window).collect();
    if rig.has(IoOp::Unmap) {
        let odd = (30 * granule + block, 3 * block);
        for (offset, len) in freed.iter().map(|at| (*at, granule)).chain([odd]).filter(|(at, len)| at + len <= window) {
            rig.expect(Ask::new(IoOp::Unmap, offset, len), &[], IoStatus::Success).await?;
            model[offset as usize..(offset + len) as usize].fill(0);
        }
    }
    rig.holds(0, &model, "after reports and unmaps").await?;
    let frees = rig.has(IoOp::Unmap) && rig.has(IoOp::Extents) && traits.limits.unmap_granularity > 0;
    for len in [ExtentRecord::LEN, 100, 64 << 10] {
        let told = all(&rig, 0, window, len).await?;
        for (start, end, _) in told.iter().filter(|(_, _, state)| *state == ExtentState::DEALLOCATED && rig.keeps) {
            // The last report may go on behind what was asked for.
            let bytes = &model[(*start).min(window) as usize..(*end).min(window) as usize];
            ensure!(bytes.iter().all(|byte| *byte == 0), "{start} to {end} holds data, and is told to be deallocated");
        }
        for at in freed.iter().filter(|_| frees && granule <= traits.limits.zeroes_max) {
            let range = (*at, at + granule);
            ensure!(is(&told, range, ExtentState::DEALLOCATED), "{range:?} was unmapped, and is told to be {told:?}");
        }
    }
    // From the middle of a granule, and to the end of the device.
    for offset in [block, 4 * granule + block, size - block] {
        report(&rig, offset, 512).await?;
    }
    for at in freed {
        let data = pattern(rig.seed + at, block);
        rig.write(at, &data).await?;
        let told = report(&rig, at, 512).await?;
        ensure!(!rig.keeps || is(&told, (at, at + block), ExtentState::MAPPED), "{at} was written again, but {told:?}");
    }
    all(&rig, 0, size, 64 << 10).await?;
    for (offset, len, status) in [
        (size, 512, IoStatus::OutOfRange),
        (block / 2, 512, IoStatus::Misaligned),
        (0, ExtentRecord::LEN - 1, IoStatus::DataLength),
    ] {
        rig.expect(Ask::new(IoOp::Extents, offset, len as u64), &vec![0; len], status).await?;
    }
    Ok(())
}
