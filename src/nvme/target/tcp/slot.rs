//! A command slot of an I/O queue: the life of one command, read from top to bottom in [`execute`].

use std::rc::Rc;

use hugepages::Buf;

use super::conn::{Conn, Slot};
use super::local::Namespace;
use super::{fused, zoned};
use crate::bdev::Lent;
use crate::net::LEND_MIN;
use crate::nvme::spec::{Cqe, Fuse, Sqe, Status, StatusCode};
use crate::nvme::target::{DataPlace, Fault, IoOp as NvmeOp, IoRequest, decode_io, dsm_ranges};
use crate::nvme::tcp::{DIGEST_LEN, DataDigest, MAX_PREFIX_LEN};
use crate::reactor::io::{Io, IoOp, IoStatus, Segment};
use crate::sys::tx::TxBatch;

/// Why a command did not succeed.
pub enum Failure {
    /// Answer with this.
    Fault(Fault),
    /// The connection ended: nobody to answer.
    Gone,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        Failure::Fault(fault)
    }
}

/// The body of a slot's task: command after command until the connection has ended.
pub async fn run(conn: Rc<Conn>, slot: Rc<Slot>) {
    let mut spare = None;
    while slot.next(&conn).await {
        let Some(io) = spare.take().or_else(|| conn.reactor().create_io()) else {
            // All I/Os of the reactor are taken: the host is told to try again.
            let number = refuse(&conn, &slot.command().sqe, Fault::retry(StatusCode::COMMAND_INTERRUPTED)).await;
            conn.release(&slot, number);
            continue;
        };
        slot.set_io(io.slot());
        let (io, number) = execute(&conn, &slot, io).await;
        spare = Some(io);
        conn.release(&slot, number);
    }
    if let Some(io) = spare {
        conn.reactor().retire_io(io);
    }
}

