//! How a command ends, and what of that goes to its initiator.

use hugepages::Buf;

use super::Work;
use crate::bdev::Lent;
use crate::iscsi::door::conn::{ShortData, digest_of, push_header, push_suffix};
use crate::iscsi::{PREFIX_MAX, SUFFIX_MAX};
use crate::scsi;
use crate::scsi::spec::{SENSE_MAX, Sense, Status};

/// How a command ends.
pub enum Answer {
    /// GOOD, with these bytes of data.
    Good(DataIn),
    /// Another status without more words.
    Status(Status),
    /// CHECK CONDITION.
    Check(Sense),
    /// Nobody is to be answered.
    None,
}

/// The data that a command gives.
pub enum DataIn {
    /// None.
    None,
    /// These bytes.
    Buf(Buf),
    /// What is in this memory until the turn of the reactor ends.
    Lent(Lent),
    /// Zeros.
    Zeroes(u32),
    /// These bytes, which are not in a buffer yet.
    Bytes(Vec<u8>),
}

impl DataIn {
    pub(super) fn len(&self) -> u64 {
        match self {
            DataIn::None => 0,
            DataIn::Buf(buf) | DataIn::Lent(Lent { spare: buf, .. }) => buf.len() as u64,
            DataIn::Zeroes(len) => u64::from(*len),
            DataIn::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl From<Sense> for Answer {
    fn from(sense: Sense) -> Answer {
        Answer::Check(sense)
    }
}

impl From<scsi::Reply> for Answer {
    fn from(reply: scsi::Reply) -> Answer {
        match reply {
            scsi::Reply::Good(data) if data.is_empty() => Answer::Good(DataIn::None),
            scsi::Reply::Good(data) => Answer::Good(DataIn::Bytes(data)),
            scsi::Reply::Check(sense) => Answer::Check(sense),
            scsi::Reply::Conflict => Answer::Status(Status::RESERVATION_CONFLICT),
        }
    }
}

impl Work<'_> {
    /// Sends the data and the status.
    pub(super) async fn answer(&self, answer: Answer, descriptor_sense: bool) {
        let (live, task) = (self.live, self.task);
        match answer {
            Answer::None => {}
            Answer::Good(DataIn::None) => self.respond(Status::GOOD, ShortData::NONE, 0).await,
            Answer::Status(status) => self.respond(status, ShortData::NONE, 0).await,
            Answer::Check(sense) => {
                let mut bytes = [0; SENSE_MAX];
                let len = sense.encode(descriptor_sense, &mut bytes);
                let data = ShortData::new(&[&(len as u16).to_be_bytes(), &bytes[..len]]);
                self.respond(Status::CHECK_CONDITION, data, len as u16).await;
            }
            Answer::Good(data) => {
                let expected = if self.command.reads() { self.command.expected_len.get() } else { 0 };
                let total = u64::from(expected).min(data.len()) as u32;
                if total == 0 || live.engine().is_aborted(task) {
                    if let DataIn::Buf(buf) | DataIn::Lent(Lent { spare: buf, .. }) = data {
                        self.conn.tx.drop_reserved(buf);
                    }
                    return self.respond(Status::GOOD, ShortData::NONE, 0).await;
                }
                let data = match data {
                    DataIn::Bytes(bytes) => {
                        let bytes = &bytes[..total as usize];
                        self.conn.tx.reserve(bytes.len()).await;
                        let mut buf = live.reactor().buffer(bytes.len()).await;
                        buf.copy_from_slice(bytes);
                        DataIn::Buf(buf)
                    }
                    DataIn::Lent(lent) => match self.send_lent(lent, total) {
                        None => return,
                        Some(copy) => DataIn::Buf(copy),
                    },
                    data => data,
                };
                self.send_data(data, total).await;
            }
        }
    }

    /// A SCSI Response.
    async fn respond(&self, status: Status, data: ShortData, sense_len: u16) {
        let respond = || {
            let header =
                self.live.engine().respond(self.task, status.0, sense_len, self.residual.get(), self.unread)?;
            Some((header, data))
        };
        // Without a connection there is nobody to answer.
        let _ = self.conn.send_short(respond).await;
    }

    /// Sends data from where it is, with the status, if one PDU takes it. Else a copy of it, to be sent as any other.
    fn send_lent(&self, lent: Lent, total: u32) -> Option<Buf> {
        let Lent { region, at, mut spare } = lent;
        let (conn, framing) = (self.conn, self.conn.framing());
        let len = spare.len();
        let one = total as usize == len
            && self.live.engine().data_in_max(self.task) >= total
            && conn.tx.can_lend(3, PREFIX_MAX + SUFFIX_MAX);
        let next =
            if one { self.live.engine().next_data_in(self.task, total, Some(self.residual.get())) } else { None };
        let Some(pdu) = next else {
            region.read(at, &mut spare);
            return Some(spare);
        };
        debug_assert!(pdu.ended && pdu.len == total, "it was asked for before");
        conn.tx.lend(|batch| {
            push_header(batch, &framing, &pdu.header);
            batch.push_lent(region, at, spare);
            push_suffix(batch, &framing, total, digest_of(&framing, []));
        });
        None
    }

    /// The data of a command that succeeded, in as many PDUs as it takes; the last one has the status.
    async fn send_data(&self, mut data: DataIn, total: u32) {
        let framing = self.conn.framing();
        let mut goes_on = true;
        while goes_on {
            let pushed = self.conn.tx.push(3, PREFIX_MAX + SUFFIX_MAX, |batch| {
                let next = self.live.engine().next_data_in(self.task, total, Some(self.residual.get()));
                let Some(pdu) = next else {
                    goes_on = false;
                    return;
                };
                goes_on = !pdu.ended;
                push_header(batch, &framing, &pdu.header);
                let len = pdu.len as usize;
                let digest = match &mut data {
                    DataIn::Buf(whole) if len < whole.len() && !pdu.ended => {
                        let piece = whole.split_to(len);
                        let digest = digest_of(&framing, [&piece[..]]);
                        batch.push_buf(piece);
                        digest
                    }
                    DataIn::Buf(_) => {
                        let DataIn::Buf(mut last) = std::mem::replace(&mut data, DataIn::None) else { return };
                        last.truncate(len);
                        let digest = digest_of(&framing, [&last[..]]);
                        batch.push_buf(last);
                        digest
                    }
                    DataIn::Zeroes(_) => {
                        batch.push_zeroes(len);
                        digest_of(&framing, [crate::sys::tx::zeroes(len)])
                    }
                    DataIn::None | DataIn::Bytes(_) | DataIn::Lent(_) => unreachable!("it is in a buffer by now"),
                };
                push_suffix(batch, &framing, pdu.len, digest);
            });
            if pushed.await.is_err() {
                break;
            }
        }
        // What an abort has left of it.
        if let DataIn::Buf(rest) = data {
            self.conn.tx.drop_reserved(rest);
        }
    }
}
