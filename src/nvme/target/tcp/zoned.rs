//! Zone Management Receive: a report, made of the records of the block layer in the buffer that goes to the host.
//!
//! ```text
//!   buffer  | header | descriptors of 64 bytes -->        | records of 32 bytes, as many as descriptors have room  |
//!                                                           each is read before a descriptor grows over it
//! ```

use std::rc::Rc;

use hugepages::Buf;
use zerocopy::FromBytes;

use super::conn::{Conn, Slot};
use super::local::Namespace;
use super::slot::{Failure, finish, refuse, send_data};
use crate::bdev::{ZONE_FINISH_RECOMMENDED, ZONE_FINISHED_BY_DEVICE, ZONE_RESET_RECOMMENDED, ZoneRecord};
use crate::nvme::spec::{
    StatusCode, ZA_FINISH_RECOMMENDED, ZA_FINISHED_BY_CONTROLLER, ZA_RESET_RECOMMENDED, ZoneDescriptor, ZoneType,
};
use crate::nvme::target::zoned::{DESCRIPTOR_LEN, header, is_wanted};
use crate::nvme::target::{Fault, IoRequest};
use crate::reactor::io::{Io, IoOp, Segment};

/// Bytes of the buffer at least: room for records where the host wants to know no more than how many zones there are.
const ROOM_MIN: usize = 16 << 10;

/// Carries out a report and answers it. Returns the number of the batch that the answer is in.
pub async fn execute(conn: &Rc<Conn>, slot: &Slot, ns: &Namespace, request: &IoRequest, io: Io) -> (Io, u64) {
    let len = request.data_len as usize;
    let sqe = slot.command().sqe;
    conn.tx.reserve(len).await;
    let mut report =
        Report { slot, ns, request, io: Some(io), buf: Some(conn.reactor().buffer(len.max(ROOM_MIN)).await) };
    let made = report.make().await;
    let (io, buf) = (report.io.take().expect("between steps it is here"), report.buf.take());
    let number = match (made, buf) {
        (Ok(()), Some(mut buf)) => {
            buf.set_len(len);
            send_data(conn, sqe.cid.get(), buf).await
        }
        (made, buf) => {
            drop(buf);
            conn.tx.unreserve(len);
            match made {
                Err(Failure::Gone) => 0,
                Err(Failure::Fault(fault)) => refuse(conn, &sqe, fault).await,
                Ok(()) => refuse(conn, &sqe, Fault::retry(StatusCode::INTERNAL_ERROR)).await,
            }
        }
    };
    (io, number)
}

struct Report<'a> {
    slot: &'a Slot,
    ns: &'a Namespace,
    request: &'a IoRequest,
    /// Out while the device has it.
    io: Option<Io>,
    /// Out while the device has the end of it.
    buf: Option<Buf>,
}