/// Carries out one command and answers it. Returns the number of the batch that the answer is in.
async fn execute(conn: &Rc<Conn>, slot: &Slot, mut io: Io) -> (Io, u64) {
    if let Some(first) = slot.take_first() {
        return fused::execute(conn, slot, &first, io).await;
    }
    let (request, ns) = match lookup(conn, slot) {
        Ok((request, _)) if request.fuse != Fuse::NONE => {
            let fault = Fault::new(StatusCode::ABORTED_MISSING_FUSED);
            let number = refuse(conn, &slot.command().sqe, fault).await;
            return (io, number);
        }
        Ok(found) => found,
        Err(fault) => {
            let number = refuse(conn, &slot.command().sqe, fault).await;
            return (io, number);
        }
    };
    if request.op == NvmeOp::ZoneReport {
        return zoned::execute(conn, slot, &ns, &request, io).await;
    }
    let cid = slot.command().sqe.cid.get();
    let (mut offset, mut len) = ns.bytes(request.lba, u64::from(request.blocks));

    // What comes before the device: data from the host, a buffer for the host.
    let (reads, verifies) = (request.op == NvmeOp::Read, request.op == NvmeOp::Verify);
    let mut reserved = false;
    let mut prepared = Ok(());
    if (reads || verifies) && request.fua && ns.has_volatile_cache() {
        // What a read with FUA returns is on the medium, and what a verify with it reads (NVM §3.2.4, §3.2.5).
        io.prepare(IoOp::Flush, 0, 0);
        (io, prepared) = finish(slot, &ns, io).await;
    }
    let op = match request.op {
        NvmeOp::Read => IoOp::Read,
        NvmeOp::Write => IoOp::Write,
        NvmeOp::Compare => IoOp::Compare,
        NvmeOp::Flush => IoOp::Flush,
        NvmeOp::Verify => IoOp::Verify,
        NvmeOp::WriteZeroes if request.deallocate && ns.can_unmap() => IoOp::Unmap,
        NvmeOp::WriteZeroes => IoOp::WriteZeroes,
        NvmeOp::Dsm => IoOp::Unmap,
        NvmeOp::ZoneAppend => IoOp::ZoneAppend,
        NvmeOp::ZoneOpen => IoOp::ZoneOpen,
        NvmeOp::ZoneClose => IoOp::ZoneClose,
        NvmeOp::ZoneFinish => IoOp::ZoneFinish,
        NvmeOp::ZoneReset => IoOp::ZoneReset,
        NvmeOp::ZoneReport => unreachable!("it was carried out apart"),
    };
    if op.manages_zones() {
        (offset, len) = ns.managed(&request);
    }
    io.prepare(op, offset, len);
    if prepared.is_ok() {
        if reads {
            if !ns.keeps_nothing() {
                reserved = true;
                conn.tx.reserve(request.data_len as usize).await;
                io.data.push_buf(conn.reactor().buffer(request.data_len as usize).await);
            }
        } else if request.place != DataPlace::None {
            reserved = request.place == DataPlace::HostBuffer;
            prepared = data_in(conn, slot, &request, cid).await.map(|data| io.data.push_buf(data));
        }
    }

    if op == IoOp::Read
        && len >= LEND_MIN as u64
        && prepared.is_ok()
        && let Some(number) = send_lent(conn, &ns, cid, &mut io)
    {
        conn.local.count(&conn.queue().expect("slots run after Connect").subsystem, request.op, len);
        return (io, number);
    }
    let outcome = match prepared {
        Err(failure) => Err(failure),
        Ok(()) if request.op == NvmeOp::Dsm => {
            let data = io.data.pop();
            let result;
            (io, result) = manage_dataset(slot, &ns, &request, data, io).await;
            result
        }
        Ok(()) => {
            io.fua = request.fua && !reads && !verifies;
            slot.set_in_device(true);
            io = ns.handle.execute(io).await;
            slot.set_in_device(false);
            if op == IoOp::Flush {
                conn.local.end_flush(conn.queue().expect("slots run after Connect"), &ns, &mut io);
            }
            fault_of(io.status, io.op).map_or(Ok(()), |fault| Err(Failure::Fault(fault)))
        }
    };

    // Whatever a failed read left in the buffer is not the host's.
    let answer = io.data.pop().filter(|_| reads && outcome.is_ok());
    // The budget of data that is sent is given back when it was.
    if reserved && answer.is_none() {
        conn.tx.unreserve(request.data_len as usize);
    }
    let number = match outcome {
        Ok(()) => {
            conn.local.count(&conn.queue().expect("slots run after Connect").subsystem, request.op, len);
            match answer {
                Some(Segment::Buf(buf)) => send_data(conn, cid, buf).await,
                None if reads => send_zeroes(conn, cid, request.data_len).await,
                // Where the data went (ZNS §3.4.1).
                _ if op == IoOp::ZoneAppend => conn.respond(Cqe::with_result(cid, ns.block_of(io.info))).await,
                _ => respond(conn, cid).await,
            }
        }
        Err(Failure::Fault(fault)) => refuse(conn, &slot.command().sqe, fault).await,
        Err(Failure::Gone) => 0,
    };
    (io, number)
}

/// Decodes a slot's command against the namespaces as this reactor knows them.
pub fn lookup(conn: &Conn, slot: &Slot) -> Result<(IoRequest, Rc<Namespace>), Fault> {
    let command = slot.command();
    if command.damaged {
        return Err(Fault::retry(StatusCode::TRANSIENT_TRANSPORT_ERROR));
    }
    let capsule_len = slot.data.borrow().as_ref().map_or(0, |data| data.len() as u32);
    let queue = conn.queue().expect("slots run after Connect");
    queue.subsystem.with_table(|table| {
        let (request, info) = decode_io(&command.sqe, &table.infos, capsule_len)?;
        if info.zones.is_some() && !queue.all_command_sets {
            // It is none of this controller's namespaces.
            return Err(Fault::new(StatusCode::INVALID_FIELD));
        }
        table.handle(info.nsid).map(|ns| (request, ns)).ok_or(Fault::retry(StatusCode::NAMESPACE_NOT_READY))
    })
}

/// The data a command brings: in its capsule, or fetched by an R2T into a buffer of its own.
pub async fn data_in(conn: &Conn, slot: &Slot, request: &IoRequest, cid: u16) -> Result<Buf, Failure> {
    match request.place {
        DataPlace::InCapsule => {
            let data = slot.data.borrow_mut().take();
            data.ok_or(Failure::Fault(Fault::new(StatusCode::DATA_TRANSFER_ERROR)))
        }
        DataPlace::HostBuffer => {
            conn.tx.reserve(request.data_len as usize).await;
            let buf = conn.reactor().buffer(request.data_len as usize).await;
            fetch(conn, slot, cid, buf).await
        }
        DataPlace::None => Err(Fault::new(StatusCode::DATA_TRANSFER_ERROR).into()),
    }
}

/// Has the host fill `buf` by an R2T.
pub async fn fetch(conn: &Conn, slot: &Slot, cid: u16, buf: Buf) -> Result<Buf, Failure> {
    let len = buf.len() as u32;
    conn.tx.expect_peer();
    conn.fetches(len, 1);
    let fetched = slot.fetch(conn, cid, len, buf).await;
    conn.fetches(len, -1);
    conn.tx.peer_acted();
    match fetched {
        Some((data, true)) => Ok(data),
        Some((_, false)) => Err(Fault::retry(StatusCode::TRANSIENT_TRANSPORT_ERROR).into()),
        None => Err(Failure::Gone),
    }
}

/// Dataset Management: only Deallocate does something, the other attributes are hints (NVM §3.2.3).
async fn manage_dataset(
    slot: &Slot,
    ns: &Namespace,
    request: &IoRequest,
    data: Option<Segment>,
    mut io: Io,
) -> (Io, Result<(), Failure>) {
    let Some(Segment::Buf(data)) = data else {
        return (io, Err(Fault::new(StatusCode::DATA_TRANSFER_ERROR).into()));
    };
    let ranges = match dsm_ranges(request, &data, ns.info()) {
        Ok(ranges) => ranges,
        Err(fault) => return (io, Err(fault.into())),
    };
    if !request.deallocate || !ns.can_unmap() {
        return (io, Ok(()));
    }
    for (lba, blocks) in ranges {
        let (offset, len) = ns.bytes(lba, u64::from(blocks));
        io.prepare(IoOp::Unmap, offset, len);
        let result;
        (io, result) = finish(slot, ns, io).await;
        if let Err(failure) = result {
            return (io, Err(failure));
        }
    }
    (io, Ok(()))
}

/// Runs a prepared I/O and turns its status into the command's.
pub async fn finish(slot: &Slot, ns: &Namespace, io: Io) -> (Io, Result<(), Failure>) {
    slot.set_in_device(true);
    let io = ns.handle.execute(io).await;
    slot.set_in_device(false);
    let result = match fault_of(io.status, io.op) {
        None => Ok(()),
        Some(fault) => Err(Failure::Fault(fault)),
    };
    (io, result)
}

/// The status of the block layer as an NVMe status, once, here.
pub fn fault_of(status: IoStatus, op: IoOp) -> Option<Fault> {
    Some(match status {
        IoStatus::Success => return None,
        IoStatus::OutOfRange => Fault::new(StatusCode::LBA_OUT_OF_RANGE),
        IoStatus::Misaligned | IoStatus::Empty | IoStatus::DataLength => Fault::new(StatusCode::INVALID_FIELD),
        IoStatus::Unsupported => Fault::new(StatusCode::INVALID_OPCODE),
        IoStatus::ReadOnly => Fault::new(StatusCode::NAMESPACE_WRITE_PROTECTED),
        IoStatus::Miscompare => Fault::new(StatusCode::COMPARE_FAILURE),
        IoStatus::NoSpace => Fault::new(StatusCode::CAPACITY_EXCEEDED),
        IoStatus::MediaError if op.writes() || op == IoOp::Flush => Fault::new(StatusCode::WRITE_FAULT),
        IoStatus::MediaError => Fault::new(StatusCode::UNRECOVERED_READ_ERROR),
        IoStatus::DeviceError => Fault::retry(StatusCode::INTERNAL_ERROR),
        IoStatus::Aborted => Fault::new(StatusCode::ABORT_REQUESTED),
        IoStatus::Gone => Fault::new(StatusCode::NAMESPACE_NOT_READY),
        IoStatus::ZoneBoundary => Fault::new(StatusCode::ZONE_BOUNDARY_ERROR),
        IoStatus::ZoneFull => Fault::new(StatusCode::ZONE_IS_FULL),
        IoStatus::ZoneReadOnly => Fault::new(StatusCode::ZONE_IS_READ_ONLY),
        IoStatus::ZoneOffline => Fault::new(StatusCode::ZONE_IS_OFFLINE),
        IoStatus::ZoneInvalidWrite => Fault::new(StatusCode::ZONE_INVALID_WRITE),
        IoStatus::ZoneTooManyActive => Fault::new(StatusCode::TOO_MANY_ACTIVE_ZONES),
        IoStatus::ZoneTooManyOpen => Fault::new(StatusCode::TOO_MANY_OPEN_ZONES),
        IoStatus::ZoneInvalidTransition => Fault::new(StatusCode::INVALID_ZONE_TRANSITION),
    })
}