impl Report<'_> {
    async fn make(&mut self) -> Result<(), Failure> {
        let Some(zones) = self.ns.info().zones.as_ref() else {
            return Err(Fault::new(StatusCode::INVALID_OPCODE).into());
        };
        let (len, shift) = (self.request.data_len as usize, self.ns.info().block_shift());
        // From the zone that the first block is in.
        let first = self.request.lba / zones.blocks;
        let count = self.ns.info().blocks / zones.blocks;
        let matching = if self.request.zone.partial { 0 } else { self.count(first, count).await? };
        let (mut at, mut next) = (DESCRIPTOR_LEN, first);
        while next < count && at + DESCRIPTOR_LEN <= len {
            let room = ((len - at) / DESCRIPTOR_LEN) as u64;
            let asked = room.min(count - next) as usize;
            let from = self.ask(next, asked).await?;
            let buf = self.buf.as_mut().expect("between steps it is here");
            for index in 0..asked {
                let record = record(buf, from + index * ZoneRecord::LEN);
                if is_wanted(self.request.zone.filter, record.state) {
                    buf[at..at + DESCRIPTOR_LEN].copy_from_slice(&descriptor(&record, shift));
                    at += DESCRIPTOR_LEN;
                }
            }
            next += asked as u64;
        }
        let buf = self.buf.as_mut().expect("between steps it is here");
        let told = (at / DESCRIPTOR_LEN - 1) as u64;
        // A zone may have changed since they were counted.
        buf[..DESCRIPTOR_LEN].copy_from_slice(&header(matching.max(told)));
        buf[at..len].fill(0);
        Ok(())
    }

    /// How many of zones `next..count` are such as are wanted.
    async fn count(&mut self, mut next: u64, count: u64) -> Result<u64, Failure> {
        let mut matching = 0;
        while next < count {
            let room = self.buf.as_ref().map_or(0, |buf| buf.len() / ZoneRecord::LEN);
            let asked = (count - next).min(room as u64) as usize;
            let from = self.ask(next, asked).await?;
            let buf = self.buf.as_ref().expect("between steps it is here");
            let records = (0..asked).map(|index| record(buf, from + index * ZoneRecord::LEN));
            matching += records.filter(|record| is_wanted(self.request.zone.filter, record.state)).count() as u64;
            next += asked as u64;
        }
        Ok(matching)
    }

    /// Has the device put the records of `count` zones from number `next` on at the end of the buffer; where they begin.
    async fn ask(&mut self, next: u64, count: usize) -> Result<usize, Failure> {
        let (Some(mut io), Some(mut buf)) = (self.io.take(), self.buf.take()) else {
            unreachable!("between steps both are here");
        };
        let (offset, _) = self.ns.zone(next);
        let len = count * ZoneRecord::LEN;
        let mut front = buf.split_to(buf.len() - len);
        let from = front.len();
        io.prepare(IoOp::ZoneReport, offset, len as u64);
        io.data.push_buf(buf);
        let (mut io, result) = finish(self.slot, self.ns, io).await;
        let back = match io.data.pop() {
            Some(Segment::Buf(buf)) => front.unsplit(buf).is_ok(),
            _ => false,
        };
        (self.io, self.buf) = (Some(io), back.then_some(front));
        if !back {
            return Err(Fault::retry(StatusCode::INTERNAL_ERROR).into());
        }
        result.map(|()| from)
    }
}

/// The record at byte `at` of a buffer.
fn record(buf: &[u8], at: usize) -> ZoneRecord {
    ZoneRecord::read_from_bytes(&buf[at..at + ZoneRecord::LEN]).expect("as many bytes as it has")
}

/// A zone of a namespace with blocks of 2 to the power of `shift` bytes, as hosts are told of it.
fn descriptor(record: &ZoneRecord, shift: u32) -> [u8; DESCRIPTOR_LEN] {
    let mut zone = ZoneDescriptor::default();
    // States have the same numbers.
    zone.set(ZoneType::SEQUENTIAL_WRITE_REQUIRED, record.state);
    for (attribute, bit) in [
        (ZONE_FINISHED_BY_DEVICE, ZA_FINISHED_BY_CONTROLLER),
        (ZONE_FINISH_RECOMMENDED, ZA_FINISH_RECOMMENDED),
        (ZONE_RESET_RECOMMENDED, ZA_RESET_RECOMMENDED),
    ] {
        zone.za |= if record.attributes & attribute != 0 { bit } else { 0 };
    }
    zone.zcap.set(record.capacity.get() >> shift);
    zone.zslba.set(record.start.get() >> shift);
    zone.wp.set(match record.write_pointer.get() {
        ZoneRecord::NO_POINTER => u64::MAX,
        pointer => pointer >> shift,
    });
    zerocopy::transmute!(zone)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bdev::ZoneState as State;

    #[test]
    fn descriptors_golden_bytes() {
        let record = ZoneRecord {
            start: (3 << 20).into(),
            capacity: (1 << 19).into(),
            write_pointer: ((3 << 20) + 4096).into(),
            state: State::CLOSED,
            attributes: 0xff,
            reserved: [0; 6],
        };
        let mut want = [0; 64];
        want[..3].copy_from_slice(&[2, 0x40, 7]);
        want[8..32].copy_from_slice(&[0, 4, 0, 0, 0, 0, 0, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 8, 0x18, 0, 0, 0, 0, 0, 0]);
        assert_eq!(descriptor(&record, 9), want);
        let full = ZoneRecord { write_pointer: u64::MAX.into(), state: State::FULL, ..record };
        assert_eq!((descriptor(&full, 9)[1], &descriptor(&full, 9)[24..32]), (0xe0, &[0xff; 8][..]));
    }
}