/// A response without data.
pub async fn respond(conn: &Conn, cid: u16) -> u64 {
    conn.respond(Cqe::new(cid, Status::SUCCESS)).await
}

/// A response that says why not, noted in the controller's error log.
pub async fn refuse(conn: &Rc<Conn>, sqe: &Sqe, fault: Fault) -> u64 {
    let cqe = Cqe::new(sqe.cid.get(), conn.local.note_failure(conn, sqe, fault));
    conn.respond(cqe).await
}

/// The data of a read and its response: in one send, or as one PDU where the data may stand for the response.
pub async fn send_data(conn: &Conn, cid: u16, buf: Buf) -> u64 {
    let digest = conn.framing().data_digest().then(|| {
        let mut digest = DataDigest::new();
        digest.update(&buf);
        digest
    });
    push_data(conn, cid, buf.len() as u32, digest, |batch| batch.push_buf(buf)).await
}

/// Sends the data of a long read of a device that lends it from where it is, with its response. `None`: it is to be read.
#[inline(never)]
fn send_lent(conn: &Rc<Conn>, ns: &Namespace, cid: u16, io: &mut Io) -> Option<u64> {
    let lends = io.data.single_buf().is_some()
        // Of a digest it would be read twice, and may differ.
        && !conn.framing().data_digest()
        && conn.tx.can_lend(3, 2 * MAX_PREFIX_LEN);
    let Lent { region, at, spare } = if lends { ns.handle.lend(io) } else { None }?;
    let len = spare.len() as u32;
    conn.tx.lend(|batch| append_data(conn, cid, len, None, batch, |batch| batch.push_lent(region, at, spare)));
    Some(conn.tx.handed() + 1)
}

async fn send_zeroes(conn: &Conn, cid: u16, len: u32) -> u64 {
    let digest = conn.framing().data_digest().then(|| {
        let mut digest = DataDigest::new();
        const ZEROES: [u8; 4096] = [0; 4096];
        let mut left = len as usize;
        while left > 0 {
            let now = left.min(ZEROES.len());
            digest.update(&ZEROES[..now]);
            left -= now;
        }
        digest
    });
    push_data(conn, cid, len, digest, |batch| batch.push_zeroes(len as usize)).await
}

async fn push_data(
    conn: &Conn,
    cid: u16,
    len: u32,
    digest: Option<DataDigest>,
    push: impl FnOnce(&mut TxBatch),
) -> u64 {
    let append = |batch: &mut TxBatch| append_data(conn, cid, len, digest, batch, push);
    conn.tx.push(3, 2 * MAX_PREFIX_LEN + DIGEST_LEN, append).await.unwrap_or(0)
}

/// Appends data by `push`, and its response.
#[inline(always)]
fn append_data(
    conn: &Conn,
    cid: u16,
    len: u32,
    digest: Option<DataDigest>,
    batch: &mut TxBatch,
    push: impl FnOnce(&mut TxBatch),
) {
    let framing = *conn.framing();
    // SUCCESS in the data's header replaces the response, where SQHD need not be told (TCP §3.3.2.2).
    let success = conn.queue().is_some_and(|q| !q.flow_control);
    batch.push_head(|out| framing.c2h_data(cid, 0, len, true, success, out));
    push(batch);
    if let Some(digest) = digest {
        batch.push_head(|out| {
            out[..DIGEST_LEN].copy_from_slice(&digest.to_bytes());
            DIGEST_LEN
        });
    }
    if !success {
        let mut cqe = Cqe::new(cid, Status::SUCCESS);
        conn.stamp(&mut cqe);
        batch.push_head(|out| framing.capsule_resp(&cqe, out));
    }
}
